//! Devices that stand by: the first that fits takes the place of a member that failed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_reactor::Reactor;

use super::found::LOOK_AGAIN;
use super::join::{As, may_hold};
use super::{Arrays, array};
use crate::desc::BdevDesc;
use crate::ec::assemble::fits;
use crate::ec::create::{MemberIo, probe, wipe};
use crate::ec::device::Ec;
use crate::ec::event::SPARE_USED;
use crate::ec::format::MemberState;
use crate::ec::txn::masked;
use crate::event::BdevEvent;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// A device that stands by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpareInfo {
    /// Its name.
    pub name: String,
    /// The array that it is for; none: any.
    pub array: Option<String>,
    /// Why it is not used, if it is not.
    pub why_not: Option<String>,
}

struct Spare {
    info: SpareInfo,
    /// Open and claimed; none while it is being made a member.
    held: Option<BdevDesc>,
}

/// All that stand by, in the order in which they are taken.
#[derive(Clone, Default)]
pub(super) struct Spares(Arc<Mutex<Vec<Spare>>>);

/// A spare that is being made a member. It stands by again, if that fails.
pub(super) struct Lent {
    pool: Spares,
    registry: Arc<Registry>,
    name: String,
}

impl Spares {
    fn all(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the pool's hold on the device, if it is a spare.
    pub(super) fn lend(&self, registry: &Arc<Registry>, name: &str) -> Option<Lent> {
        let mut all = self.all();
        let spare = all.iter_mut().find(|s| s.info.name == name)?;
        let held = spare.held.take()?;
        drop(all);
        drop(held);
        Some(Lent { pool: self.clone(), registry: registry.clone(), name: name.to_owned() })
    }

    fn take_out(&self, name: &str) -> Option<Spare> {
        let mut all = self.all();
        let at = all.iter().position(|s| s.info.name == name)?;
        Some(all.remove(at))
    }

    /// Those that may be used for an array of this name.
    fn for_array(&self, name: &str) -> Vec<String> {
        let all = self.all();
        let idle = |s: &&Spare| s.held.is_some() && s.info.why_not.is_none();
        let own = all.iter().filter(idle).filter(|s| s.info.array.as_deref() == Some(name));
        let any = all.iter().filter(idle).filter(|s| s.info.array.is_none());
        own.chain(any).map(|s| s.info.name.clone()).collect()
    }

    /// A spare that could not be made a member is not tried again.
    fn condemn(&self, name: &str, why: String) {
        if let Some(s) = self.all().iter_mut().find(|s| s.info.name == name) {
            s.info.why_not = Some(why);
        }
    }

    fn hold(&self, name: &str, desc: Option<BdevDesc>) {
        let mut desc = desc;
        if let Some(s) = self.all().iter_mut().find(|s| s.info.name == name) {
            s.held = desc.take();
        }
        // Not under the lock, if nobody wanted it.
        drop(desc);
    }
}

impl Lent {
    /// It is a member now.
    pub(super) fn used(self) {
        drop(self.pool.take_out(&self.name));
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let known = self.pool.all().iter().any(|s| s.info.name == self.name);
        if !known {
            return;
        }
        match MemberIo::open(&self.registry, &self.name, self.pool.sink(&self.name)) {
            Ok(io) => self.pool.hold(&self.name, Some(io.into_desc())),
            Err(e) => {
                tracing::warn!("'{}' is no spare any more: {e}", self.name);
                drop(self.pool.take_out(&self.name));
            }
        }
    }
}

impl Spares {
    /// Told of what happens to a spare's device.
    fn sink(&self, name: &str) -> crate::event::EventSink {
        let (pool, name) = (Arc::downgrade(&self.0), name.to_owned());
        Box::new(move |event| {
            if let (BdevEvent::Remove, Some(pool)) = (event, pool.upgrade()) {
                tracing::warn!("'{name}' is no spare any more: its device was removed");
                drop(Spares(pool).take_out(&name));
            }
        })
    }
}

impl Arrays {
    /// Lets `device` stand by for array `of`, or for any. A device that is a spare or a member of an array already is left as it is, so that a
    /// saved configuration can be applied again. From any thread.
    ///
    /// # Errors
    /// No such device or array; the device is in use, does not fit the array, or holds something and `force` was not given; it is a spare of
    /// another array.
    pub async fn add_spare(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        device: &str,
        of: Option<&str>,
        force: bool,
    ) -> Result<(), BdevError> {
        registry.wait_for_examine().await;
        let (me, registry, device, of) = (self.clone(), registry.clone(), device.to_owned(), of.map(str::to_owned));
        self.on_first_core(move |r| async move { me.add_spare_here(&r, &registry, &device, of, force).await }).await
    }

