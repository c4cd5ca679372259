//! Whether the members that were found make the array, and with which of them: [`decide`], a pure function.
//!
//! # Why it is right
//!
//! An update of the superblocks is *established* when it is durable on every member that its table does not name failed, and these
//! are at least a [quorum](Superblock::quorum) of members in sync: k, and for m >= k more than half. Nothing that depends on an update is
//! acknowledged before it is established.
//!
//! * Two quorums share a member (k > n/2 where m < k). So a quorum of members of an older update contains one that has the newest
//!   established one, and that one is the head.
//! * The head itself need not be established: a crash may have left it on a few members. Those that have its predecessor, the last
//!   established update, or an attempt of the same writer between the two, hold everything that was acknowledged, if the
//!   head's table says that they are in sync: nothing was acknowledged on the strength of the head.
//! * Such members are [behind](Assembly::behind). Whoever assembles brings them to the head, unchanged, before making an update of
//!   its own: otherwise crashes in a row would leave members at ever more attempts, and these would count as stale. So does a
//!   salvage: `given` has the order.
//! * An array of the first epoch was made but never started, so that it holds no data. It needs all its members: if making it was
//!   cut short, there is none.
//! * An update that names fewer than a quorum in sync cannot be established and is never written.
//! * A session of an array that was salvaged takes k for a quorum, until it has established an update with a quorum in sync; from then on
//!   it goes by the rule. Meanwhile its updates name too few for anybody to start from without a salvage.

use std::fmt;

use uuid::Uuid;

use super::format::{FIRST_EPOCH, MAX_EPOCH, MemberEntry, MemberState, RebuildMode, Stamp, Superblock};
use super::layout::Layout;

/// A device that has a superblock.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name, for messages.
    pub name: String,
    /// What it says.
    pub superblock: Superblock,
    /// Bytes of the device.
    pub bytes: u64,
    /// Bytes of its block.
    pub block: u32,
}

/// What the decision depends on beside the members found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Situation {
    /// Absent members were waited for long enough.
    pub waited: bool,
    /// The user accepts that writes are lost: see [`decide`].
    pub salvage: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Members in these slots may still come.
    Wait {
        /// The slots.
        missing: Vec<usize>,
    },
    /// Run with these.
    Assemble(Box<Assembly>),
    /// Do not run.
    Refuse(Refusal),
}

/// An array that can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembly {
    /// The newest superblock. Members absent here are not named failed yet: the engine does that. After a salvage that took stale
    /// members, an update that names them in sync.
    pub head: Superblock,
    /// By slot, the candidate that is taken, by its index.
    pub members: Vec<Option<usize>>,
    /// The fewest members in sync with which it runs: [`Superblock::quorum`], or k after a salvage.
    pub quorum: usize,
    /// Slots whose member holds everything, but has an older superblock than the newest that was found, and has to be given that before any other.
    pub behind: Vec<usize>,
    /// After a salvage that took stale members: the newest superblock that was found, the predecessor of `head`.
    pub found: Option<Superblock>,
    /// Candidates that are not taken, and why. A stale one may be filled again.
    pub rejected: Vec<(usize, Rejection)>,
}

/// Why a device that has a superblock of the array is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The array named it failed, or went on without it: it lacks writes.
    Stale {
        /// What it has.
        has: Stamp,
        /// What the array has.
        head: Stamp,
    },
    /// Another member took its slot.
    Replaced {
        /// The slot.
        slot: usize,
    },
    /// It is smaller than the array needs.
    Shrunk {
        /// Its bytes.
        bytes: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Its blocks do not fit the array's.
    Block {
        /// Its block.
        block: u32,
        /// The array's.
        array: u32,
    },
    /// It belongs to another array.
    Foreign {
        /// That array.
        array: Uuid,
    },
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::Stale { has, head } => write!(f, "stale: has {has}, the array has {head}"),
            Rejection::Replaced { slot } => write!(f, "another member took its slot {slot}"),
            Rejection::Shrunk { bytes, needed } => write!(f, "shrank to {bytes} bytes, the array needs {needed}"),
            Rejection::Block { block, array } => {
                write!(f, "has blocks of {block} bytes, which do not fit the array's of {array}")
            }
            Rejection::Foreign { array } => write!(f, "belongs to array {array}"),
        }
    }
}

