//! The controllers that are attached, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use longshore_nvme::host::{Controller, ControllerEvent, ControllerState, HostError, Namespace, TransportId};
use longshore_nvme::wire::AsyncEvent;
use longshore_nvme::wire::log::lid;
use longshore_reactor::CoreHandle;
use uuid::Uuid;

use super::core_queue;
use super::device::NvmeBdev;
use super::options::{AttachOptions, NvmeOptions};
use crate::base::derived_uuid;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// Why a controller was not attached, or not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// A controller of this name has this path already.
    SamePath(String),
    /// A controller of this name exists, and further paths are not supported.
    Exists(String),
    /// No controller has this name, or not this path.
    NotFound(String),
    /// Options cannot be changed while controllers are attached.
    Attached,
    /// The controller could not be reached or set up.
    Host(HostError),
    /// A namespace could not become a device.
    Bdev(BdevError),
    /// A parameter is wrong.
    Invalid(String),
}

impl AttachError {
    /// The positive errno that clients of the RPC expect.
    pub fn errno(&self) -> i32 {
        match self {
            AttachError::SamePath(_) | AttachError::Exists(_) => libc::EALREADY,
            AttachError::NotFound(_) => libc::ENODEV,
            AttachError::Attached => libc::EPERM,
            AttachError::Host(e) => e.errno(),
            AttachError::Bdev(e) => e.errno(),
            AttachError::Invalid(_) => libc::EINVAL,
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::SamePath(n) => {
                write!(f, "A controller named {n} already exists with the specified network path")
            }
            AttachError::Exists(n) => write!(f, "A controller named {n} already exists and multipath is disabled"),
            AttachError::NotFound(n) => write!(f, "no controller is attached as {n}, or it has another path"),
            AttachError::Attached => f.write_str("RPC not permitted with nvme controllers already attached"),
            AttachError::Host(e) => e.fmt(f),
            AttachError::Bdev(e) => e.fmt(f),
            AttachError::Invalid(e) => f.write_str(e),
        }
    }
}

impl std::error::Error for AttachError {}

/// One controller, as clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Its name.
    pub name: String,
    /// "enabled", "resetting", "failed" or "deleting".
    pub state: &'static str,
    /// Where it is.
    pub trid: TransportId,
    /// Controller identifier.
    pub cntlid: u16,
    /// The host NQN that was used.
    pub hostnqn: String,
    /// The local address that was asked for.
    pub source: Option<SocketAddr>,
    /// How it was attached.
    pub options: AttachOptions,
    /// Its devices.
    pub bdevs: Vec<String>,
}

/// Which path of a controller is meant; what is `None` may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathFilter {
    /// Address.
    pub traddr: Option<String>,
    /// Port.
    pub trsvcid: Option<String>,
    /// Subsystem.
    pub subnqn: Option<String>,
}

impl PathFilter {
    fn matches(&self, id: &TransportId) -> bool {
        let same = |want: &Option<String>, is: String| want.as_ref().is_none_or(|w| *w == is);
        same(&self.traddr, id.traddr().to_string())
            && same(&self.trsvcid, id.addr.port().to_string())
            && same(&self.subnqn, id.subnqn.clone())
    }
}

/// One attached controller.
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) ctrl: Arc<Controller>,
    registry: Weak<Registry>,
    options: AttachOptions,
    nodes: Mutex<BTreeMap<u32, Arc<BdevNode>>>,
    /// The connection (`Controller::generation`) whose namespaces were looked at: behind an identifier may be other storage
    /// than before.
    seen: AtomicU32,
}

impl Entry {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<BdevNode>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the controller is connected and its namespaces are those that devices were made of.
    pub(crate) fn is_usable(&self) -> bool {
        self.seen.load(Ordering::Acquire) == self.ctrl.generation() && self.ctrl.state() == ControllerState::Ready
    }

