//! One key.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::secret::Secret;
use super::tweak::TweakMode;

/// Bytes of a key's name at most.
pub const MAX_NAME: usize = 255;

/// Why a key cannot be had. Says nothing of what the key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// A name of no or too many bytes.
    Name(usize),
    /// Text that is not an even number of hexadecimal digits; which half.
    NotHex(&'static str),
    /// The halves are not both of 16 or both of 32 bytes.
    Size(usize, usize),
    /// Both halves are equal: AES-XTS would not hide what it should.
    EqualHalves,
    /// Blocks of so many bytes cannot be encrypted in this tweak mode.
    BlockSize(usize, TweakMode),
    /// The library or the system refused.
    Refused(&'static str),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Name(0) => f.write_str("a key needs a name"),
            KeyError::Name(n) => write!(f, "a key's name has {MAX_NAME} bytes at most, not {n}"),
            KeyError::NotHex(which) => write!(f, "'{which}' is not pairs of hexadecimal digits"),
            KeyError::Size(a, b) => write!(
                f,
                "AES_XTS takes two keys of 16 bytes each (AES-128) or of 32 bytes each (AES-256), not {a} and {b} bytes"
            ),
            KeyError::EqualHalves => {
                f.write_str("'key' and 'key2' are equal, which is not secure: AES_XTS needs two different ones")
            }
            KeyError::BlockSize(size, mode) => {
                let multiple = if mode.unit(*size) == 512 && *size != 512 { 512 } else { 16 };
                write!(
                    f,
                    "blocks of {size} bytes cannot be encrypted with tweak mode {}: it takes multiples of {multiple} bytes",
                    mode.name()
                )
            }
            KeyError::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for KeyError {}

/// What a key is made of.
pub struct KeySpec {
    /// Name, by which devices find it.
    pub name: String,
    /// How tweaks follow from block numbers.
    pub tweak: TweakMode,
    /// Both halves, the one for data first: 32 or 64 bytes.
    pub material: Zeroizing<Vec<u8>>,
    /// The file that it came from, if it can be had from there again.
    pub file: Option<PathBuf>,
}

/// A key of AES-XTS: one for the data, another for the tweaks. Its material never leaves it but to a [`Cipher`](super::Cipher).
pub struct Key {
    name: String,
    tweak: TweakMode,
    material: Secret,
    file: Option<PathBuf>,
}

/// Shows all but the material.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("bits", &self.bits()).finish_non_exhaustive()
    }
}

/// The value of one hexadecimal digit.
fn digit(c: u8) -> Option<u8> {
    Some(match c {
        b'0'..=b'9' => c - b'0',
        b'a'..=b'f' => c - b'a' + 10,
        b'A'..=b'F' => c - b'A' + 10,
        _ => return None,
    })
}

/// Equality in a time that does not depend on where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

impl KeySpec {
    /// Both halves from hexadecimal digits.
    ///
    /// # Errors
    /// They are not, or not of one length.
    pub fn material_from_hex(key: &str, key2: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if key.len() != key2.len() {
            return Err(KeyError::Size(key.len() / 2, key2.len() / 2));
        }
        let mut out = Zeroizing::new(Vec::with_capacity(key.len()));
        for (which, text) in [("key", key), ("key2", key2)] {
            let pairs = text.as_bytes().chunks(2);
            for pair in pairs {
                let [high, low] = *pair else { return Err(KeyError::NotHex(which)) };
                match (digit(high), digit(low)) {
                    (Some(high), Some(low)) => out.push(high << 4 | low),
                    _ => return Err(KeyError::NotHex(which)),
                }
            }
        }
        Ok(out)
    }
}

impl Key {
    /// A key from what it is made of.
    ///
    /// # Errors
    /// Its name or size is wrong, or both halves are equal.
    pub fn new(spec: KeySpec) -> Result<Key, KeyError> {
        if !(1..=MAX_NAME).contains(&spec.name.len()) {
            return Err(KeyError::Name(spec.name.len()));
        }
        let bytes = &spec.material;
        if !matches!(bytes.len(), 32 | 64) {
            return Err(KeyError::Size(bytes.len() / 2, bytes.len().div_ceil(2)));
        }
        let (data, tweak) = bytes.split_at(bytes.len() / 2);
        if equal(data, tweak) {
            return Err(KeyError::EqualHalves);
        }
        let material = Secret::new(bytes).map_err(|_| KeyError::Refused("no memory for the key"))?;
        Ok(Key { name: spec.name, tweak: spec.tweak, material, file: spec.file })
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How tweaks follow from block numbers.
    pub fn tweak(&self) -> TweakMode {
        self.tweak
    }

    /// The file that it came from.
    pub fn file(&self) -> Option<&std::path::Path> {
        self.file.as_deref()
    }

    /// Bits of the AES key for data: 128 or 256.
    pub fn bits(&self) -> usize {
        self.material.expose().len() * 4
    }

    /// Both halves, for engines.
    pub fn expose(&self) -> &[u8] {
        self.material.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(material: &[u8]) -> KeySpec {
        KeySpec {
            name: "k".into(),
            tweak: TweakMode::SimpleLba,
            material: Zeroizing::new(material.to_vec()),
            file: None,
        }
    }

    #[test]
    fn equal_halves_and_odd_sizes_are_refused() {
        assert_eq!(Key::new(spec(&[1; 64])).unwrap_err(), KeyError::EqualHalves);
        for n in [0, 16, 31, 33, 48, 65, 128] {
            let bytes: Vec<u8> = (0..n).collect();
            assert!(matches!(Key::new(spec(&bytes)), Err(KeyError::Size(..))), "{n}");
        }
        let mut bytes = [1; 32];
        bytes[31] = 2;
        assert_eq!(Key::new(spec(&bytes)).unwrap().bits(), 128);
        assert_eq!(Key::new(KeySpec { name: String::new(), ..spec(&bytes) }).unwrap_err(), KeyError::Name(0));
    }

    #[test]
    fn hexadecimal_text_is_checked_and_never_repeated() {
        let good =
            KeySpec::material_from_hex("00112233445566778899AABBCCDDEEFF", "ffeeddccbbaa99887766554433221100").unwrap();
        assert_eq!((good[1], good[10], good[16], good.len()), (0x11, 0xaa, 0xff, 32));
        for (key, key2) in [("0g", "00"), ("000", "000"), ("00", "zz"), ("00", "0000"), ("é", "ab")] {
            let error = KeySpec::material_from_hex(key, key2).unwrap_err().to_string();
            assert!(!error.contains("0g") && !error.contains("zz") && !error.contains("000"), "{error}");
        }
    }

    #[test]
    fn nothing_shows_the_material() {
        let mut bytes = [0x5a; 64];
        bytes[0] = 0xa5;
        let shown = format!("{:?}", Key::new(spec(&bytes)).unwrap());
        assert_eq!(shown, "Key { name: \"k\", bits: 256, .. }");
    }
}
