//! The map and the write-intent bitmap, merged over the members.

use std::{fmt, io};

use super::tally::{REPLACE, Tally, many};
use super::{Opened, Report};
use crate::ec::format::{FormatError, PAGE_BITS_BYTES, PageHeader, PageKind, bit};
use crate::ec::layout::{PAGE_BITS, PAGE_BYTES};

/// The stripes that hold data.
pub(super) struct Map {
    bits: Vec<u8>,
    stripes: u64,
}

impl Map {
    /// Whether `stripe` does.
    pub(super) fn holds(&self, stripe: u64) -> bool {
        bit(&self.bits, stripe as usize)
    }

    /// All of them, in order.
    pub(super) fn stripes(&self) -> impl Iterator<Item = u64> + '_ {
        let set = self.bits.iter().enumerate().filter(|(_, byte)| **byte != 0);
        set.flat_map(|(at, byte)| (0..8).filter(move |i| byte >> i & 1 != 0).map(move |i| at as u64 * 8 + i))
            .take_while(|&stripe| stripe < self.stripes)
    }
}

/// A page that a member has not whole.
struct Fault {
    slot: usize,
    /// Which of its two places cannot be read.
    unread: [bool; 2],
    /// What is wrong with each of its two places.
    why: String,
}

/// Why there is no page in one of its two places.
enum Wrong {
    Unread(io::Error),
    Not(FormatError),
}

impl Wrong {
    fn is_blank(&self) -> bool {
        matches!(self, Wrong::Not(FormatError::Blank))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Unread(e) => write!(f, "cannot be read: {e}"),
            Wrong::Not(e) => e.fmt(f),
        }
    }
}

/// Reads page `index` from every member that is there, and gives the newer of the valid ones of each to `each`; with a `generation`, only pages of
/// it are valid. Those come back that cannot be read, or are not whole: neither of its places holds a page, of which a crash tears one at most.
fn pages(
    opened: &Opened<'_>,
    kind: PageKind,
    index: u32,
    generation: u64,
    mut each: impl FnMut(PageHeader, &[u8]),
) -> Vec<Fault> {
    let layout = opened.layout();
    let mut faults = Vec::new();
    let mut buffers = [vec![0; PAGE_BYTES as usize], vec![0; PAGE_BYTES as usize]];
    for slot in 0..layout.n() {
        let Some(device) = opened.device(slot) else { continue };
        let mut side = 0;
        let places = buffers.each_mut().map(|buffer| {
            let at = match kind {
                PageKind::Map => layout.map_page_at(index.into(), side),
                PageKind::Wib => layout.wib_page_at(index.into(), side),
            };
            let place = side;
            side += 1;
            match device.read_at(at, buffer) {
                Ok(()) => PageHeader::decode_at(buffer, opened.head.array, kind, index, place).map_err(Wrong::Not),
                Err(e) => Err(Wrong::Unread(e)),
            }
        });
        let valid = places.iter().flatten().filter(|(header, _)| generation == 0 || header.generation == generation);
        if let Some((header, bits)) = valid.max_by_key(|(header, _)| header.sequence) {
            each(*header, bits);
        }
        let unread = places.each_ref().map(|place| matches!(place, Err(Wrong::Unread(_))));
        let none = places.iter().all(Result::is_err);
        // Pages of the write-intent bitmap are written when they are needed first; those of the map when an array is made.
        let yet = kind == PageKind::Wib && places.iter().flat_map(|p| p.as_ref().err()).all(Wrong::is_blank);
        if unread != [false; 2] || (none && !yet) {
            let [a, b] = places.map(|place| place.err().map_or_else(|| "whole".into(), |wrong| wrong.to_string()));
            faults.push(Fault { slot, unread, why: format!("{a}; {b}") });
        }
    }
    faults
}