/// Why the array must not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no member.
    Nothing,
    /// Two devices say that they are the same member: one is a copy, or both are one device.
    Duplicate {
        /// The slot.
        slot: usize,
        /// The devices.
        names: [String; 2],
    },
    /// Members of two arrays that have the same UUID.
    TwoArrays {
        /// The UUID.
        array: Uuid,
        /// A device of each.
        names: [String; 2],
    },
    /// Too few members in sync.
    TooFew {
        /// In sync and there.
        have: usize,
        /// Needed.
        need: usize,
        /// Slots without a member in sync.
        missing: Vec<usize>,
        /// What is wrong with those that are there.
        rejected: Vec<String>,
        /// What can be done beside attaching those that are missing.
        remedy: Remedy,
    },
}

/// What can be done about an array that has too few members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// A salvage starts it with what is there.
    Salvage,
    /// Nothing: what is there is too little for a salvage.
    None,
    /// It was made and never started, and holds nothing: it can be made again.
    Anew,
    /// Its superblocks cannot be updated any more, so that nothing starts it.
    Destroy,
}

/// Epochs that a salvage goes on by. Odd, so that members which have the head keep it until they have the update; and with room for attempts.
const SALVAGE_STEP: u64 = 3;

/// Epochs that a start takes, with a salvage before it.
const EPOCHS_OF_A_START: u64 = SALVAGE_STEP + 4;

impl Refusal {
    /// What to do about it, where the reason does not say so itself; to be written behind it.
    pub fn advice(&self) -> &'static str {
        match self {
            Refusal::TooFew { remedy: Remedy::Salvage, .. } => {
                ". Attach the members that are missing; bdev_ec_create with salvage_requested starts with what is there, and loses what it lacks"
            }
            Refusal::TooFew { remedy: Remedy::None, .. } => {
                ". Attach the members that are missing: a salvage would need as many members as data_chunk_count, and fewer are there"
            }
            Refusal::TooFew { remedy: Remedy::Anew, .. } => {
                ". It was made and never started, so that it holds no data: attach the members that are missing, or make it again by bdev_ec_create"
            }
            Refusal::TooFew { remedy: Remedy::Destroy, .. } => {
                ". Its superblocks have the highest epoch there is, where no array gets by itself, and cannot be updated: no salvage starts it either. bdev_ec_create with force makes it anew, and destroys what it holds"
            }
            _ => "",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Nothing => write!(f, "no member was found"),
            Refusal::Duplicate { slot, names: [a, b] } => {
                write!(f, "'{a}' and '{b}' are both the member in slot {slot}: one is a copy and has to be taken away")
            }
            Refusal::TwoArrays { array, names: [a, b] } => {
                write!(f, "'{a}' and '{b}' are of two arrays that have the same UUID {array}: take one of them away")
            }
            Refusal::TooFew { have, need, missing, rejected, .. } => {
                let slots: Vec<String> = missing.iter().map(usize::to_string).collect();
                write!(
                    f,
                    "{have} members are in sync and there, {need} are needed; none in slots {}",
                    slots.join(", ")
                )?;
                rejected.iter().try_for_each(|r| write!(f, "; {r}"))
            }
        }
    }
}

/// What to do with the candidates of one array.
///
/// The head is the superblock with the highest epoch; of two with the same, the one with which more candidates are compatible, then
/// the one with the higher nonce. A candidate is taken if the head's table has it in its slot as in sync or rebuilding, and it is not
/// older than the head's predecessor. A rebuilding member never counts. Members that the head names in sync or rebuilding and that
/// are absent are waited for. A candidate that cannot be taken is not absent: nothing is gained by waiting for it.
///
/// `salvage` is for arrays that lost more than they can: nothing is waited for, k members are enough, and where there are fewer, stale
/// ones are taken as if they were in sync, the newest first (of those that failed in sync; then those that are being filled, or failed meanwhile), until
/// there are k. What they lack is lost.
pub fn decide(candidates: &[Candidate], situation: Situation) -> Decision {
    let Some(first) = candidates.first() else { return Decision::Refuse(Refusal::Nothing) };
    let array = first.superblock.array;
    let ours: Vec<usize> = (0..candidates.len()).filter(|&c| candidates[c].superblock.array == array).collect();
    if let Some(refusal) = conflict(candidates, &ours) {
        return Decision::Refuse(refusal);
    }
    let head = head(candidates, &ours);
    let quorum = if situation.salvage { head.layout.k } else { head.quorum() };
    let members = vec![None; head.layout.n()];
    let mut assembly =
        Assembly { members, head: head.clone(), quorum, behind: Vec::new(), found: None, rejected: Vec::new() };
    for (index, candidate) in candidates.iter().enumerate() {
        match judge(candidate, head) {
            Ok(slot) => {
                assembly.members[slot] = Some(index);
                if candidate.superblock.stamp != head.stamp {
                    assembly.behind.push(slot);
                }
            }
            Err(why) => assembly.rejected.push((index, why)),
        }
    }
    assembly.behind.sort_unstable();
    if situation.salvage {
        salvage(candidates, &mut assembly);
    }
    let need = if head.stamp.epoch == FIRST_EPOCH { head.layout.n() } else { quorum };
    conclude(candidates, assembly, need, situation)
}

