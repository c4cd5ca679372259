//! Rebuild: a member that lacks data is filled from the others while hosts go on. `docs/ec.md` has the order of things, and why.
//!
//! A member joins as *rebuilding*: it gets every superblock, page and record that concerns it from then on, but is never read and never counts. It is filled
//! stripe by stripe; below its progress, and in regions that it lacks nothing of, it is written like any other. When all is filled it is in sync.

mod filling;
mod join;
mod pace;
mod run;
mod strip;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

pub(super) use self::run::Rebuilds;
use super::device::Ec;
use super::engine::Engine;
use super::format::{RebuildMode, Superblock};
use super::start::engine_here;
use crate::desc::BdevDesc;
use crate::registry::BdevError;

/// What a rebuild is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildState {
    /// It goes on, or waits for the rebuild of another member.
    Running,
    /// [`RebuildQos::paused`] holds it.
    Paused,
    /// It was stopped, or came upon stripes that have lost too much: it goes on when it is started.
    Stopped,
}

impl RebuildState {
    /// The name by which clients know it.
    pub fn name(self) -> &'static str {
        match self {
            RebuildState::Running => "running",
            RebuildState::Paused => "paused",
            RebuildState::Stopped => "stopped",
        }
    }
}

/// How fast rebuilds of an array may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildQos {
    /// Stripes that are filled in a second, at most; 0: as fast as hosts' requests leave room for.
    pub max_stripes_per_sec: u32,
    /// Nothing is filled.
    pub paused: bool,
}

/// How far the rebuild of a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildProgress {
    /// The member's slot.
    pub slot: usize,
    /// What has to be filled.
    pub mode: RebuildMode,
    /// What it is doing.
    pub state: RebuildState,
    /// Stripes that it has passed, those included that hold nothing or lack nothing.
    pub stripes_done: u64,
    /// Stripes of the array.
    pub stripes_total: u64,
    /// Stripes that were filled in this session.
    pub stripes_rebuilt: u64,
}

/// The write-intent bitmap at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WibStatus {
    /// The epoch at which the first of the members that are missing now failed; 0: none is, and no bit is kept.
    pub generation: u64,
    /// Stripes of a region.
    pub region_stripes: u64,
    /// Regions.
    pub regions: u64,
    /// Regions that a missing member may lack writes of.
    pub dirty_regions: u64,
}

/// How much of an array holds data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmapStatus {
    /// Stripes of the array.
    pub stripes: u64,
    /// Stripes that hold data.
    pub mapped: u64,
}

/// A device that is to be a member.
pub struct Newcomer {
    /// It, open for writing and claimed.
    pub desc: BdevDesc,
    /// The member's UUID: its own if it returns, else one that no member has.
    pub uuid: Uuid,
    /// Of a member that returns, what was read from it just now. Without it, the device's start and end are wiped.
    pub found: Option<Superblock>,
}

/// What all cores see of an array's rebuilds.
#[derive(Default)]
pub(super) struct Board {
    progress: Mutex<Vec<RebuildProgress>>,
    qos: Mutex<RebuildQos>,
    stopped: AtomicBool,
    /// Generation and dirty regions.
    wib: Mutex<(u64, u64)>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    fn show(&self, all: impl Iterator<Item = RebuildProgress>) {
        let mut progress = lock(&self.progress);
        progress.clear();
        progress.extend(all);
    }

