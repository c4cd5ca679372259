//! Compares the erasure code with ISA-L, called by its symbols, in the same run.
//!
//! `cargo run --release -p longshore-accel --features isal --example erasure`. Both take turns, nine times; printed are the median rates, the median
//! of the turns' ratios, and their smallest and largest. The processor should have nothing else to do.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use longshore_accel::erasure::{Codec, Decoder, Kernel, MatrixKind, xor_into};
use longshore_sys_isal as isal;

const TURNS: usize = 9;
const TURN: Duration = Duration::from_millis(20);

/// Chunks that start at a page, as the blocks of devices do.
struct Chunks {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Chunks {
    fn new(count: usize, len: usize) -> Self {
        let mut x = 1u64;
        let mut byte = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 56) as u8
        };
        let memory: Vec<u8> = (0..count * len + 4096).map(|_| byte()).collect();
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    fn all(&self) -> Vec<&[u8]> {
        let count = (self.memory.len() - 4096) / self.len;
        self.memory[self.start..].chunks_exact(self.len).take(count).collect()
    }

    fn all_mut(&mut self) -> Vec<&mut [u8]> {
        let count = (self.memory.len() - 4096) / self.len;
        self.memory[self.start..].chunks_exact_mut(self.len).take(count).collect()
    }
}

/// Sums over chunks, computed by ISA-L.
struct Isal {
    function: isal::Encode,
    rows: usize,
    tables: Vec<u8>,
    sources: Vec<*mut u8>,
    outputs: Vec<*mut u8>,
    len: usize,
}

impl Isal {
    /// `matrix` has a row of coefficients per output.
    fn new(
        function: isal::Encode,
        gfni: bool,
        mut matrix: Vec<u8>,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
    ) -> Self {
        let (k, rows) = (sources.len(), outputs.len());
        assert_eq!(matrix.len(), k * rows);
        let mut tables = vec![0; 32 * k * rows];
        let init = if gfni { isal::ec_init_tables } else { isal::ec_init_tables_base };
        // SAFETY: the matrix has k * rows bytes, the tables 32 times as many.
        unsafe { init(k as i32, rows as i32, matrix.as_mut_ptr(), tables.as_mut_ptr()) };
        Self {
            function,
            rows,
            tables,
            sources: sources.iter().map(|s| s.as_ptr().cast_mut()).collect(),
            outputs: outputs.iter_mut().map(|o| o.as_mut_ptr()).collect(),
            len: sources[0].len(),
        }
    }

