//! Identify: Base Specification, "Identify command"; NVM Command Set Specification, "Identify command".

use longshore_nvme::wire::ascii::space_padded;
use longshore_nvme::wire::identify::{IdentifyCmd, anacap, cmic, cns, cntrltype, csi, ctratt, lpa, oncs, sgls, vwc};
use longshore_nvme::wire::identify_ns::{
    CommandSets, IndependentIdentifyNamespace, LbaFormat, NvmIdentifyController, NvmIdentifyNamespace, flbas, nidt,
    nsfeat,
};
use longshore_nvme::wire::{
    ControllerList, IdentifyController, IdentifyNamespace, NSID_ALL, NamespaceDescriptors, NamespaceList, NqnField,
    Sqe, Status,
};
use zerocopy::{FromZeros, IntoBytes};

use super::aer::{SUPPORTED_DISCOVERY, SUPPORTED_IO};
use crate::controller::{Controller, VERSION};
use crate::error_log;
use crate::qpair::MAX_AERS;
use crate::view::{NamespaceView, SubsystemView};

/// Firmware revision reported.
pub(crate) fn firmware() -> [u8; 8] {
    space_padded(env!("CARGO_PKG_VERSION"))
}

/// NSFEAT bit 5 of the command set independent structure: no volatile write cache here (VWCNP).
const NO_VOLATILE_CACHE: u8 = 1 << 5;

/// The 4,096 bytes that an Identify command returns.
pub(crate) fn identify(c: &Controller, sqe: &Sqe) -> Result<Vec<u8>, Status> {
    let cmd = IdentifyCmd::of(sqe);
    let sub = c.subsystem().ok_or(Status::INTERNAL_ERROR)?;
    let nsid = sqe.nsid.get();
    let invalid = Status::INVALID_FIELD.with_dnr();
    if c.discovery {
        return match cmd.cns {
            cns::CONTROLLER => Ok(controller(c, &sub).as_bytes().to_vec()),
            _ => Err(invalid),
        };
    }
    let nvm_only = || if cmd.csi == csi::NVM { Ok(()) } else { Err(Status::INVALID_FIELD.with_dnr()) };
    Ok(match cmd.cns {
        cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => match find(c, &sub, nsid)? {
            Some(n) => namespace(&sub, n).as_bytes().to_vec(),
            None => vec![0; 4096],
        },
        cns::CONTROLLER => controller(c, &sub).as_bytes().to_vec(),
        cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => list(c, &sub, nsid)?.as_bytes().to_vec(),
        cns::COMMAND_SET_ACTIVE_NAMESPACES | cns::COMMAND_SET_ALLOCATED_NAMESPACES => {
            nvm_only()?;
            list(c, &sub, nsid)?.as_bytes().to_vec()
        }
        cns::NAMESPACE_DESCRIPTORS => descriptors(active(c, &sub, nsid)?).as_bytes().to_vec(),
        cns::COMMAND_SET_NAMESPACE | cns::COMMAND_SET_ALLOCATED_NAMESPACE => {
            nvm_only()?;
            find(c, &sub, nsid)?;
            NvmIdentifyNamespace::new_zeroed().as_bytes().to_vec()
        }
        cns::COMMAND_SET_CONTROLLER => {
            nvm_only()?;
            let mut p = NvmIdentifyController::new_zeroed();
            p.wzsl = sub.options.wzsl;
            p.dmrsl = sub.options.dmrsl.into();
            p.dmrl = 0;
            p.as_bytes().to_vec()
        }
        cns::INDEPENDENT_NAMESPACE => match find(c, &sub, nsid)? {
            Some(n) => independent(&sub, n).as_bytes().to_vec(),
            None => vec![0; 4096],
        },
        cns::NAMESPACE_CONTROLLERS => {
            let n = active(c, &sub, nsid)?;
            controllers(c, cmd.cntid, |host| n.visible_to(host)).as_bytes().to_vec()
        }
        cns::SUBSYSTEM_CONTROLLERS => controllers(c, cmd.cntid, |_| true).as_bytes().to_vec(),
        cns::COMMAND_SETS => {
            let own = c.who.cntlid;
            if cmd.cntid != 0xffff && cmd.cntid != own {
                return Err(invalid);
            }
            let mut p = CommandSets::new_zeroed();
            p.0[0] = CommandSets::NVM.into();
            p.as_bytes().to_vec()
        }
        _ => return Err(invalid),
    })
}

