//! From base devices to members of an array that can be started: [`prepare`].
//!
//! # Nothing is destroyed by surprise
//!
//! Devices that hold this array already are taken as they are, and nothing is written. A device that holds anything else that is
//! known is refused, unless `force` was given. One that holds nothing known, or was replaced in this array, is refused beside others that hold it, unless the array's UUID
//! was given, as in a saved call: then the array starts without it.
//!
//! # A crash on the way leaves no array, or the array
//!
//! First both superblocks of every device are made void, durably; then the bitmaps are written, durably; then the superblocks, of
//! epoch 1. An array of epoch 1 is one only if all its members have it, so that fewer make none; and all of them make the array,
//! with bitmaps that were durable before. Nothing is served before the start of a session has established a later epoch: what is
//! of epoch 1 holds no data, and preparing the same array again passes over it.

mod config;
mod member_io;
mod signature;
mod write;

pub use config::Options;
pub use member_io::MODULE;
pub(super) use member_io::{MemberIo, within};
pub use signature::{HEAD_BYTES, TAIL_BYTES, recognise};
pub use write::clear;
pub(super) use write::wipe;

use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::assemble::{Assembly, Candidate, Decision, Rejection, Situation, decide};
use super::format::{FIRST_EPOCH, FormatError, Superblock};
use super::given::on_the_way;
use super::layout::{Layout, SUPERBLOCK_BYTES};
use crate::desc::BdevDesc;
use crate::event::BdevEvent;
use crate::registry::{BdevError, Registry};

/// Told, on any thread, of what happens to a member's device, by its slot.
pub type Told = Arc<dyn Fn(usize, BdevEvent) + Send + Sync>;

/// A device that is not used, and why.
pub type PassedOver = (String, String);

/// Members that can be started from.
pub struct Prepared {
    /// The superblock to start from.
    pub head: Superblock,
    /// The fewest members in sync with which it runs: see [`Assembly::quorum`].
    pub quorum: usize,
    /// By slot, the device, open for writing and claimed.
    pub members: Vec<Option<BdevDesc>>,
    /// The array was made just now. Otherwise it was there.
    pub fresh: bool,
    /// Devices that are not used.
    pub rejected: Vec<PassedOver>,
}

/// A base device, and the slot that it turns out to have.
struct Base {
    io: MemberIo,
    slot: Arc<OnceLock<usize>>,
}

/// What is on a base device.
pub(super) struct Probe {
    pub(super) superblock: Result<Superblock, FormatError>,
    signature: Option<&'static str>,
}

impl Probe {
    /// What is on the device that somebody might miss.
    pub(super) fn found(&self) -> Option<String> {
        match (&self.superblock, self.signature) {
            (Ok(s), _) => Some(format!("slot {} of array '{}' ({})", s.slot, s.name, s.array)),
            // A superblock that cannot be believed; what else begins like none is not one.
            (Err(FormatError::Blank | FormatError::Foreign { .. } | FormatError::Short { .. }), what) => {
                what.map(str::to_owned)
            }
            (Err(e), what) => Some(format!("{}: {e}", what.unwrap_or("a member of an erasure-coded array"))),
        }
    }
}

/// Opens and claims the base devices of `o` on this core, and makes an array of them or finds it there. `told` is told of what
/// happens to them from now on. When this fails, nothing stays claimed.
///
/// # Errors
///
/// Parameters that make no array; devices that are missing, in use or too small; devices that hold something else; I/O errors.
pub async fn prepare(registry: &Arc<Registry>, o: &Options, told: &Told) -> Result<Prepared, BdevError> {
    o.validate()?;
    let bases = open(registry, o, told)?;
    let mut probes = Vec::with_capacity(bases.len());
    for base in &bases {
        probes.push(probe(&base.io).await?);
    }
    match existing(o, &bases, &probes)? {
        Some((assembly, rejected)) => take(bases, assembly, rejected).await,
        None if o.salvage_requested => Err(BdevError::Invalid(format!(
            "the base bdevs hold no array '{}' of {} + {} with strips of {} KiB that can be salvaged: nothing was written",
            o.name, o.data_chunk_count, o.parity_chunk_count, o.strip_size_kb
        ))),
        None => {
            if !o.force {
                refuse_signatures(o, &bases, &probes)?;
            }
            let head = write::fresh(o, &bases.iter().map(|b| &b.io).collect::<Vec<_>>()).await?;
            let members = bases.into_iter().enumerate().map(|(slot, base)| {
                let _ = base.slot.set(slot);
                Some(base.io.into_desc())
            });
            let (members, quorum) = (members.collect(), head.quorum());
            Ok(Prepared { members, head, quorum, fresh: true, rejected: Vec::new() })
        }
    }
}

