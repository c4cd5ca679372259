//! What full stripes of an array in memory cost at least: parity, and a copy of each strip to its member; no locks, no requests, no array.
//!
//! `cargo run --release -p longshore-accel --example stripes`. Takes turns with plain copies, all as `scripts/bench_ec.py malloc-full-*` has
//! it: 256 KiB from eight buffers in turn, into 4.5 GiB that were written before. `live` copies each strip twice: first to where a journal
//! would be, with its checksum computed. Printed are the median of the turns' ratios of bytes that reach members (`live`: without the
//! journal's), their smallest and largest, and the rates of the median turn. The processor should have nothing else to do.

use std::hint::black_box;
use std::time::Instant;

use longshore_accel::erasure::MatrixKind;
use longshore_accel::{Accel, Channel, Coder, copy_past_cache};

const K: usize = 4;
const M: usize = 2;
const STRIP: usize = 64 << 10;
const MEMBER: usize = 768 << 20;
/// Of each member, before its data.
const JOURNAL: usize = 64 << 20;
const DEPTH: usize = 8;
const BLOCK: usize = 4 << 10;
const TURNS: usize = 9;
/// Stripes of a turn.
const STRIPES: usize = 5000;

struct Memory {
    members: Vec<Vec<u8>>,
    buffers: Vec<Vec<u8>>,
    parity: Vec<Vec<u8>>,
    /// The next stripe, and the next place in the journal.
    stripe: usize,
    journal: usize,
}

type Copy = fn(&mut [u8], &[u8]);

/// Block by block, as small writes are.
fn through_cache(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.chunks_exact_mut(BLOCK).zip(from.chunks_exact(BLOCK)) {
        to.copy_from_slice(from);
    }
}

impl Memory {
    fn new() -> Memory {
        let mut members = vec![vec![0; MEMBER]; K + M];
        for start in (0..MEMBER).step_by(STRIP) {
            members.iter_mut().for_each(|m| m[start..start + STRIP].fill(1));
        }
        let buffers = (0..DEPTH).map(|i| (0..K * STRIP).map(|b| (b * 31 + i) as u8).collect()).collect();
        Memory { members, buffers, parity: vec![vec![1; M * STRIP]; DEPTH], stripe: 0, journal: 0 }
    }

    fn next(&mut self) -> (usize, usize) {
        self.stripe = (self.stripe + 1) % ((MEMBER - JOURNAL) / STRIP);
        self.journal = (self.journal + STRIP) % JOURNAL;
        (JOURNAL + self.stripe * STRIP, self.journal)
    }

    /// Bytes per second that plain copies write.
    fn plain(&mut self, copy: Copy) -> f64 {
        let start = Instant::now();
        for n in 0..STRIPES * (K + M) / K {
            let (at, _) = self.next();
            // A piece of 256 KiB goes to one place.
            let at = at / (K * STRIP) * (K * STRIP);
            copy(&mut self.members[n % (K + M)][at..at + K * STRIP], &self.buffers[n % DEPTH]);
        }
        (STRIPES * (K + M) * STRIP) as f64 / start.elapsed().as_secs_f64()
    }

    /// The same of stripes.
    fn stripes(&mut self, copy: Copy, coder: &Coder, journal_by: Option<&Channel>) -> f64 {
        let start = Instant::now();
        for n in 0..STRIPES {
            let (at, journal) = self.next();
            let data = &self.buffers[n % DEPTH];
            let parity = &mut self.parity[n % DEPTH];
            let strips: Vec<&[u8]> = data.chunks_exact(STRIP).collect();
            let mut out: Vec<&mut [u8]> = parity.chunks_exact_mut(STRIP).collect();
            coder.encode(&strips, &mut out);
            let all = || data.chunks_exact(STRIP).chain(parity.chunks_exact(STRIP));
            if let Some(engines) = journal_by {
                for (member, strip) in self.members.iter_mut().zip(all()) {
                    black_box(engines.crc32c(0, [strip]));
                    copy(&mut member[journal..journal + STRIP], strip);
                }
            }
            for (member, strip) in self.members.iter_mut().zip(all()) {
                copy(&mut member[at..at + STRIP], strip);
            }
        }
        (STRIPES * (K + M) * STRIP) as f64 / start.elapsed().as_secs_f64()
    }
}

fn main() {
    let accel = Accel::default();
    accel.start();
    let engines = accel.channel();
    let coder = engines.coder(MatrixKind::Cauchy, K, M).expect("4+2");
    let mut memory = Memory::new();
    let copies: [(&str, Copy); 2] = [("past the cache", copy_past_cache), ("through the cache", through_cache)];
    let kinds = [("unmapped", None), ("live", Some(&engines))];
    for ((how, copy), (kind, journal_by)) in copies.into_iter().flat_map(|c| kinds.map(|k| (c, k))) {
        memory.stripes(copy, &coder, journal_by);
        let mut turns: Vec<(f64, f64, f64)> = (0..TURNS)
            .map(|_| {
                let (plain, stripes) = (memory.plain(copy), memory.stripes(copy, &coder, journal_by));
                (stripes / plain, stripes / 1e9, plain / 1e9)
            })
            .collect();
        turns.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, stripes, plain) = turns[TURNS / 2];
        let (least, most) = (turns[0].0, turns[TURNS - 1].0);
        println!(
            "{kind:8} {how:17} {ratio:.2} ({least:.2}-{most:.2}) of plain copies: {stripes:.1} of {plain:.1} GB/s"
        );
    }
}
