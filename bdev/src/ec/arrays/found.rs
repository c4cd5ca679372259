//! Arrays that are found on devices as these are registered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use longshore_reactor::Reactor;
use uuid::Uuid;

use super::link::Link;
use super::{Arrays, array};
use crate::ec::assemble::{Assembly, Candidate, Decision, Situation, decide};
use crate::ec::create::MemberIo;
use crate::ec::format::{FormatError, Superblock};
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// How often somebody who waits for members looks whether another one has started the array meanwhile.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Patience with a device whose superblock is being read, once absent members were waited for long enough.
const READING: Duration = Duration::from_secs(10);

/// As long an array that could start waits for devices that are being read: one may be a copy of a member. No longer, as one may never answer.
const COPIES: Duration = Duration::from_secs(1);

/// Devices that had a superblock when they were looked at, by array.
#[derive(Default)]
pub(super) struct Found {
    by_array: Mutex<BTreeMap<Uuid, Vec<Seen>>>,
    /// Devices whose superblocks are being read.
    reading: AtomicUsize,
}

struct Seen {
    device: Weak<BdevNode>,
    offer: Offer,
}

/// Whether the running array was asked to take a device back: by one, and once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offer {
    No,
    UnderWay,
    Made,
}

impl Found {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, Vec<Seen>>> {
        self.by_array.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Array `uuid` is about to start: each device is asked for anew.
    pub(super) fn starts(&self, uuid: Uuid) {
        let mut all = self.all();
        for seen in all.get_mut(&uuid).into_iter().flatten() {
            seen.offer = Offer::No;
        }
    }

