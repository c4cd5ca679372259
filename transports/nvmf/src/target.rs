//! The target: its configuration, its cores, and who owns which controller.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use longshore_bdev::Registry;
use longshore_nvme::wire::DISCOVERY_NQN;
use longshore_reactor::CoreHandle;

use crate::address::{Address, TrType};
use crate::control::Port;
use crate::directory::Directory;
use crate::error::TargetError;
use crate::options::{SubsystemOptions, TargetConfig, TransportOptions};
use crate::place::CoreLoad;
use crate::poll_group::PollGroup;
use crate::transport::TransportKind;
use crate::view::{SubsystemKey, SubsystemView, TargetView};

pub(crate) struct State {
    pub(crate) view: Arc<TargetView>,
    pub(crate) kinds: BTreeMap<TrType, Arc<dyn TransportKind>>,
    pub(crate) ports: HashMap<Address, Port>,
    /// Subsystems whose deletion is under way.
    pub(crate) destroying: HashSet<String>,
    /// Listeners are opened by `open_listeners`, not when they are added.
    pub(crate) deferred: bool,
    pub(crate) stopped: bool,
}

/// The NVMe-oF target. Its methods are the control plane: any thread, never on the I/O path.
pub struct Target {
    pub(crate) cores: Vec<CoreHandle>,
    pub(crate) bdevs: Arc<Registry>,
    pub(crate) state: Mutex<State>,
    pub(crate) loads: Box<[CoreLoad]>,
    pub(crate) directory: Mutex<Directory>,
    ids: AtomicU64,
}

impl Target {
    /// A target with its discovery subsystem, on these cores: each gets a poll group.
    ///
    /// # Errors
    /// A core is gone.
    pub async fn start(cores: Vec<CoreHandle>, bdevs: Arc<Registry>) -> Result<Arc<Target>, TargetError> {
        let mut options = SubsystemOptions::new(DISCOVERY_NQN);
        options.allow_any_host = true;
        options.max_namespaces = 0;
        let discovery = SubsystemView {
            id: 1,
            options: Arc::new(options),
            discovery: true,
            allow_any_host: true,
            hosts: Default::default(),
            listeners: Vec::new(),
            namespaces: BTreeMap::new(),
            ana_changes: 0,
        };
        let view = Arc::new(TargetView {
            generation: 1,
            subsystems: BTreeMap::from([(SubsystemKey::new(DISCOVERY_NQN), Arc::new(discovery))]),
            transports: BTreeMap::new(),
            referrals: Arc::default(),
            genctr: 1,
            config: Arc::new(TargetConfig::default()),
        });
        let target = Arc::new(Target {
            loads: cores.iter().map(|_| CoreLoad::default()).collect(),
            cores,
            bdevs,
            state: Mutex::new(State {
                view: view.clone(),
                kinds: BTreeMap::new(),
                ports: HashMap::new(),
                destroying: HashSet::new(),
                deferred: false,
                stopped: false,
            }),
            directory: Mutex::default(),
            ids: AtomicU64::new(2),
        });
        let made: Vec<_> = (0..target.cores.len())
            .map(|i| {
                let (t, v) = (target.clone(), view.clone());
                target.cores[i].call(move |r| PollGroup::install(r, t, i, v))
            })
            .collect();
        for m in made {
            m.await.map_err(|_| TargetError::Stopped)?;
        }
        Ok(target)
    }

    /// Closes every connection and gives up every device; answers when nothing is in flight and nothing is open.
    pub async fn shutdown(self: &Arc<Self>) {
        let closed = {
            let mut s = self.state();
            s.stopped = true;
            s.unlisten_all()
        };
        for c in closed {
            let _ = c.await;
        }
        // All cores stay reachable until none has a connection left: they answer each other's questions.
        let quiet: Vec<_> = self
            .cores
            .iter()
            .map(|c| {
                let me = self.clone();
                c.spawn(move |_| async move { PollGroup::quiesce(&me).await })
            })
            .collect();
        for q in quiet {
            let _ = q.await;
        }
        for c in &self.cores {
            let me = self.clone();
            let _ = c.call(move |_| PollGroup::uninstall(&me)).await;
        }
        let mut s = self.state();
        let mut empty = (*s.view).clone();
        empty.subsystems.clear();
        empty.generation += 1;
        s.view = Arc::new(empty);
        s.ports.clear();
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A number that was never used before: for controllers, queue pairs, subsystems, namespaces.
    pub(crate) fn fresh_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// The configuration now.
    pub fn view(&self) -> Arc<TargetView> {
        self.state().view.clone()
    }

    /// The devices it exports from.
    pub fn bdevs(&self) -> &Arc<Registry> {
        &self.bdevs
    }

    /// The cores it runs on.
    pub fn cores(&self) -> &[CoreHandle] {
        &self.cores
    }

    /// Runs `f` on the poll group of a core; dropped if the core or its group is gone.
    pub(crate) fn send(self: &Arc<Self>, core: usize, f: impl FnOnce(&std::rc::Rc<PollGroup>) + Send + 'static) {
        let me = self.clone();
        if let Some(c) = self.cores.get(core) {
            c.send(move |_| {
                if let Some(g) = PollGroup::of(&me) {
                    f(&g);
                }
            });
        }
    }

    /// Changes the configuration under the lock; the new view still has to be [`publish`](Target::publish)ed.
    pub(crate) fn change<T>(
        &self,
        f: impl FnOnce(&mut State, &mut TargetView) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let mut s = self.state();
        if s.stopped {
            return Err(TargetError::Stopped);
        }
        let mut v = (*s.view).clone();
        let out = f(&mut s, &mut v)?;
        v.generation += 1;
        s.view = Arc::new(v);
        Ok(out)
    }

    /// Changes one subsystem; see [`change`](Target::change).
    pub(crate) fn change_subsystem<T>(
        &self,
        nqn: &str,
        f: impl FnOnce(&mut State, &mut SubsystemView) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        self.change(|s, v| {
            if s.destroying.contains(nqn) {
                return Err(TargetError::SubsystemDestroyed(nqn.to_owned()));
            }
            let sub = v
                .subsystems
                .get_mut(&SubsystemKey::new(nqn))
                .ok_or_else(|| TargetError::SubsystemNotFound(nqn.to_owned()))?;
            f(s, Arc::make_mut(sub))
        })
    }

    /// Hands the newest view to every core; answers when all of them work from it.
    pub(crate) async fn publish(self: &Arc<Self>) -> Result<(), TargetError> {
        let view = self.view();
        let acks: Vec<_> = self
            .cores
            .iter()
            .map(|c| {
                let (me, v) = (self.clone(), view.clone());
                c.call(move |_| {
                    if let Some(g) = PollGroup::of(&me) {
                        g.apply(v);
                    }
                })
            })
            .collect();
        for a in acks {
            a.await.map_err(|_| TargetError::Stopped)?;
        }
        // Only now may a host hear of it: its next command may reach any core.
        for c in 0..self.cores.len() {
            let v = view.clone();
            self.send(c, move |g| g.announce(&v));
        }
        Ok(())
    }

    /// Makes a transport known that connections can come in by.
    pub fn register_transport(&self, kind: Arc<dyn TransportKind>) {
        self.state().kinds.insert(kind.trtype(), kind);
    }

    /// Options of a transport that was created.
    pub fn transport(&self, trtype: TrType) -> Option<Arc<TransportOptions>> {
        self.state().view.transports.get(&trtype).cloned()
    }
}
