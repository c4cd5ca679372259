//! Members of an erasure-coded array that somebody prepared.
//!
//! Nothing may panic, allocate without bound or take long. What decodes is valid, and encodes to what decodes the same.
//!
//! Input: byte 0 kind. 0: the rest is taken for each structure, as it is and with its checksum put right. 1: byte 1 is the size that
//! the members name, then changes to an array of 2+1: see [`ec_images::changed`].

#![no_main]

#[path = "../src/ec_images.rs"]
mod ec_images;

use std::io;

use ec_images::{changed, seal};
use libfuzzer_sys::fuzz_target;
use longshore_bdev::ec::assemble::{Candidate, Decision, Situation, decide};
use longshore_bdev::ec::check::{ReadAt, Scope, check};
use longshore_bdev::ec::format::{PageHeader, RECORD_BYTES, RecordHeader, Superblock};
use uuid::Uuid;

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
    let members: Vec<Member> = changed(changes, false).into_iter().map(|image| Member { image, bytes }).collect();
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
