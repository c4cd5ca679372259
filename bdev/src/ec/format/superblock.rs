//! The superblock: what an array is, and which of its members may be believed.

use super::{FormatError, Out, elsewhere, field, open, seal, u16_at, u32_at, u64_at, uuid_at};
use crate::ec::layout::{Layout, MAX_DATA, MAX_MEMBERS, MAX_PARITY, SUPERBLOCK_BYTES};
use std::fmt;
use uuid::Uuid;

/// The version of the format that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The only matrix there is: Cauchy, polynomial 0x11d.
pub const MATRIX_CAUCHY: u16 = 1;
/// The epoch of an array that was made and not yet started.
pub const FIRST_EPOCH: u64 = 1;
/// The highest epoch that is read and written: more updates than any array sees. One more can be computed with.
pub const MAX_EPOCH: u64 = 1 << 61;
/// Bytes of an array's name, at most.
pub const NAME_BYTES: usize = 63;

const BYTES: usize = SUPERBLOCK_BYTES as usize;
const MAGIC: &[u8; 8] = b"LSEC-SB\0";
const NAME_AT: usize = 192;
const TABLE_AT: usize = 256;
const ENTRY_BYTES: usize = 64;
const _: () = assert!(NAME_AT + NAME_BYTES < TABLE_AT && TABLE_AT + MAX_MEMBERS * ENTRY_BYTES <= BYTES - 4);

/// Words of features. None is defined in version 1: a reader ignores those of `compat` that it does not know, must not write an
/// array with others in `ro_compat`, and must not open one with others in `incompat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features {
    /// May be ignored.
    pub compat: u64,
    /// Must be known to write.
    pub ro_compat: u64,
    /// Must be known to read.
    pub incompat: u64,
}

/// Names of features, by bit. Version 1 defines none.
const INCOMPAT_NAMES: [Option<&str>; 64] = [None; 64];
const RO_COMPAT_NAMES: [Option<&str>; 64] = [None; 64];

/// The set bits of `word` as a list, by name where they have one.
fn names(word: u64, known: &[Option<&str>; 64]) -> String {
    let list: Vec<String> = (0..64)
        .filter(|&bit| word >> bit & 1 != 0)
        .map(|bit| known[bit].map_or_else(|| format!("bit {bit}"), str::to_owned))
        .collect();
    list.join(", ")
}

/// Which writer wrote a superblock, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Stamp {
    /// Ascends with every update.
    pub epoch: u64,
    /// Drawn anew by each assembly of the array: two writers who do not know of each other have different ones.
    pub nonce: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} of writer {:016x}", self.epoch, self.nonce)
    }
}

/// What the array knows of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Holds everything.
    InSync = 1,
    /// Lacks writes since it failed.
    Failed = 2,
    /// Is being filled: in sync below its progress.
    Rebuilding = 3,
    /// The slot has no member.
    Empty = 4,
}

/// What a rebuild has to fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RebuildMode {
    /// Every stripe that holds data.
    Full = 1,
    /// The regions named by the write-intent bitmap.
    Wib = 2,
}

/// A rebuild, as it is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rebuild {
    /// What it fills.
    pub mode: RebuildMode,
    /// Stripes below this are in sync and durable on the member.
    pub progress: u64,
}

/// One row of the table of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberEntry {
    /// The member; nil in an empty slot.
    pub uuid: Uuid,
    /// What is known of it.
    pub state: MemberState,
    /// The epoch that named it failed; 0 if none did. In sync: the epoch of a salvage that took it though it lacks writes, until the salvage's
    /// first session has recovered.
    pub failed_epoch: u64,
    /// How far it was filled, if it is being filled.
    pub rebuild: Option<Rebuild>,
    /// If it failed while it was in sync: the last superblock that it is known to have taken before.
    pub last: Stamp,
}

impl MemberEntry {
    /// A slot without a member.
    pub const EMPTY: MemberEntry = MemberEntry {
        uuid: Uuid::nil(),
        state: MemberState::Empty,
        failed_epoch: 0,
        rebuild: None,
        last: Stamp { epoch: 0, nonce: 0 },
    };

