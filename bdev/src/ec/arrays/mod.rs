//! The arrays of a daemon: made, found on devices as these come, and given up.
//!
//! Devices are looked at when they are registered. Those of an array are started together as soon as [`decide`] says so; absent ones are
//! waited for [`Arrays::assemble_timeout`] from the first on. Whoever makes or starts an array has the turn: one at a time, so that
//! nobody makes an array of devices that another one is being started from.

mod turns;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use longshore_reactor::{CoreHandle, Reactor};
use uuid::Uuid;

use super::assemble::{Assembly, Candidate, Decision, Situation, decide};
use super::create::{MemberIo, Options, Removed, clear, prepare};
use super::device::Ec;
use super::format::{FormatError, MemberState, Superblock};
use super::layout::Layout;
use super::start::start;
use super::stats::EcStats;
use super::tuning::Tuning;
use crate::desc::BdevDesc;
use crate::event::{BdevEvent, EventSink};
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use turns::Turns;

/// How often somebody who waits for members looks whether another one has started the array meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Patience with absent members, unless set otherwise.
pub const ASSEMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The arrays of a daemon.
pub struct Arrays {
    cores: Vec<CoreHandle>,
    started: AtomicUsize,
    turns: Turns,
    timeout_ms: AtomicU64,
    /// Devices that had a superblock when they were looked at, by array.
    found: Mutex<BTreeMap<Uuid, Vec<Weak<BdevNode>>>>,
}

/// An array under its name.
pub fn array(node: &BdevNode) -> Option<&Ec> {
    node.device().as_any().downcast_ref::<Ec>()
}

/// A member of a running array.
pub struct MemberInfo {
    /// Its device; none if the slot was empty when the array started.
    pub name: Option<String>,
    /// How it is used at present.
    pub state: MemberState,
    /// Bytes of its device.
    pub bytes: Option<u64>,
}

/// What a running array is.
pub struct ArrayInfo {
    /// Its geometry.
    pub layout: Layout,
    /// Too few members are left to serve requests.
    pub offline: bool,
    /// By slot.
    pub members: Vec<MemberInfo>,
    /// What the host asked for and what that cost.
    pub stats: EcStats,
}

/// What the array `node` is; none for another device.
pub fn describe(registry: &Registry, node: &BdevNode) -> Option<ArrayInfo> {
    let ec = array(node)?;
    let layout = ec.shared.layout;
    let member = |slot| {
        let name = ec.shared.member_name(slot);
        let below = name.as_ref().and_then(|name| registry.find(name));
        let bytes = below.map(|n| n.num_blocks().saturating_mul(u64::from(n.geometry().block_size)));
        MemberInfo { name, state: ec.member_state(slot), bytes }
    };
    let members = (0..layout.n()).map(member).collect();
    Some(ArrayInfo { layout, offline: ec.is_offline(), members, stats: ec.stats() })
}

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

