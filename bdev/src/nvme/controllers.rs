//! The controllers that are attached, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use longshore_nvme::host::{Controller, ControllerEvent, HostError, TransportId};
use longshore_nvme::wire::AsyncEvent;
use longshore_reactor::CoreHandle;

use super::discovery::Service;
use super::entry::{Entry, Path};
use super::options::{AttachOptions, NvmeOptions};
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
    /// A discovery service of this name or address exists.
    ServiceExists(String),
    /// There is no such discovery service.
    NoService(String),
    /// It took too long.
    TimedOut(String),
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
            AttachError::ServiceExists(_) => libc::EEXIST,
            AttachError::NoService(_) => libc::ENOENT,
            AttachError::TimedOut(_) => libc::ETIMEDOUT,
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
            AttachError::Invalid(e)
            | AttachError::ServiceExists(e)
            | AttachError::NoService(e)
            | AttachError::TimedOut(e) => f.write_str(e),
        }
    }
}

impl std::error::Error for AttachError {}

/// One controller, as clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Its name.
    pub name: String,
    /// "enabled", "resetting", "reconnect_is_delayed", "failed" or "deleting".
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

/// The controllers of one daemon.
pub struct Controllers {
    me: Weak<Controllers>,
    pub(super) registry: Arc<Registry>,
    cores: Vec<CoreHandle>,
    options: Mutex<NvmeOptions>,
    /// `None`: being attached.
    all: Mutex<BTreeMap<String, Option<Arc<Entry>>>>,
    services: Mutex<BTreeMap<String, Arc<Service>>>,
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
        Arc::new_cyclic(|me| Controllers {
            me: me.clone(),
            registry,
            cores,
            options: Mutex::default(),
            all: Mutex::default(),
            services: Mutex::default(),
        })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Entry>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn services(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Service>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A core for the `n`th of something.
    pub(super) fn core_for(&self, n: u64) -> &CoreHandle {
        &self.cores[n as usize % self.cores.len()]
    }

    /// Where the controller of this name is, if there is one.
    pub(super) fn id_of(&self, name: &str) -> Option<TransportId> {
        self.find(name).ok().map(|e| e.ctrl.transport_id().clone())
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
        let core = self.core_for(number).clone();
        let me: Arc<Mutex<Weak<Entry>>> = Arc::default();
        let (target, options) = (me.clone(), self.options());
        let mut host = options.host(&o);
        host.events = Some(Arc::new(move |e| {
            if let Some(entry) = target.lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
                happened(entry, e);
            }
        }));
        let ctrl = Controller::connect(&core, id, host).await.map_err(AttachError::Host)?;
        let entry = Entry::new(number, name, ctrl, o, options.bdev_retry_count, self.me.clone());
        *me.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&entry);
        match self.populate(&entry).await {
            Ok(names) => {
                self.all().insert(name.to_owned(), Some(entry));
                drop(reserved);
                Ok(names)
            }
            Err(e) => {
                entry.tear_down(&self.registry).await;
                Err(e)
            }
        }
    }

    async fn populate(&self, entry: &Arc<Entry>) -> Result<Vec<String>, AttachError> {
        if entry.ctrl.info().is_some_and(|i| i.is_discovery()) {
            return Err(AttachError::Invalid("a discovery controller has no namespaces".into()));
        }
        let e = entry.clone();
        let scan = entry.ctrl.core().spawn(move |r| async move { e.rescan(&r, true).await });
        scan.await.unwrap_or(Err(AttachError::Host(HostError::Gone)))?;
        Ok(entry.bdev_names())
    }

    /// A controller that was lost for too long is removed, and its devices with it.
    pub(super) fn remove_lost(&self, entry: &Arc<Entry>) {
        {
            let mut all = self.all();
            match all.get(&entry.name) {
                Some(Some(e)) if Arc::ptr_eq(e, entry) => all.remove(&entry.name),
                _ => return, // somebody else removes it
            };
        }
        self.services().values().for_each(|s| s.controller_lost(&entry.name));
        let (entry, registry) = (entry.clone(), self.registry.clone());
        entry.set_path(Path::Closing);
        drop(entry.ctrl.core().clone().spawn(move |_| async move { entry.tear_down(&registry).await }));
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
        entry.tear_down(&self.registry).await;
        Ok(())
    }

    /// Stops every discovery service and detaches every controller, for the end of the process.
    pub async fn detach_all(&self) {
        let services: Vec<String> = self.services().keys().cloned().collect();
        for s in services {
            let _ = self.stop_discovery(&s).await;
        }
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

    /// Ends all connections of a controller and connects again. Requests wait for it.
    ///
    /// # Errors
    /// No controller has this name, or the first attempt to connect it failed; whether there are more is a matter of how it was
    /// attached.
    pub async fn reset(&self, name: &str) -> Result<(), AttachError> {
        self.find(name)?.reset().await.map_err(AttachError::Host)
    }
}

/// What a controller reports, on some reactor.
fn happened(entry: Arc<Entry>, e: ControllerEvent) {
    match e {
        ControllerEvent::Async(AsyncEvent::NAMESPACE_CHANGED) => {
            drop(entry.ctrl.core().clone().spawn(move |r| async move {
                if let Err(e) = entry.rescan(&r, false).await {
                    tracing::warn!("namespaces of controller {}: {e}", entry.name);
                }
            }));
        }
        ControllerEvent::Async(_) => {}
        ControllerEvent::QueueLost { qid, why } => {
            tracing::warn!("controller {}: queue {qid} lost: {why}; it is reset", entry.name);
            entry.lost();
        }
        ControllerEvent::Lost { why } => {
            tracing::warn!("controller {} is lost: {why}", entry.name);
            entry.lost();
        }
        ControllerEvent::TimedOut { qid } => {
            tracing::warn!("controller {}: a command on queue {qid} took too long; it is reset", entry.name);
            entry.lost();
        }
    }
}
