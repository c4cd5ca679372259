//! The header of a journal record: one member's share of one write to one stripe.

use super::{FormatError, Out, crc32c, elsewhere, field, open, seal, u32_at, u64_at, uuid_at};
use crate::ec::layout::Layout;
use uuid::Uuid;

/// Bytes of a header that are used, at the start of its block.
pub const RECORD_BYTES: usize = 128;
const MAGIC: &[u8; 8] = b"LSEC-JR\0";

/// What a record says. The payload, `length` bytes that begin in the block after the header, is what this member's strip of
/// `stripe` shall hold from `offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordHeader {
    /// The array.
    pub array: Uuid,
    /// The session of the journal: a record of another one than the superblock names is void.
    pub session: u64,
    /// The transaction: array-wide, ascending within a session.
    pub txn: u64,
    /// The oldest transaction that was not retired when this was written: records of older ones are void.
    pub tail: u64,
    /// The stripe that is written.
    pub stripe: u64,
    /// The members whose strip the transaction changes: bit `i` is slot `i`. They have a record of it unless they were out.
    pub participants: u64,
    /// The slot of the member that this record is for.
    pub slot: u32,
    /// The slot of the journal that this record lies in.
    pub index: u32,
    /// Bytes into the strip.
    pub offset: u32,
    /// Bytes of payload; 0 in a mark.
    pub length: u32,
    /// CRC32C of the payload: [`payload_checksum`].
    pub payload_crc: u32,
}

/// The checksum of a record's payload.
pub fn payload_checksum(payload: &[u8]) -> u32 {
    crc32c(payload)
}