impl Arrays {
    /// Looks at every device that `registry` gets from now on. Arrays are served by `cores` in turn.
    pub fn install(registry: &Arc<Registry>, cores: Vec<CoreHandle>) -> Arc<Arrays> {
        let arrays = Arc::new(Arrays {
            cores,
            started: AtomicUsize::new(0),
            turns: Turns::default(),
            timeout_ms: AtomicU64::new(ASSEMBLE_TIMEOUT.as_millis() as u64),
            found: Mutex::default(),
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

    /// Makes the array of `o` and starts it, or finds it on its devices and starts it, or finds it running. From any thread.
    ///
    /// # Errors
    /// As [`prepare`] and [`start`]; another device has the name.
    pub async fn create(self: &Arc<Self>, registry: &Arc<Registry>, o: Options) -> Result<Arc<BdevNode>, BdevError> {
        // It may be about to be started from devices that were registered just now.
        registry.wait_for_examine().await;
        let (me, registry) = (self.clone(), registry.clone());
        self.on_first_core(move |_| async move {
            let _turn = me.turns.take().await;
            if let Some(node) = registry.find(&o.name) {
                let same = array(&node).is_some_and(|ec| same(&registry, ec, node.uuid(), &o));
                return if same { Ok(node) } else { Err(BdevError::Exists(o.name)) };
            }
            let (removed, link) = link();
            let prepared = prepare(&registry, &o, &removed).await?;
            for why in &prepared.rejected {
                tracing::warn!("array '{}' starts without {why}", o.name);
            }
            me.run(&registry, prepared.head, prepared.members, &link).await
        })
        .await
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

    fn found(&self) -> MutexGuard<'_, BTreeMap<Uuid, Vec<Weak<BdevNode>>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at(self: Arc<Self>, registry: &Arc<Registry>, node: &Arc<BdevNode>) {
        let Some(core) = self.cores.first().cloned() else { return };
        if node.claim().is_some() || array(node).is_some() {
            return;
        }
        let (registry, node, under_way) = (registry.clone(), node.clone(), registry.examination());
        core.send(move |r| {
            let reactor = r.clone();
            drop(r.spawn(async move {
                self.examine(&reactor, &registry, &node).await;
                drop(under_way);
            }));
        });
    }

    async fn examine(self: &Arc<Self>, reactor: &Reactor, registry: &Arc<Registry>, node: &Arc<BdevNode>) {
        let Some(superblock) = superblock_of(registry, node).await else { return };
        let array = superblock.array;
        drop(superblock);
        self.found().entry(array).or_default().push(Arc::downgrade(node));
        let started = reactor.now();
        let patience = reactor.ticks(self.assemble_timeout());
        loop {
            let waited = reactor.now().saturating_sub(started) >= patience;
            if self.consider(registry, array, waited).await || waited {
                return;
            }
            reactor.sleep(LOOK_AGAIN).await;
        }
    }

    /// Starts the array if that can be done. False: members are waited for.
    async fn consider(self: &Arc<Self>, registry: &Arc<Registry>, uuid: Uuid, waited: bool) -> bool {
        let _turn = self.turns.take().await;
        if registry.find(&uuid.to_string()).is_some() {
            return true;
        }
        let nodes: Vec<Arc<BdevNode>> = {
            let mut found = self.found();
            let list = found.entry(uuid).or_default();
            list.retain(|n| n.upgrade().is_some_and(|n| !n.is_removing()));
            list.iter().filter_map(Weak::upgrade).filter(|n| n.claim().is_none()).collect()
        };
        let mut candidates = Vec::new();
        for node in nodes {
            // Read once more: somebody may have had the turn since.
            let Some(superblock) = superblock_of(registry, &node).await.filter(|s| s.array == uuid) else { continue };
            let block = node.geometry().block_size;
            let bytes = node.num_blocks().saturating_mul(u64::from(block));
            candidates.push(Candidate { name: node.name().to_owned(), superblock, bytes, block });
        }
        match decide(&candidates, Situation { waited, salvage: false }) {
            Decision::Wait { .. } => return false,
            Decision::Refuse(_) if candidates.is_empty() => {}
            Decision::Refuse(why) => tracing::error!("array {uuid} is not started: {why}"),
            Decision::Assemble(assembly) => {
                let name = assembly.head.name.clone();
                if let Err(e) = self.assemble(registry, &candidates, *assembly).await {
                    tracing::error!("array '{name}' ({uuid}) is not started: {e}");
                }
            }
        }
        true
    }

    async fn assemble(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        candidates: &[Candidate],
        assembly: Assembly,
    ) -> Result<(), BdevError> {
        for (candidate, why) in &assembly.rejected {
            let name = &candidates[*candidate].name;
            tracing::warn!("'{name}' is not taken as a member of array '{}': {why}", assembly.head.name);
        }
        let (removed, link) = link();
        let mut members = Vec::with_capacity(assembly.members.len());
        for (slot, candidate) in assembly.members.iter().enumerate() {
            members.push(match candidate {
                Some(c) => {
                    let io = MemberIo::open(registry, &candidates[*c].name, told(&removed, slot))?;
                    Some(io.into_desc())
                }
                None => None,
            });
        }
        self.run(registry, assembly.head, members, &link).await?;
        Ok(())
    }

    /// Starts an array on the core whose turn it is.
    async fn run(
        &self,
        registry: &Arc<Registry>,
        head: Superblock,
        members: Vec<Option<BdevDesc>>,
        link: &Arc<OnceLock<Weak<BdevNode>>>,
    ) -> Result<Arc<BdevNode>, BdevError> {
        let nodes: Vec<_> = members.iter().map(|m| m.as_ref().map(|m| m.node().clone())).collect();
        let core = &self.cores[self.started.fetch_add(1, Ordering::Relaxed) % self.cores.len()];
        let (registry, name) = (registry.clone(), head.name.clone());
        let stopping = BdevError::Busy { name: name.clone(), why: "the reactors are stopping" };
        tracing::warn!("array '{name}' is to try, not for data yet: what it loses cannot be rebuilt in this version");
        let task = core.spawn(move |_| async move { start(&registry, &name, head, members, Tuning::default()).await });
        let node = task.await.map_err(|_| stopping)??;
        let _ = link.set(Arc::downgrade(&node));
        // Events until here found nobody to tell.
        for (slot, member) in nodes.iter().enumerate() {
            if member.as_ref().is_some_and(|m| m.is_removing()) {
                gone(&node, slot);
            }
        }
        Ok(node)
    }
}

fn gone(node: &BdevNode, slot: usize) {
    if let Some(ec) = array(node) {
        ec.member_gone(slot, "its device was removed");
    }
}

/// What tells an array of members that go away, and where to put the array when it is there.
fn link() -> (Removed, Arc<OnceLock<Weak<BdevNode>>>) {
    let link = Arc::new(OnceLock::<Weak<BdevNode>>::new());
    let upper = link.clone();
    let removed = move |slot| {
        if let Some(node) = upper.get().and_then(Weak::upgrade) {
            gone(&node, slot);
        }
    };
    (Arc::new(removed), link)
}

fn told(removed: &Removed, slot: usize) -> EventSink {
    let removed = removed.clone();
    Box::new(move |event| {
        if matches!(event, BdevEvent::Remove) {
            removed(slot);
        }
    })
}

/// Whether the running array `ec` is the one that `o` asks for.
fn same(registry: &Registry, ec: &Ec, uuid: Uuid, o: &Options) -> bool {
    let l = &ec.shared.layout;
    let name_of = |base: &String| registry.find(base).map(|n| n.name().to_owned());
    let asked: Vec<String> = o.base_bdevs.iter().filter_map(name_of).collect();
    o.validate().is_ok()
        && (l.k, l.m) == (o.data_chunk_count as usize, o.parity_chunk_count as usize)
        && l.strip == o.strip_size_kb * 1024
        && o.uuid.is_none_or(|asked| asked == uuid)
        && crate::device::Bdev::base_names(ec).iter().all(|name| asked.contains(name))
}

/// The superblock of a device, if it is a member of some array.
async fn superblock_of(registry: &Arc<Registry>, node: &Arc<BdevNode>) -> Option<Superblock> {
    let io = MemberIo::look(registry, node.name()).ok()?;
    match io.superblock().await {
        Ok(Ok(superblock)) => Some(superblock),
        Ok(Err(FormatError::Blank | FormatError::Foreign { .. } | FormatError::Short { .. })) => None,
        Ok(Err(why)) => {
            tracing::warn!("'{}' is not taken as a member of an array: {why}", node.name());
            None
        }
        Err(e) => {
            tracing::warn!("'{}' was not examined: {e}", node.name());
            None
        }
    }
}

#[cfg(test)]
mod tests;
