//! Vectors of 16 bytes for old processors: a product is the sum of those of the operand's halves, each looked up by a shuffle.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::super::coefficients::Columns;
use super::lanes::{Lanes, entry_points};

struct Xmm;

entry_points!(Xmm, "ssse3", [1 => 2, 2 => 2, 3 => 1, 4 => 1, 5 => 1, 6 => 1, 7 => 1, 8 => 1]);

// SAFETY: accesses only what the trait allows: full vectors.
unsafe impl Lanes for Xmm {
    const WIDTH: usize = 16;
    type Vector = __m128i;
    type Operand = (__m128i, __m128i);
    type Table = [u8; 32];
    type Factor = (__m128i, __m128i);

    #[inline(always)]
    fn tables<'a>(columns: &Columns<'a>) -> &'a [[u8; 32]] {
        columns.nibbles
    }

    #[inline(always)]
    unsafe fn zero() -> __m128i {
        // SAFETY: the processor has SSE2.
        unsafe { _mm_setzero_si128() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m128i {
        // SAFETY: 16 bytes may be read; the processor has SSE2.
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, v: __m128i) {
        // SAFETY: 16 bytes may be written; the processor has SSE2.
        unsafe { _mm_storeu_si128(to.cast(), v) }
    }

    #[inline(always)]
    unsafe fn factor(table: &[u8; 32]) -> (__m128i, __m128i) {
        // SAFETY: the table has two times 16 bytes; the processor has SSE2.
        unsafe { (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(table.as_ptr().add(16).cast())) }
    }

    #[inline(always)]
    unsafe fn operand(v: __m128i) -> (__m128i, __m128i) {
        // SAFETY: the processor has SSE2.
        unsafe {
            let low_half = _mm_set1_epi8(0x0f);
            (_mm_and_si128(v, low_half), _mm_and_si128(_mm_srli_epi64::<4>(v), low_half))
        }
    }

    #[inline(always)]
    unsafe fn add_product(sum: __m128i, x: (__m128i, __m128i), factor: (__m128i, __m128i)) -> __m128i {
        // SAFETY: the processor has SSSE3.
        unsafe {
            let (low, high) = (_mm_shuffle_epi8(factor.0, x.0), _mm_shuffle_epi8(factor.1, x.1));
            _mm_xor_si128(sum, _mm_xor_si128(low, high))
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: the processor has SSE2.
        unsafe { _mm_xor_si128(a, b) }
    }
}
