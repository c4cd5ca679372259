//! The structures on a member: superblock, journal record, page of a bitmap.
//!
//! Everything is little-endian. The last four bytes of each structure are the CRC32C of all its bytes before them, whatever its
//! version: a reader knows damage from what a newer version wrote. `docs/format-ec.md` has every field.

mod page;
mod record;
mod superblock;

pub use page::{MAX_SEQUENCE, PAGE_BITS_BYTES, PageHeader, PageKind, bit, newest, set_bit};
pub use record::{RECORD_BYTES, RecordHeader, payload_checksum};
pub use superblock::{
    FIRST_EPOCH, FORMAT_VERSION, Features, MATRIX_CAUCHY, MAX_EPOCH, MemberEntry, MemberState, NAME_BYTES, Rebuild,
    RebuildMode, Stamp, Superblock,
};

use super::layout::LayoutError;
use std::fmt;
use uuid::Uuid;

/// Why bytes are not the structure that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    Short {
        /// Bytes wanted.
        want: usize,
        /// Bytes there.
        have: usize,
    },
    /// Zeroes only: nothing was written here.
    Blank,
    /// Something else is here: it does not begin with the magic number.
    Foreign {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// The magic number is there but the checksum is wrong: damaged, or half written.
    Checksum {
        /// Checksum found.
        stored: u32,
        /// Checksum of the bytes found.
        computed: u32,
    },
    /// Whole, but of a version that this build does not know.
    Version {
        /// Version found.
        found: u32,
    },
    /// Whole, but uses features without which it cannot be understood.
    Incompatible {
        /// The features, by name or bit.
        features: String,
    },
    /// Whole, but uses features without which it cannot be written.
    ReadOnly {
        /// The features, by name or bit.
        features: String,
    },
    /// Whole, but a field has a value that it cannot have.
    Field {
        /// The field.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: String,
    },
    /// Whole, but it belongs to another array, member, place or session.
    Elsewhere {
        /// The field that says so.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it had to be.
        expected: String,
    },
}

impl FormatError {
    /// Whether the bytes are whole and of a writer that knows more than this build: never to be overwritten, nor to be taken for
    /// older content that lies beside them.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, FormatError::Version { .. } | FormatError::Incompatible { .. } | FormatError::ReadOnly { .. })
    }
}

impl From<LayoutError> for FormatError {
    fn from(e: LayoutError) -> FormatError {
        FormatError::Field { name: e.field, value: e.value, rule: e.rule }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::Short { want, have } => write!(f, "{have} bytes where {want} are needed"),
            FormatError::Blank => write!(f, "nothing written"),
            FormatError::Foreign { found } => write!(f, "not an array's: begins with {}", found.escape_ascii()),
            FormatError::Checksum { stored, computed } => {
                write!(f, "torn or damaged: checksum {stored:08x}, content has {computed:08x}")
            }
            FormatError::Version { found } => {
                write!(f, "format version {found}: this build knows version {FORMAT_VERSION} only")
            }
            FormatError::Incompatible { features } => write!(f, "needs features that this build lacks: {features}"),
            FormatError::ReadOnly { features } => {
                write!(f, "may only be read, because this build lacks features: {features}")
            }
            FormatError::Field { name, value, rule } => write!(f, "{name} is {value}: {rule}"),
            FormatError::Elsewhere { name, found, expected } => write!(f, "{name} is {found}, not {expected}"),
        }
    }
}

impl std::error::Error for FormatError {}

fn field<T>(name: &'static str, value: impl TryInto<u64>, rule: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError::Field { name, value: value.try_into().unwrap_or(u64::MAX), rule: rule.into() })
}

fn elsewhere<T>(name: &'static str, found: impl fmt::Display, expected: impl fmt::Display) -> Result<T, FormatError> {
    Err(FormatError::Elsewhere { name, found: found.to_string(), expected: expected.to_string() })
}

/// CRC32C (Castagnoli), as iSCSI has it.
fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Puts the checksum in the last four bytes.
fn seal(bytes: &mut [u8]) {
    let at = bytes.len() - 4;
    let crc = crc32c(&bytes[..at]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
}

/// The first `N` of `bytes`, if they begin with `magic` and their checksum is right.
fn open<'a, const N: usize>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<&'a [u8; N], FormatError> {
    let Some(bytes) = bytes.first_chunk::<N>() else {
        return Err(FormatError::Short { want: N, have: bytes.len() });
    };
    if !bytes.starts_with(magic) {
        if bytes.iter().all(|&b| b == 0) {
            return Err(FormatError::Blank);
        }
        return Err(FormatError::Foreign { found: array(bytes, 0) });
    }
    let (stored, computed) = (u32_at(bytes, N - 4), crc32c(&bytes[..N - 4]));
    if stored != computed {
        return Err(FormatError::Checksum { stored, computed });
    }
    Ok(bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(array(bytes, at))
}

/// Writes fields one after the other.
struct Out<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }

    fn u16(&mut self, v: u16) -> &mut Self {
        self.put(&v.to_le_bytes())
    }

    fn u32(&mut self, v: u32) -> &mut Self {
        self.put(&v.to_le_bytes())
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.put(&v.to_le_bytes())
    }

    fn uuid(&mut self, v: Uuid) -> &mut Self {
        self.put(v.as_bytes())
    }
}
