//! The slab of operations in flight: whom to tell, and a generation that makes stale names harmless.

use super::{Completion, OpId, OpKind};

#[derive(Clone, Copy)]
struct Slot {
    done: Option<Completion>,
    kind: OpKind,
    generation: u32,
    next_free: u32,
}

const NONE: u32 = u32::MAX;
const GENERATIONS: u32 = 0x7fff_ffff;

/// Slots are taken and returned without allocation; the slab doubles when it is full, up to its limit.
pub(crate) struct OpSlab {
    slots: Vec<Slot>,
    free: u32,
    used: usize,
    limit: usize,
}

impl OpSlab {
    pub(crate) fn new(limit: usize) -> Self {
        OpSlab { slots: Vec::new(), free: NONE, used: 0, limit: limit.min(NONE as usize - 1) }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.used
    }

    pub(crate) fn insert(&mut self, done: Completion, kind: OpKind) -> Option<OpId> {
        if self.free == NONE {
            self.grow()?;
        }
        let index = self.free;
        let slot = &mut self.slots[index as usize];
        self.free = slot.next_free;
        slot.done = Some(done);
        slot.kind = kind;
        self.used += 1;
        Some(OpId((slot.generation as u64) << 32 | index as u64))
    }

    #[cold]
    fn grow(&mut self) -> Option<()> {
        let old = self.slots.len();
        let new = (old * 2).max(256).min(self.limit);
        if new <= old {
            return None;
        }
        for i in old..new {
            let next_free = if i + 1 < new { i as u32 + 1 } else { NONE };
            self.slots.push(Slot { done: None, kind: OpKind::Nop, generation: 0, next_free });
        }
        self.free = old as u32;
        Some(())
    }

    /// The completion of `id`; its slot is freed unless more completions follow.
    #[inline]
    pub(crate) fn complete(&mut self, id: OpId, more: bool) -> Option<Completion> {
        let index = id.0 as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation as u64 != id.0 >> 32 {
            return None;
        }
        if more {
            return slot.done;
        }
        let done = slot.done.take()?;
        slot.generation = (slot.generation + 1) & GENERATIONS;
        slot.next_free = self.free;
        self.free = index;
        self.used -= 1;
        Some(done)
    }

    /// The kind of the operation `id`, if it is in flight.
    pub(crate) fn kind(&self, id: OpId) -> Option<OpKind> {
        let slot = self.slots.get(id.0 as u32 as usize)?;
        (slot.generation as u64 == id.0 >> 32 && slot.done.is_some()).then_some(slot.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done() -> Completion {
        fn nothing(_: *mut (), _: i32, _: u32) {}
        Completion { func: nothing, ctx: std::ptr::null_mut() }
    }

    #[test]
    fn a_stale_name_finds_nothing() {
        let mut s = OpSlab::new(300);
        let a = s.insert(done(), OpKind::Nop).unwrap();
        assert!(s.complete(a, true).is_some(), "more to come: the slot stays");
        assert!(s.complete(a, false).is_some());
        assert!(s.complete(a, false).is_none());
        let b = s.insert(done(), OpKind::Read).unwrap();
        assert_ne!(a, b);
        assert_eq!((s.kind(a), s.kind(b)), (None, Some(OpKind::Read)));
    }

    #[test]
    fn the_slab_stops_at_its_limit() {
        let mut s = OpSlab::new(300);
        let ids: Vec<_> = (0..300).map(|_| s.insert(done(), OpKind::Nop).unwrap()).collect();
        assert!(s.insert(done(), OpKind::Nop).is_none());
        assert_eq!(s.in_flight(), 300);
        assert!(s.complete(ids[7], false).is_some());
        assert!(s.insert(done(), OpKind::Nop).is_some());
    }
}
