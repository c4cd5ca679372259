//! Bounded lock-free queue by which other threads reach a reactor: many producers, one consumer in normal operation.
//!
//! Each slot carries a sequence number that says whose turn it is, so that a push or pop is one compare-and-swap. After the
//! reactor has closed its inbox, producers that lost the race drain it themselves, which is why `pop` is safe from any thread.
#![allow(unsafe_code)]

use crate::sync::{AtomicUsize, Ordering, UnsafeCell};
use std::mem::MaybeUninit;

struct Slot<T> {
    /// `position` when free for the push of that position, `position + 1` when it holds that position's value.
    seq: AtomicUsize,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// Keeps producers' and consumer's positions off each other's cache line.
#[repr(align(64))]
struct Line<T>(T);

/// The queue. Capacity is a power of two of at least 2.
pub(crate) struct Inbox<T> {
    slots: Box<[Slot<T>]>,
    tail: Line<AtomicUsize>,
    head: Line<AtomicUsize>,
}

// SAFETY: values move through by ownership; the sequence numbers hand each slot to one thread at a time.
unsafe impl<T: Send> Send for Inbox<T> {}
// SAFETY: as above, all shared access to a slot's cell is ordered by its sequence number.
unsafe impl<T: Send> Sync for Inbox<T> {}

impl<T> Inbox<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        let n = capacity.max(2).next_power_of_two();
        let slots =
            (0..n).map(|i| Slot { seq: AtomicUsize::new(i), value: UnsafeCell::new(MaybeUninit::uninit()) }).collect();
        Inbox { slots, tail: Line(AtomicUsize::new(0)), head: Line(AtomicUsize::new(0)) }
    }

    fn slot(&self, pos: usize) -> &Slot<T> {
        &self.slots[pos & (self.slots.len() - 1)]
    }

    /// Appends `value`, or gives it back when the queue is full.
    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        let mut pos = self.tail.0.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(pos);
            let seq = slot.seq.load(Ordering::Acquire);
            match (seq as isize).wrapping_sub(pos as isize) {
                0 => match self.tail.0.compare_exchange_weak(
                    pos,
                    pos.wrapping_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        // SAFETY: winning the exchange on a slot whose sequence is `pos` makes this thread its only
                        // user until the store below publishes it.
                        with_mut(&slot.value, |v| unsafe { (*v).write(value) });
                        slot.seq.store(pos.wrapping_add(1), Ordering::Release);
                        return Ok(());
                    }
                    Err(now) => pos = now,
                },
                d if d < 0 => return Err(value),
                _ => pos = self.tail.0.load(Ordering::Relaxed),
            }
        }
    }

    /// Takes the oldest value. `None` also while the producer of the oldest one has not finished: it rings the bell when it has.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut pos = self.head.0.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(pos);
            let seq = slot.seq.load(Ordering::Acquire);
            match (seq as isize).wrapping_sub(pos.wrapping_add(1) as isize) {
                0 => match self.head.0.compare_exchange_weak(
                    pos,
                    pos.wrapping_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        // SAFETY: winning the exchange on a slot whose sequence is `pos + 1` makes this thread its only
                        // user, and that sequence says the value was written.
                        let value = with_mut(&slot.value, |v| unsafe { (*v).assume_init_read() });
                        slot.seq.store(pos.wrapping_add(self.slots.len()), Ordering::Release);
                        return Some(value);
                    }
                    Err(now) => pos = now,
                },
                d if d < 0 => return None,
                _ => pos = self.head.0.load(Ordering::Relaxed),
            }
        }
    }

    /// Whether `pop` would find nothing now.
    pub(crate) fn is_empty(&self) -> bool {
        let pos = self.head.0.load(Ordering::Relaxed);
        self.slot(pos).seq.load(Ordering::Acquire) != pos.wrapping_add(1)
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[cfg(not(loom))]
fn with_mut<T, R>(cell: &UnsafeCell<T>, f: impl FnOnce(*mut T) -> R) -> R {
    f(cell.get())
}

#[cfg(loom)]
fn with_mut<T, R>(cell: &UnsafeCell<T>, f: impl FnOnce(*mut T) -> R) -> R {
    cell.with_mut(f)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_full_inbox_gives_the_value_back() {
        let q = Inbox::new(2);
        assert!(q.is_empty());
        assert_eq!((q.push(1), q.push(2), q.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!((q.pop(), q.pop(), q.pop()), (Some(1), Some(2), None));
        assert!(q.is_empty());
    }

    #[test]
    fn every_message_of_every_producer_arrives_once_and_in_its_order() {
        const N: usize = if cfg!(miri) { 50 } else { 5000 };
        let q = Arc::new(Inbox::new(16));
        let producers: Vec<_> = (0..3)
            .map(|p| {
                let q = q.clone();
                std::thread::spawn(move || {
                    for i in 0..N {
                        let mut v = (p, i);
                        while let Err(back) = q.push(v) {
                            v = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; 3];
        while next != [N; 3] {
            match q.pop() {
                Some((p, i)) => {
                    assert_eq!(next[p], i);
                    next[p] += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        producers.into_iter().for_each(|t| t.join().unwrap());
    }

    #[test]
    fn what_is_left_is_dropped_with_the_inbox() {
        let v = Arc::new(());
        let q = Inbox::new(4);
        q.push(v.clone()).unwrap();
        drop(q);
        assert_eq!(Arc::strong_count(&v), 1);
    }
}
