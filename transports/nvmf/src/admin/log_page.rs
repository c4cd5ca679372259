//! Log pages: Base Specification, "Get Log Page command".

use std::collections::BTreeSet;

use longshore_bdev::Op;
use longshore_nvme::wire::log::{EffectsLog, FirmwareLog, GetLogPageCmd, HealthLog, SupportedLogPages, effects, lid};
use longshore_nvme::wire::opcode::{admin, io};
use longshore_nvme::wire::{NSID_ALL, NamespaceList, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::identify::firmware;
use crate::controller::Controller;
use crate::{ana, discovery};

/// The whole of a log page.
pub(crate) fn page(c: &Controller, cmd: &GetLogPageCmd, nsid: u32) -> Result<Vec<u8>, Status> {
    let unknown = Status::INVALID_LOG_PAGE.with_dnr();
    if c.discovery {
        return match cmd.lid {
            lid::DISCOVERY => Ok(discovery::log(c)),
            lid::ERROR => Ok(errors(c)),
            lid::SUPPORTED_LOG_PAGES => Ok(supported(&[lid::ERROR, lid::DISCOVERY, lid::SUPPORTED_LOG_PAGES])),
            _ => Err(unknown),
        };
    }
    let sub = c.subsystem().ok_or(Status::INTERNAL_ERROR)?;
    Ok(match cmd.lid {
        lid::SUPPORTED_LOG_PAGES => {
            let mut all = vec![
                lid::SUPPORTED_LOG_PAGES,
                lid::ERROR,
                lid::HEALTH,
                lid::FIRMWARE,
                lid::CHANGED_NAMESPACES,
                lid::EFFECTS,
            ];
            if sub.options.ana_reporting {
                all.push(lid::ANA);
            }
            supported(&all)
        }
        lid::ERROR => errors(c),
        lid::HEALTH => {
            // Per controller only: LPA bit 0 is clear.
            if nsid != 0 && nsid != NSID_ALL {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            health(c)
        }
        lid::FIRMWARE => {
            let mut p = FirmwareLog::new_zeroed();
            p.afi = 1;
            p.frs[0] = firmware();
            p.as_bytes().to_vec()
        }
        lid::CHANGED_NAMESPACES => changed(&c.changed.borrow()),
        lid::EFFECTS => command_effects(c),
        lid::ANA if sub.options.ana_reporting => ana::log(c, &sub, cmd.lsp),
        _ => return Err(unknown),
    })
}

/// The host read a page and does not want its event kept.
pub(crate) fn was_read(c: &Controller, page: u8) {
    if page == lid::CHANGED_NAMESPACES {
        c.changed.borrow_mut().clear();
    }
    c.events.log_read(page);
}

fn supported(pages: &[u8]) -> Vec<u8> {
    let mut p = SupportedLogPages::new_zeroed();
    for &l in pages {
        p.0[usize::from(l)] = SupportedLogPages::LSUPP.into();
    }
    p.as_bytes().to_vec()
}

fn errors(c: &Controller) -> Vec<u8> {
    let (_, entries) = c.who.errors.read();
    let mut p = vec![0; crate::error_log::ENTRIES * 64];
    for (to, e) in p.chunks_exact_mut(64).zip(&entries) {
        to.copy_from_slice(e.as_bytes());
    }
    p
}

fn changed(set: &BTreeSet<u32>) -> Vec<u8> {
    if set.len() > 1024 {
        return NamespaceList::of([NSID_ALL]).as_bytes().to_vec();
    }
    NamespaceList::of(set.iter().copied()).as_bytes().to_vec()
}

fn health(c: &Controller) -> Vec<u8> {
    let mut p = HealthLog::new_zeroed();
    p.temperature = 300.into();
    p.available_spare = 100;
    p.available_spare_threshold = 10;
    let (mut read, mut written, mut reads, mut writes) = (0u128, 0u128, 0u128, 0u128);
    let mut media = 0u128;
    if let Some(sub) = c.subsystem() {
        for n in sub.namespaces.values().filter(|n| n.visible_to(&c.who.hostnqn)) {
            let s = n.ns.desc.node().stats();
            let bytes = |blocks: u64| u128::from(blocks) * u128::from(n.ns.data_size());
            read += bytes(s.op(Op::Read).blocks) + bytes(s.op(Op::Compare).blocks);
            written += bytes(s.op(Op::Write).blocks);
            reads += u128::from(s.op(Op::Read).ops) + u128::from(s.op(Op::Compare).ops);
            writes += u128::from(s.op(Op::Write).ops);
            media += s.errors.iter().filter(|(s, _)| s.sct() == 2).map(|(_, n)| u128::from(*n)).sum::<u128>();
        }
    }
    // Units are thousands of 512 bytes, rounded up.
    p.data_units_read = read.div_ceil(512_000).into();
    p.data_units_written = written.div_ceil(512_000).into();
    p.host_read_commands = reads.into();
    p.host_write_commands = writes.into();
    p.media_errors = media.into();
    p.error_log_entries = u128::from(c.who.errors.read().0).into();
    p.as_bytes().to_vec()
}

fn command_effects(c: &Controller) -> Vec<u8> {
    use longshore_nvme::wire::identify::oncs;
    let mut p = EffectsLog::new_zeroed();
    let plain = [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ];
    for op in plain {
        p.admin[usize::from(op)] = effects::SUPPORTED.into();
    }
    let writes = effects::SUPPORTED | effects::BLOCK_CONTENT;
    let masked = c.options.masked_oncs;
    for (op, bits, optional) in [
        (io::FLUSH, writes, 0),
        (io::WRITE, writes, 0),
        (io::READ, effects::SUPPORTED, 0),
        (io::COMPARE, effects::SUPPORTED, oncs::COMPARE),
        (io::WRITE_ZEROES, writes, oncs::WRITE_ZEROES),
        (io::DATASET_MANAGEMENT, writes, oncs::DATASET_MANAGEMENT),
    ] {
        if masked & optional == 0 {
            p.io[usize::from(op)] = bits.into();
        }
    }
    p.as_bytes().to_vec()
}
