//! NEON on vectors of 16 bytes: a product is the sum of those of the operand's halves, each looked up by a table instruction.
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use super::super::coefficients::Columns;
use super::lanes::{Lanes, entry_points};

struct Neon;

entry_points!(Neon, "neon", [1 => 4, 2 => 4, 3 => 2, 4 => 2, 5 => 2, 6 => 2, 7 => 1, 8 => 1]);

// SAFETY: accesses only what the trait allows: full vectors.
unsafe impl Lanes for Neon {
    const WIDTH: usize = 16;
    type Vector = uint8x16_t;
    type Operand = (uint8x16_t, uint8x16_t);
    type Table = [u8; 32];
    type Factor = (uint8x16_t, uint8x16_t);

    #[inline(always)]
    fn tables<'a>(columns: &Columns<'a>) -> &'a [[u8; 32]] {
        columns.nibbles
    }

    #[inline(always)]
    unsafe fn zero() -> uint8x16_t {
        // SAFETY: the processor has NEON.
        unsafe { vdupq_n_u8(0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> uint8x16_t {
        // SAFETY: 16 bytes may be read; the processor has NEON.
        unsafe { vld1q_u8(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, v: uint8x16_t) {
        // SAFETY: 16 bytes may be written; the processor has NEON.
        unsafe { vst1q_u8(to, v) }
    }

    #[inline(always)]
    unsafe fn factor(table: &[u8; 32]) -> (uint8x16_t, uint8x16_t) {
        // SAFETY: the table has two times 16 bytes; the processor has NEON.
        unsafe { (vld1q_u8(table.as_ptr()), vld1q_u8(table.as_ptr().add(16))) }
    }

    #[inline(always)]
    unsafe fn operand(v: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
        // SAFETY: the processor has NEON.
        unsafe { (vandq_u8(v, vdupq_n_u8(0x0f)), vshrq_n_u8::<4>(v)) }
    }

    #[inline(always)]
    unsafe fn add_product(
        sum: uint8x16_t,
        x: (uint8x16_t, uint8x16_t),
        factor: (uint8x16_t, uint8x16_t),
    ) -> uint8x16_t {
        // SAFETY: the processor has NEON.
        unsafe { veorq_u8(sum, veorq_u8(vqtbl1q_u8(factor.0, x.0), vqtbl1q_u8(factor.1, x.1))) }
    }

    #[inline(always)]
    unsafe fn add(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: the processor has NEON.
        unsafe { veorq_u8(a, b) }
    }
}
