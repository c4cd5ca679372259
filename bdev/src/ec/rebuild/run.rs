//! The rebuild of a member: stripe by stripe, several at once, until it is in sync.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::super::engine::Engine;
use super::super::event::Event;
use super::super::faults::{self, Mutant, Window};
use super::super::flush::Offline;
use super::super::format::{MemberEntry, MemberState, Rebuild, RebuildMode};
use super::super::signal::{Signal, Turn};
use super::super::txn::masked;
use super::filling::{Fillings, Next};
use super::pace::Pace;
use super::strip::{Filler, Outcome, PIECE};
use super::{RebuildProgress, RebuildState};

/// Stripes that are filled at once, at most.
const AT_ONCE: usize = 8;
/// Memory of all fillers of a rebuild, if one alone does not need more.
const WINDOW: usize = 4 << 20;
/// Stripes that cannot be decoded, until a rebuild looks for no more.
const MOST_LOST: u32 = 64;
/// How long who waits for memory, or is paused, waits before it looks again.
const NAP: Duration = Duration::from_millis(1);

/// Members that join or are rebuilt, on the home core.
pub(in crate::ec) struct Rebuilds {
    pub(in crate::ec) fillings: Fillings,
    /// There is something to rebuild, or somebody to stop.
    pub(in crate::ec) signal: Signal,
    /// One member joins at a time.
    pub(super) joins: Turn,
    /// The slot of a device that is being made a member.
    pub(super) joining: Cell<u64>,
    pub(super) pace: Pace,
    fillers: RefCell<Vec<Weak<Filler>>>,
    rebuilt: Vec<Cell<u64>>,
    /// Tasks that the end of the session waits for.
    pub(super) tasks: Cell<u32>,
    ending: Cell<bool>,
}

/// Why a rebuild came to an end, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Every stripe is in sync.
    Filled,
    /// It was stopped, or the session ends.
    Stopped,
    /// The member failed.
    MemberFailed,
    /// Stripes cannot be decoded, this one and maybe others; all others are filled, unless there are very many.
    TooMuchLost(u64),
    Offline,
}

impl Rebuilds {
    pub(in crate::ec) fn new(slots: usize, stripes: u64, region_shift: u32) -> Rebuilds {
        Rebuilds {
            fillings: Fillings::new(slots, stripes, region_shift),
            signal: Signal::default(),
            joins: Turn::default(),
            joining: Cell::new(0),
            pace: Pace::default(),
            fillers: RefCell::default(),
            rebuilt: (0..slots).map(|_| Cell::new(0)).collect(),
            tasks: Cell::new(0),
            ending: Cell::new(false),
        }
    }

    /// A member failed: it is not filled any more, and what hangs on it is not waited for.
    pub(in crate::ec) fn member_failed(&self, slot: usize) {
        self.fillings.end(slot);
        self.fillers.borrow_mut().retain(|f| f.strong_count() > 0);
        let all: Vec<_> = self.fillers.borrow().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|f| f.look());
    }

    /// True if the device in `slot` is being made a member.
    pub(in crate::ec) fn is_joining(&self, slot: usize) -> bool {
        self.joining.get() >> slot & 1 != 0
    }

    /// True if the session ends.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.get()
    }
}

impl Engine {
    /// Rebuilds members whenever there are any.
    pub(in crate::ec) async fn rebuild_task(self: Rc<Self>) {
        loop {
            self.rebuild.signal.wait().await;
            if self.is_closing() {
                return;
            }
            self.rebuild.tasks.set(self.rebuild.tasks.get() + 1);
            self.rebuild_all().await;
            self.show_rebuilds();
            self.rebuild.tasks.set(self.rebuild.tasks.get() - 1);
        }
    }

    /// Stops rebuilds and waits until they, and members that join, have let everything go.
    pub(in crate::ec) async fn rebuilds_ended(self: &Rc<Self>) {
        self.rebuild.ending.set(true);
        while self.rebuild.tasks.get() > 0 {
            self.core.reactor().sleep(NAP).await;
        }
        for slot in masked(self.rebuild.fillings.mask()) {
            let _ = self.checkpoint(slot).await;
        }
    }

