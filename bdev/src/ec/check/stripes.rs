//! Whether the strips of every stripe agree.

use std::io;

use longshore_accel::erasure::{Codec, MatrixKind};

use super::bitmaps::Map;
use super::journal::Redo;
use super::tally::{REPLACE, Tally, many};
use super::{Opened, Report, Scope};

/// One strip, or a block of it: its index, 0 to k + m, and its content after a start.
struct Strip {
    index: usize,
    slot: usize,
    bytes: Vec<u8>,
}

/// A strip that counts and that cannot be read as a whole.
struct Unread {
    index: usize,
    slot: usize,
    why: io::Error,
}

/// What is to be said of a stripe.
enum Outcome {
    Agree,
    /// There is nothing to spare.
    Unverifiable,
    /// They do not agree; the culprit in words.
    Differ(String),
    /// So many can be read, which are too few.
    Lost(usize),
}

pub(super) fn stripes(opened: &Opened<'_>, map: &Map, redo: &Redo, scope: Scope, report: &mut Report) {
    let layout = opened.layout();
    if !scope.stripes {
        return;
    }
    let codec = match Codec::new(MatrixKind::Cauchy, layout.k, layout.m) {
        Ok(codec) => codec,
        Err(e) => return report.damage(format!("no code of {}+{}: {e}", layout.k, layout.m)),
    };
    let (mut tally, mut lost) = (Tally::default(), 0);
    for stripe in map.stripes() {
        let (strips, unread) = read(opened, redo, stripe);
        report.counts.unreadable += u64::from(!unread.is_empty());
        let outcome = match judge(&codec, &strips, opened) {
            Outcome::Lost(_) => rows(&codec, opened, redo, stripe, &strips, &unread),
            outcome => outcome,
        };
        match outcome {
            Outcome::Agree => report.counts.agree += 1,
            Outcome::Unverifiable => report.counts.unverifiable += 1,
            Outcome::Differ(culprit) => {
                report.counts.bad += 1;
                report.damage(format!("stripe {stripe}: its strips do not agree{culprit}"));
            }
            Outcome::Lost(few) => {
                report.counts.bad += 1;
                lost += 1;
                let whys: String = unread.iter().map(|u| format!("; {}: {}", opened.title(u.slot), u.why)).collect();
                report.damage(format!("stripe {stripe}: {few} strips can be read, {} are needed{whys}", layout.k));
                continue;
            }
        }
        unread.into_iter().for_each(|u| tally.add(u.slot, stripe, u.why.to_string()));
    }
    conclude(opened, &tally, lost, report);
}

/// What there is to say of strips that cannot be read.
fn conclude(opened: &Opened<'_>, tally: &Tally, lost: u64, report: &mut Report) {
    for (member, f) in tally.members(opened) {
        report.degrade(format!(
            "{member}: its strips of {} cannot be read, the first that of stripe {} ({}). The other members make up for them. \
             With the array started, bdev_ec_start_scrub writes them anew; if they cannot be written, or are many, {REPLACE}",
            many(f.count, "stripe"),
            f.first,
            f.why
        ));
    }
    if lost > 0 {
        report.advise(format!(
            "of {} too little can be read: hosts get UNRECOVERED READ ERROR for what is lost there, until it is written. Attach members that are missing. \
             Before anything is written, copy members that fail reads to other devices with a tool that tries again, and check the copies in their place",
            many(lost, "stripe")
        ));
    }
}

/// The strips that count, as they are after a start, and those of them that cannot be read.
fn read(opened: &Opened<'_>, redo: &Redo, stripe: u64) -> (Vec<Strip>, Vec<Unread>) {
    let layout = opened.layout();
    let (mut strips, mut unread) = (Vec::with_capacity(layout.n()), Vec::new());
    for index in 0..layout.n() {
        let slot = layout.slot_of(stripe, index);
        let Some(device) = opened.device(slot).filter(|_| opened.holds(slot, stripe)) else { continue };
        let mut bytes = vec![0; layout.strip as usize];
        match redo.read(layout, device, (stripe, slot), 0, &mut bytes) {
            Ok(()) => strips.push(Strip { index, slot, bytes }),
            Err(why) => unread.push(Unread { index, slot, why }),
        }
    }
    (strips, unread)
}

/// Goes through a stripe row by row (the same block of every strip): members that fail reads need not fail those of the same blocks. Ends at the first
/// row that is lost, so that devices which fail every read are asked for one block each.
fn rows(codec: &Codec, opened: &Opened<'_>, redo: &Redo, stripe: u64, strips: &[Strip], unread: &[Unread]) -> Outcome {
    let layout = opened.layout();
    let block = layout.block as usize;
    let mut outcome = Outcome::Agree;
    for from in (0..layout.strip as usize).step_by(block) {
        let part = |s: &Strip| Strip { bytes: s.bytes[from..from + block].to_vec(), ..*s };
        let mut row: Vec<Strip> = strips.iter().map(part).collect();
        for &Unread { index, slot, .. } in unread {
            let mut bytes = vec![0; block];
            let Some(device) = opened.device(slot) else { continue };
            if redo.read(layout, device, (stripe, slot), from, &mut bytes).is_ok() {
                row.push(Strip { index, slot, bytes });
            }
        }
        row.sort_unstable_by_key(|s| s.index);
        match judge(codec, &row, opened) {
            Outcome::Agree => {}
            Outcome::Unverifiable => outcome = Outcome::Unverifiable,
            other => return other,
        }
    }
    outcome
}

fn judge(codec: &Codec, strips: &[Strip], opened: &Opened<'_>) -> Outcome {
    match strips.len() {
        few if few < codec.data_chunks() => Outcome::Lost(few),
        just if just == codec.data_chunks() => Outcome::Unverifiable,
        _ if agree(codec, strips, None) => Outcome::Agree,
        _ => Outcome::Differ(culprit(codec, strips, opened)),
    }
}

/// Whether all strips, but for one that is passed over, follow from k of them.
fn agree(codec: &Codec, strips: &[Strip], without: Option<usize>) -> bool {
    let strips: Vec<&Strip> = strips.iter().filter(|s| Some(s.index) != without).collect();
    let (sources, rest) = strips.split_at(codec.data_chunks());
    let indices = |strips: &[&Strip]| strips.iter().map(|s| s.index).collect::<Vec<_>>();
    let Ok(decoder) = codec.decoder(&indices(rest), &indices(sources)) else { return false };
    let sources: Vec<&[u8]> = sources.iter().map(|s| &s.bytes[..]).collect();
    let mut computed = vec![vec![0; sources[0].len()]; rest.len()];
    let mut out: Vec<&mut [u8]> = computed.iter_mut().map(|v| &mut v[..]).collect();
    decoder.decode(&sources, &mut out);
    computed.iter().zip(rest).all(|(computed, strip)| *computed == strip.bytes)
}

/// The one strip without which all others agree, in words, where there are enough of them to tell.
fn culprit(codec: &Codec, strips: &[Strip], opened: &Opened<'_>) -> String {
    if strips.len() < codec.data_chunks() + 2 {
        return String::new();
    }
    let mut guilty = strips.iter().filter(|s| agree(codec, strips, Some(s.index)));
    match (guilty.next(), guilty.next()) {
        (Some(strip), None) => format!(": all others agree without that of {}", opened.title(strip.slot)),
        _ => ", and not because of one alone".into(),
    }
}
