//! What tests of the erasure code share.
#![allow(dead_code)] // no test uses all of it

use longshore_accel::erasure::{Codec, MAX_DATA, MAX_PARITY, MatrixKind};

/// Both matrices.
pub(crate) const KINDS: [MatrixKind; 2] = [MatrixKind::Cauchy, MatrixKind::Vandermonde];

/// A generator of numbers: SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// `n` different numbers below `of`, in no order.
    pub(crate) fn choose(&mut self, of: usize, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..of).collect();
        for i in 0..n {
            let j = i + self.below(of - i);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }
}

/// Chunks as slices.
pub(crate) fn slices(chunks: &[Vec<u8>]) -> Vec<&[u8]> {
    chunks.iter().map(|c| &c[..]).collect()
}

/// Chunks as slices to write to.
pub(crate) fn slices_mut(chunks: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    chunks.iter_mut().map(|c| &mut c[..]).collect()
}

/// Every code there is, with data chunks to encode.
pub(crate) fn vectors() -> impl Iterator<Item = (MatrixKind, usize, usize, Vec<Vec<u8>>)> {
    let codes = KINDS
        .into_iter()
        .flat_map(|kind| (1..=MAX_DATA).flat_map(move |k| (1..=MAX_PARITY).map(move |m| (kind, k, m))));
    codes.filter(|&(kind, k, m)| Codec::new(kind, k, m).is_ok()).map(|(kind, k, m)| {
        let mut random = Random((k * 256 + m) as u64);
        (kind, k, m, (0..k).map(|_| random.bytes(61 + k)).collect())
    })
}

/// FNV-1a over all bytes of all chunks.
pub(crate) fn fingerprint(chunks: &[Vec<u8>]) -> u64 {
    chunks.iter().flatten().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