/// A namespace that this controller sees; `None` if the identifier is valid but not in use for it.
fn find<'a>(c: &Controller, sub: &'a SubsystemView, nsid: u32) -> Result<Option<&'a NamespaceView>, Status> {
    if nsid == 0 || nsid > sub.options.max_namespaces {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    Ok(sub.namespaces.get(&nsid).filter(|n| n.visible_to(&c.who.hostnqn)))
}

fn active<'a>(c: &Controller, sub: &'a SubsystemView, nsid: u32) -> Result<&'a NamespaceView, Status> {
    find(c, sub, nsid)?.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())
}

fn list(c: &Controller, sub: &SubsystemView, after: u32) -> Result<NamespaceList, Status> {
    if after >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let seen = sub.namespaces.range(after + 1..).filter(|(_, n)| n.visible_to(&c.who.hostnqn));
    Ok(NamespaceList::of(seen.map(|(id, _)| *id)))
}

fn controllers(c: &Controller, from: u16, host: impl Fn(&str) -> bool) -> ControllerList {
    let Some(g) = c.group() else { return ControllerList::new_zeroed() };
    let d = g.target().directory();
    ControllerList::of(d.list(&c.who.nqn).filter(|(id, o)| *id >= from && host(&o.hostnqn)).map(|(id, _)| id))
}

fn controller(c: &Controller, sub: &SubsystemView) -> IdentifyController {
    let o = &c.options;
    let s = &sub.options;
    let mut p = IdentifyController::new_zeroed();
    p.fr = firmware();
    p.cntlid = c.who.cntlid.into();
    p.ver = VERSION.0.into();
    p.mdts = o.mdts();
    p.ctratt = ctratt::HOST_ID_128.into();
    p.aerl = (MAX_AERS - 1) as u8;
    p.lpa = lpa::EXTENDED;
    p.maxcmd = o.max_queue_depth.into();
    p.sgls = (sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT).into();
    p.subnqn = NqnField::new(sub.nqn()).unwrap_or_default();
    p.kas = o.kas.into();
    p.elpe = (error_log::ENTRIES - 1) as u8;
    if c.discovery {
        p.mn = space_padded("Longshore Discovery");
        p.cntrltype = cntrltype::DISCOVERY;
        p.oaes = SUPPORTED_DISCOVERY.into();
        p.sn = space_padded(&s.serial_number);
        return p;
    }
    p.sn = space_padded(&s.serial_number);
    p.mn = space_padded(&s.model_number);
    p.rab = 6;
    p.cmic = cmic::MULTI_PORT | cmic::MULTI_CONTROLLER;
    p.oaes = SUPPORTED_IO.into();
    p.cntrltype = cntrltype::IO;
    if let Some(g) = c.group() {
        p.crdt = g.view().config.crdt.map(Into::into);
    }
    p.acl = super::abort::LIMIT;
    p.frmw = 1 | 1 << 1; // one slot, read only
    p.lpa |= lpa::EFFECTS | lpa::SUPPORTED_LOG_PAGES;
    p.wctemp = 0x157.into();
    p.cctemp = 0x175.into();
    if s.ana_reporting {
        p.cmic |= cmic::ANA;
        p.anatt = 10;
        p.anacap = anacap::OPTIMIZED | anacap::NON_OPTIMIZED | anacap::INACCESSIBLE;
        p.anagrpmax = s.max_namespaces.into();
        p.nanagrpid = s.max_namespaces.into();
    } else {
        p.oaes = (SUPPORTED_IO & !longshore_nvme::wire::event::config::ANA).into();
    }
    p.sqes = 0x66;
    p.cqes = 0x44;
    p.nn = s.max_namespaces.into();
    p.mnan = s.max_namespaces.into();
    let commands = oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES;
    p.oncs = (commands & !o.masked_oncs).into();
    p.fuses = (1 & !o.masked_fuses).into();
    // Hosts look at this once and never again: a device with a cache may be added later, and must be flushed then.
    p.vwc = vwc::PRESENT | vwc::FLUSH_ALL_UNSUPPORTED;
    p.ioccsz = (4 + o.in_capsule_data_size / 16).into();
    p.iorcsz = 1.into();
    p.icdoff = 0.into();
    p.msdbd = 1;
    p.ofcs = 1.into();
    let blocks: u128 = sub.namespaces.values().map(|n| u128::from(n.num_blocks) * u128::from(n.ns.data_size())).sum();
    p.tnvmcap = blocks.into();
    p
}

