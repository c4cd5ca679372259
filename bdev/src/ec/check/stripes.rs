//! Whether the strips of every stripe agree.

use longshore_accel::erasure::{Codec, MatrixKind};

use super::bitmaps::Map;
use super::journal::Redo;
use super::{Opened, Report, Scope};

/// One strip: its index, 0 to k + m, and its content after a start.
struct Strip {
    index: usize,
    slot: usize,
    bytes: Vec<u8>,
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
    for stripe in map.stripes() {
        let strips = read(opened, redo, stripe, report);
        match strips.len() {
            few if few < layout.k => {
                report.counts.bad += 1;
                report.damage(format!("stripe {stripe}: {few} strips can be read, {} are needed", layout.k));
            }
            just if just == layout.k => report.counts.unverifiable += 1,
            _ if agree(&codec, &strips, None) => report.counts.agree += 1,
            _ => {
                report.counts.bad += 1;
                report.damage(format!("stripe {stripe}: its strips do not agree{}", culprit(&codec, &strips, opened)));
            }
        }
    }
}

/// The strips that count, as they are after a start.
fn read(opened: &Opened<'_>, redo: &Redo, stripe: u64, report: &mut Report) -> Vec<Strip> {
    let layout = opened.layout();
    let mut strips = Vec::with_capacity(layout.n());
    for index in 0..layout.n() {
        let slot = layout.slot_of(stripe, index);
        let Some(device) = opened.device(slot).filter(|_| opened.holds(slot, stripe)) else { continue };
        let mut bytes = vec![0; layout.strip as usize];
        let read = device
            .read_at(layout.strip_offset(stripe), &mut bytes)
            .and_then(|()| redo.apply(opened, stripe, slot, &mut bytes));
        match read {
            Ok(()) => strips.push(Strip { index, slot, bytes }),
            Err(e) => report.note(format!("stripe {stripe}: '{}' in slot {slot} cannot be read: {e}", device.name())),
        }
    }
    strips
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
        (Some(strip), None) => {
            let name = opened.device(strip.slot).map(|d| d.name()).unwrap_or_default();
            format!(": all others agree without that of '{name}' in slot {}", strip.slot)
        }
        _ => ", and not because of one alone".into(),
    }
}
