//! Reset: one at a time per device. Every core holds back what is new, aborts what is in flight, and waits for it; then the
//! device itself is reset, and requests pass again.

use std::collections::VecDeque;
use std::sync::Arc;

use longshore_reactor::CoreHandle;

use crate::channel::ChannelInner;
use crate::fanout::with_channel;
use crate::io::IoRef;
use crate::job;
use crate::node::BdevNode;

/// The reset that runs, and those that wait.
#[derive(Default)]
pub(crate) struct ResetQueue {
    active: bool,
    waiting: VecDeque<(u64, CoreHandle)>,
}

impl ResetQueue {
    fn enter(&mut self, ticket: u64, core: CoreHandle) -> bool {
        if self.active {
            self.waiting.push_back((ticket, core));
            return false;
        }
        self.active = true;
        true
    }

    fn leave(&mut self) -> Option<(u64, CoreHandle)> {
        let next = self.waiting.pop_front();
        self.active = next.is_some();
        next
    }

    pub(crate) fn forget(&mut self, ticket: u64) -> bool {
        let n = self.waiting.len();
        self.waiting.retain(|(t, _)| *t != ticket);
        self.waiting.len() != n
    }

    pub(crate) fn active(&self) -> bool {
        self.active
    }
}

/// Queues a reset.
pub(crate) fn submit(ch: &ChannelInner, io: IoRef) {
    let node = ch.node.clone();
    let core = ch.core().reactor().handle();
    let (ticket, first) = node.with_locks(|ticket, _, resets| (ticket, resets.enter(ticket, core.clone())));
    ch.parked.borrow_mut().push((ticket, io));
    if first {
        quiesce(&node, ticket, core);
    }
}

fn quiesce(node: &Arc<BdevNode>, ticket: u64, owner: CoreHandle) {
    let stop = |ch: &ChannelInner, ack| {
        if !ch.resetting.replace(true) {
            ch.freeze();
        }
        ch.abort_all();
        ch.drain(Box::new(move || drop(ack)));
    };
    let after = node.clone();
    node.each_channel(node.cores(), stop, move || {
        owner.send(move |_| {
            let mut found = false;
            with_channel(&after, |ch| {
                found = true;
                ready(ch, ticket);
            });
            if !found {
                finish(&after);
            }
        });
    });
}

fn ready(ch: &ChannelInner, ticket: u64) {
    let parked = {
        let mut p = ch.parked.borrow_mut();
        p.iter().position(|(t, _)| *t == ticket).map(|i| p.remove(i))
    };
    match parked {
        Some((_, io)) => job::reset(ch, io),
        None => end(ch), // aborted meanwhile
    }
}

/// The device was reset.
pub(crate) fn end(ch: &ChannelInner) {
    finish(&ch.node);
}

fn finish(node: &Arc<BdevNode>) {
    let next = node.with_locks(|_, _, resets| resets.leave());
    match next {
        // The next one finds everything held back already.
        Some((ticket, owner)) => quiesce(node, ticket, owner),
        None => node.each_channel(
            node.cores(),
            |ch, _| {
                if ch.resetting.replace(false) {
                    ch.resume();
                }
            },
            || {},
        ),
    }
}