    fn run(&mut self) {
        let (k, rows) = (self.sources.len() as i32, self.rows as i32);
        // SAFETY: tables and pointers are as many as `new` made, and chunks outlive this (see `compare`); nothing refers to outputs meanwhile.
        unsafe {
            (self.function)(
                self.len as i32,
                k,
                rows,
                self.tables.as_mut_ptr(),
                self.sources.as_mut_ptr(),
                self.outputs.as_mut_ptr(),
            );
        }
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Runs both in turn; prints GB/s of `bytes` per call, and the ratio.
fn race(what: &str, bytes: usize, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> f64 {
    let calls = {
        let started = Instant::now();
        let mut calls = 0u32;
        while started.elapsed() < TURN {
            ours();
            theirs();
            calls += 1;
        }
        calls.max(1)
    };
    let rate = |f: &mut dyn FnMut()| {
        let started = Instant::now();
        for _ in 0..calls {
            f();
        }
        bytes as f64 * f64::from(calls) / started.elapsed().as_secs_f64() / 1e9
    };
    let (mut a, mut b, mut ratios) = (vec![], vec![], vec![]);
    for turn in 0..TURNS {
        // Each is first as often as second.
        let (x, y) = if turn % 2 == 0 {
            let x = rate(&mut ours);
            (x, rate(&mut theirs))
        } else {
            let y = rate(&mut theirs);
            (rate(&mut ours), y)
        };
        a.push(x);
        b.push(y);
        ratios.push(x / y);
    }
    let (low, high) = ratios.iter().fold((f64::MAX, 0f64), |(l, h), &r| (l.min(r), h.max(r)));
    let ratio = median(ratios);
    println!("{what:<34} {:7.1} {:7.1}   {ratio:5.2} ({low:.2}-{high:.2})", median(a), median(b));
    ratio
}

/// Encoding and rebuilding `m` lost data chunks, and that both give the same.
fn compare(kernel: Kernel, function: isal::Encode, gfni: bool, k: usize, m: usize, len: usize) -> f64 {
    let codec = Codec::with_kernel(MatrixKind::Cauchy, k, m, kernel).expect("a code");
    let lost: Vec<usize> = (0..m).collect();
    let decoder: Decoder = codec.decoder(&lost, &(m..k + m).collect::<Vec<_>>()).expect("a decoder");
    let data = Chunks::new(k, len);
    let (mut parity, mut their_parity) = (Chunks::new(m, len), Chunks::new(m, len));

    let matrix = (0..m).flat_map(|i| (0..k).map(move |j| (i, j))).map(|(i, j)| codec.coefficient(i, j)).collect();
    let mut theirs = Isal::new(function, gfni, matrix, &data.all(), &mut their_parity.all_mut());
    let sources = data.all();
    let mut outputs = parity.all_mut();
    let name = format!("{kernel} {k}+{m} {} KiB", len >> 10);
    let encode =
        race(&format!("{name} encode"), k * len, || codec.encode(black_box(&sources), &mut outputs), || theirs.run());
    assert!(parity.all() == their_parity.all(), "parity differs");

    let survivors: Vec<&[u8]> =
        decoder.sources().iter().map(|&s| if s < k { sources[s] } else { parity.all()[s - k] }).collect();
    let matrix = (0..m).flat_map(|o| (0..k).map(move |s| (o, s))).map(|(o, s)| decoder.coefficient(o, s)).collect();
    let (mut rebuilt, mut their_rebuilt) = (Chunks::new(m, len), Chunks::new(m, len));
    let mut theirs = Isal::new(function, gfni, matrix, &survivors, &mut their_rebuilt.all_mut());
    let mut outputs = rebuilt.all_mut();
    let decode = race(
        &format!("{name} decode"),
        k * len,
        || decoder.decode(black_box(&survivors), &mut outputs),
        || theirs.run(),
    );
    assert!(rebuilt.all() == their_rebuilt.all() && rebuilt.all() == sources[..m], "rebuilt chunks differ");
    encode.min(decode)
}

/// How fast parity follows one data chunk, against copying that chunk.
fn update(k: usize, m: usize, len: usize) {
    let codec = Codec::new(MatrixKind::Cauchy, k, m).expect("a code");
    let (delta, mut parity, mut copy) = (Chunks::new(1, len), Chunks::new(m, len), Chunks::new(1, len));
    let (delta, mut outputs, mut copy) = (delta.all(), parity.all_mut(), copy.all_mut());
    race(
        &format!("update {k}+{m} {} KiB / copy", len >> 10),
        len,
        || codec.update(0, black_box(delta[0]), &mut outputs),
        || copy[0].copy_from_slice(black_box(delta[0])),
    );
}

fn add(len: usize) {
    let (src, mut sum, mut copy) = (Chunks::new(1, len), Chunks::new(1, len), Chunks::new(1, len));
    let (src, mut sum, mut copy) = (src.all(), sum.all_mut(), copy.all_mut());
    race(
        &format!("xor_into {} KiB / copy", len >> 10),
        len,
        || xor_into(sum[0], black_box(src[0])),
        || copy[0].copy_from_slice(black_box(src[0])),
    );
}

fn main() {
    println!("best kernel: {}", Kernel::best());
    println!("{:<34} {:>7} {:>7}   ratio (spread)", "GB/s of data", "ours", "ISA-L");
    let geometries = [(4, 2), (8, 2), (8, 4)];
    let sizes = [4 << 10, 64 << 10];
    let all = |kernel, function, gfni| {
        let cases = geometries.iter().flat_map(|g| sizes.map(|len| (g.0, g.1, len)));
        cases.map(|(k, m, len)| compare(kernel, function, gfni, k, m, len)).fold(f64::MAX, f64::min)
    };
    if Kernel::GfniAvx512.is_available() {
        println!("smallest: {:.2}", all(Kernel::GfniAvx512, isal::ec_encode_data_avx512_gfni, true));
        println!("(a kernel of 32 bytes, against the same function of 64)");
        all(Kernel::GfniAvx2, isal::ec_encode_data_avx512_gfni, true);
    } else {
        println!("NO GFNI WITH AVX-512 ON THIS PROCESSOR: the kernel that matters most was NOT measured.");
    }
    if Kernel::Avx2.is_available() {
        println!("smallest: {:.2}", all(Kernel::Avx2, isal::ec_encode_data_avx2, false));
    } else {
        println!("NO AVX2 ON THIS PROCESSOR: its kernel was NOT measured.");
    }
    for len in sizes {
        update(4, 2, len);
        add(len);
    }
}