    /// A member that holds everything.
    pub fn in_sync(uuid: Uuid) -> MemberEntry {
        MemberEntry { uuid, state: MemberState::InSync, ..MemberEntry::EMPTY }
    }

    /// True if a salvage took it though it lacks writes, and nobody has recovered the array since: it lacks records of the journal, too.
    pub fn stands_in(&self) -> bool {
        self.state == MemberState::InSync && self.failed_epoch != 0
    }
}

/// A superblock. All members have the same one of an epoch, but for `slot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Features in use.
    pub features: Features,
    /// The array.
    pub array: Uuid,
    /// Its name: 1 to 63 bytes.
    pub name: String,
    /// Its geometry.
    pub layout: Layout,
    /// The matrix of its code.
    pub matrix: u16,
    /// Which update this is.
    pub stamp: Stamp,
    /// The update before it: a member that missed this one only is still whole.
    pub predecessor: Stamp,
    /// Records of other sessions are void.
    pub journal_session: u64,
    /// The epoch at which the first of the members that are missing now failed; 0: none is.
    pub wib_generation: u64,
    /// Seconds since 1970 when the array was made.
    pub created: u64,
    /// The slot of the member that this is on.
    pub slot: usize,
    /// All members, by slot: `k + m` of them.
    pub members: Vec<MemberEntry>,
}

impl Superblock {
    /// The copy, 0 or 1, that this is written to. The other one is older.
    pub fn copy(&self) -> u64 {
        self.stamp.epoch & 1
    }

    /// The member that this is on.
    pub fn member(&self) -> &MemberEntry {
        &self.members[self.slot]
    }

    /// This superblock as the member in `slot` has it.
    pub fn for_slot(&self, slot: usize) -> Superblock {
        Superblock { slot, ..self.clone() }
    }

    /// The fewest members in sync with which the array may run: k, and for m >= k more than half of all.
    pub fn quorum(&self) -> usize {
        quorum(self.layout.k, self.layout.m)
    }

    /// Members named in sync.
    pub fn in_sync(&self) -> usize {
        self.members.iter().filter(|m| m.state == MemberState::InSync).count()
    }

    /// Writes the superblock to `out`, of 4096 bytes.
    ///
    /// # Panics
    ///
    /// If `out` has another length, or the superblock is not [valid](Superblock::validate).
    pub fn encode(&self, out: &mut [u8]) {
        assert_eq!(out.len(), BYTES);
        if let Err(e) = self.validate() {
            panic!("a superblock that no reader would take: {e}");
        }
        let l = &self.layout;
        out.fill(0);
        let mut o = Out { bytes: out, at: 0 };
        o.put(MAGIC).u32(FORMAT_VERSION).u32(0);
        o.u64(self.features.compat).u64(self.features.ro_compat).u64(self.features.incompat);
        o.uuid(self.array).uuid(self.member().uuid);
        o.u16(l.k as u16).u16(l.m as u16).u16(self.matrix).u16(self.slot as u16);
        o.u32(l.strip).u32(l.block).u32(l.journal_slots).u32(l.region_shift);
        o.u64(l.stripes).u64(l.map_offset).u64(l.wib_offset).u64(l.journal_offset).u64(l.data_offset);
        o.u64(self.stamp.epoch).u64(self.stamp.nonce).u64(self.predecessor.epoch).u64(self.predecessor.nonce);
        o.u64(self.journal_session).u64(self.wib_generation).u64(self.created);
        debug_assert!(o.at <= NAME_AT);
        o.at = NAME_AT;
        o.put(self.name.as_bytes());
        for (slot, member) in self.members.iter().enumerate() {
            o.at = TABLE_AT + slot * ENTRY_BYTES;
            let (mode, progress) = member.rebuild.map_or((0, 0), |r| (r.mode as u32, r.progress));
            o.uuid(member.uuid).u32(member.state as u32).u32(mode).u64(member.failed_epoch).u64(progress);
            o.u64(member.last.epoch).u64(member.last.nonce);
        }
        seal(out);
    }