    fn qos(&self) -> RebuildQos {
        *lock(&self.qos)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn set_stopped(&self, on: bool) {
        self.stopped.store(on, Ordering::Release);
    }

    fn progress(&self) -> Vec<RebuildProgress> {
        let state = match (self.is_stopped(), self.qos().paused) {
            (true, _) => RebuildState::Stopped,
            (false, true) => RebuildState::Paused,
            (false, false) => RebuildState::Running,
        };
        lock(&self.progress).iter().map(|p| RebuildProgress { state, ..*p }).collect()
    }

    pub(super) fn show_wib(&self, generation: u64, dirty_regions: u64) {
        *lock(&self.wib) = (generation, dirty_regions);
    }
}

impl Ec {
    /// Has `f` done on the array's home core.
    async fn at_home<T, Fut>(&self, f: impl FnOnce(Rc<Engine>) -> Fut + Send + 'static) -> Result<T, BdevError>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<T, BdevError>> + 'static,
    {
        let (id, name) = (self.shared.id, self.shared.name.clone());
        let closed = move || BdevError::Busy { name, why: "it is being closed" };
        let none = closed.clone();
        let task = self.shared.home.spawn(move |_| async move {
            match engine_here(id) {
                Some(engine) => f(engine).await,
                None => Err(none()),
            }
        });
        task.await.map_err(|_| closed())?
    }

    /// Fails the member in `slot` on purpose; ends when superblocks name it failed. A slot without a member in use is left as it is.
    ///
    /// # Errors
    /// Too few members would be left; the array is offline.
    pub async fn retire(&self, slot: usize) -> Result<(), BdevError> {
        self.has_slot(slot)?;
        self.at_home(move |engine| async move { engine.retire(slot).await }).await
    }

    /// Ends when no core uses the device any more that was in `slot`, and it is closed. However long what hangs on it takes.
    ///
    /// # Errors
    /// The member is in use; the array is being closed.
    pub async fn vacated(&self, slot: usize) -> Result<(), BdevError> {
        self.has_slot(slot)?;
        self.at_home(move |engine| async move { engine.vacated(slot).await }).await
    }

    /// Takes a device into the empty `slot`; when this ends it is being rebuilt, which goes on by itself.
    ///
    /// # Errors
    /// The slot is not [vacated](Ec::vacated); the device does not fit or fails; the array is offline. Then it has not joined, and the array goes on as it was.
    pub async fn join(&self, slot: usize, newcomer: Newcomer) -> Result<RebuildMode, BdevError> {
        self.has_slot(slot)?;
        self.at_home(move |engine| async move { engine.join(slot, newcomer).await }).await
    }

    fn has_slot(&self, slot: usize) -> Result<(), BdevError> {
        let n = self.shared.layout.n();
        if slot < n {
            return Ok(());
        }
        Err(BdevError::Invalid(format!("array '{}' has no slot {slot}: they are 0 to {}", self.shared.name, n - 1)))
    }

    /// Goes on with rebuilds that were stopped.
    ///
    /// # Errors
    /// No member is being rebuilt; the array is offline.
    pub fn start_rebuild(&self) -> Result<(), BdevError> {
        self.has_rebuilds()?;
        if self.is_offline() {
            return Err(BdevError::Busy { name: self.shared.name.clone(), why: "too few of its members are left" });
        }
        self.shared.rebuild.set_stopped(false);
        let id = self.shared.id;
        self.shared.home.send(move |_| {
            if let Some(engine) = engine_here(id) {
                engine.rebuild.signal.set();
            }
        });
        Ok(())
    }

    /// Stops rebuilds until they are started. Progress is kept, also over restarts, after which they go on by themselves.
    ///
    /// # Errors
    /// No member is being rebuilt.
    pub fn stop_rebuild(&self) -> Result<(), BdevError> {
        self.has_rebuilds()?;
        self.shared.rebuild.set_stopped(true);
        Ok(())
    }

    fn has_rebuilds(&self) -> Result<(), BdevError> {
        match self.rebuild_progress().is_empty() {
            true => Err(BdevError::Busy { name: self.shared.name.clone(), why: "no member is being rebuilt" }),
            false => Ok(()),
        }
    }

    /// Sets how fast rebuilds may be, from now on.
    pub fn set_rebuild_qos(&self, qos: RebuildQos) {
        *lock(&self.shared.rebuild.qos) = qos;
    }

    /// How fast rebuilds may be.
    pub fn rebuild_qos(&self) -> RebuildQos {
        self.shared.rebuild.qos()
    }

    /// The rebuilds under way, by slot. Empty: no member is being rebuilt.
    pub fn rebuild_progress(&self) -> Vec<RebuildProgress> {
        self.shared.rebuild.progress()
    }

    /// The write-intent bitmap.
    pub fn wib_status(&self) -> WibStatus {
        let l = &self.shared.layout;
        let (generation, dirty_regions) = *lock(&self.shared.rebuild.wib);
        WibStatus { generation, region_stripes: 1 << l.region_shift, regions: l.regions(), dirty_regions }
    }

    /// How much of the array holds data.
    pub fn unmap_status(&self) -> UnmapStatus {
        UnmapStatus { stripes: self.shared.layout.stripes, mapped: self.shared.mapped_stripes() }
    }
}