    async fn rebuild_all(self: &Rc<Self>) {
        // Members with stripes that cannot be decoded: others have their turn.
        let mut stuck = 0u64;
        loop {
            let Some(slot) = masked(self.rebuild.fillings.mask() & !stuck).next() else {
                if stuck & self.rebuild.fillings.mask() != 0 {
                    self.shared.rebuild.set_stopped(true);
                }
                return;
            };
            if self.rebuild.is_ending() || self.shared.rebuild.is_stopped() || self.shared.is_offline() {
                return;
            }
            self.tell(Event::RebuildStarted { slot });
            let name = &self.shared.name;
            if let Some(Rebuild { mode, progress }) = self.rebuild.fillings.progress(slot) {
                let what = match mode {
                    RebuildMode::Full => "all that holds data",
                    RebuildMode::Wib => "what it missed",
                };
                tracing::info!("array '{name}': member {slot} is rebuilt from stripe {progress} on: {what}");
            }
            let end = match self.fill_member(slot).await {
                End::Filled => match self.promote(slot).await {
                    Ok(true) => End::Filled,
                    Ok(false) => End::MemberFailed,
                    Err(Offline) => End::Offline,
                },
                end => end,
            };
            self.show_rebuilds();
            match end {
                End::Filled => {
                    tracing::info!("array '{name}': member {slot} is in sync");
                    self.tell(Event::RebuildFinished { slot });
                }
                End::Stopped => {
                    let _ = self.checkpoint(slot).await;
                    self.tell(Event::RebuildStopped { slot });
                    return;
                }
                End::MemberFailed => self.tell(Event::RebuildFailed { slot, why: "the member failed" }),
                End::TooMuchLost(stripe) => {
                    tracing::error!(
                        "array '{name}': member {slot} is not in sync: stripe {stripe}, and what was told before, has lost more than parity can make up for. \
                         Write or unmap these stripes, then start the rebuild"
                    );
                    stuck |= 1 << slot;
                    let _ = self.checkpoint(slot).await;
                    self.tell(Event::RebuildFailed { slot, why: "a stripe has lost too much" });
                }
                End::Offline => return,
            }
        }
    }

    /// Why the rebuild of `slot` must not go on; `None`: it may.
    fn halt(&self, slot: usize) -> Option<End> {
        if self.shared.is_offline() {
            return Some(End::Offline);
        }
        if self.rebuild.fillings.mask() >> slot & 1 == 0 {
            return Some(End::MemberFailed);
        }
        (self.rebuild.is_ending() || self.shared.rebuild.is_stopped()).then_some(End::Stopped)
    }

    async fn fill_member(self: &Rc<Self>, slot: usize) -> End {
        let l = &self.shared.layout;
        let each = (l.k + 1) * l.strip.min(PIECE) as usize;
        let count = (WINDOW / each).clamp(1, AT_ONCE);
        let run = Rc::new(Run {
            slot,
            end: Cell::new(None),
            lost: Cell::new(0),
            stored: Cell::new(self.core.now()),
            storing: Cell::new(false),
        });
        let mut workers = Vec::new();
        for i in 0..count {
            // One has to be; others are if there is memory.
            let filler = match i {
                0 => self.filler(&run).await,
                _ => self.new_filler(slot),
            };
            let Some(filler) = filler else { break };
            workers.push(self.core.reactor().spawn(self.clone().fill_stripes(filler, run.clone())));
        }
        for w in workers {
            let _ = w.await;
        }
        self.rebuild.fillings.rewind(slot);
        let end = run.end.get().or_else(|| self.halt(slot));
        end.unwrap_or_else(|| self.rebuild.fillings.first_left(slot).map_or(End::Filled, End::TooMuchLost))
    }