fn conclude(candidates: &[Candidate], assembly: Assembly, need: usize, situation: Situation) -> Decision {
    let head = &assembly.head;
    let awaited: Vec<usize> = (0..head.layout.n())
        .filter(|&slot| {
            let row = &head.members[slot];
            matches!(row.state, MemberState::InSync | MemberState::Rebuilding)
                && assembly.members[slot].is_none()
                && !assembly.rejected.iter().any(|&(c, _)| candidates[c].superblock.member().uuid == row.uuid)
        })
        .collect();
    if !awaited.is_empty() && !situation.waited && !situation.salvage {
        return Decision::Wait { missing: awaited };
    }
    let counts = |slot: &usize| assembly.members[*slot].is_some() && head.members[*slot].state == MemberState::InSync;
    let have = (0..head.layout.n()).filter(counts).count();
    if have < need {
        let missing = (0..head.layout.n()).filter(|slot| !counts(slot)).collect();
        let filled =
            |&slot: &usize| assembly.members[slot].is_some() && head.members[slot].state == MemberState::Rebuilding;
        let stale = assembly.rejected.iter().filter(|(_, why)| matches!(why, Rejection::Stale { .. })).count()
            + (0..head.layout.n()).filter(filled).count();
        let remedy = match head.stamp.epoch {
            FIRST_EPOCH => Remedy::Anew,
            epoch if epoch > MAX_EPOCH - EPOCHS_OF_A_START => Remedy::Destroy,
            _ if have + stale < head.layout.k => Remedy::None,
            _ => Remedy::Salvage,
        };
        let rejected = assembly.rejected.iter().map(|(c, why)| format!("'{}' {why}", candidates[*c].name)).collect();
        return Decision::Refuse(Refusal::TooFew { have, need, missing, rejected, remedy });
    }
    Decision::Assemble(Box::new(assembly))
}

/// Candidates that cannot be members of one array.
fn conflict(candidates: &[Candidate], ours: &[usize]) -> Option<Refusal> {
    for (i, &a) in ours.iter().enumerate() {
        for &b in &ours[i + 1..] {
            let (one, other) = (&candidates[a], &candidates[b]);
            let names = [one.name.clone(), other.name.clone()];
            if one.superblock.member().uuid == other.superblock.member().uuid {
                return Some(Refusal::Duplicate { slot: one.superblock.slot, names });
            }
            let made = |s: &Superblock| (s.layout, s.matrix, s.created);
            if made(&one.superblock) != made(&other.superblock) {
                return Some(Refusal::TwoArrays { array: one.superblock.array, names });
            }
        }
    }
    None
}

fn head<'a>(candidates: &'a [Candidate], ours: &[usize]) -> &'a Superblock {
    let newest = ours.iter().map(|&c| &candidates[c].superblock);
    let newest = newest.max_by_key(|s| {
        // Only those that share the highest epoch need it, but there are at most 40 members. Those in sync count more: what only a member being rebuilt
        // was given before power failed must not make one stale that was in sync and given the next start's.
        let slots = || ours.iter().filter_map(|&c| judge(&candidates[c], s).ok());
        let in_sync = slots().filter(|&slot| s.members[slot].state == MemberState::InSync).count();
        (s.stamp.epoch, in_sync, slots().count(), s.stamp.nonce)
    });
    newest.unwrap_or(&candidates[0].superblock)
}

