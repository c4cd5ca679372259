//! The erasure code, by every kernel that this processor can run, against the field's definition.

use longshore_accel::erasure::{Codec, ErasureError, Kernel, MAX_DATA, MAX_PARITY, MatrixKind, xor_into};
use longshore_accel::gf;

mod common;
use common::{KINDS, Random, fingerprint, slices, slices_mut, vectors};

fn kernels() -> Vec<Kernel> {
    let found: Vec<_> = Kernel::ALL.iter().copied().filter(|k| k.is_available()).collect();
    let missing: Vec<_> = Kernel::ALL.iter().filter(|k| !k.is_available()).map(|k| k.name()).collect();
    if !missing.is_empty() {
        // Shown where tests fail; `.ci/run` says it where they pass.
        println!("NOT TESTED, this processor cannot run them: {missing:?}");
    }
    found
}

fn codec(kind: MatrixKind, k: usize, m: usize, kernel: Kernel) -> Option<Codec> {
    match Codec::with_kernel(kind, k, m, kernel) {
        Ok(codec) => Some(codec),
        Err(ErasureError::NotMds { .. }) if kind == MatrixKind::Vandermonde => None,
        Err(e) => panic!("{kind} {k}+{m} by {kernel}: {e}"),
    }
}

/// Parity by the definition.
fn parity_of(codec: &Codec, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let of = |i: usize| {
        let byte =
            |at: usize| data.iter().enumerate().fold(0, |sum, (j, d)| sum ^ gf::mul(codec.coefficient(i, j), d[at]));
        (0..data[0].len()).map(byte).collect()
    };
    (0..codec.parity_chunks()).map(of).collect()
}

/// Data and parity chunks of one code.
fn stripe(codec: &Codec, len: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let mut chunks: Vec<_> = (0..codec.data_chunks()).map(|_| random.bytes(len)).collect();
    let mut parity = vec![vec![0xa5; len]; codec.parity_chunks()];
    codec.encode(&slices(&chunks), &mut slices_mut(&mut parity));
    chunks.append(&mut parity);
    chunks
}

fn rebuilds(codec: &Codec, stripe: &[Vec<u8>], lost: &[usize], available: &[usize]) {
    let decoder =
        codec.decoder(lost, available).unwrap_or_else(|e| panic!("{codec:?} {lost:?} from {available:?}: {e}"));
    assert_eq!(decoder.lost(), lost);
    assert!(decoder.sources().len() == codec.data_chunks() && decoder.sources().iter().all(|s| available.contains(s)));
    let sources: Vec<&[u8]> = decoder.sources().iter().map(|&s| &stripe[s][..]).collect();
    let mut out = vec![vec![0x5a; stripe[0].len()]; lost.len()];
    decoder.decode(&sources, &mut slices_mut(&mut out));
    for (&lost_chunk, out) in lost.iter().zip(&out) {
        assert!(*out == stripe[lost_chunk], "{} {}: {lost:?} from {available:?}", codec.kind(), codec.kernel());
    }
}

#[test]
#[cfg(target_arch = "aarch64")]
fn neon_is_what_an_arm_processor_runs() {
    assert_eq!(Kernel::best(), Kernel::Neon);
}

