//! GFNI on vectors of 32 bytes, for processors without AVX-512.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::super::coefficients::Columns;
use super::lanes::{Lanes, entry_points};

struct Ymm;

entry_points!(Ymm, "avx2,gfni", [1 => 4, 2 => 4, 3 => 2, 4 => 2, 5 => 2, 6 => 1, 7 => 1, 8 => 1]);

// SAFETY: accesses only what the trait allows: full vectors.
unsafe impl Lanes for Ymm {
    const WIDTH: usize = 32;
    type Vector = __m256i;
    type Operand = __m256i;
    type Table = u64;
    type Factor = __m256i;

    #[inline(always)]
    fn tables<'a>(columns: &Columns<'a>) -> &'a [u64] {
        columns.affine
    }

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: 32 bytes may be read; the processor has AVX2.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, v: __m256i) {
        // SAFETY: 32 bytes may be written; the processor has AVX2.
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }

    #[inline(always)]
    unsafe fn factor(table: &u64) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_set1_epi64x(*table as i64) }
    }

    #[inline(always)]
    unsafe fn operand(v: __m256i) -> __m256i {
        v
    }

    #[inline(always)]
    unsafe fn add_product(sum: __m256i, x: __m256i, factor: __m256i) -> __m256i {
        // SAFETY: the processor has AVX2 and GFNI.
        unsafe { _mm256_xor_si256(sum, _mm256_gf2p8affine_epi64_epi8::<0>(x, factor)) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_xor_si256(a, b) }
    }
}
