//! A session of an array: from its members to a device, and back.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_accel::Accel;
use longshore_accel::erasure::MatrixKind;
use longshore_reactor::{Reactor, oneshot};
use uuid::Uuid;

use super::device::Ec;
use super::engine::{Engine, Parts};
use super::event::Event;
use super::faults::{self, Mutant};
use super::flush::Offline;
use super::format::{MemberState, Superblock};
use super::journal::FEWEST;
use super::layout::Layout;
use super::memory::ZEROES;
use super::recover::Recovered;
use super::shared::Shared;
use super::tuning::Tuning;
use crate::core::CoreState;
use crate::desc::BdevDesc;
use crate::device::Geometry;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

thread_local! {
    /// Engines whose home is this core.
    static ENGINES: RefCell<HashMap<u64, Rc<Engine>>> = RefCell::default();
}

/// Told of an array's events, on its home core. Must not block.
pub(super) type Watch = Box<dyn Fn(Event) + Send + Sync>;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// The engine of this number, if this is its home core.
pub(super) fn engine_here(id: u64) -> Option<Rc<Engine>> {
    let engine = ENGINES.with_borrow(|e| e.get(&id).cloned());
    debug_assert!(engine.as_ref().is_none_or(|e| e.shared.home.is_current()), "asked for on another core");
    engine
}

/// Starts the array of `head`, the superblock that assembly decided for, on this core: recovers it and registers it as `name`.
/// `members` are its members by slot, open for writing and claimed; a slot is empty if its member is absent or stale. Parity, lost data and
/// checksums of what is logged are computed by what `accel` has assigned by now.
///
/// # Errors
/// Members do not fit the layout; too few of them are there or stay; the name is taken; memory runs out.
pub async fn start(
    registry: &Arc<Registry>,
    name: &str,
    head: Superblock,
    members: Vec<Option<BdevDesc>>,
    tuning: Tuning,
    accel: &Accel,
) -> Result<Arc<BdevNode>, BdevError> {
    let quorum = head.quorum();
    start_watched(registry, name, (head, quorum), members, tuning, accel, None).await
}

/// As [`start`]; the array runs with `quorum` members in sync, which assembly decided, until as many are as its rule demands. `watch` is
/// told of the array's events.
pub(super) async fn start_watched(
    registry: &Arc<Registry>,
    name: &str,
    (head, quorum): (Superblock, usize),
    members: Vec<Option<BdevDesc>>,
    tuning: Tuning,
    accel: &Accel,
    watch: Option<Watch>,
) -> Result<Arc<BdevNode>, BdevError> {
    let core = CoreState::current();
    let layout = head.layout;
    check_members(name, &head, &members)?;
    let (accel, offload) = (accel.channel(), accel.offload());
    let coder = accel
        .coder(MatrixKind::Cauchy, layout.k, layout.m)
        .map_err(|e| BdevError::Invalid(format!("array '{name}': {e}")))?;
    let limit = core.reactor().dma().limit() >> 10;
    let dry = || {
        let why = format!("array '{name}': no DMA memory left; the core's pool is limited to {limit} KiB");
        BdevError::NoMemory(why)
    };
    let mut zeroes = core.reactor().dma().alloc(ZEROES).ok_or_else(dry)?;
    zeroes.get_mut().ok_or_else(dry)?.fill(0);

    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let geometry = geometry(&head);
    let uuid = head.array;
    let shared = Shared::new(id, name, layout, core.reactor().handle(), members);
    let nonce = tuning.nonce.unwrap_or_else(|| (Uuid::new_v4().as_u128() as u64).max(1));
    let events = {
        let (registry, name) = (Arc::downgrade(registry), name.to_owned());
        Box::new(move |event: Event| {
            if let Some(r) = registry.upgrade() {
                r.notifications.push(event.name(), &name);
            }
            if let Some(watch) = &watch {
                watch(event);
            }
        })
    };
    let parts = Parts { accel, coder, offload, head, quorum, tuning, zeroes, nonce, events };
    let engine = Engine::new(shared.clone(), core, parts);
    let begun = match engine.stock() {
        Ok(()) => begin(&engine)
            .await
            .map_err(|Offline| BdevError::Busy { name: name.to_owned(), why: engine.why_offline.get() }),
        Err(e) => Err(e),
    };
    let done = match begun {
        Ok(done) => done,
        Err(e) => {
            close_when_idle(&engine);
            return Err(e);
        }
    };
    let r = engine.core.reactor().clone();
    drop(r.spawn(engine.clone().epoch_task()));
    drop(r.spawn(engine.clone().commit_task()));
    drop(r.spawn(engine.clone().intent_task()));
    drop(r.spawn(engine.clone().slots_task()));
    drop(r.spawn(engine.clone().rebuild_task()));
    ENGINES.with_borrow_mut(|e| e.insert(id, engine.clone()));
    match registry.register(name, Some(uuid), Ec::new(shared, geometry, tuning.write_timeout, tuning.slow_read)) {
        Ok(node) => {
            let Recovered { rolled_forward, discarded } = done;
            engine.tell(Event::Started { rolled_forward, discarded });
            // Rebuilds go on where they were.
            engine.rebuild.signal.set();
            Ok(node)
        }
        Err(e) => {
            ENGINES.with_borrow_mut(|all| all.remove(&id));
            close_when_idle(&engine);
            Err(e)
        }
    }
}

