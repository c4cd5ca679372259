//! Members of an array of 2+1 that were changed behind its back, with all checksums right.

use std::sync::OnceLock;

use longshore_bdev::ec::format::{RECORD_BYTES, payload_checksum};

/// Offsets and lengths of the structures: superblocks, a page of the map and one of the write-intent bitmap, a record, its payload, a
/// strip.
pub const STRUCTURES: [(usize, usize); 8] = [
    (0, 4096),
    (65536, 4096),
    (131_072, 4096),
    (135_168, 4096),
    (143_360, 4096),
    (156_672, RECORD_BYTES),
    (157_184, 512),
    (167_936, 4096),
];
/// So many of them end with a checksum.
pub const SEALED: usize = 6;
/// The record, its payload, and where the checksum of the payload is in the record.
const RECORD: usize = 5;
const PAYLOAD: usize = 6;
const PAYLOAD_CRC: usize = 80;

fn golden() -> &'static Vec<Vec<u8>> {
    static GOLDEN: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let mut members: Vec<Vec<u8>> = Vec::new();
        let text = include_str!("../../bdev/src/ec/golden/format-1.txt");
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let (word, rest) = line.split_once(' ').expect("two words");
            if word == "member" {
                members.push(vec![0; rest.parse().expect("a size")]);
                continue;
            }
            let at: usize = word.parse().expect("an offset");
            for (i, digits) in rest.as_bytes().chunks(2).enumerate() {
                let digits = std::str::from_utf8(digits).expect("text");
                members.last_mut().expect("a member")[at + i] = u8::from_str_radix(digits, 16).expect("hex");
            }
        }
        for (at, len) in &STRUCTURES[..SEALED] {
            let b = &members[0][*at..at + len];
            let stored = u32::from_le_bytes(b[len - 4..].try_into().expect("four"));
            assert!(b.starts_with(b"LSEC") && stored == payload_checksum(&b[..len - 4]), "no structure at {at}");
        }
        members
    })
}

/// Puts the checksum of a structure right.
pub fn seal(b: &mut [u8]) {
    let at = b.len() - 4;
    let crc = payload_checksum(&b[..at]);
    b[at..].copy_from_slice(&crc.to_le_bytes());
}

/// The images, changed. Five bytes each: member (3: all of them), structure, offset (two bytes), value. If `payloads`, records say the right
/// checksum of their payload, too.
pub fn changed(changes: &[u8], payloads: bool) -> Vec<Vec<u8>> {
    let mut members = golden().clone();
    for change in changes.chunks_exact(5).take(64) {
        let (at, len) = STRUCTURES[usize::from(change[1]) % STRUCTURES.len()];
        let at = at + usize::from(u16::from_le_bytes([change[2], change[3]])) % len;
        let member = usize::from(change[0] % 4);
        for (_, image) in members.iter_mut().enumerate().filter(|(m, _)| member == 3 || member == *m) {
            image[at] = change[4];
        }
    }
    for image in &mut members {
        if payloads {
            let (at, len) = STRUCTURES[PAYLOAD];
            let crc = payload_checksum(&image[at..at + len]);
            let at = STRUCTURES[RECORD].0 + PAYLOAD_CRC;
            image[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        for (at, len) in &STRUCTURES[..SEALED] {
            seal(&mut image[*at..at + len]);
        }
    }
    members
}
