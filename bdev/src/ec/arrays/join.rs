//! Devices that become members of running arrays: put in place of one by the user, back again, or taken from the spares.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_reactor::Reactor;
use uuid::Uuid;

use super::link::Link;
use super::{Arrays, REPLACE_TIMEOUT, array};
use crate::ec::assemble::{Rejection, fits};
use crate::ec::create::{MemberIo, probe};
use crate::ec::device::Ec;
use crate::ec::format::{MemberEntry, MemberState, RebuildMode, Superblock};
use crate::ec::layout::Layout;
use crate::ec::rebuild::Newcomer;
use crate::ec::start::engine_here;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// Patience with an array that has not noticed yet that a member's device has gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// As what a device is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// Whatever it is; what it holds is destroyed if that is forced.
    Any { force: bool },
    /// As `Any`, unforced, and with less patience: nobody asked for it.
    Spare,
    /// The member that it says it is.
    Returning,
}

fn member_of(node: &BdevNode) -> String {
    format!("a member of array '{}'", node.name())
}

/// Whether a device can be a member.
pub(super) fn may_hold(io: &MemberIo, layout: &Layout, whose: &str) -> Result<(), BdevError> {
    let name = io.name();
    fits(io.bytes(), io.block(), layout).map_err(|why| {
        BdevError::Invalid(match why {
            Rejection::Shrunk { bytes, needed } => {
                format!("bdev '{name}' is too small: it has {bytes} bytes, {whose} needs {needed}")
            }
            why => format!("bdev '{name}' {why}"),
        })
    })
}

impl Arrays {
    /// Puts `device` in the place of the member in `slot` of array `name`: one that failed, or one in sync, which is then failed first. Ends when the
    /// newcomer is a member that is being rebuilt. The slot's own member, back again, is only brought up to date. From any thread.
    ///
    /// # Errors
    /// No such array, slot or device; the device is in use, too small, or holds something and `force` was not given; without the member too few
    /// would be in sync; the device fails; what hangs on the device that was there does not end.
    pub async fn replace(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        name: &str,
        slot: usize,
        device: &str,
        force: bool,
    ) -> Result<RebuildMode, BdevError> {
        let node = array_named(registry, name)?;
        let (me, registry, device) = (self.clone(), registry.clone(), device.to_owned());
        self.on_first_core(move |r| async move {
            let outcome = me.take_in(&r, &registry, &node, slot, &device, As::Any { force }).await;
            if outcome.is_err() {
                // The slot may have lost its member for this, and spares passed over it.
                me.tend(&registry, &node, false);
            }
            outcome
        })
        .await
    }

    /// Goes on with rebuilds of array `name` that were stopped, and takes back failed members whose devices are there; all, or the one in `slot`.
    /// From any thread.
    ///
    /// # Errors
    /// No such array or slot; nothing can be rebuilt, and why.
    pub async fn start_rebuild(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        name: &str,
        slot: Option<usize>,
    ) -> Result<(), BdevError> {
        let node = array_named(registry, name)?;
        let (me, registry) = (self.clone(), registry.clone());
        self.on_first_core(move |r| async move {
            let outcome = me.start_rebuild_here(&r, &registry, &node, slot).await;
            if outcome.is_err() {
                me.tend(&registry, &node, false);
            }
            outcome
        })
        .await
    }

    async fn start_rebuild_here(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
        slot: Option<usize>,
    ) -> Result<(), BdevError> {
        let Some(ec) = array(node) else { return Err(BdevError::NotFound(node.name().to_owned())) };
        let n = ec.shared.layout.n();
        let slots = match slot {
            Some(slot) => has_slot(node, ec, slot).map(|()| slot..slot + 1)?,
            None => 0..n,
        };
        let mut found = false;
        let mut refused = None;
        for slot in slots {
            match ec.member_state(slot) {
                MemberState::Rebuilding => {
                    ec.start_rebuild()?;
                    found = true;
                }
                MemberState::Failed => {
                    let Some(device) = self.device_of_failed(registry, node, ec, slot).await else { continue };
                    match self.take_in(reactor, registry, node, slot, &device, As::Returning).await {
                        Ok(_) => found = true,
                        Err(e) => refused = Some(e),
                    }
                }
                MemberState::InSync | MemberState::Empty => {}
            }
        }
        match refused {
            _ if found => Ok(()),
            Some(e) => Err(e),
            None => Err(BdevError::Invalid(format!(
                "array '{}': no member {}is being rebuilt, and no failed one has its device: use bdev_ec_replace_base_bdev",
                node.name(),
                slot.map_or(String::new(), |slot| format!("in slot {slot} "))
            ))),
        }
    }

