//! Vectors of 32 bytes without GFNI: a product is the sum of those of the operand's halves, each looked up by a shuffle.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::super::coefficients::Columns;
use super::lanes::{Lanes, entry_points};

struct Ymm;

entry_points!(Ymm, "avx2", [1 => 2, 2 => 2, 3 => 2, 4 => 2, 5 => 1, 6 => 1, 7 => 1, 8 => 1]);

// SAFETY: accesses only what the trait allows: full vectors.
unsafe impl Lanes for Ymm {
    const WIDTH: usize = 32;
    type Vector = __m256i;
    type Operand = (__m256i, __m256i);
    type Table = [u8; 32];
    type Factor = (__m256i, __m256i);

    #[inline(always)]
    fn tables<'a>(columns: &Columns<'a>) -> &'a [[u8; 32]] {
        columns.nibbles
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
    unsafe fn factor(table: &[u8; 32]) -> (__m256i, __m256i) {
        // SAFETY: the table has two times 16 bytes; the processor has AVX2.
        unsafe {
            let (low, high) = (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(table.as_ptr().add(16).cast()));
            (_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high))
        }
    }

    #[inline(always)]
    unsafe fn operand(v: __m256i) -> (__m256i, __m256i) {
        // SAFETY: the processor has AVX2.
        unsafe {
            let low_half = _mm256_set1_epi8(0x0f);
            (_mm256_and_si256(v, low_half), _mm256_and_si256(_mm256_srli_epi64::<4>(v), low_half))
        }
    }

    #[inline(always)]
    unsafe fn add_product(sum: __m256i, x: (__m256i, __m256i), factor: (__m256i, __m256i)) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe {
            let (low, high) = (_mm256_shuffle_epi8(factor.0, x.0), _mm256_shuffle_epi8(factor.1, x.1));
            _mm256_xor_si256(sum, _mm256_xor_si256(low, high))
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_xor_si256(a, b) }
    }
}