#[test]
fn every_kernel_computes_parity_by_the_definition_at_every_length_and_alignment() {
    const LEN: usize = 700;
    let mut random = Random(1);
    for (k, m) in (1..=16).flat_map(|k| (1..=8).map(move |m| (k, m))).chain([(17, 3), (31, 7), (32, 8)]) {
        for kind in KINDS {
            let Some(reference) = codec(kind, k, m, Kernel::Portable) else { continue };
            let data: Vec<_> = (0..k).map(|_| random.bytes(LEN)).collect();
            let expected = parity_of(&reference, &data);
            for kernel in kernels() {
                let codec = codec(kind, k, m, kernel).expect("accepted before");
                for len in (0..=257).chain([LEN - 80 + random.below(16)]) {
                    let starts: Vec<usize> = (0..k).map(|_| random.below(64)).collect();
                    let from = random.below(64);
                    // All of a column's bytes come from one place of `data`, at an alignment of each chunk's own.
                    let moved: Vec<Vec<u8>> = data
                        .iter()
                        .zip(&starts)
                        .map(|(d, &s)| [&vec![0xee; s], &d[from..from + len]].concat())
                        .collect();
                    let sources: Vec<&[u8]> = moved.iter().zip(&starts).map(|(d, &s)| &d[s..]).collect();
                    let mut parity = vec![vec![0xcc; len + 128]; m];
                    let starts: Vec<usize> = (0..m).map(|_| random.below(64)).collect();
                    let mut out: Vec<_> = parity.iter_mut().zip(&starts).map(|(p, &s)| &mut p[s..s + len]).collect();
                    codec.encode(&sources, &mut out);
                    for ((p, &s), expected) in parity.iter().zip(&starts).zip(&expected) {
                        assert!(p[s..s + len] == expected[from..from + len], "{kind} {k}+{m} by {kernel}, {len} bytes");
                        assert!(
                            p[..s].iter().chain(&p[s + len..]).all(|&b| b == 0xcc),
                            "{k}+{m} by {kernel} wrote beyond {len} bytes"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_kernel_updates_parity_to_what_encoding_gives() {
    let mut random = Random(2);
    for (k, m) in (1..=16).flat_map(|k| (1..=8).map(move |m| (k, m))).chain([(32, 8)]) {
        for kernel in kernels() {
            let codec = codec(MatrixKind::Cauchy, k, m, kernel).expect("Cauchy");
            for len in [0, 1, 31, 64, 65, 127, 128 + random.below(600)] {
                let before = stripe(&codec, len, &mut random);
                let index = random.below(k);
                let shift = random.below(16);
                let delta = [vec![0; shift], random.bytes(len)].concat();
                let mut after = before[..k].to_vec();
                after[index].iter_mut().zip(&delta[shift..]).for_each(|(a, d)| *a ^= d);
                let mut parity = before[k..].to_vec();
                codec.update(index, &delta[shift..], &mut slices_mut(&mut parity));
                assert!(parity == parity_of(&codec, &after), "{k}+{m} by {kernel}, {len} bytes");
            }
        }
    }
}

#[test]
fn every_loss_of_up_to_twelve_chunks_is_rebuilt() {
    let mut random = Random(3);
    let mut patterns = 0;
    for kind in KINDS {
        for (k, m) in (1..12).flat_map(|k| (1..=MAX_PARITY.min(12 - k)).map(move |m| (k, m))) {
            let Some(codec) = codec(kind, k, m, Kernel::best()) else { continue };
            let stripe = stripe(&codec, 19, &mut random);
            for mask in 1u32..1 << (k + m) {
                if mask.count_ones() as usize <= m {
                    let (lost, available): (Vec<_>, Vec<_>) = (0..k + m).partition(|c| mask >> c & 1 == 1);
                    rebuilds(&codec, &stripe, &lost, &available);
                    patterns += 1;
                }
            }
        }
    }
    assert!(patterns > 30_000, "{patterns}");
}

#[test]
fn ten_thousand_random_losses_of_wider_codes_are_rebuilt() {
    let mut random = Random(4);
    let kernels = kernels();
    let mut done = 0;
    while done < 10_000 {
        let (k, m) = (1 + random.below(MAX_DATA), 1 + random.below(MAX_PARITY));
        let kind = KINDS[usize::from(random.below(4) == 0)];
        if k + m <= 12 {
            continue;
        }
        let Some(codec) = codec(kind, k, m, kernels[random.below(kernels.len())]) else { continue };
        let len = random.below(150);
        let stripe = stripe(&codec, len, &mut random);
        for _ in 0..8 {
            // Some chunks are lost, some of the others are not available either.
            let gone_count = 1 + random.below(m);
            let gone = random.choose(k + m, gone_count);
            let lost = &gone[..1 + random.below(gone.len())];
            let available: Vec<_> = (0..k + m).filter(|c| !gone.contains(c)).collect();
            rebuilds(&codec, &stripe, lost, &available);
            // Any k of them do.
            let used: Vec<_> = random.choose(available.len(), k).into_iter().map(|i| available[i]).collect();
            rebuilds(&codec, &stripe, lost, &used);
            done += 1;
        }
    }
}

#[test]
fn what_cannot_be_rebuilt_is_refused_and_says_why() {
    let codec = Codec::new(MatrixKind::Cauchy, 4, 2).expect("4+2");
    let refused = |lost: &[usize], available: &[usize]| codec.decoder(lost, available).expect_err("refused");
    assert_eq!(refused(&[0, 1, 2], &[3, 4, 5]), ErasureError::TooFew { available: 3, needed: 4 });
    assert_eq!(refused(&[6], &[0, 1, 2, 3]), ErasureError::NoSuchChunk { chunk: 6, chunks: 6 });
    assert_eq!(refused(&[0], &[0, 1, 2, 3]), ErasureError::NamedTwice { chunk: 0 });
    assert_eq!(refused(&[0], &[1, 2, 2, 3]), ErasureError::NamedTwice { chunk: 2 });
    assert_eq!(refused(&[], &[1, 2, 3, 4]), ErasureError::NothingLost);
    assert!(refused(&[0, 1, 2], &[3, 4, 5]).to_string().contains("3 chunks available where 4 are needed"));
}

#[test]
fn codes_out_of_range_are_refused() {
    for (k, m) in [(0, 1), (1, 0), (33, 1), (1, 9)] {
        let e = Codec::new(MatrixKind::Cauchy, k, m).expect_err("refused");
        assert_eq!(e, ErasureError::Geometry { data: k, parity: m });
    }
    for (k, m) in (1..=MAX_DATA).flat_map(|k| (1..=MAX_PARITY).map(move |m| (k, m))) {
        assert!(Codec::new(MatrixKind::Cauchy, k, m).is_ok());
        let refused = m == 4 && k > 21 || m == 5 && k > 5 || m >= 6 && k > 4;
        assert_eq!(Codec::new(MatrixKind::Vandermonde, k, m).is_err(), refused, "{k}+{m}");
    }
}

#[test]
fn sources_are_data_before_parity_and_lower_numbers_first() {
    let codec = Codec::new(MatrixKind::Cauchy, 4, 3).expect("4+3");
    assert_eq!(codec.decoder(&[1], &[6, 5, 4, 3, 2, 0]).expect("decoder").sources(), [0, 2, 3, 4]);
    assert_eq!(codec.decoder(&[5], &[6, 4, 3, 2, 1, 0]).expect("decoder").sources(), [0, 1, 2, 3]);
    assert_eq!(codec.decoder(&[5, 0], &[6, 3, 2, 4]).expect("decoder").sources(), [2, 3, 4, 6]);
}

#[test]
fn bytes_are_added_at_every_length_and_alignment() {
    let mut random = Random(5);
    for len in (0..=300).chain([4096, 65_537]) {
        let (a, b) = (random.below(64), random.below(64));
        let (mut dst, src) = (random.bytes(len + 128), random.bytes(len + 64));
        let mut expected = dst.clone();
        for (d, s) in expected[a..a + len].iter_mut().zip(&src[b..]) {
            *d ^= s;
        }
        xor_into(&mut dst[a..a + len], &src[b..b + len]);
        assert!(dst == expected, "{len} bytes");
    }
}

#[test]
#[should_panic(expected = "differ in length")]
fn chunks_of_different_lengths_are_a_bug_of_the_caller() {
    let codec = Codec::new(MatrixKind::Cauchy, 2, 1).expect("2+1");
    let (two, one): ([u8; 2], [u8; 1]) = ([1, 2], [3]);
    codec.encode(&[&two, &one], &mut [&mut [0, 0]]);
}

/// `vectors/isal.txt` was written by ISA-L 2.31 (see `tests/isal.rs`).
#[test]
fn parity_is_what_isa_l_computes() {
    let known = include_str!("vectors/isal.txt");
    let mut lines = 0;
    for (line, (kind, k, m, data)) in known.lines().zip(vectors()) {
        let codec = Codec::new(kind, k, m).expect("a code");
        let mut parity = vec![vec![0; data[0].len()]; m];
        codec.encode(&slices(&data), &mut slices_mut(&mut parity));
        assert_eq!(line, format!("{kind} {k}+{m} {:016x}", fingerprint(&parity)));
        lines += 1;
    }
    assert_eq!((lines, known.lines().count()), (vectors().count(), lines), "every code has its line");
}
