//! The coefficients of parity, and the inversion of small matrices.

use std::fmt;

use crate::gf;

/// Most data chunks of a code.
pub const MAX_DATA: usize = 32;
/// Most parity chunks of a code.
pub const MAX_PARITY: usize = 8;

/// How the coefficients of parity are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixKind {
    /// Parity `i`, data `j`: the inverse of `(k + i) ^ j`. Any `m` losses can be rebuilt, for every geometry. ISA-L's `gf_gen_cauchy1_matrix`.
    Cauchy,
    /// Parity `i`, data `j`: 2 to the power `i * j`. Only geometries where any `m` losses can be rebuilt are accepted. ISA-L's
    /// `gf_gen_rs_matrix`.
    Vandermonde,
}

impl MatrixKind {
    /// The number that stands for this kind on disks. Never changes.
    pub const fn id(self) -> u8 {
        match self {
            Self::Cauchy => 1,
            Self::Vandermonde => 2,
        }
    }

    /// The kind with this number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Cauchy),
            2 => Some(Self::Vandermonde),
            _ => None,
        }
    }

    /// Whether any `m` of the `k + m` chunks may be lost. Found exhaustively for Vandermonde: the tests repeat it.
    pub(super) const fn is_mds(self, k: usize, m: usize) -> bool {
        match self {
            Self::Cauchy => true,
            Self::Vandermonde => match m {
                0..=3 => true,
                4 => k <= 21,
                5 => k <= 5,
                _ => k <= 4,
            },
        }
    }

    /// The coefficient of data chunk `j` in parity chunk `i` of `k` data chunks.
    pub(super) fn coefficient(self, k: usize, i: usize, j: usize) -> u8 {
        match self {
            Self::Cauchy => gf::inverse(((k + i) ^ j) as u8).expect("k + i differs from j, which is below k"),
            Self::Vandermonde => (0..i * j).fold(1, |p, _| gf::mul(p, 2)),
        }
    }
}

impl fmt::Display for MatrixKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cauchy => "cauchy",
            Self::Vandermonde => "vandermonde",
        })
    }
}

/// A square matrix of up to [`MAX_PARITY`] rows: `rows[i][j]`.
pub(super) type Square = [[u8; MAX_PARITY]; MAX_PARITY];

/// The inverse of the first `n` rows and columns of `a`; `None` where there is none.
pub(super) fn invert(mut a: Square, n: usize) -> Option<Square> {
    let mut inv = Square::default();
    for (i, row) in inv.iter_mut().enumerate().take(n) {
        row[i] = 1;
    }
    for col in 0..n {
        let pivot = (col..n).find(|&r| a[r][col] != 0)?;
        a.swap(col, pivot);
        inv.swap(col, pivot);
        let scale = gf::inverse(a[col][col])?;
        for j in 0..n {
            a[col][j] = gf::mul(a[col][j], scale);
            inv[col][j] = gf::mul(inv[col][j], scale);
        }
        let (a_row, inv_row) = (a[col], inv[col]);
        for r in (0..n).filter(|&r| r != col) {
            let factor = a[r][col];
            for j in 0..n {
                a[r][j] ^= gf::mul(factor, a_row[j]);
                inv[r][j] ^= gf::mul(factor, inv_row[j]);
            }
        }
    }
    Some(inv)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `f` with every ascending choice of `n` of `0..of`, until it returns true; whether it did.
    fn any_choice(of: usize, n: usize, f: &mut impl FnMut(&[usize]) -> bool) -> bool {
        let mut c: Vec<usize> = (0..n).collect();
        loop {
            if f(&c) {
                return true;
            }
            let Some(i) = (0..n).rev().find(|&i| c[i] < of - n + i) else { return false };
            c[i] += 1;
            for j in i + 1..n {
                c[j] = c[j - 1] + 1;
            }
        }
    }

    /// Whether every square part of the parity matrix has an inverse: what it takes to rebuild every loss of `m` chunks.
    fn survives_everything(kind: MatrixKind, k: usize, m: usize) -> bool {
        !(1..=m.min(k)).any(|n| {
            any_choice(m, n, &mut |rows| {
                any_choice(k, n, &mut |cols| {
                    let mut a = Square::default();
                    for (i, &r) in rows.iter().enumerate() {
                        for (j, &c) in cols.iter().enumerate() {
                            a[i][j] = kind.coefficient(k, r, c);
                        }
                    }
                    invert(a, n).is_none()
                })
            })
        })
    }

    #[test]
    fn vandermonde_is_accepted_exactly_where_every_loss_can_be_rebuilt() {
        // A part of a matrix that survives everything does too, so the largest geometries speak for all.
        for (k, m) in [(32, 3), (21, 4), (5, 5), (4, 8)] {
            assert!(
                MatrixKind::Vandermonde.is_mds(k, m) && survives_everything(MatrixKind::Vandermonde, k, m),
                "{k}+{m}"
            );
        }
        for (k, m) in [(22, 4), (6, 5), (5, 6)] {
            assert!(
                !MatrixKind::Vandermonde.is_mds(k, m) && !survives_everything(MatrixKind::Vandermonde, k, m),
                "{k}+{m}"
            );
        }
    }

    #[test]
    fn cauchy_survives_every_loss() {
        for m in 1..=MAX_PARITY {
            for k in 1..=MAX_DATA {
                let parts = if m <= 2 || k + m <= 12 { m } else { 2 };
                assert!(MatrixKind::Cauchy.is_mds(k, m));
                assert!(survives_everything(MatrixKind::Cauchy, k, parts), "{k}+{m}");
            }
        }
        assert!(survives_everything(MatrixKind::Cauchy, 32, 3));
    }

    #[test]
    fn an_inverse_times_its_matrix_is_one_and_a_singular_matrix_has_none() {
        let mut a = Square::default();
        for (i, row) in a.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                *v = MatrixKind::Cauchy.coefficient(8, i, j);
            }
        }
        a[0][0] = 0; // a pivot must be looked for
        let inv = invert(a, MAX_PARITY).expect("an inverse");
        for (i, row) in a.iter().enumerate() {
            for j in 0..MAX_PARITY {
                let sum = row.iter().zip(&inv).fold(0, |s, (&x, inv)| s ^ gf::mul(x, inv[j]));
                assert_eq!(sum, u8::from(i == j), "row {i}, column {j}");
            }
        }
        a[5] = a[2];
        assert!(invert(a, MAX_PARITY).is_none());
    }

    #[test]
    fn ids_on_disks_are_fixed() {
        assert_eq!((MatrixKind::Cauchy.id(), MatrixKind::Vandermonde.id()), (1, 2));
        for id in 0..=255 {
            assert!(MatrixKind::from_id(id).is_none_or(|kind| kind.id() == id && (1..=2).contains(&id)));
        }
    }
}
