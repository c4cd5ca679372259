//! One at a time, in the order of asking.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longshore_reactor::oneshot;
use uuid::Uuid;

/// Hands out turns.
#[derive(Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Default)]
struct State {
    taken: bool,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// A turn; it ends when this is dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn.
    pub(super) async fn take(&self) -> Turn<'_> {
        let waiting = {
            let mut s = self.state();
            if std::mem::replace(&mut s.taken, true) {
                let (tx, rx) = oneshot::channel();
                s.waiting.push_back(tx);
                Some(rx)
            } else {
                None
            }
        };
        if let Some(waiting) = waiting {
            let _ = waiting.await;
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut s = self.0.state();
        while let Some(next) = s.waiting.pop_front() {
            if !next.is_closed() && next.send(()).is_ok() {
                return;
            }
        }
        s.taken = false;
    }
}

/// Slots, by array, that somebody waits for: until what hangs there has ended, spares cannot have them.
#[derive(Default)]
pub(super) struct Awaited(Mutex<BTreeSet<(Uuid, usize)>>);

impl Awaited {
    fn all(&self) -> MutexGuard<'_, BTreeSet<(Uuid, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: somebody waits for it already.
    pub(super) fn begin(&self, array: Uuid, slot: usize) -> bool {
        self.all().insert((array, slot))
    }

    /// Before spares are tried: what is refused from now on waits anew.
    pub(super) fn end(&self, array: Uuid, slot: usize) {
        self.all().remove(&(array, slot));
    }
}

/// Arrays that somebody looks for spares for. True: once more, when that is done.
#[derive(Default)]
pub(super) struct AtSpares(Mutex<BTreeMap<Uuid, bool>>);

impl AtSpares {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.all().is_empty()
    }

    /// False: somebody is at it, and will look again.
    pub(super) fn begin(&self, array: Uuid) -> bool {
        let mut all = self.all();
        if let Some(again) = all.get_mut(&array) {
            *again = true;
            return false;
        }
        all.insert(array, false);
        true
    }

    /// False: look again.
    pub(super) fn end(&self, array: Uuid) -> bool {
        let mut all = self.all();
        if all.get(&array) == Some(&true) {
            all.insert(array, false);
            return false;
        }
        all.remove(&array);
        true
    }
}
