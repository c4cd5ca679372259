//! Configured layers: devices that are built on another one, when it is there. One whose base is missing is built when the
//! base appears, and once more each time it comes back.

use std::any::Any;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_reactor::oneshot;

use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// How to build one layer.
pub trait Vbdev: Any + Send + Sync {
    /// The module: "passthru", "delay", "error"...
    fn module(&self) -> &'static str;
    /// Name of the device to be built.
    fn name(&self) -> &str;
    /// Name, alias or UUID of the device below.
    fn base(&self) -> &str;
    /// Builds and registers the device on `base`, which exists.
    ///
    /// # Errors
    /// What stands in the way.
    fn build(&self, registry: &Arc<Registry>) -> Result<Arc<BdevNode>, BdevError>;
    /// For those who know the concrete kind.
    fn as_any(&self) -> &dyn Any;
}

/// What was configured, and which devices may be built upon.
pub(crate) struct Configured {
    specs: Mutex<Vec<Arc<dyn Vbdev>>>,
    auto: AtomicBool,
    allowed: Mutex<HashSet<String>>,
    examining: Arc<Examining>,
}

/// Who looks at devices, and who waits for that.
#[derive(Default)]
struct Examining(Mutex<(usize, Vec<oneshot::Sender<()>>)>);

impl Examining {
    fn state(&self) -> MutexGuard<'_, (usize, Vec<oneshot::Sender<()>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> Examination {
        self.state().0 += 1;
        Examination(self.clone())
    }

    fn wait(&self) -> Option<oneshot::Receiver<()>> {
        let mut s = self.state();
        (s.0 > 0).then(|| {
            let (tx, rx) = oneshot::channel();
            s.1.push(tx);
            rx
        })
    }
}

/// Somebody looks at a device.
pub struct Examination(Arc<Examining>);

impl Drop for Examination {
    fn drop(&mut self) {
        let mut s = self.0.state();
        s.0 -= 1;
        if s.0 == 0 {
            let waiting = std::mem::take(&mut s.1);
            drop(s);
            for w in waiting {
                let _ = w.send(());
            }
        }
    }
}

impl Default for Configured {
    fn default() -> Self {
        Configured {
            specs: Mutex::default(),
            auto: AtomicBool::new(true),
            allowed: Mutex::default(),
            examining: Arc::default(),
        }
    }
}

impl Configured {
    fn specs(&self) -> MutexGuard<'_, Vec<Arc<dyn Vbdev>>> {
        self.specs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allowed(&self) -> MutexGuard<'_, HashSet<String>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if modules may look at a device of these names.
    fn admits(&self, names: &[String]) -> bool {
        self.auto.load(Ordering::Relaxed) || {
            let allowed = self.allowed();
            names.iter().any(|n| allowed.contains(n))
        }
    }
}

impl Registry {
    /// Remembers how to build a device, and builds it if its base is there. `None`: it waits for its base.
    ///
    /// # Errors
    /// The name is taken, or the device cannot be built; then nothing is remembered.
    pub fn configure(self: &Arc<Self>, spec: Arc<dyn Vbdev>) -> Result<Option<Arc<BdevNode>>, BdevError> {
        {
            let mut specs = self.configured.specs();
            if specs.iter().any(|s| s.name() == spec.name()) || self.find(spec.name()).is_some() {
                return Err(BdevError::Exists(spec.name().to_owned()));
            }
            specs.push(spec.clone());
        }
        let Some(base) = self.find(spec.base()) else { return Ok(None) };
        if !self.configured.admits(&base.names()) {
            return Ok(None);
        }
        match spec.build(self) {
            Ok(node) => Ok(Some(node)),
            Err(e) => {
                self.configured.specs().retain(|s| !Arc::ptr_eq(s, &spec));
                Err(e)
            }
        }
    }

    /// Everything configured, built or not, in order.
    pub fn configurations(&self) -> Vec<Arc<dyn Vbdev>> {
        self.configured.specs().clone()
    }

    /// Forgets how to build device `name` of `module`, and removes it if it was built.
    ///
    /// # Errors
    /// No such device is configured.
    pub async fn unconfigure(self: &Arc<Self>, module: &str, name: &str) -> Result<(), BdevError> {
        let found = {
            let mut specs = self.configured.specs();
            let n = specs.len();
            specs.retain(|s| s.module() != module || s.name() != name);
            specs.len() != n
        };
        if !found {
            return Err(BdevError::NotFound(name.to_owned()));
        }
        match self.unregister(name).await {
            Err(BdevError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    /// Whether modules look at every device as it is registered. Otherwise only at those that [`allow_examine`](Registry::allow_examine)
    /// named.
    pub fn set_auto_examine(&self, on: bool) {
        self.configured.auto.store(on, Ordering::Relaxed);
    }

    /// See [`set_auto_examine`](Registry::set_auto_examine).
    pub fn auto_examine(&self) -> bool {
        self.configured.auto.load(Ordering::Relaxed)
    }

    /// Lets modules look at the device with this name, alias or UUID, now or when it is registered.
    ///
    /// # Errors
    /// All devices are looked at anyway, or this name was given before.
    pub fn allow_examine(self: &Arc<Self>, name: &str) -> Result<(), BdevError> {
        if self.auto_examine() {
            return Err(BdevError::Invalid("all bdevs are examined automatically: bdev_auto_examine is on".into()));
        }
        if !self.configured.allowed().insert(name.to_owned()) {
            return Err(BdevError::Exists(name.to_owned()));
        }
        if let Some(node) = self.find(name) {
            self.examine(&node);
        }
        Ok(())
    }

    /// The names that [`allow_examine`](Registry::allow_examine) was given.
    pub fn examine_allowed(&self) -> Vec<String> {
        let mut names: Vec<_> = self.configured.allowed().iter().cloned().collect();
        names.sort();
        names
    }

    /// Ends when nobody is looking at a device any more that was registered before.
    pub async fn wait_for_examine(&self) {
        let Some(done) = self.configured.examining.wait() else { return };
        let _ = done.await;
    }

    /// Whether somebody waits for that.
    pub(crate) fn examination_is_awaited(&self) -> bool {
        !self.configured.examining.state().1.is_empty()
    }

    /// For an examiner that goes on looking after it returned: until this is dropped,
    /// [`wait_for_examine`](Registry::wait_for_examine) waits.
    pub fn examination(&self) -> Examination {
        self.configured.examining.begin()
    }

    /// Builds what was configured on top of `node`, and shows it to the examiners.
    pub(crate) fn examine(self: &Arc<Self>, node: &Arc<BdevNode>) {
        let names = node.names();
        if !self.configured.admits(&names) {
            return;
        }
        let wanted: Vec<_> =
            self.configured.specs().iter().filter(|s| names.iter().any(|n| n == s.base())).cloned().collect();
        for spec in wanted {
            if self.find(spec.name()).is_none()
                && let Err(e) = spec.build(self)
            {
                tracing::error!(
                    "{} bdev '{}' could not be built on '{}': {e}",
                    spec.module(),
                    spec.name(),
                    node.name()
                );
            }
        }
        if !self.to_come.sets_aside(&names, node) {
            self.run_examiners(node);
        }
    }
}
