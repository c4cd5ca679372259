//! Slots that devices are being taken into.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use longshore_reactor::Reactor;
use uuid::Uuid;

use crate::ec::create::within;
use crate::ec::device::Ec;
use crate::node::BdevNode;
use crate::registry::BdevError;

/// Patience with requests that still hang on the device that is to leave a slot, unless set otherwise. Clients wait for an answer for 60 s.
pub const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// How soon a wait learns that patience was set anew; the least patience, as the core that knows is asked first.
const ASKED_EACH: Duration = Duration::from_millis(100);

/// Slots, by array, that a device is being taken into.
#[derive(Default)]
pub(super) struct Seats(Mutex<BTreeMap<(Uuid, usize), Replacement>>);

/// A device that is being taken into a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Its name.
    pub name: String,
    /// The device of which requests still hang, and which has to end them first.
    pub waits_for: Option<String>,
}

/// A slot that nobody else takes a device into.
pub(super) struct Seat<'a>(&'a Seats, (Uuid, usize));

impl Seats {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(Uuid, usize), Replacement>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For `device`, if no other is on its way there.
    pub(super) fn take(&self, node: &BdevNode, slot: usize, device: &str) -> Result<Seat<'_>, BdevError> {
        let at = (node.uuid(), slot);
        match self.all().entry(at) {
            Entry::Vacant(free) => drop(free.insert(Replacement { name: device.to_owned(), waits_for: None })),
            Entry::Occupied(_) => {
                let why = "another device is being taken into that slot: wait for it";
                return Err(BdevError::Busy { name: node.name().to_owned(), why });
            }
        }
        Ok(Seat(self, at))
    }

    /// The device that is being taken into `slot` of `array`.
    pub(super) fn of(&self, array: Uuid, slot: usize) -> Option<Replacement> {
        self.all().get(&(array, slot)).cloned()
    }

    /// Whether a device is being taken into `slot` of `array`.
    pub(super) fn has(&self, array: Uuid, slot: usize) -> bool {
        self.all().contains_key(&(array, slot))
    }

    /// Whether a device is being taken into some slot of `array`.
    pub(super) fn any(&self, array: Uuid) -> bool {
        self.all().keys().any(|at| at.0 == array)
    }
}

impl Seat<'_> {
    /// Ends when nothing of the array is in flight on the device that was in the slot. `patience` is asked again and again: it may be set meanwhile.
    pub(super) async fn vacated(
        &self,
        reactor: &Reactor,
        ec: &Ec,
        patience: impl Fn() -> Duration,
    ) -> Result<(), BdevError> {
        let slot = self.1.1;
        let name = ec.shared.member_name(slot);
        self.waits_for(name.clone());
        let why = "requests of the array hang on it: try again when it has ended them";
        let (began, mut vacated) = (Instant::now(), pin!(ec.vacated(slot)));
        let outcome = loop {
            let left = patience().max(ASKED_EACH).saturating_sub(began.elapsed());
            match within(reactor, left.min(ASKED_EACH), vacated.as_mut()).await {
                Some(outcome) => break outcome,
                None if left.is_zero() => {
                    let name = name.unwrap_or_else(|| ec.shared.name.clone());
                    break Err(BdevError::Busy { name, why });
                }
                None => {}
            }
        };
        self.waits_for(None);
        outcome
    }

    fn waits_for(&self, device: Option<String>) {
        if let Some(r) = self.0.all().get_mut(&self.1) {
            r.waits_for = device;
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}