    async fn add_spare_here(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        device: &str,
        of: Option<String>,
        force: bool,
    ) -> Result<(), BdevError> {
        let node = registry.find(device).ok_or_else(|| BdevError::NotFound(device.to_owned()))?;
        let device = node.name().to_owned();
        let upper = match &of {
            // An array that waits for its members may have spares already.
            Some(name) => match registry.find(name).filter(|n| array(n).is_some()) {
                None if self.why_not_started(name).is_none() => return Err(BdevError::NotFound(name.clone())),
                upper => upper,
            },
            None => None,
        };
        if let Some(spare) = self.spares(registry).into_iter().find(|s| s.name == device) {
            if spare.array == of {
                return Ok(());
            }
            let whose = spare.array.map_or("any array".into(), |a| format!("array '{a}'"));
            return Err(BdevError::Invalid(format!(
                "bdev '{device}' is a spare of {whose} already: remove it there first"
            )));
        }
        if let Some(user) = registry.list().iter().find(|n| array(n).is_some_and(|ec| is_member(ec, &device))) {
            tracing::info!("'{device}' is not made a spare: it is a member of array '{}'", user.name());
            return Ok(());
        }
        let io = MemberIo::open(registry, &device, self.spares.sink(&device))?;
        if let Some(ec) = upper.as_deref().and_then(array) {
            may_hold(&io, &ec.shared.layout, &format!("a member of array '{}'", ec.shared.name))?;
        }
        let probe = probe(&io).await?;
        if let Some(what) = probe.found() {
            if !force {
                return Err(BdevError::Invalid(format!("bdev '{device}' holds {what}: force destroys it")));
            }
            wipe(&io).await?;
        }
        let info = SpareInfo { name: device, array: of, why_not: None };
        self.spares.all().push(Spare { info, held: Some(io.into_desc()) });
        if node.is_removing() {
            drop(self.spares.take_out(node.name()));
            return Err(BdevError::NotFound(node.name().to_owned()));
        }
        for node in registry.list() {
            if array(&node).is_some() {
                let (me, registry, r) = (self.clone(), registry.clone(), reactor.clone());
                drop(reactor.spawn(async move { me.use_spares(&r, &registry, &node).await }));
            }
        }
        Ok(())
    }

    /// Lets `device` stand by no longer.
    ///
    /// # Errors
    /// It is no spare; it is being made a member.
    pub fn remove_spare(&self, registry: &Registry, device: &str) -> Result<(), BdevError> {
        let name = registry.find(device).map_or_else(|| device.to_owned(), |node| node.name().to_owned());
        let lent = self.spares.all().iter().find(|s| s.info.name == name).map(|s| s.held.is_none());
        match lent {
            None => Err(BdevError::NotFound(format!("{name} (among the spares)"))),
            Some(true) => Err(BdevError::Busy { name, why: "it is being made a member of an array" }),
            Some(false) => {
                drop(self.spares.take_out(&name));
                Ok(())
            }
        }
    }

    /// All that stand by. One that has become a member just now does not.
    pub fn spares(&self, registry: &Registry) -> Vec<SpareInfo> {
        let spares: Vec<_> = self.spares.all().iter().map(|s| s.info.clone()).collect();
        let nodes = registry.list();
        let member = |s: &SpareInfo| nodes.iter().any(|n| array(n).is_some_and(|ec| is_joined(ec, &s.name)));
        spares.into_iter().filter(|s| !member(s)).collect()
    }

    /// Names of those that may become members of array `name`.
    pub(super) fn spares_of(&self, name: &str) -> Vec<String> {
        self.spares.for_array(name)
    }

    /// Spares of an array that is no more are let go.
    pub(super) fn release_spares(&self, of: &str) {
        let mut all = self.spares.all();
        let (gone, stay) = all.drain(..).partition::<Vec<_>, _>(|s| s.info.array.as_deref() == Some(of));
        *all = stay;
        drop(all);
        drop(gone);
    }

    /// How long a member that failed may take to return before a spare takes its place.
    pub fn spare_delay(&self) -> Duration {
        Duration::from_millis(self.spare_delay_ms.load(Ordering::Relaxed))
    }