    /// Reads a superblock.
    ///
    /// # Errors
    ///
    /// Not one, damaged, of a version or with features that this build does not know, or with a field that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, FormatError> {
        let b: &[u8; BYTES] = open(bytes, MAGIC)?;
        let version = u32_at(b, 8);
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { found: version });
        }
        let features = Features { compat: u64_at(b, 16), ro_compat: u64_at(b, 24), incompat: u64_at(b, 32) };
        if features.incompat != 0 {
            return Err(FormatError::Incompatible { features: names(features.incompat, &INCOMPAT_NAMES) });
        }
        if features.ro_compat != 0 {
            return Err(FormatError::ReadOnly { features: names(features.ro_compat, &RO_COMPAT_NAMES) });
        }
        let (k, m) = (usize::from(u16_at(b, 72)), usize::from(u16_at(b, 74)));
        let layout = Layout {
            k,
            m,
            strip: u32_at(b, 80),
            block: u32_at(b, 84),
            journal_slots: u32_at(b, 88),
            region_shift: u32_at(b, 92),
            stripes: u64_at(b, 96),
            map_offset: u64_at(b, 104),
            wib_offset: u64_at(b, 112),
            journal_offset: u64_at(b, 120),
            data_offset: u64_at(b, 128),
        };
        layout.validate()?;
        let slot = usize::from(u16_at(b, 78));
        if slot >= layout.n() {
            return field("member slot", slot, format!("must be below {}", layout.n()));
        }
        let members = (0..layout.n()).map(|slot| entry(b, slot)).collect::<Result<Vec<_>, _>>()?;
        let member = uuid_at(b, 56);
        if members[slot].uuid != member {
            return elsewhere("member", member, members[slot].uuid);
        }
        let superblock = Superblock {
            features,
            array: uuid_at(b, 40),
            name: name(b)?,
            layout,
            matrix: u16_at(b, 76),
            stamp: Stamp { epoch: u64_at(b, 136), nonce: u64_at(b, 144) },
            predecessor: Stamp { epoch: u64_at(b, 152), nonce: u64_at(b, 160) },
            journal_session: u64_at(b, 168),
            wib_generation: u64_at(b, 176),
            created: u64_at(b, 184),
            slot,
            members,
        };
        superblock.validate()?;
        Ok(superblock)
    }

    /// Of a member's two copies, the one to believe: the valid one with the higher epoch.
    ///
    /// # Errors
    ///
    /// No copy is valid: the more telling of the two reasons. The copies belong to two arrays. Also where one copy is whole but of a version or with features that
    /// this build does not know: the other one is then older, and to believe it would undo what a newer writer did.
    pub fn select(copies: [&[u8]; 2]) -> Result<Superblock, FormatError> {
        let read = |copy: usize| {
            let superblock = Superblock::decode(copies[copy])?;
            if superblock.copy() != copy as u64 {
                return elsewhere("superblock copy", superblock.copy(), copy);
            }
            Ok(superblock)
        };
        match (read(0), read(1)) {
            (Err(e), _) | (_, Err(e)) if e.is_unsupported() => Err(e),
            (Ok(a), Ok(b)) if a.array != b.array => elsewhere("array of superblock copy 1", b.array, a.array),
            (Ok(a), Ok(b)) => Ok(if a.stamp > b.stamp { a } else { b }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(FormatError::Blank | FormatError::Foreign { .. }), Err(e)) => Err(e),
            (Err(e), Err(_)) => Err(e),
        }
    }

    /// Whether every field has a value that it may have.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), FormatError> {
        self.layout.validate()?;
        if self.matrix != MATRIX_CAUCHY {
            return field("matrix", self.matrix, "must be 1 (Cauchy)");
        }
        if self.array.is_nil() {
            return field("array", 0u64, "must be a UUID other than nil");
        }
        if self.name.is_empty() || self.name.len() > NAME_BYTES || self.name.contains('\0') {
            return field("name length", self.name.len(), "must be 1 to 63 bytes, none of them zero");
        }
        let epoch = self.stamp.epoch;
        if epoch == 0 || epoch > MAX_EPOCH {
            return field("epoch", epoch, format!("must be 1 to {MAX_EPOCH}, where no array gets to by itself"));
        }
        if self.predecessor.epoch >= epoch {
            return field("predecessor's epoch", self.predecessor.epoch, format!("must be below {epoch}"));
        }
        if self.wib_generation > epoch {
            return field("wib generation", self.wib_generation, format!("must be at most {epoch}"));
        }
        if self.members.len() != self.layout.n() {
            return field("members", self.members.len(), format!("must be {}", self.layout.n()));
        }
        if self.slot >= self.members.len() || self.member().state == MemberState::Empty {
            return field("member slot", self.slot, "must name a member");
        }
        for (slot, member) in self.members.iter().enumerate() {
            self.validate_member(slot, member)?;
        }
        Ok(())
    }

    fn validate_member(&self, slot: usize, member: &MemberEntry) -> Result<(), FormatError> {
        if member.uuid.is_nil() != (member.state == MemberState::Empty) {
            return field("empty member", slot, "an empty slot has the nil UUID, and no other has");
        }
        if !member.uuid.is_nil() && self.members[..slot].iter().any(|other| other.uuid == member.uuid) {
            return field("member's UUID in slot", slot, "is that of another slot, too");
        }
        if member.failed_epoch > self.stamp.epoch {
            return field("failed epoch", member.failed_epoch, format!("must be at most {}", self.stamp.epoch));
        }
        if member.last != Stamp::default()
            && (member.state != MemberState::Failed || member.last.epoch >= member.failed_epoch)
        {
            return field("last epoch of slot", member.last.epoch, "a failed member has one, from before it failed");
        }
        if member.rebuild.is_some() != (member.state == MemberState::Rebuilding) {
            return field("rebuild of slot", slot, "a member has one if it is being filled");
        }
        match member.rebuild {
            Some(r) if r.progress > self.layout.stripes => {
                field("rebuild progress", r.progress, format!("must be at most {}", self.layout.stripes))
            }
            _ => Ok(()),
        }
    }
}

