//! An erasure code on one core, each of its operations by the engine that it is assigned to, and counted.

use std::rc::Rc;
use std::sync::Arc;

use crate::erasure::{Codec, Decoder, ErasureError, Kernel};
use crate::operation::Operation;
use crate::stats::Counting;

/// An erasure code for one core. What it does is counted: a job is a call, its bytes are those that are read.
pub struct Coder {
    encode: Arc<Codec>,
    update: Arc<Codec>,
    decode: Arc<Codec>,
    counting: Rc<Counting>,
}

fn bytes(chunks: &[&[u8]]) -> usize {
    chunks.first().map_or(0, |c| c.len() * chunks.len())
}

impl Coder {
    /// The three are of one geometry and matrix.
    pub(crate) fn new(encode: Arc<Codec>, update: Arc<Codec>, decode: Arc<Codec>, counting: Rc<Counting>) -> Coder {
        Coder { encode, update, decode, counting }
    }

    /// The code itself, by the kernel that encodes.
    pub fn codec(&self) -> &Codec {
        &self.encode
    }

    /// What runs an operation of the erasure code; `None` for others.
    pub fn kernel(&self, op: Operation) -> Option<Kernel> {
        match op {
            Operation::EcEncode => Some(self.encode.kernel()),
            Operation::EcUpdate => Some(self.update.kernel()),
            Operation::EcDecode => Some(self.decode.kernel()),
            _ => None,
        }
    }

    pub(crate) fn encoder(&self) -> &Arc<Codec> {
        &self.encode
    }

    pub(crate) fn updater(&self) -> &Arc<Codec> {
        &self.update
    }

    /// As [`Codec::encode`].
    #[inline]
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.encode.encode(data, parity);
        self.counting.count(Operation::EcEncode, bytes(data));
    }

    /// As [`Codec::update`].
    #[inline]
    pub fn update(&self, index: usize, delta: &[u8], parity: &mut [&mut [u8]]) {
        self.update.update(index, delta, parity);
        self.counting.count(Operation::EcUpdate, delta.len());
    }

    /// As [`Codec::decoder`].
    ///
    /// # Errors
    /// As [`Codec::decoder`].
    pub fn decoder(&self, lost: &[usize], available: &[usize]) -> Result<Rebuilder, ErasureError> {
        Ok(Rebuilder { decoder: Arc::new(self.decode.decoder(lost, available)?), counting: self.counting.clone() })
    }
}

/// Rebuilds one pattern of lost chunks, and counts.
pub struct Rebuilder {
    decoder: Arc<Decoder>,
    counting: Rc<Counting>,
}

impl Rebuilder {
    /// As [`Decoder::sources`].
    pub fn sources(&self) -> &[usize] {
        self.decoder.sources()
    }

    /// As [`Decoder::lost`].
    pub fn lost(&self) -> &[usize] {
        self.decoder.lost()
    }

    pub(crate) fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// As [`Decoder::decode`].
    #[inline]
    pub fn decode(&self, sources: &[&[u8]], out: &mut [&mut [u8]]) {
        self.decoder.decode(sources, out);
        self.counting.count(Operation::EcDecode, bytes(sources));
    }
}
