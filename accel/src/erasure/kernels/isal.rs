//! ISA-L, which chooses its own instructions.
#![allow(unsafe_code)]

use longshore_sys_isal as sys;

use super::super::coefficients::Columns;
use super::super::matrix::{MAX_DATA, MAX_PARITY};

/// ISA-L counts bytes in an `int`; a multiple of every vector's width.
const MOST: usize = 1 << 30;

/// Tables for `matrix`, a row of coefficients per output.
pub(in crate::erasure) fn tables(outputs: usize, mut matrix: Vec<u8>) -> Box<[u8]> {
    let mut tables = vec![0; 32 * matrix.len()];
    let (rows, k) = (outputs as i32, (matrix.len() / outputs) as i32);
    // SAFETY: reads rows * k bytes of the matrix and writes 32 times as many; it keeps neither.
    unsafe { sys::ec_init_tables(k, rows, matrix.as_mut_ptr(), tables.as_mut_ptr()) };
    tables.into()
}

/// See [`super::Runnable::dot`], which has checked the arguments.
pub(super) fn dot(columns: Columns<'_>, sources: &[&[u8]], outputs: &mut [&mut [u8]], accumulate: bool) {
    let (k, rows, len) = (sources.len(), outputs.len(), outputs[0].len());
    assert!(k <= MAX_DATA && rows <= MAX_PARITY && columns.isal.len() == 32 * k * rows);
    let tables = columns.isal.as_ptr().cast_mut(); // not written to, says the header
    let (mut from, mut to) = ([std::ptr::null_mut(); MAX_DATA], [std::ptr::null_mut(); MAX_PARITY]);
    for at in (0..len).step_by(MOST) {
        let n = MOST.min(len - at) as i32;
        for (p, s) in from.iter_mut().zip(sources) {
            *p = s[at..].as_ptr().cast_mut();
        }
        for (p, o) in to.iter_mut().zip(outputs.iter_mut()) {
            *p = o[at..].as_mut_ptr();
        }
        let (k, rows, to) = (k as i32, rows as i32, to.as_mut_ptr());
        if accumulate {
            for (&from, index) in from.iter().zip(0..k) {
                // SAFETY: tables are those of k sources and these outputs; `n` bytes of the source may be read and of each output written.
                unsafe { sys::ec_encode_data_update(n, k, rows, index, tables, from, to) };
            }
        } else {
            // SAFETY: tables are those of k sources and these outputs; `n` bytes of each source may be read and of each output written.
            unsafe { sys::ec_encode_data(n, k, rows, tables, from.as_mut_ptr(), to) };
        }
    }
}