fn check_members(name: &str, head: &Superblock, members: &[Option<BdevDesc>]) -> Result<(), BdevError> {
    let l = &head.layout;
    if members.len() != l.n() {
        return Err(BdevError::Invalid(format!("array '{name}': {} members given, it has {}", members.len(), l.n())));
    }
    if l.journal_slots < FEWEST {
        return Err(BdevError::Invalid(format!(
            "array '{name}': a journal of {} slots, at least {FEWEST} are needed",
            l.journal_slots
        )));
    }
    members.iter().flatten().try_for_each(|d| fits(name, l, d))
}

/// Whether `d` can be a member of the array `name`.
pub(super) fn fits(name: &str, l: &Layout, d: &BdevDesc) -> Result<(), BdevError> {
    let (node, bs) = (d.node(), d.node().geometry().block_size);
    let bytes = node.num_blocks().saturating_mul(u64::from(bs));
    if !bs.is_power_of_two() || !l.block.is_multiple_of(bs) {
        return Err(BdevError::Invalid(format!(
            "array '{name}': member '{}' has blocks of {bs} bytes, which do not divide the array's {}",
            node.name(),
            l.block
        )));
    }
    if bytes < l.member_bytes() {
        return Err(BdevError::Invalid(format!(
            "array '{name}': member '{}' has {bytes} bytes, {} are needed",
            node.name(),
            l.member_bytes()
        )));
    }
    Ok(())
}

fn geometry(head: &Superblock) -> Geometry {
    let l = &head.layout;
    let stripe = u32::try_from(l.stripe_blocks()).unwrap_or(u32::MAX);
    Geometry {
        optimal_io_boundary: stripe,
        // Bits of the map may be pending even if members keep what they are given.
        volatile_cache: true,
        preferred_write_granularity: stripe,
        preferred_write_alignment: stripe,
        optimal_write_size: stripe,
        preferred_unmap_granularity: stripe,
        preferred_unmap_alignment: stripe,
        ..Geometry::plain(l.block, l.num_blocks())
    }
}

/// Brings the members to one state: see the module `recover`. `docs/ec.md` has the order and its reasons.
async fn begin(engine: &Rc<Engine>) -> Result<Recovered, Offline> {
    let head = engine.table.borrow().clone();
    for (slot, entry) in head.members.iter().enumerate() {
        let there = engine.shared.below(slot).is_some() && engine.shared.descs()[slot].is_some();
        let state = match entry.state {
            MemberState::InSync if there => MemberState::InSync,
            MemberState::Rebuilding if there => MemberState::Rebuilding,
            MemberState::Empty => MemberState::Empty,
            _ => MemberState::Failed,
        };
        engine.shared.set_state(slot, state);
        match (state, entry.rebuild) {
            // Of what it lacks more is known when the bitmap has been read.
            (MemberState::Rebuilding, Some(at)) => engine.rebuild.fillings.begin(slot, at, None),
            (MemberState::Failed, _) if entry.state == MemberState::InSync => {
                engine.given.borrow_mut()[slot] = head.stamp
            }
            _ => {}
        }
    }
    engine.intent.generation.set(head.wib_generation);
    engine.settle_members().await;
    engine.complete_head(&head).await;
    let uneven = engine.load_bitmaps().await?;
    engine.resume_rebuilds();
    // An odd step: the copy that is not the newest on any member is the one that is overwritten.
    engine.establish(2, |_| {}).await?;
    engine.stable_again();
    // Before any page is written anew.
    engine.level(uneven).await;
    let (done, unread) = engine.replay().await?;
    if faults::is(Mutant::DiscardedNotVoided) {
        engine.establish(0, |_| {}).await?;
    } else {
        let session = engine.nonce;
        let recovered = |sb: &mut Superblock| {
            sb.journal_session = session;
            sb.members.iter_mut().filter(|m| m.stands_in()).for_each(|m| m.failed_epoch = 0);
        };
        engine.establish(0, recovered).await?;
        engine.session.set(session);
    }
    engine.stable_again();
    // No record counts any more, and there is none of this session yet.
    engine.renew_slots(&unread).await;
    engine.forget_intent().await;
    if engine.shared.is_offline() { Err(Offline) } else { Ok(done) }
}

/// Ends a session: what was acknowledged is made durable, and the members are closed.
pub(super) fn stop(reactor: &Reactor, id: u64, done: Option<oneshot::Sender<()>>) {
    let Some(engine) = ENGINES.with_borrow_mut(|e| e.remove(&id)) else { return };
    drop(reactor.spawn(async move {
        engine.rebuilds_ended().await;
        engine.scrub_ended().await;
        engine.final_commit().await;
        idle(&engine).await;
        engine.close();
        if let Some(done) = done {
            let _ = done.send(());
        }
    }));
}

/// Ends when nothing is in flight on the members. What hangs on one that cannot abort it is waited for: its device uses the memory.
async fn idle(engine: &Engine) {
    while engine.members.iter().any(|m| m.inflight() > 0) {
        engine.core.reactor().sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Closes an array that did not start, if something hangs on a member when that has ended.
fn close_when_idle(engine: &Rc<Engine>) {
    if engine.members.iter().all(|m| m.inflight() == 0) {
        return engine.close();
    }
    let me = engine.clone();
    drop(engine.core.reactor().spawn(async move {
        idle(&me).await;
        me.close();
    }));
}
