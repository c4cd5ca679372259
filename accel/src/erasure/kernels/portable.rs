//! For any processor: eight words of 64 bits at once, doubled in the field, and added where the coefficient has a bit.

use super::super::coefficients::Columns;
use super::super::matrix::MAX_PARITY;

const WORDS: usize = 8;
const BLOCK: usize = WORDS * 8;
type Block = [u64; WORDS];

pub(super) fn dot(columns: Columns<'_>, sources: &[&[u8]], outputs: &mut [&mut [u8]], accumulate: bool) {
    let len = outputs.first().map_or(0, |o| o.len());
    let mut at = 0;
    while at < len {
        let end = len.min(at + BLOCK);
        let mut sums = [[0u64; WORDS]; MAX_PARITY];
        let sums = &mut sums[..outputs.len()];
        if accumulate {
            for (sum, out) in sums.iter_mut().zip(outputs.iter()) {
                *sum = load(&out[at..end]);
            }
        }
        for (source, coefficients) in sources.iter().zip(columns.values.chunks_exact(columns.outputs)) {
            let mut x = load(&source[at..end]);
            for bit in 0..8 {
                for (sum, &c) in sums.iter_mut().zip(coefficients) {
                    let mask = 0u64.wrapping_sub(u64::from(c >> bit & 1));
                    for (sum, x) in sum.iter_mut().zip(&x) {
                        *sum ^= x & mask;
                    }
                }
                x = x.map(double);
            }
        }
        for (sum, out) in sums.iter().zip(outputs.iter_mut()) {
            store(sum, &mut out[at..end]);
        }
        at = end;
    }
}

pub(super) fn xor(dst: &mut [u8], src: &[u8]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d ^= s;
    }
}

/// Eight bytes times 2.
fn double(x: u64) -> u64 {
    const LOW_BITS: u64 = 0x0101_0101_0101_0101;
    let carried = (x >> 7) & LOW_BITS;
    ((x & (LOW_BITS * 0x7f)) << 1) ^ (carried * (crate::gf::POLYNOMIAL as u8 as u64))
}

/// Up to [`BLOCK`] bytes, zeroes behind.
fn load(bytes: &[u8]) -> Block {
    let mut padded = [0; BLOCK];
    padded[..bytes.len()].copy_from_slice(bytes);
    std::array::from_fn(|i| u64::from_ne_bytes(std::array::from_fn(|b| padded[i * 8 + b])))
}

fn store(block: &Block, out: &mut [u8]) {
    let mut bytes = [0; BLOCK];
    for (b, word) in bytes.chunks_exact_mut(8).zip(block) {
        b.copy_from_slice(&word.to_ne_bytes());
    }
    out.copy_from_slice(&bytes[..out.len()]);
}