    /// Sets how long a member that failed may take to return before a spare takes its place.
    pub fn set_spare_delay(&self, delay: Duration) {
        self.spare_delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Gives each slot that lost its member a spare, on the first core. Superblocks name the members that failed. One task of an array does so: it
    /// looks again if others are asked to meanwhile.
    pub(super) async fn use_spares(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
    ) {
        if !self.at_spares.begin(node.uuid()) {
            return;
        }
        loop {
            let mut seen = 0;
            while let Some(vacant) = self.vacant(node, seen) {
                seen |= vacant;
                let delay = self.spare_delay();
                if !delay.is_zero() {
                    reactor.sleep(delay).await;
                }
                for slot in masked(vacant) {
                    self.use_spare(reactor, registry, node, slot).await;
                }
            }
            if self.at_spares.end(node.uuid()) {
                return;
            }
        }
    }

    /// Slots, a bit each, that lost their members and were not `seen`; none if there are no spares, either.
    fn vacant(&self, node: &BdevNode, seen: u64) -> Option<u64> {
        let ec = array(node)?;
        let vacant = (0..ec.shared.layout.n())
            .filter(|&slot| lost(ec, slot) && !self.seats.has(node.uuid(), slot))
            .fold(0, |mask, slot| mask | 1 << slot);
        let vacant = vacant & !seen;
        (vacant != 0 && !self.spares.for_array(node.name()).is_empty()).then_some(vacant)
    }

    async fn use_spare(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
        slot: usize,
    ) {
        let Some(ec) = array(node) else { return };
        for spare in self.spares.for_array(node.name()) {
            if !lost(ec, slot) || ec.is_offline() || node.is_removing() {
                return;
            }
            if !registry.find(&spare).is_some_and(|n| suits(ec, &n)) {
                continue;
            }
            match self.take_in(reactor, registry, node, slot, &spare, As::Spare).await {
                Ok(_) => {
                    tracing::warn!("array '{}': spare '{spare}' takes the place of member {slot}", node.name());
                    registry.notifications.push(SPARE_USED, node.name());
                    return;
                }
                // The array's trouble, or somebody else is at that slot: not the spare's fault.
                Err(e @ BdevError::Busy { .. }) => {
                    tracing::warn!("array '{}': no spare for slot {slot} now: {e}", node.name());
                    self.use_spares_when_vacant(reactor, registry, node, slot);
                    return;
                }
                Err(e) => {
                    tracing::error!("array '{}': spare '{spare}' cannot be used: {e}", node.name());
                    self.spares.condemn(&spare, e.to_string());
                }
            }
        }
    }
}

impl Arrays {
    /// A device on which requests hang keeps its slot from spares, until it ends them. It may have done so by now.
    pub(super) fn use_spares_when_vacant(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
        slot: usize,
    ) {
        if !array(node).is_some_and(|ec| lost(ec, slot)) || !self.awaited.begin(node.uuid(), slot) {
            return;
        }
        let (me, registry, node, r) = (self.clone(), registry.clone(), node.clone(), reactor.clone());
        drop(reactor.spawn(async move {
            let Some(ec) = array(&node) else { return me.awaited.end(node.uuid(), slot) };
            let vacated = ec.vacated(slot).await.is_ok();
            me.awaited.end(node.uuid(), slot);
            if vacated {
                // Somebody else may be at the slot still.
                r.sleep(LOOK_AGAIN).await;
                me.tend(&registry, &node, false);
            }
        }));
    }
}

fn lost(ec: &Ec, slot: usize) -> bool {
    matches!(ec.member_state(slot), MemberState::Failed | MemberState::Empty)
}

fn suits(ec: &Ec, node: &BdevNode) -> bool {
    let block = node.geometry().block_size;
    fits(node.num_blocks().saturating_mul(u64::from(block)), block, &ec.shared.layout).is_ok()
}

/// Whether superblocks name the device a member that is used.
fn is_joined(ec: &Ec, device: &str) -> bool {
    (0..ec.shared.layout.n()).any(|slot| !lost(ec, slot) && ec.shared.member_name(slot).as_deref() == Some(device))
}

fn is_member(ec: &Ec, device: &str) -> bool {
    (0..ec.shared.layout.n()).any(|slot| ec.shared.member_name(slot).as_deref() == Some(device))
}
