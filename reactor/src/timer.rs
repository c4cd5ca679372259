//! Timers: an indexed binary heap. Inserting reuses slots, so that steady-state use does not allocate; cancelling is exact.

/// Names a timer; generation-checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerId {
    index: u32,
    generation: u32,
}

struct Slot<T> {
    deadline: u64,
    /// Tie-break: equal deadlines fire in the order they were set.
    order: u64,
    generation: u32,
    /// Position in the heap, or `IDLE` while firing or free.
    position: u32,
    action: Option<T>,
}

const IDLE: u32 = u32::MAX;

/// The heap.
pub(crate) struct Timers<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    heap: Vec<u32>,
    order: u64,
}

impl<T> Timers<T> {
    pub(crate) fn new() -> Self {
        Timers { slots: Vec::new(), free: Vec::new(), heap: Vec::new(), order: 0 }
    }

    /// The earliest deadline.
    #[inline]
    pub(crate) fn next(&self) -> Option<u64> {
        self.heap.first().map(|&i| self.slots[i as usize].deadline)
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(crate) fn insert(&mut self, deadline: u64, action: T) -> TimerId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { deadline: 0, order: 0, generation: 0, position: IDLE, action: None });
            self.slots.len() as u32 - 1
        });
        let generation = self.slots[index as usize].generation;
        self.enqueue(index, deadline, action);
        TimerId { index, generation }
    }

    fn enqueue(&mut self, index: u32, deadline: u64, action: T) {
        let slot = &mut self.slots[index as usize];
        (slot.deadline, slot.order, slot.action) = (deadline, self.order, Some(action));
        slot.position = self.heap.len() as u32;
        self.order += 1;
        self.heap.push(index);
        self.up(self.heap.len() - 1);
    }

    /// Takes the action of a timer that is due. Its slot stays reserved until [`rearm`](Self::rearm) or
    /// [`cancel`](Self::cancel), so that it can be cancelled while it runs.
    pub(crate) fn fire(&mut self, now: u64) -> Option<(TimerId, u64, T)> {
        let &index = self.heap.first()?;
        let slot = &mut self.slots[index as usize];
        if slot.deadline > now {
            return None;
        }
        let id = TimerId { index, generation: slot.generation };
        let (deadline, action) = (slot.deadline, slot.action.take()?);
        self.unlink(0);
        Some((id, deadline, action))
    }

    /// Sets a fired timer again, unless it was cancelled meanwhile; then the action is given back.
    pub(crate) fn rearm(&mut self, id: TimerId, deadline: u64, action: T) -> Option<T> {
        match self.slots.get(id.index as usize) {
            Some(s) if s.generation == id.generation && s.position == IDLE => {
                self.enqueue(id.index, deadline, action);
                None
            }
            _ => Some(action),
        }
    }

    /// Moves the deadline of a waiting timer. False: it is not waiting.
    pub(crate) fn reset(&mut self, id: TimerId, deadline: u64) -> bool {
        match self.slots.get_mut(id.index as usize) {
            Some(s) if s.generation == id.generation && s.position != IDLE => {
                (s.deadline, s.order) = (deadline, self.order);
                self.order += 1;
                let p = s.position as usize;
                self.up(p);
                let p = self.slots[id.index as usize].position as usize;
                self.down(p);
                true
            }
            _ => false,
        }
    }

    /// Removes a timer, waiting or firing; its action is given back for the caller to drop.
    pub(crate) fn cancel(&mut self, id: TimerId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.generation = slot.generation.wrapping_add(1);
        let (action, position) = (slot.action.take(), slot.position);
        if position != IDLE {
            self.unlink(position as usize);
        }
        self.free.push(id.index);
        action
    }

    /// Everything that waits, for the caller to drop.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        let heap = std::mem::take(&mut self.heap);
        heap.into_iter()
            .filter_map(|i| {
                let s = &mut self.slots[i as usize];
                s.position = IDLE;
                s.generation = s.generation.wrapping_add(1);
                self.free.push(i);
                s.action.take()
            })
            .collect()
    }

    fn unlink(&mut self, position: usize) {
        let last = self.heap.len() - 1;
        self.swap(position, last);
        let index = self.heap.pop().expect("a linked timer is in the heap");
        self.slots[index as usize].position = IDLE;
        if position < last {
            self.up(position);
            self.down(position);
        }
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let key = |p: usize| {
            let s = &self.slots[self.heap[p] as usize];
            (s.deadline, s.order)
        };
        key(a) < key(b)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for p in [a, b] {
            self.slots[self.heap[p] as usize].position = p as u32;
        }
    }

    fn up(&mut self, mut p: usize) {
        while p > 0 && self.before(p, (p - 1) / 2) {
            self.swap(p, (p - 1) / 2);
            p = (p - 1) / 2;
        }
    }

    fn down(&mut self, mut p: usize) {
        loop {
            let mut least = p;
            for c in [2 * p + 1, 2 * p + 2] {
                if c < self.heap.len() && self.before(c, least) {
                    least = c;
                }
            }
            if least == p {
                return;
            }
            self.swap(p, least);
            p = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_by_deadline_and_equal_ones_in_the_order_they_were_set() {
        let mut t = Timers::new();
        for (d, name) in [(30, 'c'), (10, 'a'), (30, 'd'), (20, 'b')] {
            t.insert(d, name);
        }
        assert_eq!(t.next(), Some(10));
        let mut fired = String::new();
        while let Some((id, _, a)) = t.fire(30) {
            fired.push(a);
            t.cancel(id);
        }
        assert_eq!(fired, "abcd");
        assert!(t.next().is_none());
    }

    #[test]
    fn a_cancelled_timer_does_not_fire_and_its_stale_name_is_harmless() {
        let mut t = Timers::new();
        let a = t.insert(1, 'a');
        assert_eq!(t.cancel(a), Some('a'));
        let b = t.insert(1, 'b');
        assert_eq!(t.cancel(a), None);
        assert!(!t.reset(a, 5));
        let (id, _, action) = t.fire(1).unwrap();
        assert_eq!((id, action), (b, 'b'));
        assert_eq!(t.cancel(b), None, "cancelled while firing");
        assert_eq!(t.rearm(b, 9, 'b'), Some('b'), "so it does not come back");
    }

    #[test]
    fn any_sequence_agrees_with_a_sorted_list() {
        let mut seed = 1u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut t = Timers::new();
        let mut model: Vec<(u64, u64, TimerId)> = Vec::new();
        for step in 0..20_000u64 {
            match random(4) {
                0 | 1 => {
                    let d = random(1000);
                    let id = t.insert(d, step);
                    model.push((d, step, id));
                }
                2 if !model.is_empty() => {
                    let (_, v, id) = model.swap_remove(random(model.len() as u64) as usize);
                    assert_eq!(t.cancel(id), Some(v));
                }
                _ => {
                    let now = random(1000);
                    let due = model.iter().enumerate().filter(|(_, m)| m.0 <= now).min_by_key(|(_, m)| (m.0, m.1));
                    match due.map(|(i, _)| i) {
                        None => assert!(t.fire(now).is_none()),
                        Some(i) => {
                            let (d, v, id) = model.swap_remove(i);
                            assert_eq!(t.fire(now), Some((id, d, v)));
                            t.cancel(id);
                        }
                    }
                }
            }
            assert_eq!(t.len(), model.len());
        }
    }
}
