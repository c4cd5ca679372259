//! What a transaction knows of itself, and which of the host's writes, and which rows of them, it does next.

use super::super::engine::Engine;
use super::super::layout::Layout;
use super::super::memory::Holdings;
use super::compute::range;
use super::plan::{Plan, Span, Touch, Way};
use super::rows;
use crate::Status;
use crate::io::IoRef;

/// What the stripe was when a pass began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Holds nothing: whole strips are written, with zeroes around the data.
    First,
    /// Holds data that a crash may take away again: parity is kept up, without records.
    Fresh,
    /// Holds data: records first.
    Live,
}

pub(super) struct State {
    pub(super) h: Holdings,
    pub(super) stripe: u64,
    /// It has the stripe's lock.
    pub(super) locked: bool,
    pub(super) kind: Kind,
    /// Rows below are done.
    from: u32,
    /// Rows of this pass.
    pub(super) window: Span,
    /// Most bytes of rows in a pass, a multiple of the block.
    pub(super) most: u32,
    /// The only write of this pass: each that touches the window is done by itself.
    alone: Option<usize>,
    /// Writes of this pass.
    pub(super) active: u64,
    /// Writes that touch a block which cannot be kept consistent.
    pub(super) refused: u64,
    /// It waited long for memory: it may take what is set aside.
    pub(super) in_need: bool,
    pub(super) touch: Touch,
    pub(super) plan: Plan,
    /// Strips that could not be read.
    pub(super) bad: u64,
    /// Those of them whose member does not read.
    pub(super) faulty: u64,
    /// Too much of this block could not be read, and all are asked once more.
    pub(super) asked: bool,
    /// Strips that are in use, as of the last step.
    pub(super) up: u64,
    /// Something could not be read in this step.
    pub(super) again: bool,
    pub(super) slot: Option<u32>,
    pub(super) id: u64,
    pub(super) tail: u64,
    pub(super) degraded: bool,
    /// How it ended.
    pub(super) outcome: Status,
}

impl State {
    pub(super) fn new(engine: &Engine) -> State {
        let l = &engine.shared.layout;
        State {
            h: Holdings::new(l.n() + l.k + 1, 3 * l.n(), engine.zeroes.clone(), engine.spare.clone()),
            stripe: 0,
            locked: false,
            kind: Kind::First,
            from: 0,
            window: Span::default(),
            most: u32::MAX,
            alone: None,
            active: 0,
            refused: 0,
            in_need: false,
            touch: Touch::of(l.k, l.strip, Span::default(), std::iter::empty()),
            plan: Plan { way: Way::Plain, read: 0, decode: 0 },
            bad: 0,
            faulty: 0,
            asked: false,
            up: 0,
            again: false,
            slot: None,
            id: 0,
            tail: 0,
            degraded: false,
            outcome: Status::SUCCESS,
        }
    }

    /// Takes over writes of the host to a stripe that is locked for them.
    pub(super) fn start(&mut self, stripe: u64, hosts: &mut Vec<IoRef>) {
        (self.stripe, self.locked, self.from, self.most) = (stripe, true, 0, u32::MAX);
        (self.alone, self.refused, self.in_need, self.bad, self.faulty) = (None, 0, false, 0, 0);
        self.asked = false;
        hosts.drain(..).for_each(|io| self.h.hold(io));
    }

    /// Bytes of the stripe's data that each of the writes in `mask` covers.
    fn ranges(&self, l: &Layout, mask: u64) -> impl Iterator<Item = (u64, u64)> + Clone {
        super::masked(mask).map(move |host| range(l, self.stripe, self.h.host(host)))
    }

    /// Writes that were not refused.
    fn wanted(&self) -> u64 {
        match self.h.hosts() {
            0 => 0,
            hosts => (u64::MAX >> (64 - hosts)) & !self.refused,
        }
    }

    /// Chooses what the next pass writes. False: nothing is left.
    pub(super) fn choose(&mut self, l: &Layout) -> bool {
        self.active = self.alone.map_or(self.wanted(), |host| 1 << host);
        if self.alone.is_none() {
            let writes = self.ranges(l, self.active);
            // What was never written is written whole anyway.
            let window = match self.kind {
                Kind::First => rows::hull(l.strip, self.from, writes),
                Kind::Fresh | Kind::Live => rows::window(l.strip, self.from, writes),
            };
            let Some(window) = window else { return false };
            self.window = Span { lo: window.lo, hi: window.hi.min(window.lo.saturating_add(self.most)) };
        }
        self.touch = Touch::of(l.k, l.strip, self.window, self.ranges(l, self.active));
        true
    }

    /// True if nothing is left after what is done so far.
    pub(super) fn is_done(&self, l: &Layout) -> bool {
        self.alone.is_none() && rows::hull(l.strip, self.from, self.ranges(l, self.wanted())).is_none()
    }

    /// Passes take half of these rows.
    pub(super) fn halve(&mut self, l: &Layout) {
        self.most = (self.window.len() / 2).next_multiple_of(l.block);
    }

    fn touching(&self, l: &Layout) -> u64 {
        let touches = |host: &usize| !rows::is_outside(l.strip, self.window, range(l, self.stripe, self.h.host(*host)));
        super::masked(self.wanted()).filter(touches).fold(0, |mask, host| mask | 1 << host)
    }

    /// The writes to these rows are done one by one. False: they are already, or it is one.
    pub(super) fn part(&mut self, l: &Layout) -> bool {
        let touching = self.touching(l);
        if self.alone.is_some() || touching.count_ones() < 2 {
            return false;
        }
        self.alone = Some(touching.trailing_zeros() as usize);
        true
    }

    /// Those that were to be written in this pass are refused.
    pub(super) fn refuse(&mut self, l: &Layout) {
        self.refused |= self.touching(l) & self.active;
        self.advance(l);
    }

    /// This pass is done.
    pub(super) fn advance(&mut self, l: &Layout) {
        (self.bad, self.faulty, self.asked) = (0, 0, false);
        if let Some(host) = self.alone {
            let later = self.touching(l) & (u64::MAX << host << 1);
            self.alone = (later != 0).then(|| later.trailing_zeros() as usize);
        }
        if self.alone.is_none() {
            self.from = self.window.hi;
            self.most = self.most.saturating_mul(2);
        }
    }
}