    fn new_filler(self: &Rc<Self>, slot: usize) -> Option<Rc<Filler>> {
        if self.is_starving() {
            return None;
        }
        let filler = Filler::new(self, slot)?;
        let mut all = self.rebuild.fillers.borrow_mut();
        all.retain(|f| f.strong_count() > 0);
        all.push(Rc::downgrade(&filler));
        Some(filler)
    }

    /// A filler, as soon as there is memory that no host waits for.
    async fn filler(self: &Rc<Self>, run: &Run) -> Option<Rc<Filler>> {
        loop {
            if run.end.get().is_some() {
                return None;
            }
            if let Some(end) = self.halt(run.slot) {
                run.ends(end);
                return None;
            }
            if let Some(filler) = self.new_filler(run.slot) {
                return Some(filler);
            }
            self.core.reactor().sleep(NAP).await;
        }
    }

    /// Fills stripes until there are none left to begin with, or the rebuild ends.
    async fn fill_stripes(self: Rc<Self>, mut filler: Rc<Filler>, run: Rc<Run>) {
        let slot = run.slot;
        let mut again = None;
        while run.end.get().is_none() {
            if let Some(end) = self.halt(slot) {
                return run.ends(end);
            }
            let Some(leave) = self.rebuild.pace.leave(&self).await else { continue };
            let stripe = match again.take() {
                Some(stripe) => stripe,
                None => match self.rebuild.fillings.next(slot, |at| self.busy_from(at)) {
                    Next::Stripe(stripe) => stripe,
                    Next::Wait | Next::Done => return,
                },
            };
            match self.fill_stripe(&filler, stripe, leave.most).await {
                Outcome::Filled => {}
                Outcome::MemberFailed => return run.ends(self.halt(slot).unwrap_or(End::MemberFailed)),
                Outcome::TooMuchLost(row) => {
                    if let Some(end) = self.halt(slot) {
                        return run.ends(end);
                    }
                    // It stays out of sync; whoever writes to all of it mends it.
                    run.lost.set(run.lost.get() + 1);
                    tracing::error!(
                        "array '{}': stripe {stripe}: bytes {} to {} of its strips cannot be read on more members than there is parity: the rebuild of \
                         member {slot} leaves the stripe as it is",
                        self.shared.name,
                        row.lo,
                        row.hi
                    );
                    if run.lost.get() >= MOST_LOST {
                        return run.ends(End::TooMuchLost(stripe));
                    }
                }
                Outcome::GivenUp => {
                    // What it lent hangs on the member that failed.
                    let Some(other) = self.filler(&run).await else { return };
                    (filler, again) = (other, Some(stripe));
                    continue;
                }
            }
            drop(leave);
            self.show_rebuilds();
            let due = self.core.now().saturating_sub(run.stored.get())
                >= self.core.reactor().ticks(self.tuning.rebuild_checkpoint);
            if due && !run.storing.replace(true) {
                let stored = self.checkpoint(slot).await;
                run.stored.set(self.core.now());
                run.storing.set(false);
                if stored.is_err() {
                    return run.ends(End::Offline);
                }
            }
        }
    }

    async fn fill_stripe(self: &Rc<Self>, filler: &Rc<Filler>, stripe: u64, most: u32) -> Outcome {
        let slot = filler.slot;
        let visit = self.visit(stripe, true).await;
        let mut outcome = Outcome::Filled;
        // Unmapped since, or never mapped: whoever writes to it next writes to all of it.
        if self.shared.is_mapped(stripe) {
            faults::enter(Window::RebuildStep);
            outcome = filler.fill(stripe, most).await;
            faults::leave(Window::RebuildStep);
            self.rebuild.rebuilt[slot].set(self.rebuild.rebuilt[slot].get() + u64::from(outcome == Outcome::Filled));
        }
        if outcome == Outcome::Filled {
            // Under the lock: the next transaction of the stripe finds it in sync.
            self.rebuild.fillings.filled(slot, stripe);
        }
        drop(visit);
        outcome
    }

