//! Encoding, updating and rebuilding.

use super::ErasureError;
use super::coefficients::Coefficients;
use super::kernels::{Kernel, Runnable};
use super::matrix::{MAX_DATA, MAX_PARITY, MatrixKind, Square, invert};

/// An erasure code of `k` data and `m` parity chunks, with everything prepared that encoding needs. Immutable: share it in an `Arc`.
#[derive(Debug, Clone)]
pub struct Codec {
    kind: MatrixKind,
    data: usize,
    parity: usize,
    coefficients: Coefficients,
    kernel: Runnable,
}

impl Codec {
    /// A code of `k` (1 to 32) data and `m` (1 to 8) parity chunks, run by the fastest kernel of this processor.
    ///
    /// Fails where a number is out of range, or where not every loss of `m` chunks could be rebuilt.
    pub fn new(kind: MatrixKind, k: usize, m: usize) -> Result<Self, ErasureError> {
        Self::with_kernel(kind, k, m, Kernel::best())
    }

    /// The same with a kernel of the caller's choice. Fails also where the processor cannot run it.
    pub fn with_kernel(kind: MatrixKind, k: usize, m: usize, kernel: Kernel) -> Result<Self, ErasureError> {
        if !(1..=MAX_DATA).contains(&k) || !(1..=MAX_PARITY).contains(&m) {
            return Err(ErasureError::Geometry { data: k, parity: m });
        }
        if !kind.is_mds(k, m) {
            return Err(ErasureError::NotMds { kind, data: k, parity: m });
        }
        let kernel = Runnable::new(kernel).ok_or(ErasureError::KernelUnavailable(kernel))?;
        let coefficients = Coefficients::new(m, k, |i, j| kind.coefficient(k, i, j));
        Ok(Self { kind, data: k, parity: m, coefficients, kernel })
    }

    /// The kind of matrix.
    pub fn kind(&self) -> MatrixKind {
        self.kind
    }

    /// Data chunks, `k`.
    pub fn data_chunks(&self) -> usize {
        self.data
    }

    /// Parity chunks, `m`.
    pub fn parity_chunks(&self) -> usize {
        self.parity
    }

    /// What runs this code.
    pub fn kernel(&self) -> Kernel {
        self.kernel.kernel()
    }

    /// The coefficient of data chunk `data` (below `k`) in parity chunk `parity` (below `m`).
    pub fn coefficient(&self, parity: usize, data: usize) -> u8 {
        assert!(
            parity < self.parity && data < self.data,
            "coefficient {parity}, {data} of {}+{}",
            self.data,
            self.parity
        );
        self.coefficients.value(parity, data)
    }

