use std::fmt;

use super::{Kernel, MAX_DATA, MAX_PARITY, MatrixKind};

/// Why there is no codec or decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErasureError {
    /// The numbers of chunks are out of range.
    Geometry {
        /// Data chunks asked for.
        data: usize,
        /// Parity chunks asked for.
        parity: usize,
    },
    /// With this matrix some patterns of as many losses as there are parity chunks cannot be rebuilt.
    NotMds {
        /// The matrix.
        kind: MatrixKind,
        /// Data chunks asked for.
        data: usize,
        /// Parity chunks asked for.
        parity: usize,
    },
    /// A chunk number is not below the number of chunks.
    NoSuchChunk {
        /// The chunk number.
        chunk: usize,
        /// Number of chunks, data and parity.
        chunks: usize,
    },
    /// A chunk is named twice, or both as lost and as available.
    NamedTwice {
        /// The chunk number.
        chunk: usize,
    },
    /// No chunk is named as lost.
    NothingLost,
    /// Fewer chunks are available than there are data chunks.
    TooFew {
        /// Chunks available.
        available: usize,
        /// Chunks needed.
        needed: usize,
    },
    /// The available chunks do not determine the lost ones.
    Singular,
    /// The processor lacks the instructions of this kernel.
    KernelUnavailable(Kernel),
}

impl fmt::Display for ErasureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Geometry { data, parity } => {
                write!(f, "{data} data and {parity} parity chunks: must be 1 to {MAX_DATA} and 1 to {MAX_PARITY}")
            }
            Self::NotMds { kind, data, parity } => write!(
                f,
                "a {kind} matrix of {data} data and {parity} parity chunks does not survive every loss of {parity} chunks: use cauchy"
            ),
            Self::NoSuchChunk { chunk, chunks } => write!(f, "chunk {chunk} does not exist: there are {chunks}"),
            Self::NamedTwice { chunk } => write!(f, "chunk {chunk} is named twice"),
            Self::NothingLost => f.write_str("no chunk is named as lost"),
            Self::TooFew { available, needed } => write!(f, "{available} chunks available where {needed} are needed"),
            Self::Singular => f.write_str("the available chunks do not determine the lost ones"),
            Self::KernelUnavailable(kernel) => write!(f, "this processor cannot run the kernel {kernel}"),
        }
    }
}

impl std::error::Error for ErasureError {}
