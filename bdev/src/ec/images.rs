//! Arrays in memory for tests: members as byte vectors, written by the format's own rules.

use std::io;

use longshore_accel::erasure::{Codec, MatrixKind};
use uuid::Uuid;

use super::check::ReadAt;
use super::format::{
    Features, MATRIX_CAUCHY, MemberEntry, PAGE_BITS_BYTES, PageHeader, PageKind, RecordHeader, Stamp, Superblock,
    payload_checksum, set_bit,
};
use super::layout::{Layout, LayoutOptions, PAGE_BYTES, SUPERBLOCK_BYTES};

/// A member in memory.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

impl ReadAt for Image {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = self.bytes.get(offset as usize..).and_then(|b| b.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An array in memory.
#[derive(Clone)]
pub(crate) struct Array {
    pub(crate) head: Superblock,
    pub(crate) members: Vec<Image>,
    map: Vec<u8>,
    sequence: u64,
}

impl Array {
    /// A fresh array of k+m with `bytes` per member, 4 KiB strips and 512-byte blocks.
    pub(crate) fn new(k: usize, m: usize, bytes: usize) -> Array {
        let options = LayoutOptions { journal_slots: Some(4), alignment: Some(4096), region_stripes: Some(4) };
        let layout = Layout::compute(k, m, 4096, 512, bytes as u64, &options).expect("a geometry");
        let uuid = |i: usize| Uuid::from_u128(0x6c6f_6e67_7368_6f72_6500_0000_0000_0000 + i as u128);
        let head = Superblock {
            features: Features::default(),
            array: uuid(0),
            name: "vol0".into(),
            layout,
            matrix: MATRIX_CAUCHY,
            stamp: Stamp { epoch: 5, nonce: 0x0123_4567_89ab_cdef },
            predecessor: Stamp { epoch: 3, nonce: 0xfedc_ba98_7654_3210 },
            journal_session: 42,
            wib_generation: 0,
            created: 1_800_000_000,
            slot: 0,
            members: (1..=layout.n()).map(|i| MemberEntry::in_sync(uuid(i))).collect(),
        };
        let image = |i| Image { name: format!("disk{i}"), bytes: vec![0; bytes] };
        let members = (0..layout.n()).map(image).collect();
        let map = vec![0; layout.map_pages() as usize * PAGE_BITS_BYTES];
        let mut array = Array { head, members, map, sequence: 0 };
        array.write_superblocks();
        array.write_map();
        array
    }

    pub(crate) fn put(&mut self, slot: usize, offset: u64, bytes: &[u8]) {
        self.members[slot].bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes the head to all members.
    pub(crate) fn write_superblocks(&mut self) {
        for slot in 0..self.members.len() {
            self.write_superblock(slot, &self.head.clone());
        }
    }

    /// Writes `head` to one member.
    pub(crate) fn write_superblock(&mut self, slot: usize, head: &Superblock) {
        let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
        head.for_slot(slot).encode(&mut bytes);
        self.put(slot, Layout::superblock_at(head.copy()), &bytes);
    }

    /// Writes all pages of the map to all members.
    pub(crate) fn write_map(&mut self) {
        for slot in 0..self.members.len() {
            self.write_map_to(slot);
        }
        self.sequence += 1;
    }

    pub(crate) fn write_map_to(&mut self, slot: usize) {
        let layout = self.head.layout;
        for (index, bits) in self.map.clone().chunks(PAGE_BITS_BYTES).enumerate() {
            let header = PageHeader {
                array: self.head.array,
                kind: PageKind::Map,
                index: index as u32,
                sequence: self.sequence,
                generation: 0,
            };
            let mut page = vec![0; PAGE_BYTES as usize];
            header.encode(bits, &mut page);
            self.put(slot, layout.map_page_at(index as u64, header.side()), &page);
        }
    }

    /// Marks a stripe as holding data, in memory.
    pub(crate) fn mark(&mut self, stripe: u64) {
        set_bit(&mut self.map, stripe as usize, true);
    }

    /// The strips of a stripe with this data, by strip index.
    pub(crate) fn encode(&self, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let l = &self.head.layout;
        let codec = Codec::new(MatrixKind::Cauchy, l.k, l.m).expect("a code");
        let mut parity = vec![vec![0; l.strip as usize]; l.m];
        let sources: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
        codec.encode(&sources, &mut parity.iter_mut().map(|p| &mut p[..]).collect::<Vec<_>>());
        data.iter().cloned().chain(parity).collect()
    }

    /// Writes a stripe and its bit to all members.
    pub(crate) fn write_stripe(&mut self, stripe: u64, data: &[Vec<u8>]) {
        for (index, strip) in self.encode(data).iter().enumerate() {
            let slot = self.head.layout.slot_of(stripe, index);
            self.put(slot, self.head.layout.strip_offset(stripe), strip);
        }
        self.mark(stripe);
        self.write_map();
    }

    /// A strip of data, the same for the same `seed`.
    pub(crate) fn strip(&self, seed: u64) -> Vec<u8> {
        let mut out = vec![0; self.head.layout.strip as usize];
        for (i, line) in out.chunks_mut(512).enumerate().take(2) {
            line[..16].copy_from_slice(&[(seed + 1).to_le_bytes(), (i as u64 + 7).to_le_bytes()].concat());
        }
        out
    }

    /// Writes the record of a member's share.
    pub(crate) fn write_record(&mut self, header: RecordHeader, payload: &[u8]) {
        let l = self.head.layout;
        let mut block = vec![0; l.block as usize];
        RecordHeader { payload_crc: payload_checksum(payload), ..header }.encode(&mut block);
        let at = l.journal_at(header.index);
        self.put(header.slot as usize, at, &block);
        self.put(header.slot as usize, at + u64::from(l.block), payload);
    }

    /// The header of a record that overwrites the first block of a strip on the members of `participants`.
    pub(crate) fn record(&self, txn: u64, stripe: u64, participants: u64, slot: usize) -> RecordHeader {
        RecordHeader {
            array: self.head.array,
            session: self.head.journal_session,
            txn,
            tail: 1,
            stripe,
            participants,
            slot: slot as u32,
            index: (txn % u64::from(self.head.layout.journal_slots)) as u32,
            offset: 0,
            length: 512,
            payload_crc: 0,
        }
    }

    /// Writes records, on `slots` only, of a transaction that gives the first block of data strip 0 of `stripe` a new content, and
    /// returns all strips of the stripe as they are after it.
    pub(crate) fn journal(&mut self, txn: u64, stripe: u64, data: &[Vec<u8>], slots: &[usize]) -> Vec<Vec<u8>> {
        let mut data = data.to_vec();
        data[0][..512].fill(0x5a);
        let (after, l) = (self.encode(&data), self.head.layout);
        let touched: Vec<usize> = std::iter::once(0).chain(l.k..l.n()).collect();
        let mask = touched.iter().fold(0u64, |mask, &i| mask | 1 << l.slot_of(stripe, i));
        for index in touched {
            let slot = l.slot_of(stripe, index);
            if slots.contains(&slot) {
                self.write_record(self.record(txn, stripe, mask, slot), &after[index][..512]);
            }
        }
        after
    }
}
