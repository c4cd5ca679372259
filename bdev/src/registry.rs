//! The devices by name, alias and UUID.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use longshore_reactor::oneshot;
use uuid::Uuid;

use crate::desc::BdevDesc;
use crate::device::Bdev;
use crate::event::{EventSink, NotificationLog};
use crate::frame::MAX_FRAMES;
use crate::job::MAX_BLOCK;
use crate::loading::ToCome;
use crate::node::BdevNode;
use crate::vbdev::Configured;

/// Why something about a device could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BdevError {
    /// No device has this name, alias or UUID.
    NotFound(String),
    /// The name, alias or UUID is taken.
    Exists(String),
    /// The device is claimed by a module.
    Claimed {
        /// The device.
        name: String,
        /// The module.
        by: &'static str,
    },
    /// The device is in use in a way that forbids this.
    Busy {
        /// The device.
        name: String,
        /// How.
        why: &'static str,
    },
    /// A parameter is wrong.
    Invalid(String),
    /// The device cannot do this.
    Unsupported(String),
    /// Memory or another pool ran out.
    NoMemory(String),
    /// The operating system said no.
    Os {
        /// errno, positive.
        errno: i32,
        /// What was tried, on what.
        what: String,
    },
}

impl BdevError {
    /// The positive errno that clients of the RPC expect.
    pub fn errno(&self) -> i32 {
        match self {
            BdevError::NotFound(_) => libc::ENODEV,
            BdevError::Exists(_) => libc::EEXIST,
            BdevError::Claimed { .. } => libc::EPERM,
            BdevError::Busy { .. } => libc::EBUSY,
            BdevError::Invalid(_) => libc::EINVAL,
            BdevError::Unsupported(_) => libc::EOPNOTSUPP,
            BdevError::NoMemory(_) => libc::ENOMEM,
            BdevError::Os { errno, .. } => *errno,
        }
    }
}

