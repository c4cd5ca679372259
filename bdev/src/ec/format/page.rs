//! A page of the map or of the write-intent bitmap.

use super::{FormatError, Out, elsewhere, field, open, seal, u32_at, u64_at, uuid_at};
use crate::ec::layout::{PAGE_BITS, PAGE_BYTES};
use uuid::Uuid;

/// Bytes of bits in a page.
pub const PAGE_BITS_BYTES: usize = (PAGE_BITS / 8) as usize;
/// The highest sequence of a page that is read and written: more writes than any page sees. One more can be computed with.
pub const MAX_SEQUENCE: u64 = 1 << 61;
const BYTES: usize = PAGE_BYTES as usize;
const MAGIC: &[u8; 8] = b"LSEC-PG\0";
const BITS_AT: usize = 56;

/// Which bitmap a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// The map: a bit per stripe, set when the stripe holds data.
    Map = 1,
    /// The write-intent bitmap: a bit per region that a missing member may lack writes of.
    Wib = 2,
}

/// What a page says beside its bits. A page has two slots; it is written to slot `sequence & 1`, so that the other holds what it
/// replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageHeader {
    /// The array.
    pub array: Uuid,
    /// The bitmap.
    pub kind: PageKind,
    /// The page of the bitmap.
    pub index: u32,
    /// One more with every write of this page.
    pub sequence: u64,
    /// Generation of the write-intent bitmap; 0 in the map.
    pub generation: u64,
}

impl PageHeader {
    /// The slot, 0 or 1, that a page of this sequence is written to.
    pub fn side(&self) -> u64 {
        self.sequence & 1
    }

    /// Writes the page to `out`, of [`PAGE_BYTES`] bytes, with `bits`, of [`PAGE_BITS_BYTES`] bytes.
    ///
    /// # Panics
    ///
    /// If a length is wrong.
    pub fn encode(&self, bits: &[u8], out: &mut [u8]) {
        assert!(bits.len() == PAGE_BITS_BYTES && out.len() == BYTES);
        out[..BITS_AT].fill(0);
        let mut o = Out { bytes: out, at: 0 };
        o.put(MAGIC).u32(self.kind as u32).u32(self.index).u64(self.sequence).u64(self.generation).uuid(self.array);
        out[BITS_AT..BITS_AT + PAGE_BITS_BYTES].copy_from_slice(bits);
        out[BITS_AT + PAGE_BITS_BYTES..].fill(0);
        seal(out);
    }

    /// Reads a page and its bits.
    ///
    /// # Errors
    ///
    /// Not a page, damaged, or with a field that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<(PageHeader, &[u8]), FormatError> {
        let b: &[u8; BYTES] = open(bytes, MAGIC)?;
        let kind = match u32_at(b, 8) {
            1 => PageKind::Map,
            2 => PageKind::Wib,
            other => return field("page kind", other, "must be 1 (map) or 2 (write intent)"),
        };
        let header = PageHeader {
            kind,
            index: u32_at(b, 12),
            sequence: u64_at(b, 16),
            generation: u64_at(b, 24),
            array: uuid_at(b, 32),
        };
        if header.sequence > MAX_SEQUENCE {
            let rule = format!("must be at most {MAX_SEQUENCE}, where no page gets to by itself");
            return field("page sequence", header.sequence, rule);
        }
        Ok((header, &b[BITS_AT..BITS_AT + PAGE_BITS_BYTES]))
    }

    /// Reads the page that must be in slot `side` of page `index`.
    ///
    /// # Errors
    ///
    /// Not a page, damaged, or that of another array or place.
    pub fn decode_at(
        bytes: &[u8],
        array: Uuid,
        kind: PageKind,
        index: u32,
        side: u64,
    ) -> Result<(PageHeader, &[u8]), FormatError> {
        let (header, bits) = PageHeader::decode(bytes)?;
        if header.array != array {
            return elsewhere("array", header.array, array);
        }
        if header.kind != kind {
            return elsewhere("page kind", header.kind as u32, kind as u32);
        }
        if header.index != index {
            return elsewhere("page index", header.index, index);
        }
        if header.side() != side {
            return elsewhere("page slot", header.side(), side);
        }
        Ok((header, bits))
    }
}