fn namespace(sub: &SubsystemView, n: &NamespaceView) -> IdentifyNamespace {
    let ns = &n.ns;
    let g = ns.desc.node().geometry();
    let mut p = IdentifyNamespace::new_zeroed();
    let blocks = ns.num_blocks();
    p.nsze = blocks.into();
    p.ncap = blocks.into();
    p.nuse = blocks.into();
    p.lbaf[0] = LbaFormat { ms: (ns.md_size as u16).into(), lbads: ns.data_size().trailing_zeros() as u8, rp: 0 };
    if ns.md_size != 0 {
        p.flbas = flbas::EXTENDED;
        p.mc = 1;
    }
    p.nmic = 1;
    p.noiob = u16::try_from(g.optimal_io_boundary).unwrap_or(0).into();
    p.nvmcap = (u128::from(blocks) * u128::from(ns.data_size())).into();
    let units = |bytes: u32| (bytes / ns.data_size()).clamp(1, 0x1_0000) as u16;
    let physical = units(g.physical_block_size);
    let zero_based = |n: u32, or: u16| (if n == 0 { or } else { n.min(0x1_0000) as u16 }).wrapping_sub(1).into();
    p.nsfeat = nsfeat::OPTIMAL_PERFORMANCE;
    p.npwg = zero_based(g.preferred_write_granularity, physical);
    p.npwa = zero_based(g.preferred_write_alignment, physical);
    p.npdg = zero_based(g.preferred_unmap_granularity, physical);
    p.npda = zero_based(g.preferred_unmap_alignment, physical);
    p.nows = zero_based(g.optimal_write_size, physical);
    p.anagrpid = if sub.options.ana_reporting { n.anagrpid } else { 0 }.into();
    p.nguid = ns.nguid;
    p.eui64 = ns.eui64;
    p
}

fn independent(sub: &SubsystemView, n: &NamespaceView) -> IndependentIdentifyNamespace {
    let mut p = IndependentIdentifyNamespace::new_zeroed();
    if !n.ns.desc.node().geometry().volatile_cache {
        p.nsfeat = NO_VOLATILE_CACHE;
    }
    p.nmic = 1;
    p.anagrpid = if sub.options.ana_reporting { n.anagrpid } else { 0 }.into();
    p.nstat = 1;
    p
}

fn descriptors(n: &NamespaceView) -> NamespaceDescriptors {
    let ns = &n.ns;
    let mut list: Vec<(u8, &[u8])> = Vec::new();
    if ns.eui64 != [0; 8] {
        list.push((nidt::EUI64, &ns.eui64));
    }
    if ns.nguid != [0; 16] {
        list.push((nidt::NGUID, &ns.nguid));
    }
    if !ns.uuid.is_nil() {
        list.push((nidt::UUID, ns.uuid.as_bytes()));
    }
    list.push((nidt::CSI, &[csi::NVM]));
    NamespaceDescriptors::of(&list)
}