    fn info(&self) -> ControllerInfo {
        ControllerInfo {
            name: self.name.clone(),
            state: match self.ctrl.state() {
                ControllerState::Ready => "enabled",
                ControllerState::Connecting | ControllerState::Resetting => "resetting",
                ControllerState::Lost => "failed",
                ControllerState::Closed => "deleting",
            },
            trid: self.ctrl.transport_id().clone(),
            cntlid: self.ctrl.info().map_or(0, |i| i.cntlid),
            hostnqn: self.ctrl.options().effective_hostnqn(),
            source: self.options.source,
            options: self.options.clone(),
            bdevs: self.nodes().values().map(|n| n.name().to_owned()).collect(),
        }
    }

    /// Makes a device of a namespace; `None` if it is of a kind that is not supported.
    fn add(self: &Arc<Self>, registry: &Arc<Registry>, ns: Namespace) -> Result<Option<String>, BdevError> {
        let Some(info) = self.ctrl.info() else { return Ok(None) };
        let nsid = ns.nsid;
        let name = format!("{}n{nsid}", self.name);
        let id = ns.uuid.or(ns.nguid).map(Uuid::from_bytes);
        let dev = match NvmeBdev::new(self.clone(), ns, &info) {
            Ok(d) => Arc::new(d),
            Err(why) => {
                tracing::warn!("namespace {nsid} of controller {} is not used: {why}", self.name);
                return Ok(None);
            }
        };
        // The namespace may be a device of this very process, exported and attached.
        let id = match id {
            Some(u) if registry.find(&u.to_string()).is_some() => Some(derived_uuid(u, &name)),
            other => other,
        };
        let node = registry.register(&name, id, dev)?;
        self.nodes().insert(nsid, node);
        Ok(Some(name))
    }

    /// Removes the device of a namespace that is not there any more. When this returns, nothing that was meant for it is sent
    /// any more.
    async fn retire(&self, registry: &Registry, node: Arc<BdevNode>) {
        let Some(dev) = node.device().as_any().downcast_ref::<NvmeBdev>() else { return };
        dev.retire();
        let cores = node.cores();
        drop(registry.remove(&node));
        let (number, nsid) = (self.number, dev.nsid());
        let told: Vec<_> = cores.iter().map(|c| c.call(move |_| core_queue::fail_held(number, nsid))).collect();
        for t in told {
            let _ = t.await;
        }
    }

    /// Takes over what changed: namespaces that came, went or have another size.
    async fn rescan(self: &Arc<Self>) -> Result<(), HostError> {
        let Some(registry) = self.registry.upgrade() else { return Ok(()) };
        let generation = self.ctrl.generation();
        // Reading the list lets the controller report the next change.
        let _ = self.ctrl.log_page(lid::CHANGED_NAMESPACES, u32::MAX, 0, 4096, false).await;
        let active = self.ctrl.active_namespaces().await?;
        let gone: Vec<_> = {
            let mut nodes = self.nodes();
            let ids: Vec<u32> = nodes.keys().copied().filter(|n| !active.contains(n)).collect();
            ids.iter().filter_map(|n| nodes.remove(n)).collect()
        };
        for node in gone {
            self.retire(&registry, node).await;
        }
        for nsid in active {
            let mut known = self.nodes().get(&nsid).cloned();
            let ns = self.ctrl.namespace(nsid).await?;
            if let Some(node) = known.take_if(|n| !is_still(n, &ns)) {
                tracing::warn!(
                    bdev = node.name(),
                    "namespace {nsid} was replaced by another one: its device is removed"
                );
                self.nodes().remove(&nsid);
                self.retire(&registry, node).await;
            }
            match known {
                Some(node) => registry.resized(&node, ns.data.nsze.get()),
                None if self.nodes().len() < self.options.max_bdevs => {
                    if let Err(e) = self.add(&registry, ns) {
                        tracing::warn!("namespace {nsid} of controller {}: {e}", self.name);
                    }
                }
                None => {}
            }
        }
        self.seen.store(generation, Ordering::Release);
        Ok(())
    }

