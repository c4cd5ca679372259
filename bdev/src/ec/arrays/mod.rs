//! The arrays of a daemon: made, found on devices as these come, and given up.
//!
//! Devices are looked at when they are registered. Those of an array are started together as soon as [`decide`](super::assemble::decide) says so; absent ones are
//! waited for [`Arrays::assemble_timeout`] from the first on, or from the end of the configuration that is being applied. Whoever makes or starts an array has the turn: one at a time, so that
//! nobody makes an array of devices that another one is being started from.

mod found;
mod info;
mod join;
mod link;
mod notes;
mod same;
mod seats;
mod spares;
mod turns;

pub use info::{ArrayInfo, MemberInfo};
pub use seats::{REPLACE_TIMEOUT, Replacement};
pub use spares::SpareInfo;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_accel::Accel;
use longshore_reactor::{CoreHandle, Reactor};

use super::create::{Options, clear, prepare, within};
use super::device::Ec;
use super::event::Event;
use super::format::Superblock;
use super::start::start_watched;
use super::tuning::Tuning;
use crate::desc::BdevDesc;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use found::{Found, LOOK_AGAIN};
use link::Link;
use notes::Notes;
use same::same;
use seats::Seats;
use spares::Spares;
use turns::{AtSpares, Awaited, Turns};

/// Patience with absent members, unless set otherwise.
pub const ASSEMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The arrays of a daemon.
pub struct Arrays {
    cores: Vec<CoreHandle>,
    accel: Arc<Accel>,
    started: AtomicUsize,
    turns: Turns,
    /// The daemon ends: nothing is started any more.
    closing: AtomicBool,
    timeout_ms: AtomicU64,
    tuning: Mutex<Tuning>,
    spare_delay_ms: AtomicU64,
    replace_timeout_ms: AtomicU64,
    found: Found,
    notes: Notes,
    seats: Seats,
    spares: Spares,
    at_spares: AtSpares,
    awaited: Awaited,
}

/// An array under its name.
pub fn array(node: &BdevNode) -> Option<&Ec> {
    node.device().as_any().downcast_ref::<Ec>()
}

/// How long an array that is about to start keeps a daemon that ends.
const SETTLE: Duration = Duration::from_secs(5);

/// Removes an array; ends when its members are closed and what was acknowledged is durable on them.
///
/// # Errors
/// It is being removed already.
pub async fn close(registry: &Arc<Registry>, node: &Arc<BdevNode>) -> Result<(), BdevError> {
    registry.unregister_node(node).await?;
    if let Some(closed) = array(node).and_then(Ec::closed) {
        let _ = closed.await;
    }
    Ok(())
}

/// Closes all arrays, those made last first.
async fn close_all(registry: &Arc<Registry>) {
    for node in registry.list().iter().rev().filter(|node| array(node).is_some()) {
        let _ = close(registry, node).await;
    }
}

impl Arrays {
    /// Looks at every device that `registry` gets from now on. Arrays are served by `cores` in turn, and compute by `accel`.
    pub fn install(registry: &Arc<Registry>, cores: Vec<CoreHandle>, accel: Arc<Accel>) -> Arc<Arrays> {
        let arrays = Arc::new(Arrays {
            cores,
            accel,
            started: AtomicUsize::new(0),
            turns: Turns::default(),
            closing: AtomicBool::new(false),
            timeout_ms: AtomicU64::new(ASSEMBLE_TIMEOUT.as_millis() as u64),
            tuning: Mutex::default(),
            spare_delay_ms: AtomicU64::new(0),
            replace_timeout_ms: AtomicU64::new(REPLACE_TIMEOUT.as_millis() as u64),
            found: Found::default(),
            notes: Notes::default(),
            seats: Seats::default(),
            spares: Spares::default(),
            at_spares: AtSpares::default(),
            awaited: Awaited::default(),
        });
        let weak = Arc::downgrade(&arrays);
        registry.add_examiner(Box::new(move |registry, node| {
            if let Some(arrays) = weak.upgrade() {
                arrays.look_at(registry, node);
            }
        }));
        arrays
    }