    /// The device of a failed member, if it is there.
    async fn device_of_failed(
        &self,
        registry: &Arc<Registry>,
        node: &BdevNode,
        ec: &Ec,
        slot: usize,
    ) -> Option<String> {
        if let Some(name) = ec.shared.member_name(slot) {
            return Some(name).filter(|name| registry.find(name).is_some());
        }
        for device in self.found_of(registry, node.uuid()) {
            if let Some(s) = super::found::superblock_of(registry, &device).await
                && s.array == node.uuid()
                && s.slot == slot
            {
                return Some(device.name().to_owned());
            }
        }
        None
    }

    /// Takes `device` into `slot`, on the first core.
    pub(super) async fn take_in(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
        slot: usize,
        device: &str,
        how: As,
    ) -> Result<RebuildMode, BdevError> {
        let Some(ec) = array(node) else { return Err(BdevError::NotFound(node.name().to_owned())) };
        has_slot(node, ec, slot)?;
        let newcomer = registry.find(device).ok_or_else(|| BdevError::NotFound(device.to_owned()))?;
        let device = newcomer.name().to_owned();
        let seat = self.seats.take(node, slot, &device)?;
        // Examinations may wait for those who come by themselves.
        let patience = || match how {
            As::Any { .. } => self.replace_timeout(),
            As::Spare | As::Returning => self.replace_timeout().min(REPLACE_TIMEOUT),
        };
        let in_use = |slot| matches!(ec.member_state(slot), MemberState::InSync | MemberState::Rebuilding);
        if ec.shared.member_name(slot).as_deref() == Some(&device) {
            if in_use(slot) {
                return Err(BdevError::Invalid(format!(
                    "bdev '{device}' is in use as member {slot} of array '{}' already",
                    node.name()
                )));
            }
            seat.vacated(reactor, ec, patience).await?;
            self.remember(node.uuid(), &newcomer);
        }
        // A spare is held by the pool: if it does not become a member, it goes back there.
        let lent = self.spares.lend(registry, &device);
        let link = Link::new();
        let io = MemberIo::open(registry, &device, link.sink(slot))?;
        may_hold(&io, &ec.shared.layout, &member_of(node))?;
        let probe = probe(&io).await?;
        if !in_use(slot) {
            // Superblocks may not name it failed yet.
            ec.retire(slot).await?;
        }
        let table = table(ec).await.ok_or_else(|| closing(node))?;
        let row = &table[slot];
        let is_ours = |s: &Superblock| s.array == node.uuid() && s.slot == slot && s.member().uuid == row.uuid;
        let returns = row.state == MemberState::Failed && probe.superblock.as_ref().is_ok_and(is_ours);
        let found = match how {
            As::Returning if !returns || in_use(slot) => {
                return Err(BdevError::Invalid(format!(
                    "bdev '{device}' is not the member that slot {slot} of array '{}' lost",
                    node.name()
                )));
            }
            As::Any { force: true } => None,
            _ if returns => probe.superblock.ok(),
            As::Any { .. } | As::Spare | As::Returning => match probe.found() {
                Some(what) => {
                    return Err(BdevError::Invalid(format!("bdev '{device}' holds {what}: force destroys it")));
                }
                None => None,
            },
        };
        if in_use(slot) {
            ec.retire(slot).await?;
        }
        seat.vacated(reactor, ec, patience).await?;
        let uuid = found.as_ref().map_or_else(Uuid::new_v4, |s| s.member().uuid);
        let mode = ec.join(slot, Newcomer { desc: io.into_desc(), uuid, found }).await?;
        if let Some(lent) = lent {
            lent.used();
        }
        link.tie_one(node, slot, &newcomer);
        self.notes.joined(node.uuid(), slot, &device);
        Ok(mode)
    }

    /// How long requests may hang on a device that is to leave its slot, before that is given up. Spares and members that return wait no longer
    /// than [`REPLACE_TIMEOUT`].
    pub fn replace_timeout(&self) -> Duration {
        Duration::from_millis(self.replace_timeout_ms.load(Ordering::Relaxed))
    }

