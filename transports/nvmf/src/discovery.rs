//! The discovery log page: Base Specification, "Discovery Log Page".

use longshore_nvme::wire::discovery::{eflags, subtype, treq};
use longshore_nvme::wire::fabrics::CNTLID_DYNAMIC;
use longshore_nvme::wire::{DISCOVERY_NQN, DiscoveryEntry, DiscoveryHeader, NqnField};
use zerocopy::{FromZeros, IntoBytes};

use crate::address::Address;
use crate::controller::Controller;
use crate::view::TargetView;

/// The log page for the host of this discovery controller: what it may connect to, and where.
pub(crate) fn log(c: &Controller) -> Vec<u8> {
    let Some(g) = c.group() else { return Vec::new() };
    let view = g.view();
    let entries = entries(&view, &c.who.hostnqn, &c.came_by);
    let mut h = DiscoveryHeader::new_zeroed();
    h.genctr = view.genctr.into();
    h.numrec = (entries.len() as u64).into();
    let mut page = h.as_bytes().to_vec();
    for e in &entries {
        page.extend_from_slice(e.as_bytes());
    }
    page
}

fn entries(view: &TargetView, hostnqn: &str, came_by: &Address) -> Vec<DiscoveryEntry> {
    let f = view.config.discovery_filter;
    // A listener on every address is shown as the one that this host has reached.
    let reached = |a: &Address| match a.is_unspecified() && a.adrfam == came_by.adrfam {
        true => Address { traddr: came_by.traddr.clone(), ..a.clone() },
        false => a.clone(),
    };
    let shown = |a: &Address| {
        (!f.transport || a.trtype == came_by.trtype)
            && (!f.address || a.traddr == came_by.traddr)
            && (!f.svcid || a.trsvcid == came_by.trsvcid)
    };
    let mut all = Vec::new();
    for sub in view.subsystems.values().filter(|s| s.allows(hostnqn)) {
        for at in sub.listeners.iter().map(|l| reached(&l.address)).filter(shown) {
            let mut e = entry(&at, sub.nqn(), all.len());
            if sub.discovery {
                e.subtype = subtype::CURRENT_DISCOVERY;
                e.eflags = (eflags::PERSISTENT | eflags::DUPLICATE).into();
            } else {
                e.subtype = subtype::NVM;
            }
            let depth = view.transports.get(&at.trtype).map_or(32, |t| t.max_aq_depth);
            e.asqsz = (depth as u16).into();
            all.push(e);
        }
    }
    for r in view.referrals.iter() {
        let mut e = entry(&r.address, &r.subnqn, all.len());
        e.subtype = if r.subnqn == DISCOVERY_NQN { subtype::REFERRAL } else { subtype::NVM };
        e.asqsz = 32.into();
        all.push(e);
    }
    all
}

fn entry(a: &Address, nqn: &str, index: usize) -> DiscoveryEntry {
    let mut e = DiscoveryEntry::new_zeroed();
    e.trtype = a.trtype.code();
    e.adrfam = a.adrfam.code();
    e.treq = treq::SECURE_NOT_REQUIRED | treq::SQ_FLOW_CONTROL_DISABLE;
    e.portid = (index as u16).into();
    e.cntlid = CNTLID_DYNAMIC.into();
    e.set_traddr(&a.traddr);
    e.set_trsvcid(&a.trsvcid);
    e.subnqn = NqnField::new(nqn).unwrap_or_default();
    e
}
