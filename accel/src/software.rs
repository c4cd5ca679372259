//! The engine that is always there: the processor itself.

use crc_fast::{CrcAlgorithm, Digest};

use crate::crypto::{Cipher, Key, KeyError, Xts};
use crate::engine::{Capability, Engine};
use crate::erasure::{Codec, ErasureError, Kernel, MatrixKind, xor_into};
use crate::operation::Operation;

/// Does everything on the calling core.
#[derive(Debug, Default)]
pub struct Software;

/// CRC of what `crc` is that of, and `data`. crc-fast's state is the register before the final XOR.
fn crc(algorithm: CrcAlgorithm, crc: u64, xor_out: u64, data: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(algorithm, crc ^ xor_out);
    digest.update(data);
    digest.finalize()
}

/// Operation, algorithms, limits, implementation.
type Row = (Operation, &'static [&'static str], &'static [(&'static str, u64)], &'static str);

pub(crate) const ERASURE_LIMITS: &[(&str, u64)] = &[("data_chunks_max", 32), ("parity_chunks_max", 8)];
pub(crate) const MATRICES: &[&str] = &["cauchy", "vandermonde"];
const CRYPTO: &[&str] = &["AES_XTS_128", "AES_XTS_256"];
const CRYPTO_LIMITS: &[(&str, u64)] =
    &[("block_multiple_bytes", 16), ("block_max_bytes", crate::crypto::MAX_UNIT as u64)];

impl Engine for Software {
    fn name(&self) -> &'static str {
        "software"
    }

    fn capabilities(&self) -> Vec<Capability> {
        use Operation::*;
        let kernel = Kernel::best().name();
        let rows: [Row; 14] = [
            (Copy, &[], &[], "memcpy"),
            (Fill, &[], &[], "memset"),
            (Dualcast, &[], &[], "memcpy"),
            (Compare, &[], &[], "memcmp"),
            (Crc32c, &[], &[], "crc-fast"),
            (CopyCrc32c, &[], &[], "crc-fast"),
            (Encrypt, CRYPTO, CRYPTO_LIMITS, "AWS-LC"),
            (Decrypt, CRYPTO, CRYPTO_LIMITS, "AWS-LC"),
            (Xor, &[], &[], kernel),
            (Crc64Nvme, &[], &[], "crc-fast"),
            (Crc16T10Dif, &[], &[], "crc-fast"),
            (EcEncode, MATRICES, ERASURE_LIMITS, kernel),
            (EcDecode, MATRICES, ERASURE_LIMITS, kernel),
            (EcUpdate, MATRICES, ERASURE_LIMITS, kernel),
        ];
        rows.map(|(operation, algorithms, limits, implementation)| Capability {
            operation,
            algorithms,
            limits,
            hardware: false,
            implementation,
        })
        .into()
    }

    fn copy(&self, dst: &mut [u8], src: &[u8]) {
        dst.copy_from_slice(src);
    }

    fn fill(&self, dst: &mut [u8], byte: u8) {
        dst.fill(byte);
    }

    fn compare(&self, a: &[u8], b: &[u8]) -> bool {
        a == b
    }

    fn xor(&self, dst: &mut [u8], src: &[u8]) {
        xor_into(dst, src);
    }

    fn crc32c(&self, so_far: u32, data: &[u8]) -> u32 {
        crc(CrcAlgorithm::Crc32Iscsi, so_far.into(), u32::MAX.into(), data) as u32
    }

    fn crc64_nvme(&self, so_far: u64, data: &[u8]) -> u64 {
        crc(CrcAlgorithm::Crc64Nvme, so_far, u64::MAX, data)
    }

    fn crc16_t10dif(&self, so_far: u16, data: &[u8]) -> u16 {
        crc(CrcAlgorithm::Crc16T10Dif, so_far.into(), 0, data) as u16
    }

    fn cipher(&self, key: &Key) -> Result<Box<dyn Cipher>, KeyError> {
        Ok(Box::new(Xts::new(key)?))
    }

    fn codec(&self, kind: MatrixKind, data: usize, parity: usize) -> Result<Codec, ErasureError> {
        Codec::new(kind, data, parity)
    }
}
