//! Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), generator 2.

/// The field's polynomial.
pub const POLYNOMIAL: u16 = 0x11d;

const fn tables() -> ([u8; 256], [u8; 512]) {
    let (mut log, mut exp) = ([0u8; 256], [0u8; 512]);
    let mut x: u16 = 1;
    let mut i = 0;
    while i < 255 {
        exp[i] = x as u8;
        exp[i + 255] = x as u8;
        log[x as usize] = i as u8;
        x <<= 1;
        if x & 0x100 != 0 {
            x ^= POLYNOMIAL;
        }
        i += 1;
    }
    (log, exp)
}

const TABLES: ([u8; 256], [u8; 512]) = tables();

/// The product of `a` and `b`.
#[inline]
pub const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    TABLES.1[TABLES.0[a as usize] as usize + TABLES.0[b as usize] as usize]
}

/// The inverse of `a`; `None` for 0, which has none.
pub const fn inverse(a: u8) -> Option<u8> {
    if a == 0 { None } else { Some(TABLES.1[255 - TABLES.0[a as usize] as usize]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by the definition: shift and reduce.
    fn slow(a: u8, b: u8) -> u8 {
        let (mut a, mut b, mut p) = (u16::from(a), b, 0u16);
        while b != 0 {
            if b & 1 != 0 {
                p ^= a;
            }
            a <<= 1;
            if a & 0x100 != 0 {
                a ^= POLYNOMIAL;
            }
            b >>= 1;
        }
        p as u8
    }

    #[test]
    fn products_and_inverses_are_those_of_the_field() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                assert_eq!(mul(a, b), slow(a, b), "{a} * {b}");
            }
            assert_eq!(inverse(a).map(|i| mul(a, i)), (a != 0).then_some(1));
        }
    }
}