/// The map: per page, the valid one with the highest sequence over all members.
pub(super) fn map(opened: &Opened<'_>, report: &mut Report) -> Map {
    let layout = opened.layout();
    let mut map = Vec::with_capacity(layout.map_pages() as usize * PAGE_BITS_BYTES);
    let there = (0..layout.n()).filter(|&slot| opened.device(slot).is_some()).count();
    let mut tally = Tally::default();
    for index in 0..layout.map_pages() as u32 {
        let mut best: Option<(u64, Vec<u8>)> = None;
        let (mut differ, mut clash) = (false, false);
        let faults = pages(opened, PageKind::Map, index, 0, |header, bits| match &mut best {
            None => best = Some((header.sequence, bits.to_vec())),
            Some((sequence, have)) => {
                differ |= have != bits;
                clash |= have != bits && header.sequence == *sequence;
                if header.sequence > *sequence {
                    (*sequence, *have) = (header.sequence, bits.to_vec());
                    clash = false;
                }
            }
        });
        report.counts.map_pages_differ += u64::from(differ || !faults.is_empty());
        if clash {
            report.damage(format!("page {index} of the map has two contents with one sequence"));
        }
        if best.is_none() {
            let whys: Vec<_> = faults.iter().map(|f| format!("{}: {}", opened.title(f.slot), f.why)).collect();
            report.damage(format!("page {index} of the map is lost: {}", whys.join("; ")));
        } else {
            if [0, 1].iter().any(|&place| faults.iter().filter(|f| f.unread[place]).count() == there) {
                report.damage(format!(
                    "page {index} of the map: what can be read on no member may be newer than what can"
                ));
            }
            faults.into_iter().for_each(|f| tally.add(f.slot, index.into(), f.why));
        }
        map.extend(best.map_or_else(|| vec![0; PAGE_BITS_BYTES], |(_, bits)| bits));
    }
    degrade(opened, "map", &tally, report);
    let beyond = (layout.stripes..layout.map_pages() * PAGE_BITS).filter(|&s| bit(&map, s as usize)).count();
    if beyond > 0 {
        report.damage(format!("the map names {beyond} stripes past the last"));
    }
    let map = Map { bits: map, stripes: layout.stripes };
    report.counts.mapped = map.stripes().count() as u64;
    map
}

/// Counts the regions that the write-intent bitmap names.
pub(super) fn intents(opened: &Opened<'_>, report: &mut Report) {
    let (layout, generation) = (opened.layout(), opened.head.wib_generation);
    let mut tally = Tally::default();
    for index in 0..layout.wib_pages() as u32 {
        let mut best: Option<(u64, u32)> = None;
        let faults = pages(opened, PageKind::Wib, index, generation, |header, bits| {
            if best.is_none_or(|(sequence, _)| header.sequence > sequence) {
                best = Some((header.sequence, bits.iter().map(|b| b.count_ones()).sum()));
            }
        });
        let matters = |f: &Fault| generation != 0 || f.unread != [false; 2];
        faults.into_iter().filter(matters).for_each(|f| tally.add(f.slot, index.into(), f.why));
        match best {
            _ if generation == 0 => {}
            Some((_, regions)) => report.counts.intent_regions += u64::from(regions),
            None => report.note(format!(
                "page {index} of the write-intent bitmap has no content of generation {generation}: a start takes all its regions for written"
            )),
        }
    }
    if generation != 0 {
        return degrade(opened, "write-intent bitmap", &tally, report);
    }
    for (member, f) in tally.members(opened) {
        report.advise(format!(
            "{member}: {} of its write-intent bitmap cannot be read, the first is page {} ({}). No member is missing, so they hold nothing that counts, and are written anew when they do; if that fails, {REPLACE}",
            many(f.count, "page"),
            f.first,
            f.why
        ));
    }
}

fn degrade(opened: &Opened<'_>, bitmap: &str, tally: &Tally, report: &mut Report) {
    for (member, f) in tally.members(opened) {
        report.degrade(format!(
            "{member}: {} of its {bitmap} cannot be read or is damaged, the first is page {} ({}). A start makes up for it and writes it anew; if that fails, {REPLACE}",
            many(f.count, "page"),
            f.first,
            f.why
        ));
    }
}