/// Of the two slots of a page, the one to believe: the valid one with the higher sequence.
///
/// # Errors
///
/// Neither slot is valid: what is wrong with each.
pub fn newest(
    sides: [&[u8]; 2],
    array: Uuid,
    kind: PageKind,
    index: u32,
) -> Result<(PageHeader, &[u8]), Box<[FormatError; 2]>> {
    let [a, b] = [0, 1].map(|side| PageHeader::decode_at(sides[side], array, kind, index, side as u64));
    match (a, b) {
        (Ok(a), Ok(b)) => Ok(if a.0.sequence > b.0.sequence { a } else { b }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(a), Err(b)) => Err(Box::new([a, b])),
    }
}

/// Bit `i` of a bitmap: bit `i mod 8` of byte `i / 8`.
pub fn bit(bits: &[u8], i: usize) -> bool {
    bits[i / 8] >> (i % 8) & 1 != 0
}

/// Sets or clears bit `i` of a bitmap.
pub fn set_bit(bits: &mut [u8], i: usize, on: bool) {
    let mask = 1 << (i % 8);
    if on { bits[i / 8] |= mask } else { bits[i / 8] &= !mask }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(sequence: u64) -> (PageHeader, Vec<u8>, Vec<u8>) {
        let header = PageHeader { array: Uuid::from_u128(5), kind: PageKind::Map, index: 3, sequence, generation: 0 };
        let mut bits = vec![0; PAGE_BITS_BYTES];
        set_bit(&mut bits, 0, true);
        set_bit(&mut bits, PAGE_BITS as usize - 1, true);
        let mut out = vec![0xff; BYTES];
        header.encode(&bits, &mut out);
        (header, bits, out)
    }

    #[test]
    fn a_page_reads_back_as_it_was_written() {
        let (header, bits, out) = page(9);
        assert_eq!(PageHeader::decode(&out), Ok((header, &bits[..])));
        assert!(bit(&bits, 0) && !bit(&bits, 1) && bit(&bits, PAGE_BITS as usize - 1));
    }

    #[test]
    fn any_changed_byte_is_seen() {
        let (_, _, out) = page(9);
        for at in 0..BYTES {
            let mut bad = out.clone();
            bad[at] ^= 0x10;
            assert!(PageHeader::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_sequence_that_could_not_be_added_to_is_refused_and_the_other_slot_believed() {
        let (_, _, last) = page(MAX_SEQUENCE);
        assert!(PageHeader::decode(&last).is_ok());
        let (h8, _, p8) = page(8);
        for beyond in [MAX_SEQUENCE + 1, u64::MAX] {
            let (_, _, out) = page(beyond);
            let says = format!(
                "page sequence is {beyond}: must be at most 2305843009213693952, where no page gets to by itself"
            );
            assert_eq!(PageHeader::decode(&out).unwrap_err().to_string(), says);
            assert_eq!(newest([&p8, &out], Uuid::from_u128(5), PageKind::Map, 3).unwrap().0, h8);
        }
    }

    #[test]
    fn of_two_slots_the_newer_valid_one_is_believed() {
        let uuid = Uuid::from_u128(5);
        let (h8, _, p8) = page(8);
        let (h9, _, p9) = page(9);
        assert_eq!(newest([&p8, &p9], uuid, PageKind::Map, 3).unwrap().0, h9);
        let mut torn = p9.clone();
        torn[2000..].copy_from_slice(&p8[2000..]);
        torn[100] ^= 1;
        assert_eq!(newest([&p8, &torn], uuid, PageKind::Map, 3).unwrap().0, h8);
        let zero = vec![0; BYTES];
        assert_eq!(newest([&zero, &p9], uuid, PageKind::Map, 3).unwrap().0, h9);
        assert_eq!(
            newest([&zero, &zero], uuid, PageKind::Map, 3),
            Err(Box::new([FormatError::Blank, FormatError::Blank]))
        );
        assert!(newest([&p9, &p8], uuid, PageKind::Map, 3).is_err(), "each in the other's slot");
    }

    #[test]
    fn a_page_of_another_array_bitmap_or_place_is_refused_by_name() {
        let (_, _, out) = page(8);
        let at = |uuid, kind, index, side| {
            PageHeader::decode_at(&out, Uuid::from_u128(uuid), kind, index, side).map(|_| ()).unwrap_err().to_string()
        };
        assert!(at(6, PageKind::Map, 3, 0).starts_with("array is "));
        assert_eq!(at(5, PageKind::Wib, 3, 0), "page kind is 1, not 2");
        assert_eq!(at(5, PageKind::Map, 4, 0), "page index is 3, not 4");
        assert_eq!(at(5, PageKind::Map, 3, 1), "page slot is 0, not 1");
    }
}
