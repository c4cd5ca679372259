//! Functions of ISA-L 2.31 (erasure code part, `erasure_code.h`), declared by hand; empty without the feature `link`.
//!
//! Tables and matrices are those of that header: a matrix has rows of `k` bytes, and tables have 32 bytes per coefficient.
#![cfg(feature = "link")]
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uchar};

// The library is built and linked by this crate, which declares its compression functions only.
extern crate isal_sys as _;

/// A function that fills `rows` chunks of `len` bytes with sums over `k` chunks: `(len, k, rows, tables, data, coding)`.
///
/// Reads `32 * k * rows` bytes of tables and `k` pointers, and writes by `rows` pointers. Chunks must not overlap.
pub type Encode = unsafe extern "C" fn(c_int, c_int, c_int, *mut c_uchar, *mut *mut c_uchar, *mut *mut c_uchar);

unsafe extern "C" {
    /// [`Encode`] by the best function of the processor. Takes tables of [`ec_init_tables`].
    pub fn ec_encode_data(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *mut c_uchar,
        data: *mut *mut c_uchar,
        coding: *mut *mut c_uchar,
    );
    /// [`Encode`] by AVX2, on processors that have it. Takes tables of [`ec_init_tables_base`].
    #[cfg(target_arch = "x86_64")]
    pub fn ec_encode_data_avx2(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *mut c_uchar,
        data: *mut *mut c_uchar,
        coding: *mut *mut c_uchar,
    );
    /// [`Encode`] by GFNI and AVX-512, on processors that have both. Takes tables of [`ec_init_tables`] made there.
    #[cfg(target_arch = "x86_64")]
    pub fn ec_encode_data_avx512_gfni(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *mut c_uchar,
        data: *mut *mut c_uchar,
        coding: *mut *mut c_uchar,
    );
    /// Adds chunk `data`, the source `index` of `k`, to the sums in `rows` chunks. Takes tables of [`ec_init_tables`].
    pub fn ec_encode_data_update(
        len: c_int,
        k: c_int,
        rows: c_int,
        index: c_int,
        tables: *mut c_uchar,
        data: *mut c_uchar,
        coding: *mut *mut c_uchar,
    );
    /// Makes the tables of `rows` times `k` coefficients for the best functions of the processor: writes `32 * k * rows` bytes.
    pub fn ec_init_tables(k: c_int, rows: c_int, coefficients: *mut c_uchar, tables: *mut c_uchar);
    /// The same for functions that look products up.
    pub fn ec_init_tables_base(k: c_int, rows: c_int, coefficients: *mut c_uchar, tables: *mut c_uchar);
    /// Writes `chunks` rows of `k` coefficients: identity, then rows of powers.
    pub fn gf_gen_rs_matrix(matrix: *mut c_uchar, chunks: c_int, k: c_int);
    /// Writes `chunks` rows of `k` coefficients: identity, then inverses of row XOR column.
    pub fn gf_gen_cauchy1_matrix(matrix: *mut c_uchar, chunks: c_int, k: c_int);
    /// Inverts the `n` by `n` matrix `from`, which it destroys; not 0 where there is no inverse.
    pub fn gf_invert_matrix(from: *mut c_uchar, to: *mut c_uchar, n: c_int) -> c_int;
}