/// The fewest members in sync with which an array of `k` and `m` may run: k, and for m >= k more than half of all, so that two halves
/// of it never run at once.
pub(crate) fn quorum(k: usize, m: usize) -> usize {
    debug_assert!((1..=MAX_DATA).contains(&k) && (1..=MAX_PARITY).contains(&m));
    if m >= k { (k + m) / 2 + 1 } else { k }
}

fn name(b: &[u8; BYTES]) -> Result<String, FormatError> {
    let bytes = &b[NAME_AT..NAME_AT + NAME_BYTES];
    let length = bytes.iter().position(|&c| c == 0).unwrap_or(NAME_BYTES);
    match std::str::from_utf8(&bytes[..length]) {
        Ok(name) => Ok(name.to_owned()),
        Err(e) => field("name", e.valid_up_to(), "bytes of it are UTF-8, and then no more"),
    }
}

fn entry(b: &[u8; BYTES], slot: usize) -> Result<MemberEntry, FormatError> {
    let at = TABLE_AT + slot * ENTRY_BYTES;
    let state = match u32_at(b, at + 16) {
        1 => MemberState::InSync,
        2 => MemberState::Failed,
        3 => MemberState::Rebuilding,
        4 => MemberState::Empty,
        other => return field("member state", other, "must be 1 to 4"),
    };
    let progress = u64_at(b, at + 32);
    let rebuild = match u32_at(b, at + 20) {
        0 => None,
        1 => Some(Rebuild { mode: RebuildMode::Full, progress }),
        2 => Some(Rebuild { mode: RebuildMode::Wib, progress }),
        other => return field("rebuild mode", other, "must be 0 to 2"),
    };
    let last = Stamp { epoch: u64_at(b, at + 40), nonce: u64_at(b, at + 48) };
    Ok(MemberEntry { uuid: uuid_at(b, at), state, failed_epoch: u64_at(b, at + 24), rebuild, last })
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
