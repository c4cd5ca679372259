//! AES-XTS against vectors: of IEEE 1619-2018 (annex B), and made with OpenSSL 3 for every tweak mode.

use longshore_accel::crypto::{Crypt, Key, KeySpec, TweakMode};
use longshore_accel::{Accel, Channel, Operation};
use zeroize::Zeroizing;

fn key(material: Vec<u8>, tweak: TweakMode) -> Key {
    Key::new(KeySpec { name: "k".into(), tweak, material: Zeroizing::new(material), file: None }).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn crypt(channel: &Channel, material: Vec<u8>, tweak: TweakMode, block: usize) -> Crypt {
    channel.crypt(&key(material, tweak), block).unwrap()
}

fn encrypted(crypt: &Crypt, lba: u64, plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plain.len()];
    assert!(crypt.encrypt(lba, [plain], &mut out));
    out
}

#[test]
fn the_vectors_of_the_standard_come_out() {
    let channel = Accel::default().channel();
    let plain = [0x44; 32];
    for (key, out) in [
        (
            "1111111111111111111111111111111122222222222222222222222222222222",
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f022222222222222222222222222222222",
            "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
        ),
    ] {
        let crypt = crypt(&channel, hex(key), TweakMode::SimpleLba, 32);
        assert_eq!(encrypted(&crypt, 0x33_3333_3333, &plain), hex(out));
    }
    let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
    for (key, lba, crc) in [
        ("2718281828459045235360287471352631415926535897932384626433832795", 0, 0x85fe_22c4_6165_bdab),
        (
            "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592",
            0xff,
            0x013f_8869_d96e_3832,
        ),
    ] {
        let out = encrypted(&crypt(&channel, hex(key), TweakMode::SimpleLba, 512), lba, &plain);
        assert_eq!(channel.crc64_nvme(0, [&out[..]]), crc);
    }
}

/// Bits of the key, bytes of a block, mode, and the CRC-64/NVME of what OpenSSL made of [`plain`] from block [`LBA`] on.
const MADE_WITH_OPENSSL: [(usize, usize, TweakMode, u64); 16] = [
    (128, 512, TweakMode::SimpleLba, 0x6cca_7cfa_f3c8_fb67),
    (128, 512, TweakMode::JoinNegLbaWithLba, 0xaec0_3115_a681_f81d),
    (128, 512, TweakMode::Incr512FullLba, 0x6cca_7cfa_f3c8_fb67),
    (128, 512, TweakMode::Incr512UpperLba, 0x4369_1253_3a95_645a),
    (128, 4096, TweakMode::SimpleLba, 0x8332_545a_cb48_4b45),
    (128, 4096, TweakMode::JoinNegLbaWithLba, 0x13ce_98b0_46b9_3251),
    (128, 4096, TweakMode::Incr512FullLba, 0x3b14_3a67_79b1_a8d6),
    (128, 4096, TweakMode::Incr512UpperLba, 0xca3c_3e24_3de1_9654),
    (256, 512, TweakMode::SimpleLba, 0x2c22_3590_3da3_5720),
    (256, 512, TweakMode::JoinNegLbaWithLba, 0xcdbf_f05d_8fd9_5773),
    (256, 512, TweakMode::Incr512FullLba, 0x2c22_3590_3da3_5720),
    (256, 512, TweakMode::Incr512UpperLba, 0x101a_bbaa_42d6_9b83),
    (256, 4096, TweakMode::SimpleLba, 0x9c7a_7853_d48f_4bfa),
    (256, 4096, TweakMode::JoinNegLbaWithLba, 0xd613_8875_35bb_31dc),
    (256, 4096, TweakMode::Incr512FullLba, 0x662a_53e8_4ac8_59a9),
    (256, 4096, TweakMode::Incr512UpperLba, 0x3e6f_4ef5_3ff0_a8e2),
];
const LBA: u64 = 0x1_2345_6789_abcd;

fn plain() -> Vec<u8> {
    (0..16384).map(|i| (i * 7 + (i >> 8) * 13) as u8).collect()
}

fn material(bits: usize) -> Vec<u8> {
    (0..bits / 4).map(|i| (i * 5 + 3) as u8).collect()
}

#[test]
fn every_tweak_mode_and_size_is_what_openssl_makes() {
    let channel = Accel::default().channel();
    for (bits, block, mode, crc) in MADE_WITH_OPENSSL {
        let crypt = crypt(&channel, material(bits), mode, block);
        let mut data = encrypted(&crypt, LBA, &plain());
        assert_eq!(channel.crc64_nvme(0, [&data[..]]), crc, "AES-{bits} {block} {}", mode.name());
        assert!(crypt.decrypt_in_place(LBA, [&mut data[..]], 16384));
        assert_eq!(data, plain(), "AES-{bits} {block} {}", mode.name());
    }
}

/// Sizes of pieces that fit nothing.
fn cuts(seed: u64, total: usize) -> Vec<usize> {
    let (mut state, mut out, mut left) = (seed, Vec::new(), total);
    while left > 0 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let n = ((state >> 33) as usize % 1500).min(left);
        out.push(n);
        left -= n;
    }
    out
}

