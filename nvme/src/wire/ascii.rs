//! Text fields: Base Specification, "Numerical Descriptions" (ASCII strings) and "NVMe Qualified Names".

use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `text` left justified and padded with spaces, as serial number, model and the transport address are; cut at `N`
/// bytes, and whatever is not printable ASCII becomes a question mark.
pub fn space_padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    for (o, b) in out.iter_mut().zip(text.bytes()) {
        *o = if (0x20..0x7f).contains(&b) { b } else { b'?' };
    }
    out
}

/// The text of a space padded (or zero padded) field; an empty string if it is not UTF-8.
pub fn trimmed(field: &[u8]) -> &str {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).unwrap_or("").trim_end_matches(' ')
}

/// The discovery service's well-known NQN.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Longest NQN in bytes.
pub const NQN_MAX_LEN: usize = 223;

/// A 256-byte field that holds a NUL terminated NVMe Qualified Name.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct NqnField(pub [u8; 256]);
const _: () = assert!(size_of::<NqnField>() == 256);

impl NqnField {
    /// The field holding `nqn`; `None` if it is longer than [`NQN_MAX_LEN`] or contains a NUL.
    pub fn new(nqn: &str) -> Option<Self> {
        if nqn.len() > NQN_MAX_LEN || nqn.bytes().any(|b| b == 0) {
            return None;
        }
        let mut field = [0; 256];
        field[..nqn.len()].copy_from_slice(nqn.as_bytes());
        Some(NqnField(field))
    }

    /// The text before the first NUL; `None` if there is no NUL within the field, more than [`NQN_MAX_LEN`] bytes
    /// precede it, or they are not UTF-8. An empty field gives an empty string.
    pub fn get(&self) -> Option<&str> {
        let end = self.0.iter().position(|&b| b == 0)?;
        if end > NQN_MAX_LEN {
            return None;
        }
        std::str::from_utf8(&self.0[..end]).ok()
    }
}

impl Default for NqnField {
    fn default() -> Self {
        NqnField([0; 256])
    }
}

impl fmt::Debug for NqnField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(nqn) => write!(f, "{nqn:?}"),
            None => f.write_str("<not an NQN>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_cuts_and_replaces() {
        assert_eq!(&space_padded::<6>("ab\n"), b"ab?   ");
        assert_eq!(&space_padded::<2>("abc"), b"ab");
        assert_eq!(trimmed(b"ab  \0\0"), "ab");
        assert_eq!(trimmed(&[0xff, 0xfe]), "");
    }

    #[test]
    fn nqn_needs_its_terminator_and_length() {
        assert_eq!(NqnField::new(DISCOVERY_NQN).unwrap().get(), Some(DISCOVERY_NQN));
        assert_eq!(NqnField([b'a'; 256]).get(), None);
        let mut long = [b'a'; 256];
        long[224] = 0;
        assert_eq!(NqnField(long).get(), None);
        long[223] = 0;
        assert_eq!(NqnField(long).get().unwrap().len(), 223);
        assert!(NqnField::new(&"a".repeat(224)).is_none());
        assert_eq!(NqnField::default().get(), Some(""));
    }
}
