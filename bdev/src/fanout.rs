//! Running something on every core that has a device open.

use std::sync::{Arc, Mutex};

use longshore_reactor::{CoreHandle, Reactor, oneshot};

use crate::channel::{Channel, ChannelInner};
use crate::core::CoreState;
use crate::node::BdevNode;

type Then = Box<dyn FnOnce() + Send>;

/// Held by everybody who has not done their part yet. When the last one lets go, what was to follow runs.
#[derive(Clone)]
pub(crate) struct Ack(#[allow(dead_code, reason = "held for its drop")] Arc<Last>);

struct Last(Mutex<Option<Then>>);

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(then) = self.0.get_mut().unwrap_or_else(|e| e.into_inner()).take() {
            then();
        }
    }
}

impl Ack {
    fn new(then: Then) -> Ack {
        Ack(Arc::new(Last(Mutex::new(Some(then)))))
    }
}

/// Runs `f` with the channel of `node` on this core, if there is one.
pub(crate) fn with_channel(node: &Arc<BdevNode>, f: impl FnOnce(&ChannelInner)) {
    let Some(core) = CoreState::existing() else { return };
    let key = Arc::as_ptr(node) as usize;
    let ch = core.channels().borrow().get(&key).and_then(Channel::upgrade);
    if let Some(ch) = ch {
        f(ch.inner());
    }
}

impl BdevNode {
    /// Runs `f` on each core that has the device open now. When all have let go of their [`Ack`], `then` runs, on the core of
    /// the last of them.
    pub(crate) fn each_channel(
        self: &Arc<Self>,
        cores: Vec<CoreHandle>,
        f: impl Fn(&ChannelInner, Ack) + Send + Sync + 'static,
        then: impl FnOnce() + Send + 'static,
    ) {
        let ack = Ack::new(Box::new(then));
        let f = Arc::new(f);
        for core in cores {
            let (node, f, ack) = (self.clone(), f.clone(), ack.clone());
            core.send(move |_: &Reactor| with_channel(&node, |ch| f(ch, ack)));
        }
    }

    /// As [`each_channel`](BdevNode::each_channel) over all of them, with a future that ends when all have done their part.
    pub(crate) fn on_channels(
        self: &Arc<Self>,
        f: impl Fn(&ChannelInner, Ack) + Send + Sync + 'static,
    ) -> oneshot::Receiver<()> {
        let (tx, rx) = oneshot::channel();
        self.each_channel(self.cores(), f, move || {
            let _ = tx.send(());
        });
        rx
    }

    /// For the device's own control plane: calls [`IoChannel::notify`](crate::IoChannel::notify) on each core that has it open. The
    /// receiver fires when all were told.
    pub fn notify_channels(self: &Arc<Self>, word: u64) -> oneshot::Receiver<()> {
        self.on_channels(move |ch, _| ch.module().notify(word))
    }
}