impl fmt::Display for BdevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BdevError::NotFound(n) => write!(f, "no bdev is named '{n}'"),
            BdevError::Exists(n) => write!(f, "a bdev named '{n}' exists already"),
            BdevError::Claimed { name, by } => write!(f, "bdev '{name}' is claimed by module {by}"),
            BdevError::Busy { name, why } => write!(f, "bdev '{name}' is busy: {why}"),
            BdevError::Invalid(m) | BdevError::Unsupported(m) | BdevError::NoMemory(m) => f.write_str(m),
            BdevError::Os { errno, what } => {
                write!(f, "{what}: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for BdevError {}

/// Looks at each device when it is registered, to build on top of it what was configured.
pub type Examiner = Box<dyn Fn(&Arc<Registry>, &Arc<BdevNode>) + Send + Sync>;

#[derive(Default)]
struct Inner {
    nodes: Vec<Arc<BdevNode>>,
    names: BTreeMap<String, Arc<BdevNode>>,
}

/// All devices of one daemon.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
    examiners: Mutex<Vec<Arc<Examiner>>>,
    pub(crate) configured: Configured,
    pub(crate) to_come: ToCome,
    /// Registrations, removals and resizes, for clients.
    pub notifications: NotificationLog,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Arc<Registry> {
        Arc::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Registers a device under `name`, and under its UUID as an alias; a random UUID if none is given.
    ///
    /// # Errors
    /// The name or UUID is taken, the name is empty, or the stack would be deeper than a request has frames.
    pub fn register(
        self: &Arc<Self>,
        name: &str,
        uuid: Option<Uuid>,
        dev: Arc<dyn Bdev>,
    ) -> Result<Arc<BdevNode>, BdevError> {
        if name.is_empty() {
            return Err(BdevError::Invalid("a bdev needs a name".into()));
        }
        let bs = dev.geometry().block_size;
        if bs == 0 || bs > MAX_BLOCK {
            return Err(BdevError::Invalid(format!("bdev '{name}': block size {bs} is not between 1 and {MAX_BLOCK}")));
        }
        let depth = dev.stack_depth() + 1;
        if depth > MAX_FRAMES {
            return Err(BdevError::Invalid(format!(
                "bdev '{name}' would be layer {} of its stack; at most {} layers fit",
                depth - 1,
                MAX_FRAMES - 1
            )));
        }
        let uuid = uuid.unwrap_or_else(Uuid::new_v4);
        let node = BdevNode::new(name.to_owned(), uuid, dev);
        {
            let mut g = self.inner();
            for n in [name, &uuid.to_string()] {
                if g.names.contains_key(n) {
                    return Err(BdevError::Exists(n.to_owned()));
                }
            }
            g.names.insert(name.to_owned(), node.clone());
            g.names.insert(uuid.to_string(), node.clone());
            g.nodes.push(node.clone());
        }
        self.notifications.push("bdev_register", name);
        self.examine(&node);
        Ok(node)
    }

    /// Adds an examiner; it is not shown devices that exist already.
    pub fn add_examiner(&self, f: Examiner) {
        self.examiners.lock().unwrap_or_else(|e| e.into_inner()).push(Arc::new(f));
    }

    pub(crate) fn run_examiners(self: &Arc<Self>, node: &Arc<BdevNode>) {
        // Examiners run without the lock: they may register devices.
        let all: Vec<_> = self.examiners.lock().unwrap_or_else(|e| e.into_inner()).clone();
        for f in all {
            f(self, node);
        }
    }

    /// Adds another name.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_alias(&self, node: &Arc<BdevNode>, alias: &str) -> Result<(), BdevError> {
        let mut g = self.inner();
        if g.names.contains_key(alias) {
            return Err(BdevError::Exists(alias.to_owned()));
        }
        g.names.insert(alias.to_owned(), node.clone());
        node.push_alias(alias.to_owned());
        Ok(())
    }

    /// The device with this name, alias or UUID.
    pub fn find(&self, name: &str) -> Option<Arc<BdevNode>> {
        self.inner().names.get(name).cloned()
    }

    /// All devices, in order of registration.
    pub fn list(&self) -> Vec<Arc<BdevNode>> {
        self.inner().nodes.clone()
    }

    /// The first free name of the form `prefix<N>`.
    pub fn free_name(&self, prefix: &str) -> String {
        let g = self.inner();
        let mut i = 0u64;
        loop {
            let n = format!("{prefix}{i}");
            if !g.names.contains_key(&n) {
                return n;
            }
            i += 1;
        }
    }

    /// Opens a device. `sink` is told of its removal and resize.
    ///
    /// # Errors
    /// No such device, or it is claimed and `write` was asked for.
    pub fn open(&self, name: &str, write: bool, sink: EventSink) -> Result<BdevDesc, BdevError> {
        let node = self.find(name).ok_or_else(|| BdevError::NotFound(name.to_owned()))?;
        BdevDesc::open(node, write, sink)
    }

    /// Removes a device: its names are free at once, holders are told, and this returns when the last of them let go.
    ///
    /// # Errors
    /// No such device, or it is already being removed.
    pub async fn unregister(self: &Arc<Self>, name: &str) -> Result<(), BdevError> {
        let node = self.find(name).ok_or_else(|| BdevError::NotFound(name.to_owned()))?;
        self.unregister_node(&node).await
    }

    /// [`unregister`](Registry::unregister) for a device at hand.
    ///
    /// # Errors
    /// It is already being removed.
    pub async fn unregister_node(self: &Arc<Self>, node: &Arc<BdevNode>) -> Result<(), BdevError> {
        let gone = self.remove(node).ok_or_else(|| BdevError::NotFound(node.name().to_owned()))?;
        let _ = gone.await;
        Ok(())
    }

    /// [`unregister`](Registry::unregister) for a device of kind `D`.
    ///
    /// # Errors
    /// No such device, or it is of another kind.
    pub async fn delete<D: Bdev>(self: &Arc<Self>, name: &str) -> Result<(), BdevError> {
        match self.find(name) {
            Some(node) if node.device().as_any().is::<D>() => self.unregister_node(&node).await,
            _ => Err(BdevError::NotFound(name.to_owned())),
        }
    }

    /// Begins to remove a device: its names are free and holders are told when this returns. The receiver fires when the last
    /// of them let go. `None` if it is already being removed.
    pub fn remove(&self, node: &Arc<BdevNode>) -> Option<oneshot::Receiver<()>> {
        {
            let mut g = self.inner();
            g.names.retain(|_, n| !Arc::ptr_eq(n, node));
            g.nodes.retain(|n| !Arc::ptr_eq(n, node));
        }
        let gone = node.begin_removal()?;
        self.notifications.push("bdev_unregister", node.name());
        Some(gone)
    }

    /// Changes a device's size, tells its holders and logs it. For the device's own module.
    pub fn resized(&self, node: &Arc<BdevNode>, num_blocks: u64) {
        if node.num_blocks() != num_blocks {
            node.resize(num_blocks);
            self.notifications.push("bdev_resize", node.name());
        }
    }
}
