//! Requests in flight, by number: which they are and since when.

use crate::io::IoId;

/// A request in flight.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    pub(super) id: IoId,
    /// The member's slot.
    pub(super) slot: u32,
    /// Ticks when it was submitted.
    pub(super) since: u64,
    /// Who sent it asked for its end: it is not tried again, nor done in another way.
    pub(super) asked: bool,
}

/// Requests in flight. Numbers of ended ones are used again.
#[derive(Default)]
pub(super) struct Flights {
    all: Vec<Option<Flight>>,
    free: Vec<u32>,
}

impl Flights {
    /// Enters a request; its number.
    #[inline]
    pub(super) fn insert(&mut self, flight: Flight) -> u32 {
        match self.free.pop() {
            Some(at) => {
                self.all[at as usize] = Some(flight);
                at
            }
            None => {
                self.all.push(Some(flight));
                self.all.len() as u32 - 1
            }
        }
    }

    /// Takes request `at` out: it ended.
    #[inline]
    pub(super) fn remove(&mut self, at: u32) -> Option<Flight> {
        let flight = self.all[at as usize].take();
        self.free.push(at);
        flight
    }

    /// Requests in flight.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// Notes that the end of `id` was asked for. False: it is not in flight.
    pub(super) fn ask(&mut self, id: IoId) -> Option<&mut Flight> {
        let f = self.all.iter_mut().flatten().find(|f| f.id == id)?;
        f.asked = true;
        Some(f)
    }

    /// Request `at`.
    pub(super) fn get(&self, at: u32) -> Option<&Flight> {
        self.all.get(at as usize)?.as_ref()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.all.iter().flatten()
    }
}
