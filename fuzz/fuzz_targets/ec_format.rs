//! Members of an erasure-coded array that somebody prepared.
//!
//! Nothing may panic, allocate without bound or take long. What decodes is valid, and encodes to what decodes the same.
//!
//! Input: byte 0 kind. 0: the rest is taken for each structure, as it is and with its checksum put right. 1: byte 1 is the size that
//! the members name, then changes to an array of 2+1, five bytes each: member, structure, offset, value. Checksums are put right
//! after all changes.

#![no_main]

use std::io;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use longshore_bdev::ec::assemble::{Candidate, Decision, Situation, decide};
use longshore_bdev::ec::check::{ReadAt, Scope, check};
use longshore_bdev::ec::format::{PageHeader, RECORD_BYTES, RecordHeader, Superblock, payload_checksum};
use uuid::Uuid;

/// Offsets and lengths of the structures: superblocks, a page of the map and one of the write-intent bitmap, a record, its payload, a
/// strip.
const STRUCTURES: [(usize, usize); 8] = [
    (0, 4096),
    (65536, 4096),
    (131_072, 4096),
    (135_168, 4096),
    (143_360, 4096),
    (156_672, RECORD_BYTES),
    (157_184, 512),
    (167_936, 4096),
];
const SEALED: usize = 6;

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

fn seal(b: &mut [u8]) {
    let at = b.len() - 4;
    let crc = payload_checksum(&b[..at]);
    b[at..].copy_from_slice(&crc.to_le_bytes());
}

/// A member that says it has `bytes`: what is beyond the image reads zero.
struct Member {
    image: Vec<u8>,
    bytes: u64,
}

impl ReadAt for Member {
    fn name(&self) -> String {
        "member".into()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.bytes);
        assert!(end.is_some(), "read past the end, at {offset}");
        buf.fill(0);
        if let Some(there) = usize::try_from(offset).ok().and_then(|at| self.image.get(at..)) {
            let n = there.len().min(buf.len());
            buf[..n].copy_from_slice(&there[..n]);
        }
        Ok(())
    }
}

fn structures(bytes: &[u8]) {
    if let Ok(s) = Superblock::decode(bytes) {
        s.validate().expect("what was decoded is valid");
        let l = &s.layout;
        assert!(l.member_bytes() > l.data_offset && l.num_blocks() > 0 && l.regions() > 0);
        assert_eq!(l.place(l.num_blocks()).stripe, l.stripes);
        let mut out = [0; 4096];
        s.encode(&mut out);
        assert_eq!(Superblock::decode(&out).as_ref(), Ok(&s));
    }
    if let Ok(h) = RecordHeader::decode(bytes) {
        let mut out = [0; RECORD_BYTES];
        h.encode(&mut out);
        assert_eq!(RecordHeader::decode(&out), Ok(h));
        let _ = h.check_payload(bytes);
    }
    if let Ok((h, bits)) = PageHeader::decode(bytes) {
        let mut out = [0; 4096];
        h.encode(bits, &mut out);
        assert_eq!(PageHeader::decode(&out), Ok((h, bits)));
    }
}

fn array(size: u8, changes: &[u8]) {
    let bytes = if size == 0 { 256 << 10 } else { 1u64 << (18 + size % 40) };
    let mut members: Vec<Member> = golden().iter().map(|image| Member { image: image.clone(), bytes }).collect();
    for change in changes.chunks_exact(5).take(64) {
        let (at, len) = STRUCTURES[usize::from(change[1]) % STRUCTURES.len()];
        let offset = usize::from(u16::from_le_bytes([change[2], change[3]])) % len;
        members[usize::from(change[0]) % 3].image[at + offset] = change[4];
    }
    for member in &mut members {
        for (at, len) in &STRUCTURES[..SEALED] {
            seal(&mut member.image[*at..at + len]);
        }
    }
    let devices: Vec<&dyn ReadAt> = members.iter().map(|m| m as &dyn ReadAt).collect();
    let report = check(&devices, Scope { stripes: false });
    let _ = report.to_string();
    if report.counts.mapped <= 16 {
        let _ = check(&devices, Scope { stripes: true }).to_string();
    }
    let candidates: Vec<Candidate> = members
        .iter()
        .filter_map(|m| Superblock::select([&m.image[..4096], &m.image[65536..69632]]).ok())
        .map(|superblock| Candidate { name: String::new(), superblock, bytes, block: 512 })
        .collect();
    for (waited, salvage) in [(false, false), (true, false), (true, true)] {
        if let Decision::Assemble(a) = decide(&candidates, Situation { waited, salvage }) {
            a.head.validate().expect("a head can be written");
            assert!(a.head.array != Uuid::nil() && a.members.iter().flatten().count() >= a.head.layout.k);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    match data {
        [0, rest @ ..] => {
            structures(rest);
            for len in [RECORD_BYTES, 4096] {
                if let Some(head) = rest.get(..len) {
                    let mut sealed = head.to_vec();
                    seal(&mut sealed);
                    structures(&sealed);
                }
            }
        }
        [_, size, changes @ ..] => array(*size, changes),
        _ => {}
    }
});