fn open(registry: &Arc<Registry>, o: &Options, told: &Told) -> Result<Vec<Base>, BdevError> {
    let mut bases: Vec<Base> = Vec::with_capacity(o.base_bdevs.len());
    for name in &o.base_bdevs {
        let node = match registry.find(name) {
            Some(node) => node,
            None if o.salvage_requested => continue,
            None => return Err(BdevError::NotFound(name.clone())),
        };
        if let Some(twin) = bases.iter().find(|b| b.io.name() == node.name()) {
            return Err(BdevError::Invalid(format!("base bdev '{name}' is given twice: it is '{}'", twin.io.name())));
        }
        let slot = Arc::new(OnceLock::new());
        let (told, of) = (told.clone(), slot.clone());
        let sink = move |event| {
            if let Some(slot) = of.get() {
                told(*slot, event);
            }
        };
        bases.push(Base { io: MemberIo::open(registry, name, Box::new(sink))?, slot });
    }
    Ok(bases)
}

/// Reads what is on a device.
pub(super) async fn probe(io: &MemberIo) -> Result<Probe, BdevError> {
    let (bytes, block) = (io.bytes(), u64::from(io.block()));
    if !block.is_power_of_two() || !(512..=4096).contains(&block) {
        return Err(BdevError::Invalid(format!(
            "base bdev '{}' has blocks of {block} bytes: a member's are 512, 1024, 2048 or 4096",
            io.name()
        )));
    }
    let head = io.read(0, bytes.min(HEAD_BYTES as u64) as usize).await?;
    let tail_bytes = bytes.min(TAIL_BYTES as u64);
    let tail = io.read(bytes - tail_bytes, tail_bytes as usize).await?;
    let copy = |c: u64| {
        let at = Layout::superblock_at(c) as usize;
        head.get(at..at + SUPERBLOCK_BYTES as usize).unwrap_or_default()
    };
    Ok(Probe { superblock: Superblock::select([copy(0), copy(1)]), signature: recognise(&head, &tail, bytes) })
}

/// The array that the devices hold already, if it is the one that is asked for; with the devices that are not used, and why.
fn existing(o: &Options, bases: &[Base], probes: &[Probe]) -> Result<Option<(Assembly, Vec<PassedOver>)>, BdevError> {
    let of = |probe: &Probe| probe.superblock.as_ref().ok().filter(|s| o.describes(s)).map(|s| s.array);
    let Some(array) = probes.iter().find_map(of) else { return Ok(None) };
    let mut candidates = Vec::new();
    let mut index = Vec::new();
    for (i, (base, probe)) in bases.iter().zip(probes).enumerate() {
        if let Ok(superblock) = &probe.superblock
            && superblock.array == array
        {
            let (name, bytes, block) = (base.io.name().to_owned(), base.io.bytes(), base.io.block());
            candidates.push(Candidate { name, superblock: superblock.clone(), bytes, block });
            index.push(i);
        }
    }
    match decide(&candidates, Situation { waited: true, salvage: o.salvage_requested }) {
        Decision::Assemble(assembly) => {
            let mut assembly = *assembly;
            let replaced = |(c, why): &(usize, Rejection)| {
                matches!(why, Rejection::Replaced { .. }).then(|| (index[*c], why.to_string()))
            };
            let replaced = assembly.rejected.iter().filter_map(replaced).collect();
            let strangers = strangers(o, array, bases, probes, replaced)?;
            let name = |c: usize| candidates[c].name.clone();
            let mut rejected: Vec<_> = assembly.rejected.iter().map(|(c, why)| (name(*c), why.to_string())).collect();
            rejected.extend(strangers);
            assembly.members.iter_mut().flatten().for_each(|c| *c = index[*c]);
            Ok(Some((assembly, rejected)))
        }
        // What is left of a preparation that a crash ended, or what the user gave up. Who salvages gives up nothing.
        _ if o.force && !o.salvage_requested || candidates.iter().all(|c| c.superblock.stamp.epoch == FIRST_EPOCH) => {
            Ok(None)
        }
        Decision::Refuse(why) => Err(BdevError::Invalid(format!(
            "the base bdevs hold array '{}' already, and it cannot start: {why}{}. force destroys it",
            o.name,
            why.advice()
        ))),
        Decision::Wait { .. } => unreachable!("everything was waited for"),
    }
}

