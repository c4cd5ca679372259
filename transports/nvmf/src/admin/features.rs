//! Get Features and Set Features: Base Specification, "Features".

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use longshore_nvme::wire::feature::{
    CAPABILITY_CHANGEABLE, FeatureCmd, HostBehavior, QueueCount, Select, TemperatureThreshold, fid,
};
use longshore_nvme::wire::{NSID_ALL, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::aer::{SUPPORTED_DISCOVERY, SUPPORTED_IO};
use super::fill;
use crate::controller::Controller;
use crate::qpair::Qpair;

/// Default over temperature threshold, in Kelvin.
const OVER: u32 = 0x157;

/// What a host may set and read back; lost at a controller reset.
pub(crate) struct Features {
    arbitration: Cell<u32>,
    power: Cell<u32>,
    /// Over and under temperature.
    threshold: [Cell<u32>; 2],
    error_recovery: Cell<u32>,
    write_cache: Cell<u32>,
    write_atomicity: Cell<u32>,
    /// Advanced Command Retry, as every core that serves the controller sees it.
    acre: Arc<AtomicBool>,
    /// Set Features with Number of Queues came: it may not come again.
    queues_set: Cell<bool>,
}

impl Features {
    /// The defaults; `acre` is set and cleared with the feature.
    pub(crate) fn new(acre: Arc<AtomicBool>) -> Features {
        Features {
            arbitration: Cell::new(0),
            power: Cell::new(0),
            threshold: [Cell::new(OVER), Cell::new(0)],
            error_recovery: Cell::new(0),
            write_cache: Cell::new(1),
            write_atomicity: Cell::new(0),
            acre,
            queues_set: Cell::new(false),
        }
    }

    pub(crate) fn reset(&self) {
        self.arbitration.set(0);
        self.power.set(0);
        self.threshold[0].set(OVER);
        self.threshold[1].set(0);
        self.error_recovery.set(0);
        self.write_cache.set(1);
        self.write_atomicity.set(0);
        self.acre.store(false, Relaxed);
        self.queues_set.set(false);
    }
}

/// Bytes of data that Get Features of this feature returns.
pub(crate) fn data_to_host(cmd: &FeatureCmd) -> u32 {
    match (cmd.fid, cmd.select) {
        (_, Select::Capabilities) => 0,
        (fid::HOST_IDENTIFIER, _) => 16,
        (fid::HOST_BEHAVIOR, _) => size_of::<HostBehavior>() as u32,
        _ => 0,
    }
}

/// Bytes of data that Set Features of this feature takes.
pub(crate) fn data_from_host(cmd: &FeatureCmd) -> u32 {
    match cmd.fid {
        fid::HOST_BEHAVIOR => size_of::<HostBehavior>() as u32,
        _ => 0,
    }
}

/// Features of a discovery controller: Base Specification, "Discovery Controller", feature support.
fn known(c: &Controller, f: u8) -> bool {
    let discovery = matches!(f, fid::ASYNC_EVENT_CONFIG | fid::KEEP_ALIVE_TIMER | fid::HOST_IDENTIFIER);
    let io = matches!(
        f,
        fid::ARBITRATION
            | fid::POWER_MANAGEMENT
            | fid::TEMPERATURE_THRESHOLD
            | fid::ERROR_RECOVERY
            | fid::VOLATILE_WRITE_CACHE
            | fid::NUMBER_OF_QUEUES
            | fid::WRITE_ATOMICITY
            | fid::HOST_BEHAVIOR
    );
    discovery || (io && !c.discovery)
}

fn queue_count(c: &Controller) -> u32 {
    let n = u32::from(c.granted.get().max(1)) - 1;
    QueueCount(0).with_submission(n).with_completion(n).0
}

/// Get Features: the value goes into Dword 0, or into the buffer.
pub(crate) fn get(c: &Controller, qp: &Qpair, slot: u16, cmd: &FeatureCmd, nsid: u32) -> Result<(), Status> {
    if !known(c, cmd.fid) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let f = &c.features;
    let fresh = Features::new(Arc::default());
    let f = match cmd.select {
        Select::Current => f,
        Select::Default | Select::Saved => &fresh,
        Select::Capabilities => {
            let fixed = matches!(cmd.fid, fid::HOST_IDENTIFIER);
            qp.slots[usize::from(slot)].borrow_mut().dw0 = if fixed { 0 } else { CAPABILITY_CHANGEABLE };
            return Ok(());
        }
        Select::Reserved(_) => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    let value = match cmd.fid {
        fid::ARBITRATION => f.arbitration.get(),
        fid::POWER_MANAGEMENT => f.power.get(),
        fid::TEMPERATURE_THRESHOLD => {
            let t = TemperatureThreshold(cmd.value);
            // Only the composite sensor exists.
            match (t.sensor(), t.kind()) {
                (0, k @ 0..=1) => f.threshold[k as usize].get(),
                _ => return Err(Status::INVALID_FIELD.with_dnr()),
            }
        }
        fid::ERROR_RECOVERY => {
            if nsid != NSID_ALL && c.access.block_size(nsid).is_err_and(|s| s.is(Status::INVALID_NAMESPACE_OR_FORMAT)) {
                return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
            }
            f.error_recovery.get()
        }
        fid::VOLATILE_WRITE_CACHE => f.write_cache.get(),
        fid::NUMBER_OF_QUEUES => queue_count(c),
        fid::WRITE_ATOMICITY => f.write_atomicity.get(),
        fid::ASYNC_EVENT_CONFIG => c.events.config.get(),
        fid::KEEP_ALIVE_TIMER => c.kato.get(),
        fid::HOST_IDENTIFIER => {
            if cmd.value & 1 == 0 {
                return Err(Status::INVALID_FIELD.with_dnr()); // fabrics know the 128-bit one only
            }
            fill(qp, slot, 0, &c.hostid);
            0
        }
        fid::HOST_BEHAVIOR => {
            let acre = f.acre.load(Relaxed).into();
            fill(qp, slot, 0, HostBehavior { acre, ..HostBehavior::new_zeroed() }.as_bytes());
            0
        }
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    qp.slots[usize::from(slot)].borrow_mut().dw0 = value;
    Ok(())
}

/// Set Features.
pub(crate) fn set(c: &Rc<Controller>, qp: &Qpair, slot: u16, cmd: &FeatureCmd) -> Result<(), Status> {
    if !known(c, cmd.fid) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if cmd.save {
        return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
    }
    let f = &c.features;
    let v = cmd.value;
    match cmd.fid {
        fid::ARBITRATION => f.arbitration.set(v),
        fid::POWER_MANAGEMENT => match v & 0x1f {
            0 => f.power.set(v & 0xff),
            _ => return Err(Status::INVALID_FIELD.with_dnr()), // there is power state 0 only
        },
        fid::TEMPERATURE_THRESHOLD => {
            let t = TemperatureThreshold(v);
            match (t.sensor(), t.kind()) {
                (0 | 0xf, k @ 0..=1) => f.threshold[k as usize].set(t.kelvin()),
                _ => return Err(Status::INVALID_FIELD.with_dnr()),
            }
        }
        fid::ERROR_RECOVERY => match v & 1 << 16 {
            0 => f.error_recovery.set(v & 0xffff),
            _ => return Err(Status::INVALID_FIELD.with_dnr()), // DULBE is not supported
        },
        // The cache is the device's: it cannot be switched off from here, and saying so would lose data.
        fid::VOLATILE_WRITE_CACHE => match v & 1 {
            1 => f.write_cache.set(1),
            _ => return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr()),
        },
        fid::WRITE_ATOMICITY => f.write_atomicity.set(v & 1),
        fid::NUMBER_OF_QUEUES => {
            let q = QueueCount(v);
            if q.submission() == 0xffff || q.completion() == 0xffff {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            if !c.queues.borrow().is_empty() {
                return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
            }
            f.queues_set.set(true);
            let asked = q.submission().min(q.completion()) + 1;
            let most = u32::from(c.options.max_io_qpairs_per_ctrlr);
            c.granted.set(asked.min(most) as u16);
            qp.slots[usize::from(slot)].borrow_mut().dw0 = queue_count(c);
        }
        fid::ASYNC_EVENT_CONFIG => {
            let supported = if c.discovery { SUPPORTED_DISCOVERY } else { SUPPORTED_IO | 0xff };
            c.events.config.set(v & supported);
        }
        fid::KEEP_ALIVE_TIMER => {
            // A host that was promised an end of its leases cannot take that back.
            if v == 0 && c.kato.get() != 0 && !c.discovery {
                return Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.with_dnr());
            }
            c.set_kato(v);
        }
        fid::HOST_BEHAVIOR => {
            let r = qp.slots[usize::from(slot)].borrow();
            let b = r.buf.as_ref().and_then(|b| HostBehavior::read_from_prefix(b.as_slice()).ok());
            let (b, _) = b.ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
            if b.acre > 1 {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            f.acre.store(b.acre == 1, Relaxed);
        }
        // Connect brought it; it stays for the life of the association.
        fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    }
    Ok(())
}
