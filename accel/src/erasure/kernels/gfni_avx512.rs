//! GFNI on vectors of 64 bytes: a multiplication is one instruction, with the coefficient as a matrix of bits.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::super::coefficients::Columns;
use super::lanes::{Lanes, entry_points};

struct Zmm;

entry_points!(Zmm, "avx512f,avx512bw,avx512vl,gfni", [1 => 4, 2 => 4, 3 => 4, 4 => 4, 5 => 2, 6 => 2, 7 => 2, 8 => 2]);

// SAFETY: accesses only what the trait allows: full vectors, or the bytes of a mask of `n` bits.
unsafe impl Lanes for Zmm {
    const WIDTH: usize = 64;
    type Vector = __m512i;
    type Operand = __m512i;
    type Table = u64;
    type Factor = __m512i;

    #[inline(always)]
    fn tables<'a>(columns: &Columns<'a>) -> &'a [u64] {
        columns.affine
    }

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the processor has AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: 64 bytes may be read; the processor has AVX-512.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, v: __m512i) {
        // SAFETY: 64 bytes may be written; the processor has AVX-512.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, n: usize) -> __m512i {
        // SAFETY: `n` bytes may be read, and no others are by this mask; the processor has AVX-512BW.
        unsafe { _mm512_maskz_loadu_epi8(first(n), from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_partial(to: *mut u8, v: __m512i, n: usize) {
        // SAFETY: `n` bytes may be written, and no others are by this mask; the processor has AVX-512BW.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), first(n), v) }
    }

    #[inline(always)]
    unsafe fn factor(table: &u64) -> __m512i {
        // SAFETY: the processor has AVX-512.
        unsafe { _mm512_set1_epi64(*table as i64) }
    }

    #[inline(always)]
    unsafe fn operand(v: __m512i) -> __m512i {
        v
    }

    #[inline(always)]
    unsafe fn add_product(sum: __m512i, x: __m512i, factor: __m512i) -> __m512i {
        // SAFETY: the processor has AVX-512 and GFNI.
        unsafe { _mm512_xor_si512(sum, _mm512_gf2p8affine_epi64_epi8::<0>(x, factor)) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the processor has AVX-512.
        unsafe { _mm512_xor_si512(a, b) }
    }
}

/// A mask of the first `n < 64` bytes.
#[inline(always)]
fn first(n: usize) -> u64 {
    (1 << n) - 1
}
