//! The erasure code against ISA-L: `cargo test -p longshore-accel --features isal`.
#![allow(unsafe_code)]

use std::fmt::Write;

use longshore_accel::erasure::{Codec, Kernel, MatrixKind};
use longshore_sys_isal as isal;

mod common;
use common::{KINDS, Random, fingerprint, slices, slices_mut, vectors};

/// ISA-L's coefficients of parity, a row of `k` per chunk.
fn matrix(kind: MatrixKind, k: usize, m: usize) -> Vec<u8> {
    let mut matrix = vec![0; (k + m) * k];
    let generate = match kind {
        MatrixKind::Cauchy => isal::gf_gen_cauchy1_matrix,
        MatrixKind::Vandermonde => isal::gf_gen_rs_matrix,
    };
    // SAFETY: it writes k + m rows of k bytes.
    unsafe { generate(matrix.as_mut_ptr(), (k + m) as i32, k as i32) };
    matrix.split_off(k * k)
}

fn pointers(chunks: &[Vec<u8>]) -> Vec<*mut u8> {
    chunks.iter().map(|c| c.as_ptr().cast_mut()).collect()
}

/// Parity that ISA-L computes by its own matrix and tables.
fn encode(kind: MatrixKind, data: &[Vec<u8>], m: usize) -> Vec<Vec<u8>> {
    let (k, len) = (data.len(), data[0].len());
    let (mut matrix, mut tables) = (matrix(kind, k, m), vec![0; 32 * k * m]);
    let mut parity = vec![vec![0; len]; m];
    let mut to: Vec<_> = parity.iter_mut().map(|p| p.as_mut_ptr()).collect();
    // SAFETY: the matrix has m rows of k bytes, the tables 32 times as many; `len` bytes may be read of k chunks and written of m.
    unsafe {
        isal::ec_init_tables(k as i32, m as i32, matrix.as_mut_ptr(), tables.as_mut_ptr());
        isal::ec_encode_data(
            len as i32,
            k as i32,
            m as i32,
            tables.as_mut_ptr(),
            pointers(data).as_mut_ptr(),
            to.as_mut_ptr(),
        );
    }
    parity
}

#[test]
fn coefficients_are_isa_ls() {
    for (kind, k, m, _) in vectors() {
        let codec = Codec::new(kind, k, m).expect("a code");
        let ours: Vec<u8> =
            (0..m).flat_map(|i| (0..k).map(move |j| (i, j))).map(|(i, j)| codec.coefficient(i, j)).collect();
        assert_eq!(ours, matrix(kind, k, m), "{kind} {k}+{m}");
    }
}

#[test]
fn every_kernel_computes_what_isa_l_computes() {
    let mut random = Random(1);
    for (kind, k, m) in
        KINDS.into_iter().flat_map(|kind| (1..=16).flat_map(move |k| (1..=8).map(move |m| (kind, k, m))))
    {
        for kernel in Kernel::ALL.iter().copied().filter(|k| k.is_available()) {
            let Ok(codec) = Codec::with_kernel(kind, k, m, kernel) else { continue };
            for len in [1, 63, 64, 65, 255 + random.below(1000)] {
                let data: Vec<_> = (0..k).map(|_| random.bytes(len)).collect();
                let mut parity = vec![vec![0; len]; m];
                codec.encode(&slices(&data), &mut slices_mut(&mut parity));
                assert!(parity == encode(kind, &data, m), "{kind} {k}+{m} by {kernel}, {len} bytes");
            }
        }
    }
}

fn known() -> String {
    let mut text = String::new();
    for (kind, k, m, data) in vectors() {
        writeln!(text, "{kind} {k}+{m} {:016x}", fingerprint(&encode(kind, &data, m))).expect("a string");
    }
    text
}

#[test]
fn checked_in_vectors_are_isa_ls() {
    assert!(known() == include_str!("vectors/isal.txt"), "write them again: cargo test ... --test isal -- --ignored");
}

/// Not a test: writes the file that the other tests compare with.
#[test]
#[ignore = "writes tests/vectors/isal.txt"]
fn write_vectors() {
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/isal.txt"), known())
        .expect("the file is written");
}
