//! Images of released formats. They are never changed: what a released version wrote has to be read for good.
//!
//! An image is text: `member BYTES` begins a member of so many zeroes, `OFFSET HEX` puts bytes into it.

use std::sync::Arc;

use super::arrays::{Arrays, close};
use super::check::{ReadAt, Scope, Verdict, check};
use super::create::MemberIo;
use super::format::{FormatError, MemberState, PageHeader, PageKind, RecordHeader, Stamp, Superblock};
use super::images::{Array, Image};
use super::layout::{Layout, PAGE_BYTES};
use crate::device::Geometry;
use crate::io::IoFlags;
use crate::malloc::Malloc;
use crate::registry::Registry;
use crate::testing::{filled, open, run};
use uuid::Uuid;

const FORMAT_1: &str = include_str!("format-1.txt");
/// All images, by the version of the format.
const RELEASED: [(u32, &str); 1] = [(1, FORMAT_1)];

fn read(text: &str) -> Vec<Image> {
    let mut members: Vec<Image> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (word, rest) = line.split_once(' ').expect("two words");
        if word == "member" {
            let name = format!("member{}", members.len());
            members.push(Image { name, bytes: vec![0; rest.parse().expect("a size")] });
            continue;
        }
        let at: usize = word.parse().expect("an offset");
        let digits = rest.as_bytes().chunks(2).map(|d| std::str::from_utf8(d).expect("text"));
        let bytes: Vec<u8> = digits.map(|d| u8::from_str_radix(d, 16).expect("hex")).collect();
        members.last_mut().expect("a member first").bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    members
}

/// What the image was made of: an array of 2+1 whose stripes 0 and 5 hold data, with a write to stripe 5 in its journal, write intents,
/// and an older copy of the superblock.
fn array() -> Array {
    let mut array = Array::new(2, 1, 256 << 10);
    let new = array.head.clone();
    array.head.stamp = Stamp { epoch: 4, ..new.stamp };
    array.write_superblocks();
    array.head = Superblock { wib_generation: 4, ..new };
    array.write_superblocks();
    for stripe in [0, 5] {
        let data = [array.strip(stripe), array.strip(stripe + 10)];
        array.write_stripe(stripe, &data);
    }
    let data = [array.strip(5), array.strip(15)];
    array.journal(2, 5, &data, &[0, 1, 2]);
    for slot in 0..3 {
        let header = PageHeader { array: array.head.array, kind: PageKind::Wib, index: 0, sequence: 3, generation: 4 };
        let (mut bits, mut page) = (vec![0; 4032], vec![0; PAGE_BYTES as usize]);
        bits[0] = 0b101;
        header.encode(&bits, &mut page);
        let at = array.head.layout.wib_page_at(0, header.side());
        array.put(slot, at, &page);
    }
    array
}

#[test]
fn the_image_of_format_1_is_read_and_means_what_it_meant() {
    let members = read(FORMAT_1);
    let copy = |m: &Image, at: u64| m.bytes[at as usize..][..4096].to_vec();
    for (slot, member) in members.iter().enumerate() {
        let [a, b] = [0, 1].map(|c| copy(member, Layout::superblock_at(c)));
        let s = Superblock::select([&a, &b]).unwrap();
        assert_eq!((s.slot, s.name.as_str(), s.stamp.epoch), (slot, "vol0", 5));
        assert_eq!((s.layout.k, s.layout.m, s.layout.strip, s.layout.block), (2, 1, 4096, 512));
        assert_eq!((s.journal_session, s.wib_generation, s.created), (42, 4, 1_800_000_000));
        assert_eq!(s.array, Uuid::from_u128(0x6c6f_6e67_7368_6f72_6500_0000_0000_0000));
        assert!(s.members.iter().all(|m| m.state == MemberState::InSync));
        assert_eq!(Superblock::decode(&a).unwrap().stamp.epoch, 4);
        let (page, bits) =
            PageHeader::decode(&copy(member, s.layout.map_page_at(0, 0))).map(|(p, b)| (p, b[0])).unwrap();
        assert_eq!((page.kind, page.sequence, bits), (PageKind::Map, 2, 0b10_0001));
        let record = RecordHeader::decode(&copy(member, s.layout.journal_at(2)));
        let record = record.map(|r| (r.txn, r.stripe, r.participants, r.length, r.session));
        assert_eq!(record, if slot < 2 { Ok((2, 5, 0b011, 512, 42)) } else { Err(FormatError::Blank) });
    }
    let devices: Vec<&dyn ReadAt> = members.iter().map(|m| m as &dyn ReadAt).collect();
    let report = check(&devices, Scope::default());
    assert_eq!(report.verdict, Verdict::Sound, "{report}");
    let c = report.counts;
    assert_eq!((c.mapped, c.agree, c.redone, c.intent_regions), (2, 2, 1, 2), "{report}");
}

