//! What an engine is.

use crate::crypto::{Cipher, Key, KeyError};
use crate::erasure::{Codec, ErasureError, MatrixKind};
use crate::operation::Operation;
use crate::software::Software;

/// What an engine says of one operation that it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The operation.
    pub operation: Operation,
    /// Algorithms and their variants, by name; empty where there is only one way to do it.
    pub algorithms: &'static [&'static str],
    /// Limits, by name.
    pub limits: &'static [(&'static str, u64)],
    /// Whether a device does it, so that the core is free meanwhile.
    pub hardware: bool,
    /// What does it: a library, a kernel of this processor, a device.
    pub implementation: &'static str,
}

/// Computes. One engine does an operation or does not: [`capabilities`](Engine::capabilities) says which, and nobody calls it for
/// others; what an engine leaves out is done as by [`Software`]. Every method does its work before it returns. Slices that belong
/// together are of one length: callers see to it.
pub trait Engine: Send + Sync {
    /// Name of the module, as RPC clients know it.
    fn name(&self) -> &'static str;

    /// The operations that it does. Constant for an engine.
    fn capabilities(&self) -> Vec<Capability>;

    /// Copies `src` to `dst`.
    fn copy(&self, dst: &mut [u8], src: &[u8]) {
        Software.copy(dst, src);
    }

    /// Sets every byte of `dst`.
    fn fill(&self, dst: &mut [u8], byte: u8) {
        Software.fill(dst, byte);
    }

    /// Whether `a` and `b` hold the same.
    fn compare(&self, a: &[u8], b: &[u8]) -> bool {
        Software.compare(a, b)
    }

    /// Adds (XOR) `src` to `dst`.
    fn xor(&self, dst: &mut [u8], src: &[u8]) {
        Software.xor(dst, src);
    }

    /// CRC-32C of what `crc` is that of, and `data` after it. That of nothing is 0.
    fn crc32c(&self, crc: u32, data: &[u8]) -> u32 {
        Software.crc32c(crc, data)
    }

    /// CRC-64/NVME, likewise.
    fn crc64_nvme(&self, crc: u64, data: &[u8]) -> u64 {
        Software.crc64_nvme(crc, data)
    }

    /// CRC-16/T10-DIF, likewise.
    fn crc16_t10dif(&self, crc: u16, data: &[u8]) -> u16 {
        Software.crc16_t10dif(crc, data)
    }

    /// Prepares a key for one core.
    ///
    /// # Errors
    /// The engine does not do the key's cipher, size or tweak mode.
    fn cipher(&self, key: &Key) -> Result<Box<dyn Cipher>, KeyError> {
        Software.cipher(key)
    }

    /// Prepares an erasure code.
    ///
    /// # Errors
    /// As [`Codec::new`].
    fn codec(&self, kind: MatrixKind, data: usize, parity: usize) -> Result<Codec, ErasureError> {
        Software.codec(kind, data, parity)
    }
}