/// The slot that `candidate` has in the array that `head` describes.
fn judge(candidate: &Candidate, head: &Superblock) -> Result<usize, Rejection> {
    let s = &candidate.superblock;
    if s.array != head.array {
        return Err(Rejection::Foreign { array: s.array });
    }
    let row = &head.members[s.slot.min(head.members.len() - 1)];
    if row.uuid != s.member().uuid {
        return Err(Rejection::Replaced { slot: s.slot });
    }
    fits(candidate.bytes, candidate.block, &head.layout)?;
    let live = matches!(row.state, MemberState::InSync | MemberState::Rebuilding);
    if live && (s.stamp == head.stamp || s.stamp == head.predecessor || is_attempt(s.stamp, head)) {
        return Ok(s.slot);
    }
    Err(Rejection::Stale { has: s.stamp, head: head.stamp })
}

/// Whether a device of `bytes`, with blocks of `block`, can hold a member of an array of this layout.
///
/// # Errors
///
/// What is wrong with it.
pub fn fits(bytes: u64, block: u32, layout: &Layout) -> Result<(), Rejection> {
    if block == 0 || !layout.block.is_multiple_of(block) {
        return Err(Rejection::Block { block, array: layout.block });
    }
    let needed = layout.member_bytes();
    if bytes < needed {
        return Err(Rejection::Shrunk { bytes, needed });
    }
    Ok(())
}

/// An update by the head's writer after the last that was established: it never was, or the head would name it.
pub(super) fn is_attempt(stamp: Stamp, head: &Superblock) -> bool {
    stamp.nonce == head.stamp.nonce && (head.predecessor.epoch + 1..head.stamp.epoch).contains(&stamp.epoch)
}

/// Takes stale members as if they were in sync until there are k, by an update of its own that all members have to be given.
///
/// What stripes hold is from then on what these k say, and that is not what others have a share of: whoever is not taken is named failed, so that
/// nobody takes it for in sync if this is cut short, and is filled in full when it comes back; so is who was being filled. Those that are being filled, or
/// failed while they were, come last, whatever they have.
fn salvage(candidates: &[Candidate], assembly: &mut Assembly) {
    let Assembly { head, members, behind, found, rejected, .. } = assembly;
    let in_sync = (0..members.len())
        .filter(|&slot| members[slot].is_some() && head.members[slot].state == MemberState::InSync)
        .count();
    let mut stale: Vec<usize> =
        rejected.iter().filter(|(_, why)| matches!(why, Rejection::Stale { .. })).map(|&(c, _)| c).collect();
    // As they would be if this was cut short and made again.
    let filled = |slot: &usize| head.members[*slot].state == MemberState::Rebuilding;
    stale.extend((0..members.len()).filter(filled).filter_map(|slot| members[slot]));
    let was_whole = |s: &Superblock| s.member().state == MemberState::InSync && !s.member().stands_in();
    stale.sort_by_key(|&c| {
        let s = &candidates[c].superblock;
        let filled = s.member().rebuild.map(|r| (r.mode == RebuildMode::Wib, r.progress));
        std::cmp::Reverse((was_whole(s), s.stamp, filled))
    });
    stale.truncate(head.layout.k.saturating_sub(in_sync));
    if stale.is_empty() || head.stamp.epoch > MAX_EPOCH - SALVAGE_STEP {
        return;
    }
    let was = head.stamp;
    *found = Some(head.clone());
    head.predecessor = was;
    head.stamp = Stamp { epoch: was.epoch + SALVAGE_STEP, nonce: was.nonce.wrapping_add(1) };
    // Of the first attempt's epoch, so that all say the same: see `given`.
    let failed_epoch = was.epoch + 1;
    for candidate in stale {
        let slot = candidates[candidate].superblock.slot;
        head.members[slot] = MemberEntry { failed_epoch, ..MemberEntry::in_sync(head.members[slot].uuid) };
        members[slot] = Some(candidate);
        rejected.retain(|&(c, _)| c != candidate);
    }
    for (row, taken) in head.members.iter_mut().zip(members.iter_mut()) {
        if row.state == MemberState::Empty || row.state == MemberState::InSync && taken.is_some() {
            continue;
        }
        *row = MemberEntry { uuid: row.uuid, state: MemberState::Failed, failed_epoch, ..MemberEntry::EMPTY };
        if let Some(c) = taken.take() {
            rejected.push((c, Rejection::Stale { has: candidates[c].superblock.stamp, head: head.stamp }));
        }
    }
    // Those that stood in already, when power failed, are brought to what was found, too: with that attempt only they would be as stale as any other.
    let was_in_sync = |slot: usize| found.as_ref().is_some_and(|f| f.members[slot].state == MemberState::InSync);
    behind.retain(|&slot| members[slot].is_some() && was_in_sync(slot));
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
pub(super) mod tests;