#[test]
fn this_build_writes_format_1_as_it_was_released() {
    assert_eq!(read(FORMAT_1).len(), 3);
    for (built, golden) in array().members.iter().zip(read(FORMAT_1)) {
        let differs = built.bytes.iter().zip(&golden.bytes).position(|(a, b)| a != b);
        assert_eq!((differs, built.bytes.len()), (None, golden.bytes.len()), "{}", built.name);
    }
}

/// What a host reads of the array: stripe 5 as the journal leaves it.
fn content() -> Vec<u8> {
    let array = array();
    let l = array.head.layout;
    let mut all = vec![0; (l.num_blocks() * u64::from(l.block)) as usize];
    for stripe in [0, 5] {
        let at = stripe as usize * l.k * l.strip as usize;
        let data = [array.strip(stripe), array.strip(stripe + 10)].concat();
        all[at..at + data.len()].copy_from_slice(&data);
    }
    let at = 5 * l.k * l.strip as usize;
    all[at..at + 512].fill(0x5a);
    all
}

#[test]
fn an_array_starts_on_each_image_serves_what_it_held_and_leaves_one_that_is_sound() {
    for (version, text) in RELEASED {
        run(move |r| async move {
            // Where nobody looks at devices.
            let bare = Registry::new();
            let images = read(text);
            let mut disks = Vec::new();
            for image in &images {
                let disk = Malloc::new(Geometry::plain(512, image.bytes.len() as u64 / 512)).unwrap();
                bare.register(&image.name, None, disk.clone()).unwrap();
                MemberIo::open(&bare, &image.name, Box::new(|_| {})).unwrap().write(0, &image.bytes).await.unwrap();
                disks.push(disk);
            }
            let registry = Registry::new();
            let _arrays = Arrays::install(&registry, vec![r.handle()], Arc::default());
            for (image, disk) in images.iter().zip(&disks) {
                registry.register(&image.name, None, disk.clone()).unwrap();
            }
            registry.wait_for_examine().await;
            let node = registry.find("vol0").unwrap_or_else(|| panic!("no array on the image of format {version}"));
            let (desc, ch) = open(&registry, "vol0");
            let want = content();
            for (i, want) in want.chunks(4096).enumerate() {
                let (status, got) = ch.read(i as u64 * 8, want.len() as u32 / 512, filled(&r, want.len(), 1)).await;
                assert!(status.is_ok() && got.unwrap().as_slice() == want, "format {version}, at {i} times 4 KiB");
            }
            let blocks = node.num_blocks();
            for lba in [0, 40, blocks - 8] {
                assert!(ch.write(lba, 8, filled(&r, 4096, 0x77), IoFlags::FUA).await.0.is_ok());
            }
            drop((desc, ch));
            close(&registry, &node).await.unwrap();
            let mut after = Vec::new();
            for image in &images {
                let io = MemberIo::open(&bare, &image.name, Box::new(|_| {})).unwrap();
                after.push(Image { name: image.name.clone(), bytes: io.read(0, image.bytes.len()).await.unwrap() });
            }
            let report = check(&after.iter().map(|m| m as &dyn ReadAt).collect::<Vec<_>>(), Scope::default());
            assert_eq!(report.verdict, Verdict::Sound, "format {version}: {report}");
        });
    }
}