    /// How long absent members are waited for.
    pub fn assemble_timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }

    /// Sets how long absent members are waited for, from now on.
    pub fn set_assemble_timeout(&self, timeout: Duration) {
        self.timeout_ms.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How arrays are run that are started from now on.
    pub fn tuning(&self) -> Tuning {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how arrays are run that are started from now on.
    pub fn set_tuning(&self, tuning: Tuning) {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner) = tuning;
    }

    /// Why the array of this name or UUID is not started; none if none of its devices is known.
    pub fn why_not_started(&self, array: &str) -> Option<String> {
        self.notes.why_not(array)
    }

    /// Makes the array of `o` and starts it, or finds it on its devices and starts it, or finds it running. From any thread.
    ///
    /// # Errors
    /// As [`prepare`] and [`start`](super::start()); another device has the name, or an array of which a base is no member.
    pub async fn create(self: &Arc<Self>, registry: &Arc<Registry>, o: Options) -> Result<Arc<BdevNode>, BdevError> {
        // It may be about to be started from devices that were registered just now.
        registry.wait_for_examine().await;
        let (me, registry) = (self.clone(), registry.clone());
        self.on_first_core(move |_| async move {
            let _turn = me.turns.take().await;
            if me.is_closing() {
                return Err(BdevError::Busy {
                    name: o.name,
                    why: "the daemon is ending: no array is started any more",
                });
            }
            if let Some(node) = registry.find(&o.name) {
                let Some(ec) = array(&node) else { return Err(BdevError::Exists(o.name)) };
                same(&registry, ec, node.uuid(), &o).await?;
                return Ok(node);
            }
            let link = Link::new();
            let prepared = prepare(&registry, &o, &link.told()).await?;
            let start = (prepared.head, prepared.quorum);
            me.run(&registry, start, prepared.members, &link, prepared.rejected).await
        })
        .await
    }

    /// For the end of the daemon, before the devices are closed: closes all arrays; none is made or started any more. One that is about to start is
    /// waited for, and closed: its members are closed next, and it would lose them. But not for long, for it may hang on one of them: then it is
    /// rebuilt at the next start. From any thread.
    pub async fn drain(self: &Arc<Self>, registry: &Arc<Registry>) {
        self.closing.store(true, Ordering::SeqCst);
        // Those that run have nothing to wait for.
        close_all(registry).await;
        let me = self.clone();
        // Who starts an array has the turn, and looks at the flag when it gets it.
        let settled =
            self.on_first_core(move |r| async move { Ok(within(&r, SETTLE, me.turns.take()).await.is_some()) });
        if !settled.await.unwrap_or(true) {
            tracing::warn!("an array is still about to start after {} s: it is given up", SETTLE.as_secs());
        }
        close_all(registry).await;
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Removes the array `name`, and makes its superblocks void if `clear_sb`. From any thread.
    ///
    /// # Errors
    /// No array has this name; or a superblock cannot be made void.
    pub async fn delete(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        name: &str,
        clear_sb: bool,
    ) -> Result<(), BdevError> {
        let node = registry.find(name).filter(|node| array(node).is_some());
        let node = node.ok_or_else(|| BdevError::NotFound(name.to_owned()))?;
        let (uuid, bases) = (node.uuid(), node.device().base_names());
        close(registry, &node).await?;
        self.notes.forget(uuid);
        self.release_spares(node.name());
        if !clear_sb {
            return Ok(());
        }
        let (me, registry) = (self.clone(), registry.clone());
        self.on_first_core(move |_| async move {
            let _turn = me.turns.take().await;
            clear(&registry, uuid, &bases).await
        })
        .await
    }

    async fn on_first_core<T, Fut>(&self, f: impl FnOnce(Reactor) -> Fut + Send + 'static) -> Result<T, BdevError>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<T, BdevError>> + 'static,
    {
        let stopping = || BdevError::Busy { name: "ec".into(), why: "the reactors are stopping" };
        self.cores.first().ok_or_else(stopping)?.spawn(f).await.map_err(|_| stopping())?
    }

    /// Starts an array on the core whose turn it is, from the superblock and with the quorum that assembly decided; `passed_over` are devices
    /// that it does not use, and why.
    async fn run(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        (head, quorum): (Superblock, usize),
        members: Vec<Option<BdevDesc>>,
        link: &Link,
        passed_over: Vec<(String, String)>,
    ) -> Result<Arc<BdevNode>, BdevError> {
        let nodes: Vec<_> = members.iter().map(|m| m.as_ref().map(|m| m.node().clone())).collect();
        let core = &self.cores[self.started.fetch_add(1, Ordering::Relaxed) % self.cores.len()];
        let (r, name, uuid, tuning) = (registry.clone(), head.name.clone(), head.array, self.tuning());
        for (device, why) in &passed_over {
            tracing::warn!("array '{name}' does not use '{device}': {why}");
        }
        tracing::warn!("array '{name}' is to try, not for data yet: not all tests of what it survives have been run");
        self.notes.started(uuid, &name, passed_over);
        self.found.starts(uuid);
        let stopping = BdevError::Busy { name: name.clone(), why: "the reactors are stopping" };
        let (me, watched, bdevs) = (Arc::downgrade(self), name.clone(), Arc::downgrade(registry));
        let watch = Box::new(move |event| {
            let (Some(me), Some(registry)) = (me.upgrade(), bdevs.upgrade()) else { return };
            me.notes.event(uuid, event);
            if let (Event::Degraded { .. }, Some(node)) = (event, registry.find(&uuid.to_string())) {
                me.tend(&registry, &node, false);
            }
        });
        let (accel, start) = (self.accel.clone(), (head, quorum));
        let task = core.spawn(move |_| async move {
            start_watched(&r, &watched, start, members, tuning, &accel, Some(watch)).await
        });
        let started = task.await.map_err(|_| stopping).flatten();
        match &started {
            Ok(node) => {
                link.tie(node, &nodes);
                self.tend(registry, node, true);
            }
            Err(e) => self.notes.held_back(uuid, &name, e.to_string()),
        }
        started
    }

    /// Fills slots that lost their members: with these themselves if `found`, with spares else. Goes on when this has returned.
    fn tend(self: &Arc<Self>, registry: &Arc<Registry>, node: &Arc<BdevNode>, found: bool) {
        let Some(core) = self.cores.first() else { return };
        let (me, registry, node, under_way) = (self.clone(), registry.clone(), node.clone(), registry.examination());
        core.send(move |r| {
            let reactor = r.clone();
            drop(r.spawn(async move {
                if found {
                    for device in me.found_of(&registry, node.uuid()) {
                        me.offer(&reactor, &registry, &node, &device).await;
                    }
                    // Spares are for slots whose members do not come back.
                    while me.is_offered(node.uuid()) {
                        reactor.sleep(LOOK_AGAIN).await;
                    }
                }
                // Spares may wait for long.
                drop(under_way);
                me.use_spares(&reactor, &registry, &node).await;
            }));
        });
    }
}

#[cfg(test)]
mod tests;
