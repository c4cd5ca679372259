//! The map and the write-intent bitmap, merged over the members.

use super::{Opened, Report};
use crate::ec::format::{PAGE_BITS_BYTES, PageHeader, PageKind, bit, newest};
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

/// Reads page `index` from every member that is there, and gives each valid one to `each`, with its slot. What is wrong with the
/// others, in words.
fn pages(
    opened: &Opened<'_>,
    kind: PageKind,
    index: u32,
    mut each: impl FnMut(usize, PageHeader, &[u8]),
) -> Vec<String> {
    let layout = opened.layout();
    let mut wrong = Vec::new();
    let mut sides = vec![0; 2 * PAGE_BYTES as usize];
    for slot in 0..layout.n() {
        let Some(device) = opened.device(slot) else { continue };
        let at = match kind {
            PageKind::Map => layout.map_page_at(index.into(), 0),
            PageKind::Wib => layout.wib_page_at(index.into(), 0),
        };
        if let Err(e) = device.read_at(at, &mut sides) {
            wrong.push(format!("'{}' cannot be read: {e}", device.name()));
            continue;
        }
        let (a, b) = sides.split_at(PAGE_BYTES as usize);
        match newest([a, b], opened.head.array, kind, index) {
            Ok((header, bits)) => each(slot, header, bits),
            Err(why) => wrong.push(format!("'{}': {}; {}", device.name(), why[0], why[1])),
        }
    }
    wrong
}

/// The map: per page, the valid one with the highest sequence over all members.
pub(super) fn map(opened: &Opened<'_>, report: &mut Report) -> Map {
    let layout = opened.layout();
    let mut map = Vec::with_capacity(layout.map_pages() as usize * PAGE_BITS_BYTES);
    for index in 0..layout.map_pages() as u32 {
        let mut best: Option<(u64, Vec<u8>)> = None;
        let (mut differ, mut clash) = (false, false);
        let wrong = pages(opened, PageKind::Map, index, |_, header, bits| match &mut best {
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
        report.counts.map_pages_differ += u64::from(differ || !wrong.is_empty());
        if clash {
            report.damage(format!("page {index} of the map has two contents with one sequence"));
        }
        if best.is_none() {
            report.damage(format!("page {index} of the map is lost: {}", wrong.join("; ")));
        } else if !wrong.is_empty() {
            report.note(format!("page {index} of the map is not whole on every member: {}", wrong.join("; ")));
        }
        map.extend(best.map_or_else(|| vec![0; PAGE_BITS_BYTES], |(_, bits)| bits));
    }
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
    if generation == 0 {
        return;
    }
    for index in 0..layout.wib_pages() as u32 {
        let mut best: Option<(u64, u32)> = None;
        pages(opened, PageKind::Wib, index, |_, header, bits| {
            let newer = best.is_none_or(|(sequence, _)| header.sequence > sequence);
            if header.generation == generation && newer {
                best = Some((header.sequence, bits.iter().map(|b| b.count_ones()).sum()));
            }
        });
        match best {
            Some((_, regions)) => report.counts.intent_regions += u64::from(regions),
            None => report
                .note(format!("page {index} of the write-intent bitmap has no content of generation {generation}")),
        }
    }
}
