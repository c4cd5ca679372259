//! One attached controller: its namespaces as devices, and whether requests may go there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use longshore_nvme::host::{Controller, ControllerState, HostError, Namespace};
use longshore_nvme::wire::identify::vwc;
use longshore_nvme::wire::log::lid;
use longshore_reactor::{CoreHandle, Reactor, oneshot};
use uuid::Uuid;

use super::controllers::{AttachError, ControllerInfo, Controllers};
use super::core_queue;
use super::device::NvmeBdev;
use super::options::AttachOptions;
use crate::base::derived_uuid;
use crate::node::BdevNode;
use crate::registry::Registry;

/// Whether requests may go to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Path {
    /// They may. Those whose queue is lost wait: the controller will be found to need a reset.
    Up = 0,
    /// It is being connected again: they wait.
    Held = 1,
    /// It is lost, or did not come back in time: they fail at once.
    Failing = 2,
    /// It is being detached: what waits for a connection fails.
    Closing = 3,
}

/// One attached controller.
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) ctrl: Arc<Controller>,
    pub(super) options: AttachOptions,
    /// How often a request is tried again that the controller ended for a passing reason; -1: for ever.
    pub(super) retries: i32,
    pub(super) owner: Weak<Controllers>,
    pub(super) recovering: AtomicBool,
    /// The controller has, or had, a volatile write cache. Known on all cores before any of them sends it anything.
    pub(super) cached: AtomicBool,
    path: AtomicU8,
    nodes: Mutex<BTreeMap<u32, Arc<BdevNode>>>,
    /// Cores with a queue.
    cores: Mutex<Vec<CoreHandle>>,
    scanning: AtomicBool,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub(super) fn new(
        number: u64,
        name: &str,
        ctrl: Arc<Controller>,
        options: AttachOptions,
        retries: i32,
        owner: Weak<Controllers>,
    ) -> Arc<Entry> {
        Arc::new(Entry {
            number,
            name: name.to_owned(),
            ctrl,
            options,
            retries,
            owner,
            recovering: AtomicBool::new(false),
            cached: AtomicBool::new(false),
            path: AtomicU8::new(Path::Up as u8),
            nodes: Mutex::default(),
            cores: Mutex::default(),
            scanning: AtomicBool::new(false),
        })
    }

    pub(super) fn path(&self) -> Path {
        match self.path.load(Ordering::Acquire) {
            0 => Path::Up,
            1 => Path::Held,
            2 => Path::Failing,
            _ => Path::Closing,
        }
    }

    /// Sets whether requests may go there and tells all cores. One that is being detached stays so.
    pub(super) fn set_path(&self, p: Path) {
        let closing = Path::Closing as u8;
        let change = |old| (old != closing).then_some(p as u8);
        if self.path.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok() {
            drop(self.tell_cores());
        }
    }

    /// Returns what fires when each core knows.
    fn tell_cores(&self) -> Vec<oneshot::Receiver<()>> {
        let number = self.number;
        locked(&self.cores).iter().map(|c| c.call(move |_| core_queue::look(number))).collect()
    }

    pub(super) fn core_joins(&self, core: CoreHandle) {
        locked(&self.cores).push(core);
    }

    pub(super) fn core_leaves(&self, core: usize) {
        locked(&self.cores).retain(|c| c.index() != core);
    }

    /// Whether the device `serial` is (still) the one of namespace `nsid`.
    pub(super) fn is_current(&self, nsid: u32, serial: u32) -> bool {
        let nodes = locked(&self.nodes);
        nodes.get(&nsid).and_then(|n| nvme_bdev(n)).is_some_and(|d| d.serial() == serial)
    }

    pub(super) fn bdev_names(&self) -> Vec<String> {
        locked(&self.nodes).values().map(|n| n.name().to_owned()).collect()
    }

    pub(super) fn info(&self) -> ControllerInfo {
        ControllerInfo {
            name: self.name.clone(),
            state: match self.ctrl.state() {
                _ if self.path() == Path::Closing => "deleting",
                ControllerState::Ready => "enabled",
                ControllerState::Connecting | ControllerState::Resetting => "resetting",
                ControllerState::Lost if self.recovering.load(Ordering::Relaxed) => "reconnect_is_delayed",
                ControllerState::Lost => "failed",
                ControllerState::Closed => "deleting",
            },
            trid: self.ctrl.transport_id().clone(),
            cntlid: self.ctrl.info().map_or(0, |i| i.cntlid),
            hostnqn: self.ctrl.options().effective_hostnqn(),
            source: self.options.source,
            options: self.options.clone(),
            bdevs: self.bdev_names(),
        }
    }

    /// Makes a device of a namespace, unless it is of a kind that is not supported.
    fn add(self: &Arc<Self>, registry: &Arc<Registry>, ns: Namespace) -> Result<(), AttachError> {
        let Some(info) = self.ctrl.info() else { return Ok(()) };
        let nsid = ns.nsid;
        let name = format!("{}n{nsid}", self.name);
        let id = ns.uuid.or(ns.nguid).map(Uuid::from_bytes);
        let dev = match NvmeBdev::new(self.clone(), ns, &info) {
            Ok(d) => Arc::new(d),
            Err(why) => {
                tracing::warn!("namespace {nsid} of controller {} is not used: {why}", self.name);
                return Ok(());
            }
        };
        // The namespace may be a device of this very process, exported and attached.
        let id = match id {
            Some(u) if registry.find(&u.to_string()).is_some() => Some(derived_uuid(u, &name)),
            other => other,
        };
        let node = registry.register(&name, id, dev).map_err(AttachError::Bdev)?;
        locked(&self.nodes).insert(nsid, node);
        Ok(())
    }

    /// Removes the devices of `ids`. When this returns, nothing that was meant for them is sent any more. Returns what fires when
    /// nobody holds them any more.
    async fn remove(&self, registry: &Registry, ids: &[u32]) -> Vec<oneshot::Receiver<()>> {
        let gone: Vec<_> = {
            let mut nodes = locked(&self.nodes);
            ids.iter().filter_map(|n| nodes.remove(n)).collect()
        };
        if self.path() != Path::Closing {
            // One that is detached while it is connected does what it was given before.
            gone.iter().filter_map(|n| nvme_bdev(n)).for_each(NvmeBdev::retire);
        }
        let ends = gone.iter().filter_map(|n| registry.remove(n)).collect();
        for told in self.tell_cores() {
            let _ = told.await;
        }
        ends
    }

    /// Takes over what changed: namespaces that came, went, were replaced or have another size. `strict`: one that cannot become
    /// a device is an error. On the controller's core.
    pub(super) async fn rescan(self: &Arc<Self>, r: &Reactor, strict: bool) -> Result<(), AttachError> {
        while self.scanning.swap(true, Ordering::Acquire) {
            r.sleep(Duration::from_millis(2)).await;
        }
        let end = self.scan(strict).await;
        self.scanning.store(false, Ordering::Release);
        end
    }

    async fn scan(self: &Arc<Self>, strict: bool) -> Result<(), AttachError> {
        let registry = match self.owner.upgrade() {
            Some(o) if self.path() != Path::Closing => o.registry.clone(),
            _ => return Err(AttachError::Host(HostError::Gone)),
        };
        // It may have come back with a cache that it did not have. No I/O queue is made before this has run.
        if self.ctrl.info().is_none_or(|i| i.identify.vwc & vwc::PRESENT != 0) {
            self.cached.store(true, Ordering::Release);
        }
        // Reading the list lets the controller report the next change.
        let _ = self.ctrl.log_page(lid::CHANGED_NAMESPACES, u32::MAX, 0, 4096, false).await;
        let active = self.ctrl.active_namespaces().await.map_err(AttachError::Host)?;
        let gone: Vec<u32> = locked(&self.nodes).keys().copied().filter(|n| !active.contains(n)).collect();
        if !gone.is_empty() {
            drop(self.remove(&registry, &gone).await);
        }
        for nsid in active {
            let mut known = locked(&self.nodes).get(&nsid).cloned();
            if known.is_none() && locked(&self.nodes).len() >= self.options.max_bdevs {
                tracing::warn!("controller {} has more than {} namespaces", self.name, self.options.max_bdevs);
                continue;
            }
            let ns = self.ctrl.namespace(nsid).await.map_err(AttachError::Host)?;
            if let Some(node) = known.take_if(|n| nvme_bdev(n).is_none_or(|d| !d.namespace().is_same(&ns))) {
                tracing::warn!(
                    bdev = node.name(),
                    "namespace {nsid} was replaced by another one: its device is removed"
                );
                drop(self.remove(&registry, &[nsid]).await);
            }
            match known {
                Some(node) => registry.resized(&node, ns.data.nsze.get()),
                None if self.path() == Path::Closing => return Err(AttachError::Host(HostError::Gone)),
                None => match self.add(&registry, ns) {
                    Err(e) if strict => return Err(e),
                    Err(e) => tracing::warn!("namespace {nsid} of controller {}: {e}", self.name),
                    Ok(()) => {}
                },
            }
        }
        Ok(())
    }

    /// Removes all devices, and when nobody holds them any more disconnects.
    pub(super) async fn tear_down(&self, registry: &Registry) {
        self.set_path(Path::Closing);
        let all: Vec<u32> = locked(&self.nodes).keys().copied().collect();
        for end in self.remove(registry, &all).await {
            let _ = end.await;
        }
        self.ctrl.disconnect(true).await;
    }
}

fn nvme_bdev(node: &BdevNode) -> Option<&NvmeBdev> {
    node.device().as_any().downcast_ref::<NvmeBdev>()
}