impl RecordHeader {
    /// Writes the header to `block`, one block of at least [`RECORD_BYTES`] bytes. What is beyond those is left as it is.
    ///
    /// # Panics
    ///
    /// If `block` is shorter.
    pub fn encode(&self, block: &mut [u8]) {
        let out = &mut block[..RECORD_BYTES];
        out.fill(0);
        let mut o = Out { bytes: out, at: 0 };
        o.put(MAGIC).uuid(self.array).u64(self.session).u64(self.txn).u64(self.tail).u64(self.stripe);
        o.u64(self.participants).u32(self.slot).u32(self.index).u32(self.offset).u32(self.length).u32(self.payload_crc);
        seal(out);
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// Not a header, or damaged.
    pub fn decode(block: &[u8]) -> Result<RecordHeader, FormatError> {
        let b: &[u8; RECORD_BYTES] = open(block, MAGIC)?;
        Ok(RecordHeader {
            array: uuid_at(b, 8),
            session: u64_at(b, 24),
            txn: u64_at(b, 32),
            tail: u64_at(b, 40),
            stripe: u64_at(b, 48),
            participants: u64_at(b, 56),
            slot: u32_at(b, 64),
            index: u32_at(b, 68),
            offset: u32_at(b, 72),
            length: u32_at(b, 76),
            payload_crc: u32_at(b, 80),
        })
    }

    /// A mark: a record without a payload, which changes nothing and is there for its tail.
    pub fn is_mark(&self) -> bool {
        self.length == 0
    }

    /// Whether this header may stand in journal slot `index` of the member in `slot`, and its figures lie in the array. After
    /// this every figure may be computed with.
    ///
    /// # Errors
    ///
    /// What does not fit. [`FormatError::Elsewhere`] for a record of another array, session or place.
    pub fn check(
        &self,
        layout: &Layout,
        array: Uuid,
        session: u64,
        slot: usize,
        index: u32,
    ) -> Result<(), FormatError> {
        if self.array != array {
            return elsewhere("array", self.array, array);
        }
        if self.session != session {
            return elsewhere("journal session", self.session, session);
        }
        if self.slot as usize != slot {
            return elsewhere("member slot", self.slot, slot);
        }
        if self.index != index {
            return elsewhere("journal slot", self.index, index);
        }
        if self.stripe >= layout.stripes {
            return field("stripe", self.stripe, format!("must be below {}", layout.stripes));
        }
        if self.participants >> layout.n() != 0 || self.participants >> slot & 1 == 0 {
            return field("participants", self.participants, "must be members of the array, this one among them");
        }
        if self.txn == 0 || self.tail > self.txn {
            return field("tail", self.tail, format!("must be at most the transaction, {}", self.txn));
        }
        if self.is_mark() {
            return Ok(());
        }
        let aligned = self.offset.is_multiple_of(layout.block) && self.length.is_multiple_of(layout.block);
        if !aligned || u64::from(self.offset) + u64::from(self.length) > u64::from(layout.strip) {
            return field("length", self.length, format!("must be blocks within the strip from {}", self.offset));
        }
        Ok(())
    }

    /// Whether `payload`, the bytes after the header's block, begins with this record's payload.
    ///
    /// # Errors
    ///
    /// Too short, or its checksum is wrong.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FormatError> {
        let length = self.length as usize;
        let Some(payload) = payload.get(..length) else {
            return Err(FormatError::Short { want: length, have: payload.len() });
        };
        let computed = crc32c(payload);
        if computed != self.payload_crc {
            return Err(FormatError::Checksum { stored: self.payload_crc, computed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec::layout::LayoutOptions;

    fn layout() -> Layout {
        let options = LayoutOptions { journal_slots: Some(4), alignment: Some(4096), region_stripes: Some(1) };
        Layout::compute(2, 1, 4096, 512, 1 << 20, &options).unwrap()
    }

    fn header() -> RecordHeader {
        RecordHeader {
            array: Uuid::from_u128(9),
            session: 3,
            txn: 70,
            tail: 68,
            stripe: 5,
            participants: 0b101,
            slot: 2,
            index: 1,
            offset: 1024,
            length: 512,
            payload_crc: payload_checksum(&[7; 512]),
        }
    }

    #[test]
    fn a_header_reads_back_as_it_was_written_and_fits_its_place() {
        let mut block = [0xee; 512];
        header().encode(&mut block);
        let read = RecordHeader::decode(&block).unwrap();
        assert_eq!(read, header());
        assert_eq!(read.check(&layout(), Uuid::from_u128(9), 3, 2, 1), Ok(()));
        assert_eq!(read.check_payload(&[7; 4096]), Ok(()));
        assert!(matches!(read.check_payload(&[8; 4096]), Err(FormatError::Checksum { .. })));
        assert_eq!(read.check_payload(&[7; 511]), Err(FormatError::Short { want: 512, have: 511 }));
    }

    #[test]
    fn any_changed_byte_is_seen() {
        let mut block = [0; 512];
        header().encode(&mut block);
        for at in 0..RECORD_BYTES {
            let mut bad = block;
            bad[at] ^= 1;
            assert!(RecordHeader::decode(&bad).is_err(), "byte {at}");
        }
        assert_eq!(RecordHeader::decode(&[0; 512]), Err(FormatError::Blank));
        assert_eq!(RecordHeader::decode(&[0; 64]), Err(FormatError::Short { want: 128, have: 64 }));
    }

    #[test]
    fn a_record_of_another_array_session_or_place_is_refused_by_name() {
        let (l, u) = (layout(), Uuid::from_u128(9));
        let says = |r: Result<(), FormatError>| r.unwrap_err().to_string();
        assert!(says(header().check(&l, Uuid::nil(), 3, 2, 1)).starts_with("array is"));
        assert_eq!(says(header().check(&l, u, 4, 2, 1)), "journal session is 3, not 4");
        assert_eq!(says(header().check(&l, u, 3, 1, 1)), "member slot is 2, not 1");
        assert_eq!(says(header().check(&l, u, 3, 2, 0)), "journal slot is 1, not 0");
    }

    #[test]
    fn a_record_without_a_payload_is_a_mark() {
        let mark = RecordHeader { length: 0, offset: 0, payload_crc: payload_checksum(&[]), ..header() };
        assert!(mark.is_mark() && !header().is_mark());
        assert_eq!(mark.check(&layout(), Uuid::from_u128(9), 3, 2, 1), Ok(()));
        assert_eq!(mark.check_payload(&[]), Ok(()));
    }

    #[test]
    fn figures_outside_the_array_are_refused_by_name() {
        let (l, u) = (layout(), Uuid::from_u128(9));
        let name = |h: RecordHeader| match h.check(&l, u, 3, 2, 1) {
            Err(FormatError::Field { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(RecordHeader { stripe: l.stripes, ..header() }), "stripe");
        assert_eq!(name(RecordHeader { participants: 0b1101, ..header() }), "participants");
        assert_eq!(name(RecordHeader { participants: 0b001, ..header() }), "participants");
        assert_eq!(name(RecordHeader { tail: 71, ..header() }), "tail");
        assert_eq!(name(RecordHeader { length: 100, ..header() }), "length");
        assert_eq!(name(RecordHeader { offset: 3584, length: 1024, ..header() }), "length");
        assert_eq!(name(RecordHeader { offset: u32::MAX - 511, ..header() }), "length");
    }
}