    /// The first stripe from `at` on that holds data or that somebody works on. What is passed may hold no transaction that does not write to the member.
    fn busy_from(&self, at: u64) -> u64 {
        let (Ok(mapped) | Err(mapped)) = self.shared.next_mapped(at);
        self.stripes.first_busy(at..mapped).unwrap_or(mapped)
    }

    /// Stores how far the rebuild of `slot` is: what is stored as filled is durable before.
    async fn checkpoint(self: &Rc<Self>, slot: usize) -> Result<(), Offline> {
        let Some(at) = self.rebuild.fillings.progress(slot) else { return Ok(()) };
        if self.table.borrow().members[slot].rebuild == Some(at) {
            return Ok(());
        }
        if !faults::is(Mutant::RebuildProgressEarly) {
            self.round().await?;
        }
        self.update(|sb| {
            let entry = &mut sb.members[slot];
            if entry.state == MemberState::Rebuilding {
                entry.rebuild = Some(at);
            }
        })
        .await
    }

    /// Every stripe of the member in `slot` was filled: it becomes one in sync. False: it failed.
    async fn promote(self: &Rc<Self>, slot: usize) -> Result<bool, Offline> {
        // What was filled is durable, and so is all that was written without it while it was not.
        self.round().await?;
        let filled = || self.shared.state(slot) == MemberState::Rebuilding;
        self.update(|sb| {
            let entry = &mut sb.members[slot];
            if filled() && matches!(entry.state, MemberState::Rebuilding) {
                *entry = MemberEntry::in_sync(entry.uuid);
            }
        })
        .await?;
        if !filled() {
            return Ok(false);
        }
        self.rebuild.fillings.end(slot);
        self.shared.set_state(slot, MemberState::InSync);
        self.shared.admit(slot);
        self.show_rebuilds();
        self.forget_intent().await;
        Ok(true)
    }

    /// Tells all cores how far rebuilds are.
    pub(in crate::ec) fn show_rebuilds(&self) {
        let stripes_total = self.shared.layout.stripes;
        let of = |slot: usize| {
            let Rebuild { mode, progress } = self.rebuild.fillings.progress(slot)?;
            let stripes_rebuilt = self.rebuild.rebuilt[slot].get();
            let state = RebuildState::Running;
            Some(RebuildProgress { slot, mode, state, stripes_done: progress, stripes_total, stripes_rebuilt })
        };
        self.shared.rebuild.show(masked(self.rebuild.fillings.mask()).filter_map(of));
    }

    /// The bitmap has been read: rebuilds that were under way lack what it names.
    pub(in crate::ec) fn resume_rebuilds(&self) {
        for slot in masked(self.rebuild.fillings.mask()) {
            if let Some(at) = self.rebuild.fillings.progress(slot) {
                self.rebuild.fillings.begin(slot, at, Some(self.intent.bits.borrow().clone()));
            }
        }
        self.show_rebuilds();
    }

    /// The device in `slot` becomes a member that lacks what `at` says. Who sees it as rebuilding sees its progress, too.
    pub(super) fn rebuild_begins(&self, slot: usize, at: Rebuild) {
        self.rebuild.fillings.begin(slot, at, Some(self.intent.bits.borrow().clone()));
        self.rebuild.rebuilt[slot].set(0);
        self.shared.rebuild.set_stopped(false);
        self.show_rebuilds();
        self.shared.set_state(slot, MemberState::Rebuilding);
    }
}

/// One run over the stripes of a member.
struct Run {
    slot: usize,
    end: Cell<Option<End>>,
    /// Stripes that could not be decoded.
    lost: Cell<u32>,
    /// When progress was stored.
    stored: Cell<u64>,
    storing: Cell<bool>,
}

impl Run {
    fn ends(&self, end: End) {
        if self.end.get().is_none() {
            self.end.set(Some(end));
        }
    }
}
