//! Header and data digests: CRC32C (NVMe/TCP Transport Specification, "PDU Header and Data Digests").

use crc_fast::{CrcAlgorithm, Digest};

/// CRC32C of `bytes`; on the wire it is sent little endian.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC32C over bytes that come in pieces. It is a few hundred bytes large: keep one per connection and reuse it.
#[derive(Clone)]
pub struct Crc32c(Digest);

impl Crc32c {
    /// The digest of no bytes.
    pub fn new() -> Self {
        Crc32c(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Appends `bytes`.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of what was appended since the last call (or the start), as it lies on the wire; starts over.
    #[inline]
    pub fn finish(&mut self) -> [u8; 4] {
        (self.0.finalize_reset() as u32).to_le_bytes()
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc32c({:#010x} over {} bytes)", self.0.finalize(), self.0.get_amount())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4 (iSCSI), whose CRC32C NVMe/TCP uses.
    #[test]
    fn known_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&up).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&down).to_le_bytes(), [0x5c, 0xdb, 0x3f, 0x11]);
    }

    #[test]
    fn pieces_equal_the_whole() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
        let mut d = Crc32c::new();
        for split in [0, 1, 7, 255, 256, 257, 4096, 5000] {
            d.update(&bytes[..split]);
            d.update(&bytes[split..]);
            assert_eq!(d.finish(), crc32c(&bytes).to_le_bytes(), "split at {split}");
        }
    }
}