    /// Computes all `m` parity chunks of `k` data chunks. What `parity` held before does not matter.
    ///
    /// # Panics
    /// Where the number of chunks is not that of the code, or chunks differ in length.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.kernel.dot(self.coefficients.all(), data, parity, false);
    }

    /// Brings all `m` parity chunks up to date with data chunk `index`, of which `delta` is the sum (XOR) of its old and new contents.
    ///
    /// # Panics
    /// Where there is no such data chunk, the number of parity chunks is not that of the code, or chunks differ in length.
    pub fn update(&self, index: usize, delta: &[u8], parity: &mut [&mut [u8]]) {
        assert!(index < self.data, "data chunk {index} of {}", self.data);
        self.kernel.dot(self.coefficients.source(index), &[delta], parity, true);
    }

    /// Prepares to rebuild the chunks `lost` (numbers from 0 to `k + m - 1`, data first; any order) from `k` of the chunks `available`: data
    /// before parity, lower numbers first. Give exactly `k` to have those used. Chunks in neither list are not touched.
    ///
    /// Costs some microseconds and an allocation: keep the decoder while the pattern of losses stays the same.
    pub fn decoder(&self, lost: &[usize], available: &[usize]) -> Result<Decoder, ErasureError> {
        let (k, chunks) = (self.data, self.data + self.parity);
        let (mut is_available, mut is_named) = ([false; MAX_DATA + MAX_PARITY], [false; MAX_DATA + MAX_PARITY]);
        for (&chunk, lost) in lost.iter().map(|c| (c, true)).chain(available.iter().map(|c| (c, false))) {
            if chunk >= chunks {
                return Err(ErasureError::NoSuchChunk { chunk, chunks });
            }
            if std::mem::replace(&mut is_named[chunk], true) {
                return Err(ErasureError::NamedTwice { chunk });
            }
            is_available[chunk] = !lost;
        }
        if lost.is_empty() {
            return Err(ErasureError::NothingLost);
        }
        if available.len() < k {
            return Err(ErasureError::TooFew { available: available.len(), needed: k });
        }
        let sources: Vec<usize> = (0..chunks).filter(|&c| is_available[c]).take(k).collect();
        let missing: Vec<usize> = (0..k).filter(|&c| !is_available[c]).collect();
        let rows = self.missing_rows(&sources, &missing)?;
        let coefficients = Coefficients::new(lost.len(), k, |o, s| match lost[o] {
            chunk if chunk < k => missing.iter().position(|&m| m == chunk).map_or(0, |m| rows[m][s]),
            chunk => {
                // Parity of what is there, and of what is missing in terms of the sources.
                let parity = chunk - k;
                let there = if sources[s] < k { self.coefficients.value(parity, sources[s]) } else { 0 };
                let of_missing = missing
                    .iter()
                    .zip(&rows)
                    .map(|(&m, row)| crate::gf::mul(self.coefficients.value(parity, m), row[s]));
                of_missing.fold(there, |sum, x| sum ^ x)
            }
        });
        Ok(Decoder { lost: lost.into(), sources: sources.into(), coefficients, kernel: self.kernel })
    }

    /// Each missing data chunk as a sum over `sources`, whose parity chunks are as many as the missing ones.
    ///
    /// The parity chunks are P = A * missing + B * present, hence missing = A^-1 * (P + B * present).
    fn missing_rows(&self, sources: &[usize], missing: &[usize]) -> Result<Vec<[u8; MAX_DATA]>, ErasureError> {
        let present = sources.iter().filter(|&&c| c < self.data).count();
        let parity = &sources[present..];
        debug_assert_eq!(parity.len(), missing.len());
        let mut a = Square::default();
        for (i, &p) in parity.iter().enumerate() {
            for (j, &m) in missing.iter().enumerate() {
                a[i][j] = self.coefficients.value(p - self.data, m);
            }
        }
        let inverse = invert(a, missing.len()).ok_or(ErasureError::Singular)?;
        let mut rows = vec![[0; MAX_DATA]; missing.len()];
        for (row, inverse) in rows.iter_mut().zip(&inverse) {
            for (s, &source) in sources.iter().enumerate() {
                row[s] = match s.checked_sub(present) {
                    Some(i) => inverse[i],
                    None => parity.iter().zip(inverse).fold(0, |sum, (&p, &x)| {
                        sum ^ crate::gf::mul(x, self.coefficients.value(p - self.data, source))
                    }),
                };
            }
        }
        Ok(rows)
    }
}

/// Rebuilds one pattern of lost chunks.
#[derive(Debug, Clone)]
pub struct Decoder {
    lost: Box<[usize]>,
    sources: Box<[usize]>,
    coefficients: Coefficients,
    kernel: Runnable,
}

impl Decoder {
    /// The `k` chunks that [`Self::decode`] wants, in its order (ascending).
    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    /// The chunks that [`Self::decode`] rebuilds, in the order in which they were named.
    pub fn lost(&self) -> &[usize] {
        &self.lost
    }

    /// The coefficient of `sources()[source]` in the chunk `lost()[output]`.
    pub fn coefficient(&self, output: usize, source: usize) -> u8 {
        assert!(output < self.lost.len() && source < self.sources.len(), "coefficient {output}, {source}");
        self.coefficients.value(output, source)
    }

    /// Rebuilds the chunks [`Self::lost`] into `out` from the chunks [`Self::sources`].
    ///
    /// # Panics
    /// Where the number of chunks is another, or chunks differ in length.
    pub fn decode(&self, sources: &[&[u8]], out: &mut [&mut [u8]]) {
        self.kernel.dot(self.coefficients.all(), sources, out, false);
    }
}
