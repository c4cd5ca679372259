//! Coefficients prepared for the kernels, once, when a codec or decoder is made.

use crate::gf;

/// A coefficient for each pair of an output and a source.
#[derive(Debug, Clone)]
pub(super) struct Coefficients {
    outputs: usize,
    values: Box<[u8]>,
    #[cfg(target_arch = "x86_64")]
    affine: Box<[u64]>,
    nibbles: Box<[[u8; 32]]>,
    #[cfg(feature = "isal")]
    isal: isal::Tables,
}

/// The coefficients of one source after the other; `outputs` entries each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a> {
    /// Outputs.
    pub(super) outputs: usize,
    /// The coefficients themselves.
    pub(super) values: &'a [u8],
    /// Multiplication by the coefficient as a matrix of bits, in the order of `GF2P8AFFINEQB`.
    #[cfg(target_arch = "x86_64")]
    pub(super) affine: &'a [u64],
    /// Products of the coefficient with 0 to 15, then with 0x00, 0x10 to 0xf0.
    pub(super) nibbles: &'a [[u8; 32]],
    /// ISA-L's tables.
    #[cfg(feature = "isal")]
    pub(super) isal: &'a [u8],
}

impl Coefficients {
    /// Prepares `coefficient(output, source)` of all pairs.
    pub(super) fn new(outputs: usize, sources: usize, mut coefficient: impl FnMut(usize, usize) -> u8) -> Self {
        let values: Box<[u8]> = (0..sources * outputs).map(|at| coefficient(at % outputs, at / outputs)).collect();
        #[cfg(target_arch = "x86_64")]
        let affine = values.iter().map(|&c| affine(c)).collect();
        let nibbles = values.iter().map(|&c| nibbles(c)).collect();
        #[cfg(feature = "isal")]
        let isal = isal::Tables::new(outputs, &values);
        Self {
            outputs,
            values,
            #[cfg(target_arch = "x86_64")]
            affine,
            nibbles,
            #[cfg(feature = "isal")]
            isal,
        }
    }

    pub(super) fn value(&self, output: usize, source: usize) -> u8 {
        self.values[source * self.outputs + output]
    }

    /// Of all sources.
    pub(super) fn all(&self) -> Columns<'_> {
        Columns {
            outputs: self.outputs,
            values: &self.values,
            #[cfg(target_arch = "x86_64")]
            affine: &self.affine,
            nibbles: &self.nibbles,
            #[cfg(feature = "isal")]
            isal: &self.isal.all,
        }
    }

    /// Of one source.
    pub(super) fn source(&self, source: usize) -> Columns<'_> {
        let at = source * self.outputs..(source + 1) * self.outputs;
        Columns {
            outputs: self.outputs,
            values: &self.values[at.clone()],
            #[cfg(target_arch = "x86_64")]
            affine: &self.affine[at.clone()],
            nibbles: &self.nibbles[at],
            #[cfg(feature = "isal")]
            isal: &self.isal.each[source],
        }
    }
}

#[cfg(feature = "isal")]
mod isal {
    use super::super::kernels::isal::tables;

    #[derive(Debug, Clone)]
    pub(super) struct Tables {
        /// For all sources together.
        pub(super) all: Box<[u8]>,
        /// For each source alone.
        pub(super) each: Box<[Box<[u8]>]>,
    }

    impl Tables {
        pub(super) fn new(outputs: usize, values: &[u8]) -> Self {
            let by_output = (0..outputs).flat_map(|i| values.iter().skip(i).step_by(outputs)).copied().collect();
            let each = values.chunks_exact(outputs).map(|column| tables(outputs, column.to_vec()));
            Self { all: tables(outputs, by_output), each: each.collect() }
        }
    }
}

/// Byte `7 - i` says which bits of the operand sum up to bit `i` of the product.
#[cfg(target_arch = "x86_64")]
fn affine(c: u8) -> u64 {
    let mut matrix = 0;
    for bit in 0..8 {
        let product = gf::mul(c, 1 << bit);
        for i in 0..8 {
            matrix |= u64::from(product >> i & 1) << ((7 - i) * 8 + bit);
        }
    }
    matrix
}

fn nibbles(c: u8) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { gf::mul(c, i as u8) } else { gf::mul(c, (i as u8 - 16) << 4) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn matrices_of_bits_multiply_as_the_field_does() {
        for c in 0..=255u8 {
            let m = affine(c).to_be_bytes();
            for x in 0..=255u8 {
                let bits = (0..8).fold(0, |p, i| p | (((m[i] & x).count_ones() as u8 & 1) << i));
                assert_eq!(bits, gf::mul(c, x), "{c} * {x}");
            }
        }
    }

    #[test]
    fn tables_of_halves_multiply_as_the_field_does() {
        for c in 0..=255u8 {
            let n = nibbles(c);
            for x in 0..=255u8 {
                assert_eq!(n[usize::from(x & 15)] ^ n[usize::from(16 + (x >> 4))], gf::mul(c, x), "{c} * {x}");
            }
        }
    }
}
