//! Addresses that subsystems listen on: opened once for all of them, and closed with the last.
//!
//! Of those who want an address open, or closed, one asks the transport; the others wait and are told the same. So whoever is
//! told that it is open finds it open, and an address is not opened anew before it was closed.

use std::sync::Arc;

use longshore_reactor::oneshot;

use crate::address::Address;
use crate::error::TargetError;
use crate::target::{State, Target};

/// An address that somebody listens on.
#[derive(Default)]
pub(crate) struct Port {
    /// Listeners of subsystems there.
    users: u32,
    phase: Phase,
    /// Nobody wants it any more: the transport was told to give up opening it.
    cancelled: bool,
    /// They are told when the phase changes, and why if it could not be opened.
    waiters: Vec<oneshot::Sender<Option<TargetError>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Closed,
    /// One of those who want it open has asked the transport.
    Opening,
    Open,
    /// The transport was asked to close it.
    Closing,
}

impl Port {
    fn waiter(&mut self) -> oneshot::Receiver<Option<TargetError>> {
        let (tx, rx) = oneshot::channel();
        self.waiters.push(tx);
        rx
    }
}

impl State {
    /// One more subsystem listens there.
    pub(crate) fn use_port(&mut self, at: &Address) {
        self.ports.entry(at.clone()).or_default().users += 1;
    }

    /// One less. Afterwards the address is to be [closed](Target::close_port) if it was the last.
    pub(crate) fn leave_port(&mut self, at: &Address) {
        if let Some(p) = self.ports.get_mut(at) {
            p.users = p.users.saturating_sub(1);
        }
    }

    /// Those that subsystems listen on and nobody has opened.
    pub(crate) fn closed_ports(&self) -> Vec<Address> {
        let closed = self.ports.iter().filter(|(_, p)| p.users > 0 && p.phase == Phase::Closed);
        closed.map(|(a, _)| a.clone()).collect()
    }

    /// All that are open, or about to be, are closed: the target shuts down.
    pub(crate) fn unlisten_all(&mut self) -> Vec<oneshot::Receiver<()>> {
        let mut ends = Vec::new();
        for (a, p) in &mut self.ports {
            if matches!(p.phase, Phase::Open | Phase::Opening) {
                p.cancelled = true;
                ends.extend(self.kinds.get(&a.trtype).map(|k| k.unlisten(a)));
            }
        }
        ends
    }
}

/// Whoever opens or closes an address. The others go on when it is dropped, too.
struct Turn<'a> {
    target: &'a Target,
    at: &'a Address,
    /// What it is if this ends early; an address that may be open is closed.
    opening: bool,
    over: bool,
}

impl Turn<'_> {
    /// The outcome. True: it was given up meanwhile, and is closed whatever the outcome.
    fn ends(mut self, phase: Phase, why: Option<TargetError>) -> bool {
        self.over = true;
        self.settle(phase, why)
    }

    fn settle(&self, phase: Phase, why: Option<TargetError>) -> bool {
        let mut s = self.target.state();
        let Some(p) = s.ports.get_mut(self.at) else { return true };
        let cancelled = std::mem::take(&mut p.cancelled);
        p.phase = if cancelled { Phase::Closed } else { phase };
        let why = if cancelled { None } else { why };
        for w in p.waiters.drain(..) {
            let _ = w.send(why.clone());
        }
        if p.users == 0 && p.phase == Phase::Closed {
            s.ports.remove(self.at);
        }
        cancelled
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if self.opening {
            let s = self.target.state();
            drop(s.kinds.get(&self.at.trtype).map(|k| k.unlisten(self.at)));
        }
        self.settle(Phase::Closed, None);
    }
}

impl Target {
    /// Opens an address, or waits until another one has.
    ///
    /// # Errors
    /// It cannot be opened, or no subsystem listens there any more.
    pub(crate) async fn open_port(self: &Arc<Self>, at: &Address) -> Result<(), TargetError> {
        loop {
            let wait = {
                let mut s = self.state();
                if s.stopped {
                    return Err(TargetError::Stopped);
                }
                let Some(p) = s.ports.get_mut(at).filter(|p| p.users > 0) else {
                    return Err(TargetError::ListenerNotFound(at.clone()));
                };
                match p.phase {
                    Phase::Open => return Ok(()),
                    Phase::Closed => {
                        p.phase = Phase::Opening;
                        None
                    }
                    Phase::Opening | Phase::Closing => Some(p.waiter()),
                }
            };
            if let Some(wait) = wait {
                if let Ok(Some(e)) = wait.await {
                    return Err(e);
                }
                continue;
            }
            let turn = Turn { target: self, at, opening: true, over: false };
            let end = self.ask_transport(at).await;
            let phase = if end.is_ok() { Phase::Open } else { Phase::Closed };
            if !turn.ends(phase, end.clone().err()) {
                return end;
            }
        }
    }

    async fn ask_transport(self: &Arc<Self>, at: &Address) -> Result<(), TargetError> {
        // The subsystem must be known on every core before its first host can knock.
        self.publish().await?;
        let asked = {
            // Under the lock: it comes before the `unlisten` of whoever gives it up from now on.
            let s = self.state();
            if s.stopped || s.ports.get(at).is_none_or(|p| p.cancelled) {
                return Err(TargetError::Stopped);
            }
            match (s.kinds.get(&at.trtype), s.view.transports.get(&at.trtype)) {
                (Some(kind), Some(options)) => kind.listen(self, options, at),
                _ => return Err(TargetError::TransportMissing(at.trtype)),
            }
        };
        match asked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(TargetError::ListenFailed { address: at.clone(), errno: e.errno, why: e.why }),
            Err(_) => Err(TargetError::Stopped),
        }
    }

    /// Closes an address if no subsystem listens there any more, also while it is being opened.
    pub(crate) async fn close_port(self: &Arc<Self>, at: &Address) {
        loop {
            let (wait, end) = {
                let s = &mut *self.state();
                let Some(p) = s.ports.get_mut(at).filter(|p| p.users == 0) else { return };
                // Under the lock: what is asked for after this reaches the transport after it.
                let unlisten = || s.kinds.get(&at.trtype).map(|k| k.unlisten(at));
                match p.phase {
                    Phase::Closed => {
                        s.ports.remove(at);
                        return;
                    }
                    Phase::Open => {
                        p.phase = Phase::Closing;
                        (None, unlisten())
                    }
                    Phase::Opening if !p.cancelled => {
                        p.cancelled = true;
                        (Some(p.waiter()), unlisten())
                    }
                    Phase::Opening | Phase::Closing => (Some(p.waiter()), None),
                }
            };
            let turn = wait.is_none().then(|| Turn { target: self, at, opening: false, over: false });
            if let Some(end) = end {
                let _ = end.await;
            }
            if let Some(t) = turn {
                t.ends(Phase::Closed, None);
            }
            if let Some(w) = wait {
                let _ = w.await;
            }
        }
    }
}
