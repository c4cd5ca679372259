//! What one controller may do, as one core knows it: the table of namespaces that I/O looks up.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use longshore_bdev::Channel;
use longshore_nvme::wire::{AnaState, Status};
use longshore_reactor::oneshot;

use crate::address::Address;
use crate::error_log::ErrorLog;
use crate::poll_group::PollGroup;
use crate::predecessors::Association;
use crate::view::{Namespace, SubsystemView};

/// A namespace with its device open on this core. It lives as long as a table or a command uses it.
pub(crate) struct LiveNamespace {
    pub(crate) channel: Channel,
    pub(crate) ns: Arc<Namespace>,
    /// Reads may be answered from the device's own memory.
    pub(crate) lends: bool,
    /// Dropped with this: tells those who wait for the end of its use.
    pub(crate) watchers: RefCell<Vec<oneshot::Sender<()>>>,
}

/// One namespace identifier of one controller.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) live: Option<Rc<LiveNamespace>>,
    pub(crate) block_size: u32,
    /// As that of `live`.
    lends: bool,
    /// Success, or why commands are refused.
    pub(crate) deny: Status,
}

impl Entry {
    const NONE: Entry =
        Entry { live: None, block_size: 0, lends: false, deny: Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr() };
}

/// Who a controller is, as every core that serves it knows.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Number of the controller, never used again.
    pub(crate) controller: u64,
    pub(crate) cntlid: u16,
    /// Number of the subsystem, never used again.
    pub(crate) subsystem: u64,
    pub(crate) nqn: String,
    pub(crate) hostnqn: String,
    pub(crate) hostid: [u8; 16],
    /// Core that owns the controller.
    pub(crate) core: usize,
    /// Largest write zeroes: 4 KiB times two to this power.
    pub(crate) wzsl: u8,
    /// Longest dataset management range, in blocks; 0 for no limit.
    pub(crate) dmrsl: u32,
    pub(crate) errors: Arc<ErrorLog>,
    /// The host enabled Advanced Command Retry: it waits as long as a status says before it tries again.
    pub(crate) waits_to_retry: Arc<AtomicBool>,
}

impl Identity {
    pub(crate) fn association(&self) -> Association {
        (self.subsystem, self.hostnqn.clone())
    }

    /// True if `of` is its association.
    pub(crate) fn is_of(&self, of: &Association) -> bool {
        self.subsystem == of.0 && self.hostnqn == of.1
    }
}

/// What one controller may do on this core, through one listener.
pub(crate) struct Access {
    pub(crate) who: Identity,
    pub(crate) listener: Address,
    pub(crate) errors: Arc<ErrorLog>,
    table: RefCell<Vec<Entry>>,
}

impl Access {
    pub(crate) fn new(who: Identity, listener: Address) -> Access {
        Access { errors: who.errors.clone(), who, listener, table: RefCell::default() }
    }

    /// The namespace that a command names.
    ///
    /// # Errors
    /// Why there is none for this controller, now, by this path.
    #[inline]
    pub(crate) fn find(&self, nsid: u32) -> Result<(Rc<LiveNamespace>, u32), Status> {
        let t = self.table.borrow();
        match t.get(nsid.wrapping_sub(1) as usize) {
            Some(Entry { live: Some(l), block_size, deny, .. }) if *deny == Status::SUCCESS => {
                Ok((l.clone(), *block_size))
            }
            other => Err(other.unwrap_or(&Entry::NONE).deny),
        }
    }

    /// Bytes of a block of a namespace that may be used.
    ///
    /// # Errors
    /// As [`find`](Access::find).
    #[inline]
    pub(crate) fn block_size(&self, nsid: u32) -> Result<u32, Status> {
        let t = self.table.borrow();
        match t.get(nsid.wrapping_sub(1) as usize) {
            Some(e) if e.deny == Status::SUCCESS => Ok(e.block_size),
            other => Err(other.unwrap_or(&Entry::NONE).deny),
        }
    }

    /// Bytes of a block of a namespace that may be read, and whether its device lends its memory.
    ///
    /// # Errors
    /// As [`find`](Access::find).
    #[inline]
    pub(crate) fn readable(&self, nsid: u32) -> Result<(u32, bool), Status> {
        let t = self.table.borrow();
        match t.get(nsid.wrapping_sub(1) as usize) {
            Some(e) if e.deny == Status::SUCCESS => Ok((e.block_size, e.lends)),
            other => Err(other.unwrap_or(&Entry::NONE).deny),
        }
    }

    /// Makes the table anew from a view of the subsystem; `None`: the subsystem is gone.
    pub(crate) fn rebuild(&self, group: &PollGroup, sub: Option<&SubsystemView>) {
        let mut table = Vec::new();
        let held = group.target().directory().predecessors.held(&self.who);
        if let Some(sub) = sub {
            let listener = sub.listener(&self.listener);
            let visible = sub.namespaces.values().filter(|n| n.visible_to(&self.who.hostnqn));
            for n in visible {
                let state = match (sub.options.ana_reporting, listener) {
                    (true, Some(l)) => l.ana_state(n.anagrpid),
                    (true, None) => AnaState::Inaccessible, // the listener was removed; the connection is about to end
                    (false, _) => Default::default(),
                };
                let (live, missing) = match group.live_namespace(&n.ns) {
                    Ok(l) => (Some(l), Status::SUCCESS),
                    Err(e) => {
                        tracing::error!(
                            "namespace {} of '{}' cannot be used on core {}: {e}",
                            n.nsid,
                            sub.nqn(),
                            group.core()
                        );
                        (None, Status::NAMESPACE_NOT_READY)
                    }
                };
                let at = n.nsid as usize;
                if table.len() < at {
                    table.resize(at, Entry::NONE);
                }
                let missing = if held.iter().any(|h| h.keeps(&n.ns)) { Status::NAMESPACE_NOT_READY } else { missing };
                let deny = state.io_status().unwrap_or(missing);
                let lends = live.as_ref().is_some_and(|l| l.lends);
                table[at - 1] = Entry { live, block_size: n.ns.block_size, lends, deny };
            }
        }
        let old = self.table.replace(table);
        drop(old);
    }
}