    fn mark(&self, uuid: Uuid, device: &Arc<BdevNode>, from: Offer, to: Offer) -> bool {
        let mut all = self.all();
        let mut seen = all.get_mut(&uuid).into_iter().flatten();
        let Some(seen) = seen.find(|s| s.device.as_ptr() == Arc::as_ptr(device)) else { return false };
        let was = seen.offer == from;
        if was {
            seen.offer = to;
        }
        was
    }
}

/// A superblock is being read.
struct Reading(Arc<Arrays>);

impl Reading {
    fn begin(arrays: &Arc<Arrays>) -> Reading {
        arrays.found.reading.fetch_add(1, Ordering::AcqRel);
        Reading(arrays.clone())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.found.reading.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Arrays {
    pub(super) fn look_at(self: Arc<Self>, registry: &Arc<Registry>, node: &Arc<BdevNode>) {
        let Some(core) = self.cores.first().cloned() else { return };
        if node.claim().is_some() || array(node).is_some() {
            return;
        }
        let (registry, node, under_way) = (registry.clone(), node.clone(), registry.examination());
        let reading = Reading::begin(&self);
        core.send(move |r| {
            let reactor = r.clone();
            drop(r.spawn(async move {
                self.examine(&reactor, &registry, &node, reading).await;
                drop(under_way);
            }));
        });
    }

    async fn examine(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
        reading: Reading,
    ) {
        let Some(superblock) = superblock_of(registry, node).await else { return };
        let array = superblock.array;
        drop(superblock);
        self.remember(array, node);
        drop(reading);
        let mut since = reactor.now();
        let patience = reactor.ticks(self.assemble_timeout());
        loop {
            if registry.more_to_come() {
                since = reactor.now();
            }
            let elapsed = reactor.now().saturating_sub(since);
            let reading = self.found.reading.load(Ordering::Acquire);
            if reading > 0 && elapsed < reactor.ticks(COPIES) {
                // The last one that was read finds none, and does not wait.
                reactor.sleep(LOOK_AGAIN).await;
                continue;
            }
            // What is being read may be what is missing; but a device may never answer.
            let patience = match reading {
                0 => patience,
                _ => patience.saturating_add(reactor.ticks(READING)),
            };
            let waited = elapsed >= patience && !registry.more_to_come();
            if self.consider(registry, array, waited).await || waited {
                break;
            }
            reactor.sleep(LOOK_AGAIN).await;
        }
        // The array runs without it: it may be a member that is back.
        if let Some(upper) = registry.find(&array.to_string()) {
            self.offer(reactor, registry, &upper, node).await;
        }
    }

    /// Asks a running array to take back a device that was found, unless somebody else does or did.
    pub(super) async fn offer(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        upper: &Arc<BdevNode>,
        device: &Arc<BdevNode>,
    ) {
        let free = device.claim().is_none() && !device.is_removing();
        if free && self.found.mark(upper.uuid(), device, Offer::No, Offer::UnderWay) {
            self.readmit(reactor, registry, upper, device).await;
            self.found.mark(upper.uuid(), device, Offer::UnderWay, Offer::Made);
        }
    }

    /// Whether a running array is being asked to take a device back.
    pub(super) fn is_offered(&self, uuid: Uuid) -> bool {
        self.found.all().get(&uuid).into_iter().flatten().any(|s| s.offer == Offer::UnderWay)
    }

    /// Array `uuid` was found on a device.
    pub(super) fn remember(&self, uuid: Uuid, device: &Arc<BdevNode>) {
        let mut found = self.found.all();
        let list = found.entry(uuid).or_default();
        list.retain(|s| s.device.upgrade().is_some_and(|n| !Arc::ptr_eq(&n, device)));
        list.push(Seen { device: Arc::downgrade(device), offer: Offer::No });
    }

    /// Devices on which array `uuid` was found, and that nobody uses.
    pub(super) fn found_of(&self, registry: &Registry, uuid: Uuid) -> Vec<Arc<BdevNode>> {
        let mut nodes: Vec<Arc<BdevNode>> = {
            let mut found = self.found.all();
            let Some(list) = found.get_mut(&uuid) else { return Vec::new() };
            list.retain(|s| s.device.upgrade().is_some_and(|n| !n.is_removing()));
            list.iter().filter_map(|s| s.device.upgrade()).filter(|n| n.claim().is_none()).collect()
        };
        // What is said about them is the same however long each took to be looked at.
        let order = registry.list();
        nodes.sort_by_key(|node| order.iter().position(|n| Arc::ptr_eq(n, node)));
        nodes
    }

    /// Starts the array if that can be done. False: members are waited for.
    async fn consider(self: &Arc<Self>, registry: &Arc<Registry>, uuid: Uuid, waited: bool) -> bool {
        let _turn = self.turns.take().await;
        if self.is_closing() || registry.find(&uuid.to_string()).is_some() {
            return true;
        }
        let mut candidates = Vec::new();
        for node in self.found_of(registry, uuid) {
            // Read once more: somebody may have had the turn since.
            let Some(superblock) = superblock_of(registry, &node).await.filter(|s| s.array == uuid) else { continue };
            let block = node.geometry().block_size;
            let bytes = node.num_blocks().saturating_mul(u64::from(block));
            candidates.push(Candidate { name: node.name().to_owned(), superblock, bytes, block });
        }
        match decide(&candidates, Situation { waited, salvage: false }) {
            Decision::Wait { .. } => return false,
            Decision::Refuse(_) if candidates.is_empty() => {}
            Decision::Refuse(why) => {
                let name = &candidates[0].superblock.name;
                let why = format!("{why}{}", why.advice());
                tracing::error!("array '{name}' ({uuid}) is not started: {why}");
                self.notes.held_back(uuid, name, why);
            }
            Decision::Assemble(assembly) => {
                let name = assembly.head.name.clone();
                if let Err(e) = self.assemble(registry, &candidates, *assembly).await {
                    tracing::error!("array '{name}' ({uuid}) is not started: {e}");
                    self.notes.held_back(uuid, &name, e.to_string());
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
        let name = |c: usize| candidates[c].name.clone();
        let passed_over = assembly.rejected.iter().map(|(c, why)| (name(*c), why.to_string())).collect();
        let link = Link::new();
        let mut members = Vec::with_capacity(assembly.members.len());
        for (slot, candidate) in assembly.members.iter().enumerate() {
            members.push(match candidate {
                Some(c) => Some(MemberIo::open(registry, &candidates[*c].name, link.sink(slot))?.into_desc()),
                None => None,
            });
        }
        self.run(registry, (assembly.head, assembly.quorum), members, &link, passed_over).await?;
        Ok(())
    }
}

/// The superblock of a device, if it is a member of some array.
pub(super) async fn superblock_of(registry: &Arc<Registry>, node: &Arc<BdevNode>) -> Option<Superblock> {
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
