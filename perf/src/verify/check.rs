//! `--verify-check`: what a journal says against what the device holds.

use std::cell::RefCell;
use std::rc::Rc;

use longshore_bdev::Status;
use longshore_reactor::{Reactor, rdtsc, tick_rate};

use super::Disk;
use super::journal::{History, Record};
use super::pattern::{Found, inspect};
use super::work::Checked;

/// Mismatches that are printed; the rest are counted.
const PRINTED: u64 = 10;

/// Reads every place that the journal names and judges it. Returns also what is in blocks that may hold one of several writes.
pub(crate) async fn check<D: Disk>(
    r: Reactor,
    disk: D,
    history: History,
    depth: u32,
) -> Result<(Checked, Vec<Record>), String> {
    let began = rdtsc();
    let header = history.header;
    let places: Rc<RefCell<_>> = Rc::new(RefCell::new(history.units.into_iter()));
    let found = Rc::new(RefCell::new(Checked::default()));
    let open = Rc::new(RefCell::new(Vec::new()));
    let mut running = Vec::new();
    for _ in 0..depth.max(1) {
        let size = header.unit_blocks as usize * header.block_size as usize;
        let mut buf = r.dma().alloc(size).ok_or("out of memory for buffers: use a smaller -q")?;
        let (disk, places, found, open) = (disk.clone(), places.clone(), found.clone(), open.clone());
        running.push(r.spawn(async move {
            loop {
                let next = places.borrow_mut().next();
                let Some((lba, unit)) = next else { return };
                if found.borrow().failure.is_some() {
                    return;
                }
                // Data left over from the last read must not pass for data of this one.
                match buf.get_mut() {
                    Some(bytes) => bytes.fill(0x5a),
                    None => {
                        found.borrow_mut().failure.get_or_insert_with(|| "a device kept a buffer".into());
                        return;
                    }
                }
                let (status, back) = disk.read(lba, header.unit_blocks, buf).await;
                let mut found = found.borrow_mut();
                let (Status::SUCCESS, Some(back)) = (status, back) else {
                    let what = format!("read of {} blocks at LBA {lba} failed: {status}", header.unit_blocks);
                    found.failure.get_or_insert(what);
                    return;
                };
                found.reads += 1;
                for (i, block) in back.as_slice().chunks(header.block_size as usize).enumerate() {
                    let at = lba + i as u64;
                    found.blocks += 1;
                    let is = inspect(header.seed, at, block);
                    if !unit.possible.is_empty() {
                        let generation = if let Found::Whole(g) = is { g } else { 0 };
                        open.borrow_mut().push(Record::Found { lba: at, generation });
                    }
                    if let Err(why) = judge(unit.required(i), &unit.possible, &is) {
                        found.mismatches += 1;
                        if found.mismatches <= PRINTED {
                            eprintln!("longshore-perf: LBA {at}: {why}");
                        }
                    }
                }
                buf = back;
            }
        }));
    }
    for t in running {
        t.await.map_err(|_| "the reactor stopped")?;
    }
    let mut found = found.take();
    found.seconds = (rdtsc() - began) as f64 / tick_rate() as f64;
    found.cpu = r.handle().cpu();
    Ok((found, open.take()))
}

/// Whether a block may be what it is.
fn judge(required: u64, possible: &[u64], found: &Found) -> Result<(), String> {
    let ok = match found {
        Found::Whole(g) => *g == required || possible.contains(g),
        // Before the first acknowledged write anything may be there that is not a piece of one.
        Found::Zero | Found::Foreign => required == 0,
        Found::Torn(_) | Found::Misplaced { .. } | Found::Damaged { .. } => false,
    };
    if ok {
        return Ok(());
    }
    let lost = matches!(found, Found::Whole(g) if *g < required) || matches!(found, Found::Zero | Found::Foreign);
    let wanted = match (required, possible) {
        (0, p) => format!("generations {p:?} or what was there before"),
        (r, []) => format!("generation {r}, which was acknowledged"),
        (r, p) => format!("generation {r}, which was acknowledged, or one of {p:?}"),
    };
    Err(format!("{}expected {wanted}, found {found}", if lost { "a write is lost: " } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Unit = (u64, &'static [u64]);

    fn unit(required: u64, possible: &'static [u64]) -> Unit {
        (required, possible)
    }

    fn judge((required, possible): &Unit, found: &Found) -> Result<(), String> {
        super::judge(*required, possible, found)
    }

    #[test]
    fn an_acknowledged_write_must_be_there() {
        let u = unit(5, &[]);
        assert!(judge(&u, &Found::Whole(5)).is_ok());
        for lost in [Found::Whole(4), Found::Zero, Found::Foreign] {
            assert!(judge(&u, &lost).unwrap_err().contains("lost"), "{lost}");
        }
    }

    #[test]
    fn an_unacknowledged_write_is_old_or_new_but_never_a_mixture() {
        let u = unit(5, &[6]);
        assert!(judge(&u, &Found::Whole(5)).is_ok() && judge(&u, &Found::Whole(6)).is_ok());
        assert!(judge(&u, &Found::Torn(vec![5, 6])).is_err());
        assert!(judge(&u, &Found::Whole(4)).is_err());
        let first = unit(0, &[1]);
        assert!(judge(&first, &Found::Zero).is_ok() && judge(&first, &Found::Foreign).is_ok());
        assert!(judge(&first, &Found::Torn(vec![1, 0])).is_err());
        assert!(judge(&first, &Found::Misplaced { lba: 3, generation: 1 }).is_err());
    }
}
