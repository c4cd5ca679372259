//! Verification of an array from its members, without changing them: [`check`].
//!
//! It does in memory what a start would do: chooses the members, merges the pages of the map, decides which records of the journal
//! are rolled forward. Then it computes, for every stripe that holds data, whether its strips agree. It shares the format with the
//! engine but none of its code, so that each finds the other's mistakes.
//!
//! What a member cannot read is redundancy that is gone: the array is degraded as long as others make up for it, and damaged where they do not.

mod bitmaps;
mod journal;
mod report;
mod stripes;
mod tally;

pub use report::{Counts, Device, Finding, Report, Verdict, Weight};

use std::io;

use super::assemble::{Assembly, Candidate, Decision, Situation, decide};
use super::format::{FormatError, MemberState, Superblock};
use super::layout::{Layout, SUPERBLOCK_BYTES};
use tally::REPLACE;

/// A device or image that is read.
pub trait ReadAt {
    /// What messages call it.
    fn name(&self) -> String;

    /// Its bytes.
    fn bytes(&self) -> u64;

    /// Bytes of its block.
    fn block(&self) -> u32 {
        512
    }

    /// Fills `buf` from `offset`. Both are multiples of 512 bytes.
    ///
    /// # Errors
    ///
    /// It cannot be read there.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Every stripe that holds data is read. Otherwise only superblocks, bitmaps and journals.
    pub stripes: bool,
}

impl Default for Scope {
    fn default() -> Scope {
        Scope { stripes: true }
    }
}

/// An array that could start, and the devices it would start from.
struct Opened<'a> {
    devices: &'a [&'a dyn ReadAt],
    /// By slot, the device.
    slots: Vec<Option<usize>>,
    head: Superblock,
}

impl Opened<'_> {
    fn layout(&self) -> &Layout {
        &self.head.layout
    }

    fn device(&self, slot: usize) -> Option<&dyn ReadAt> {
        self.slots[slot].map(|d| self.devices[d])
    }

    /// What messages call the member in `slot`.
    fn title(&self, slot: usize) -> String {
        match self.device(slot) {
            Some(device) => format!("'{}' in slot {slot}", device.name()),
            None => format!("the member in slot {slot}"),
        }
    }

    /// Whether the member in `slot` is there and in sync.
    fn in_sync(&self, slot: usize) -> bool {
        self.slots[slot].is_some() && self.head.members[slot].state == MemberState::InSync
    }

    /// Whether the member in `slot` is there and asked for records.
    fn takes_part(&self, slot: usize) -> bool {
        let used = matches!(self.head.members[slot].state, MemberState::InSync | MemberState::Rebuilding);
        used && self.slots[slot].is_some()
    }

    /// Whether the member in `slot` is there and its strip of `stripe` counts.
    fn holds(&self, slot: usize, stripe: u64) -> bool {
        let row = &self.head.members[slot];
        self.slots[slot].is_some()
            && match row.state {
                MemberState::InSync => true,
                MemberState::Rebuilding => row.rebuild.is_some_and(|r| stripe < r.progress),
                MemberState::Failed | MemberState::Empty => false,
            }
    }
}

/// Verifies the array that `devices` are members of. Reads only; memory is bounded by the format's limits, whatever the devices hold.
pub fn check(devices: &[&dyn ReadAt], scope: Scope) -> Report {
    let mut report = Report::default();
    let Some(mut opened) = open(devices, &mut report) else {
        report.verdict = Verdict::NotAssembled;
        return report;
    };
    let map = bitmaps::map(&opened, &mut report);
    bitmaps::intents(&opened, &mut report);
    let redo = journal::redo(&mut opened, &map, &mut report);
    stripes::stripes(&opened, &map, &redo, scope, &mut report);
    report.conclude();
    report
}

/// Reads the superblocks and chooses the members.
fn open<'a>(devices: &'a [&'a dyn ReadAt], report: &mut Report) -> Option<Opened<'a>> {
    let mut found: Vec<(usize, Candidate)> = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let (superblock, note) = match read_superblock(*device) {
            Ok(superblock) => {
                let note = format!("slot {}, {}", superblock.slot, superblock.stamp);
                (Some(superblock), note)
            }
            Err(why) => (None, why),
        };
        report.devices.push(Device { name: device.name(), slot: superblock.as_ref().map(|s| s.slot), note });
        if let Some(superblock) = superblock {
            let (name, bytes, block) = (device.name(), device.bytes(), device.block());
            found.push((index, Candidate { name, superblock, bytes, block }));
        }
    }
    // The array that most of them belong to is the one that was meant.
    let votes = |c: &Candidate| found.iter().filter(|(_, o)| o.superblock.array == c.superblock.array).count();
    let order: Vec<usize> = found.iter().map(|(_, c)| found.len() - votes(c)).collect();
    let mut by_votes: Vec<usize> = (0..found.len()).collect();
    by_votes.sort_by_key(|&i| order[i]);
    let candidates: Vec<Candidate> = by_votes.iter().map(|&i| found[i].1.clone()).collect();
    let device_of = |candidate: usize| found[by_votes[candidate]].0;

    let assembly = match decide(&candidates, Situation { waited: true, salvage: false }) {
        Decision::Assemble(assembly) => *assembly,
        Decision::Refuse(why) => {
            report.damage(format!("the array cannot start: {why}"));
            return None;
        }
        Decision::Wait { .. } => unreachable!("everything was waited for"),
    };
    let Assembly { head, members, rejected, .. } = assembly;
    for (candidate, why) in rejected {
        report.devices[device_of(candidate)].note = why.to_string();
        report.note(format!("'{}' is not used: {why}", candidates[candidate].name));
    }
    for (slot, row) in head.members.iter().enumerate() {
        let missing = match (members[slot], row.state) {
            (Some(_), MemberState::InSync) | (_, MemberState::Empty) => continue,
            (Some(_), _) => "is being filled",
            (None, MemberState::InSync) => "is missing",
            (None, MemberState::Rebuilding) => "was being filled and is missing",
            (None, MemberState::Failed) => "is named failed",
        };
        report.note(format!("the member in slot {slot} {missing}"));
    }
    report.array(&head);
    report.degraded =
        (0..head.layout.n()).filter(|&s| members[s].is_none() || head.members[s].state != MemberState::InSync).count();
    let slots = members.into_iter().map(|c| c.map(device_of)).collect();
    Some(Opened { devices, slots, head })
}

/// The superblock of a device; what is wrong, in words, if it has none.
fn read_superblock(device: &dyn ReadAt) -> Result<Superblock, String> {
    let mut copies = [vec![0; SUPERBLOCK_BYTES as usize], vec![0; SUPERBLOCK_BYTES as usize]];
    for copy in 0..2 {
        let at = Layout::superblock_at(copy);
        if at + SUPERBLOCK_BYTES > device.bytes() {
            return Err(format!("{} bytes: too small for a member", device.bytes()));
        }
        if let Err(e) = device.read_at(at, &mut copies[copy as usize]) {
            let other = &mut copies[1 - copy as usize];
            let read = device.read_at(Layout::superblock_at(1 - copy), other);
            return Err(match read.ok().and_then(|()| Superblock::decode(other).ok()) {
                Some(s) => format!(
                    "superblock copy {copy} cannot be read: {e}; the other one says slot {}, {}, but may be the older one: not taken, {REPLACE}",
                    s.slot, s.stamp
                ),
                None => format!("superblock copy {copy} cannot be read: {e}"),
            });
        }
    }
    Superblock::select([&copies[0], &copies[1]]).map_err(|e: FormatError| format!("no superblock: {e}"))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod unreadable_tests;