/// Devices that do not hold `array`, and what they hold instead; `replaced` are those that it does not take any more, with the reason.
///
/// # Errors
///
/// One of them holds what somebody might miss, and `force` was not given; or the array's UUID was not. A saved call has it: since then, members may have
/// been replaced, or have lost what they held.
fn strangers(
    o: &Options,
    array: Uuid,
    bases: &[Base],
    probes: &[Probe],
    replaced: Vec<(usize, String)>,
) -> Result<Vec<PassedOver>, BdevError> {
    let whose = || format!("array '{}' ({array}), which others hold", o.name);
    let known = o.force || o.salvage_requested || o.uuid.is_some();
    let no_member = |base: &Base, why: &str| {
        Err(BdevError::Invalid(format!(
            "base bdev '{}' is no member of {}: {why}. Give the array's UUID to start it without this one",
            base.io.name(),
            whose()
        )))
    };
    if let Some((i, why)) = replaced.first().filter(|_| !known) {
        return no_member(&bases[*i], why);
    }
    let mut passed_over = Vec::new();
    for (base, probe) in bases.iter().zip(probes) {
        if probe.superblock.as_ref().is_ok_and(|s| s.array == array) {
            continue;
        }
        // What is left of a damaged superblock may be of this array.
        let damaged = matches!(probe.superblock, Err(FormatError::Checksum { .. }));
        let pass_over = o.force || known && damaged;
        let what = match probe.found() {
            Some(what) if !pass_over => {
                return Err(BdevError::Invalid(format!(
                    "base bdev '{}' holds {what}, and is no member of {}: force starts that without this one, which is left as it is",
                    base.io.name(),
                    whose()
                )));
            }
            Some(what) => what,
            None if known => "nothing that is known".to_owned(),
            None => return no_member(base, "it holds nothing that is known"),
        };
        passed_over.push((base.io.name().to_owned(), format!("it holds {what}, and nothing of the array")));
    }
    Ok(passed_over)
}

fn refuse_signatures(o: &Options, bases: &[Base], probes: &[Probe]) -> Result<(), BdevError> {
    for (base, probe) in bases.iter().zip(probes) {
        let left = |s: &Superblock| o.describes(s) && s.stamp.epoch == FIRST_EPOCH;
        if probe.superblock.as_ref().is_ok_and(left) {
            continue;
        }
        let Some(what) = probe.found() else { continue };
        return Err(BdevError::Invalid(format!("base bdev '{}' holds {what}: force destroys it", base.io.name())));
    }
    Ok(())
}

/// Takes the members that were found. Nothing is written, but for a salvage that needs an update of its own.
async fn take(bases: Vec<Base>, assembly: Assembly, rejected: Vec<PassedOver>) -> Result<Prepared, BdevError> {
    let mut bases: Vec<Option<Base>> = bases.into_iter().map(Some).collect();
    let by_slot: Vec<Option<Base>> = assembly.members.iter().map(|c| c.and_then(|c| bases[c].take())).collect();
    let (head, salvaged) = (&assembly.head, assembly.found.is_some());
    for (slot, base) in by_slot.iter().enumerate().filter(|(slot, _)| salvaged && head.members[*slot].stands_in()) {
        let name = base.as_ref().map_or("?", |b| b.io.name());
        tracing::warn!("array '{}' is salvaged with '{name}' in slot {slot}, which lacks writes", head.name);
    }
    for (slot, next) in assembly.gifts() {
        let Some(base) = &by_slot[slot] else { continue };
        let newest = base.io.superblock().await?.map(|s| s.stamp);
        if let Some(attempt) = newest.ok().and_then(|newest| on_the_way(newest, next)) {
            write::superblock(&base.io, &attempt.for_slot(slot)).await?;
        }
        write::superblock(&base.io, &next.for_slot(slot)).await?;
    }
    let Assembly { head, quorum, .. } = assembly;
    let members = by_slot.into_iter().enumerate().map(|(slot, base)| {
        base.map(|base| {
            let _ = base.slot.set(slot);
            base.io.into_desc()
        })
    });
    Ok(Prepared { members: members.collect(), head, quorum, fresh: false, rejected })
}

#[cfg(test)]
mod tests;