    /// Connects the controller again. Namespaces may have come, gone or been replaced while nobody could tell: no I/O is sent
    /// before they were looked at.
    pub(crate) async fn reset(self: &Arc<Self>) -> Result<(), HostError> {
        self.ctrl.reset().await?;
        self.rescan().await
    }
}

/// Whether `node` is the device of what `ns` describes.
fn is_still(node: &BdevNode, ns: &longshore_nvme::host::Namespace) -> bool {
    node.device().as_any().downcast_ref::<NvmeBdev>().is_some_and(|d| d.namespace().is_same(ns))
}

/// The controllers of one daemon.
pub struct Controllers {
    registry: Arc<Registry>,
    cores: Vec<CoreHandle>,
    options: Mutex<NvmeOptions>,
    /// `None`: being attached.
    all: Mutex<BTreeMap<String, Option<Arc<Entry>>>>,
}

/// Gives a name up that did not come to be used.
struct Reserved<'a>(&'a Controllers, &'a str);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut all = self.0.all();
        if matches!(all.get(self.1), Some(None)) {
            all.remove(self.1);
        }
    }
}

impl Controllers {
    /// None attached yet. Admin queues are spread over `cores`.
    pub fn new(registry: Arc<Registry>, cores: Vec<CoreHandle>) -> Arc<Controllers> {
        Arc::new(Controllers { registry, cores, options: Mutex::default(), all: Mutex::default() })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Entry>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what holds for all controllers.
    ///
    /// # Errors
    /// One is attached already.
    pub fn set_options(&self, o: NvmeOptions) -> Result<(), AttachError> {
        if !self.all().is_empty() {
            return Err(AttachError::Attached);
        }
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = o;
        Ok(())
    }

    /// What holds for all controllers.
    pub fn options(&self) -> NvmeOptions {
        self.options.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Attaches the controller at `id` as `name`; returns the names of its devices.
    ///
    /// # Errors
    /// The name is taken, or the controller cannot be reached or set up; nothing is left behind.
    pub async fn attach(&self, name: &str, id: TransportId, o: AttachOptions) -> Result<Vec<String>, AttachError> {
        if name.is_empty() || o.max_bdevs == 0 || o.num_io_queues == 0 || o.num_io_queues > 1 << 16 {
            return Err(AttachError::Invalid(format!(
                "a controller needs a name, a device and 1 to 65536 I/O queues, not '{name}', {} and {}",
                o.max_bdevs, o.num_io_queues
            )));
        }
        {
            let mut all = self.all();
            match all.get(name) {
                Some(Some(e)) if *e.ctrl.transport_id() == id => return Err(AttachError::SamePath(name.to_owned())),
                Some(_) => return Err(AttachError::Exists(name.to_owned())),
                None => all.insert(name.to_owned(), None),
            };
        }
        let reserved = Reserved(self, name);
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let core = self.cores[number as usize % self.cores.len()].clone();
        let me: Arc<Mutex<Weak<Entry>>> = Arc::default();
        let (target, on) = (me.clone(), core.clone());
        let mut host = self.options().host(&o);
        host.events = Some(Arc::new(move |e| {
            let entry = target.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
            if let Some(entry) = entry {
                happened(entry, &on, e);
            }
        }));
        let ctrl = Controller::connect(&core, id, host).await.map_err(AttachError::Host)?;
        let seen = AtomicU32::new(ctrl.generation());
        let registry = Arc::downgrade(&self.registry);
        let nodes = Mutex::default();
        let entry = Arc::new(Entry { number, name: name.to_owned(), ctrl, registry, options: o, nodes, seen });
        *me.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&entry);
        match self.populate(&entry).await {
            Ok(names) => {
                self.all().insert(name.to_owned(), Some(entry));
                drop(reserved);
                Ok(names)
            }
            Err(e) => {
                self.tear_down(&entry).await;
                Err(e)
            }
        }
    }

    async fn populate(&self, entry: &Arc<Entry>) -> Result<Vec<String>, AttachError> {
        if entry.ctrl.info().is_some_and(|i| i.is_discovery()) {
            return Err(AttachError::Invalid("a discovery controller has no namespaces".into()));
        }
        let mut names = Vec::new();
        for nsid in entry.ctrl.active_namespaces().await.map_err(AttachError::Host)? {
            if names.len() == entry.options.max_bdevs {
                tracing::warn!("controller {} has more than {} namespaces", entry.name, names.len());
                break;
            }
            let ns = entry.ctrl.namespace(nsid).await.map_err(AttachError::Host)?;
            names.extend(entry.add(&self.registry, ns).map_err(AttachError::Bdev)?);
        }
        Ok(names)
    }

    async fn tear_down(&self, entry: &Arc<Entry>) {
        let nodes = std::mem::take(&mut *entry.nodes());
        let mut gone = Vec::new();
        for node in nodes.values() {
            gone.extend(self.registry.remove(node));
        }
        for g in gone {
            let _ = g.await;
        }
        entry.ctrl.disconnect(true).await;
    }

    fn find(&self, name: &str) -> Result<Arc<Entry>, AttachError> {
        self.all().get(name).cloned().flatten().ok_or_else(|| AttachError::NotFound(name.to_owned()))
    }

    /// Detaches a controller: its devices are unregistered, and when nobody holds them any more it is disconnected.
    ///
    /// # Errors
    /// No controller has this name and path.
    pub async fn detach(&self, name: &str, path: &PathFilter) -> Result<(), AttachError> {
        let entry = {
            let mut all = self.all();
            match all.get(name) {
                Some(Some(e)) if path.matches(e.ctrl.transport_id()) => all.remove(name).flatten(),
                _ => None,
            }
        };
        let entry = entry.ok_or_else(|| AttachError::NotFound(name.to_owned()))?;
        self.tear_down(&entry).await;
        Ok(())
    }

    /// Detaches every controller, for the end of the process.
    pub async fn detach_all(&self) {
        let names: Vec<String> = self.all().keys().cloned().collect();
        for n in names {
            let _ = self.detach(&n, &PathFilter::default()).await;
        }
    }

    /// The controllers by name, or the one of this name.
    ///
    /// # Errors
    /// None has this name.
    pub fn list(&self, name: Option<&str>) -> Result<Vec<ControllerInfo>, AttachError> {
        match name {
            Some(n) => Ok(vec![self.find(n)?.info()]),
            None => Ok(self.all().values().flatten().map(|e| e.info()).collect()),
        }
    }

    /// Ends all connections of a controller and connects again.
    ///
    /// # Errors
    /// No controller has this name, or it could not be connected again.
    pub async fn reset(&self, name: &str) -> Result<(), AttachError> {
        self.find(name)?.reset().await.map_err(AttachError::Host)
    }
}

/// What a controller reports.
fn happened(entry: Arc<Entry>, core: &CoreHandle, e: ControllerEvent) {
    match e {
        ControllerEvent::Async(AsyncEvent::NAMESPACE_CHANGED) => {
            drop(core.spawn(move |_| async move {
                let name = entry.name.clone();
                if let Err(e) = entry.rescan().await {
                    tracing::warn!("namespaces of controller {name}: {e}");
                }
            }));
        }
        ControllerEvent::Async(_) => {}
        ControllerEvent::QueueLost { qid, why } => tracing::warn!("controller {}: queue {qid} lost: {why}", entry.name),
        ControllerEvent::Lost { why } => tracing::warn!("controller {} is lost: {why}", entry.name),
        ControllerEvent::TimedOut { qid } => {
            tracing::warn!("controller {}: a command on queue {qid} took too long; it is reset", entry.name);
            drop(core.spawn(move |_| async move {
                let name = entry.name.clone();
                if let Err(e) = entry.reset().await {
                    tracing::warn!("controller {name} could not be reset: {e}");
                }
            }));
        }
    }
}
