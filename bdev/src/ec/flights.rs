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
    pub(super) asked: Asked,
    /// It is done in another way if the member is slow.
    pub(super) hedge: bool,
}

/// Who asked for a request's end. Such a one is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nobody,
    /// The host, which wants nothing else instead.
    Host,
    /// The array, which does it in another way.
    Array,
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

    /// The host asks for the end of `id`; the slot of the member that has it. `None`: it is not in flight.
    pub(super) fn ask(&mut self, id: IoId) -> Option<usize> {
        let f = self.all.iter_mut().flatten().find(|f| f.id == id)?;
        f.asked = Asked::Host;
        Some(f.slot as usize)
    }

    /// The array asks for the end of what is hedged on the member in `slot`, and was sent before `until`; which they are.
    pub(super) fn hedge(&mut self, slot: usize, until: u64) -> Vec<IoId> {
        let is_meant =
            |f: &&mut Flight| f.slot as usize == slot && f.hedge && f.since < until && f.asked == Asked::Nobody;
        let meant = self.all.iter_mut().flatten().filter(is_meant);
        meant
            .map(|f| {
                f.asked = Asked::Array;
                f.id
            })
            .collect()
    }

    /// For so many ticks until `now` nobody looked after them: these do not count.
    pub(super) fn forgive(&mut self, ticks: u64, now: u64) {
        self.all.iter_mut().flatten().for_each(|f| f.since = now.min(f.since + ticks));
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
