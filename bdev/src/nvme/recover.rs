//! A lost controller is connected again, within limits; requests wait meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_nvme::host::HostError;
use longshore_reactor::{Reactor, Timer, oneshot};

use super::controllers::AttachError;
use super::entry::{Entry, Path};

/// How often it is looked whether somebody else brought the controller back.
const LOOK: Duration = Duration::from_millis(20);

/// Scans of an attempt to connect again, each ended by the loss of the controller, before the attempt has failed.
const SCANS: u32 = 4;

impl Entry {
    /// The controller or one of its queues is lost: connects it again, unless that is under way.
    ///
    /// A lost queue alone takes the whole controller with it: its writes may still be executed, and only the end of the
    /// association ends them for certain.
    pub(super) fn lost(self: &Arc<Self>) {
        if !self.recovering.swap(true, Ordering::AcqRel) {
            self.recover(None);
        }
    }

    /// Connects the controller again; requests wait for it. Returns how the first attempt ended.
    pub(super) async fn reset(self: &Arc<Self>) -> Result<(), HostError> {
        let me = self.clone();
        let end = self.ctrl.core().spawn(move |r| async move {
            while me.recovering.swap(true, Ordering::AcqRel) {
                // Under way already: tries at once, and who is at it finds that it succeeded.
                me.ctrl.reset().await?;
                while me.recovering.load(Ordering::Acquire) && me.path() != Path::Closing {
                    r.sleep(LOOK).await;
                }
                match me.path() {
                    Path::Closing => return Err(HostError::Gone),
                    Path::Up if !me.ctrl.needs_reset() => return Ok(()),
                    _ => {}
                }
            }
            let (tx, rx) = oneshot::channel();
            me.recover(Some(tx));
            rx.await?
        });
        end.await?
    }

    fn recover(self: &Arc<Self>, first: Option<oneshot::Sender<Result<(), HostError>>>) {
        let me = self.clone();
        self.set_path(Path::Held);
        drop(self.ctrl.core().spawn(move |r| async move {
            me.attempts(&r, first).await;
            me.recovering.store(false, Ordering::Release);
            // A loss that was reported before that was taken for the one that had just been mended.
            if me.path() == Path::Up && me.ctrl.needs_reset() {
                me.lost();
            }
        }));
    }

    async fn attempts(self: &Arc<Self>, r: &Reactor, mut first: Option<oneshot::Sender<Result<(), HostError>>>) {
        let _deadlines = self.deadlines(r);
        let policy = self.options.reconnect;
        let mut again = false;
        loop {
            let end = self.attempt(r, again).await;
            if let Some(tx) = first.take() {
                let _ = tx.send(end.clone());
            }
            let Err(e) = end else {
                if again {
                    tracing::info!("controller {} is connected again", self.name);
                }
                return self.set_path(Path::Up);
            };
            if self.path() == Path::Closing {
                return;
            }
            match again {
                false => tracing::warn!("controller {} could not be connected again: {e}", self.name),
                true => tracing::debug!("controller {} could not be connected again: {e}", self.name),
            }
            if policy.reconnect_delay_sec == 0 {
                return self.set_path(Path::Failing);
            }
            again = true;
            let until = r.rdtsc().saturating_add(r.ticks(policy.delay()));
            while r.rdtsc() < until && self.path() != Path::Closing && self.ctrl.needs_reset() {
                r.sleep(LOOK).await;
            }
            if self.path() == Path::Closing {
                return;
            }
        }
    }

    async fn attempt(self: &Arc<Self>, r: &Reactor, again: bool) -> Result<(), HostError> {
        if !again || self.ctrl.needs_reset() {
            self.ctrl.reset().await?;
        }
        // Nothing is sent again before it is known to go to the same namespaces, all of them seen by one association.
        let mut lost = 0;
        loop {
            let generation = self.ctrl.generation();
            let end = self.rescan(r, false).await;
            if self.path() == Path::Closing {
                return Err(HostError::Gone);
            }
            match end {
                _ if self.ctrl.needs_reset() => {
                    lost += 1;
                    if lost == SCANS {
                        let why = self.ctrl.why_lost();
                        return Err(HostError::Lost(format!(
                            "it was lost {SCANS} times while its namespaces were looked at: {why}"
                        )));
                    }
                    self.ctrl.reset().await?;
                }
                // Somebody else brought it back meanwhile.
                _ if self.ctrl.generation() != generation => {}
                Err(AttachError::Host(e)) => return Err(e),
                _ => return Ok(()),
            }
        }
    }

    /// What happens when the controller is not back in time, as long as this is kept.
    fn deadlines(self: &Arc<Self>, r: &Reactor) -> [Option<Timer>; 2] {
        let policy = self.options.reconnect;
        let me = Arc::downgrade(self);
        let fail = policy.fast_io_fail().map(|after| {
            r.timer(after, move |_| {
                if let Some(e) = me.upgrade() {
                    tracing::warn!("controller {} is lost for {} s: its I/O fails", e.name, after.as_secs());
                    e.set_path(Path::Failing);
                }
            })
        });
        let me = Arc::downgrade(self);
        let remove = policy.loss().map(|after| {
            r.timer(after, move |_| {
                let Some((e, owner)) = me.upgrade().and_then(|e| e.owner.upgrade().map(|o| (e, o))) else { return };
                tracing::error!("controller {} is lost for {} s: it is removed", e.name, after.as_secs());
                owner.remove_lost(&e);
            })
        });
        [fail, remove]
    }
}