fn cut<'a>(mut memory: &'a mut [u8], sizes: &[usize]) -> Vec<&'a mut [u8]> {
    let mut out = Vec::new();
    for n in sizes {
        let (now, rest) = memory.split_at_mut(*n);
        out.push(now);
        memory = rest;
    }
    out
}

#[test]
fn scattered_memory_gives_the_same() {
    let channel = Accel::default().channel();
    for seed in 0..50 {
        for (bits, block) in [(128, 512), (256, 512), (128, 4096), (256, 4096)] {
            let crypt = crypt(&channel, material(bits), TweakMode::SimpleLba, block);
            let whole = encrypted(&crypt, LBA, &plain());
            let sizes = cuts(seed, 16384);
            let mut from = plain();
            let mut out = vec![0; 16384];
            assert!(crypt.encrypt(LBA, cut(&mut from, &sizes).into_iter().map(|p| &*p), &mut out));
            assert_eq!(out, whole, "seed {seed}");
            assert!(crypt.decrypt_in_place(LBA, cut(&mut out, &sizes), 16384));
            assert_eq!(out, plain(), "seed {seed}");
        }
    }
}

#[test]
fn memory_that_is_too_short_is_said_so() {
    let channel = Accel::default().channel();
    let crypt = crypt(&channel, material(256), TweakMode::SimpleLba, 512);
    let mut out = [0; 1024];
    assert!(!crypt.encrypt(0, [&[0; 1000][..]], &mut out));
    assert!(!crypt.decrypt_in_place(0, [&mut out[..1000]], 1024));
}

#[test]
fn block_sizes_that_no_mode_takes_are_refused() {
    let channel = Accel::default().channel();
    for (block, mode, fits) in [
        (520, TweakMode::SimpleLba, false),
        (4160, TweakMode::SimpleLba, true),
        (4160, TweakMode::Incr512FullLba, false),
        (0, TweakMode::SimpleLba, false),
        (4096, TweakMode::Incr512UpperLba, true),
    ] {
        assert_eq!(channel.crypt(&key(material(256), mode), block).is_ok(), fits, "{block} {}", mode.name());
    }
}

#[test]
fn checksums_go_on_from_piece_to_piece() {
    let accel = Accel::default();
    let channel = accel.channel();
    let check: &[u8] = b"123456789";
    assert_eq!(channel.crc32c(0, [check]), 0xe306_9283);
    assert_eq!(channel.crc64_nvme(0, [check]), 0xae8b_1486_0a79_9888);
    assert_eq!(channel.crc16_t10dif(0, [check]), 0xd0db);
    let data = plain();
    let whole =
        (channel.crc32c(0, [&data[..]]), channel.crc64_nvme(0, [&data[..]]), channel.crc16_t10dif(0, [&data[..]]));
    for seed in 0..50 {
        let mut copy = data.clone();
        let pieces: Vec<_> = cut(&mut copy, &cuts(seed, data.len())).into_iter().map(|p| &*p).collect();
        let it = || pieces.iter().copied();
        assert_eq!(
            (channel.crc32c(0, it()), channel.crc64_nvme(0, it()), channel.crc16_t10dif(0, it())),
            whole,
            "{seed}"
        );
        let mut to = vec![0; data.len()];
        assert_eq!(channel.copy_crc32c(0, cut(&mut to, &cuts(seed + 1, data.len())), it()), whole.0);
        assert_eq!(to, data);
    }
    // Bit by bit, as T10 has it.
    let mut crc = 0u16;
    for byte in &data {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x8bb7 } else { crc << 1 };
        }
    }
    assert_eq!(whole.2, crc);
    let done = accel.stats()[Operation::Crc32c as usize];
    assert_eq!((done.executed, done.bytes), (52, 51 * 16384 + 9));
}

#[test]
fn memory_operations_take_any_pieces() {
    let accel = Accel::default();
    let channel = accel.channel();
    let (a, mut b) = (plain(), vec![0xaa; 16384]);
    for seed in 0..20 {
        assert_eq!(channel.fill(cut(&mut b, &cuts(seed, 16384)), 0x5a), 16384);
        assert!(b.iter().all(|x| *x == 0x5a));
        let mut from = a.clone();
        let src: Vec<_> = cut(&mut from, &cuts(seed + 7, 16384)).into_iter().map(|p| &*p).collect();
        assert_eq!(channel.xor(cut(&mut b, &cuts(seed, 16384)), src.iter().copied()), 16384);
        assert!(b.iter().zip(&a).all(|(x, y)| *x == *y ^ 0x5a));
        assert_eq!(channel.copy(cut(&mut b, &cuts(seed, 16384)), src.iter().copied()), 16384);
        assert!(channel.compare([&b[..]], src.iter().copied()));
        b[16383] ^= 1;
        assert!(!channel.compare([&b[..]], src.iter().copied()));
    }
    let (mut one, mut two) = ([0; 9], [0; 9]);
    channel.dualcast(&mut one, &mut two, b"123456789");
    assert_eq!((&one, &two), (b"123456789", b"123456789"));
    drop(channel);
    assert_eq!(
        accel.stats()[Operation::Xor as usize].bytes,
        20 * 16384,
        "what a core did stays counted when it is gone"
    );
}