    /// Sets how long requests may hang on a device that is to leave its slot, before that is given up; also for who waits already.
    pub fn set_replace_timeout(&self, timeout: Duration) {
        self.replace_timeout_ms.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Takes a device back that has a superblock of a running array, if it is the member that the array lost.
    pub(super) async fn readmit(
        self: &Arc<Self>,
        reactor: &Reactor,
        registry: &Arc<Registry>,
        node: &Arc<BdevNode>,
        device: &Arc<BdevNode>,
    ) {
        let Some(ec) = array(node) else { return };
        let Some(s) = super::found::superblock_of(registry, device).await.filter(|s| s.array == node.uuid()) else {
            return;
        };
        let why = match self.belongs(reactor, ec, &s, device).await {
            None => return,
            Some(Err(why)) => why,
            // Somebody asks for just that.
            Some(Ok(slot)) if self.seats.of(node.uuid(), slot).is_some_and(|r| r.name == device.name()) => return,
            Some(Ok(slot)) => match self.take_in(reactor, registry, node, slot, device.name(), As::Returning).await {
                Ok(mode) => {
                    let how = match mode {
                        RebuildMode::Wib => "what was written meanwhile is brought up to date",
                        RebuildMode::Full => "all of it is rebuilt",
                    };
                    tracing::info!("array '{}': '{}' is back as member {slot}: {how}", node.name(), device.name());
                    return;
                }
                Err(e) => e.to_string(),
            },
        };
        tracing::warn!("array '{}' does not take '{}' back: {why}", node.name(), device.name());
        self.notes.passed_over(node.uuid(), device.name(), why);
        self.tend(registry, node, false);
    }

    /// The slot that a device with superblock `s` may come back to; none if it is there already.
    async fn belongs(
        &self,
        reactor: &Reactor,
        ec: &Ec,
        s: &Superblock,
        device: &BdevNode,
    ) -> Option<Result<usize, String>> {
        let since = reactor.now();
        loop {
            let table = table(ec).await?;
            let slot = s.slot.min(table.len() - 1);
            if table[slot].uuid != s.member().uuid {
                return Some(Err(Rejection::Replaced { slot }.to_string()));
            }
            if !matches!(ec.member_state(slot), MemberState::InSync | MemberState::Rebuilding) {
                let block = device.geometry().block_size;
                let bytes = device.num_blocks().saturating_mul(u64::from(block));
                return Some(fits(bytes, block, &ec.shared.layout).map(|()| slot).map_err(|why| why.to_string()));
            }
            let occupant = ec.shared.descs()[slot].as_ref().map(|d| d.node().clone());
            let occupant = occupant.filter(|o| o.name() != device.name() || o.is_removing())?;
            // Its device may have gone just now, and come back before the array has noticed.
            if !occupant.is_removing() || reactor.now() - since > reactor.ticks(PATIENCE) {
                return Some(Err(format!(
                    "'{}' is member {slot} already, so one of them is a copy: take this one away",
                    occupant.name()
                )));
            }
            reactor.sleep(Duration::from_millis(1)).await;
        }
    }
}

fn closing(node: &BdevNode) -> BdevError {
    BdevError::Busy { name: node.name().to_owned(), why: "it is being closed" }
}

fn array_named(registry: &Registry, name: &str) -> Result<Arc<BdevNode>, BdevError> {
    let node = registry.find(name).filter(|node| array(node).is_some());
    node.ok_or_else(|| BdevError::NotFound(name.to_owned()))
}

fn has_slot(node: &BdevNode, ec: &Ec, slot: usize) -> Result<(), BdevError> {
    let n = ec.shared.layout.n();
    if slot < n {
        return Ok(());
    }
    Err(BdevError::Invalid(format!("slot is {slot}: array '{}' has slots 0 to {}", node.name(), n - 1)))
}

/// The table of members of now.
pub(super) async fn table(ec: &Ec) -> Option<Vec<MemberEntry>> {
    let id = ec.shared.id;
    let home = &ec.shared.home;
    home.spawn(move |_| async move { engine_here(id).map(|e| e.table.borrow().members.clone()) }).await.ok().flatten()
}
