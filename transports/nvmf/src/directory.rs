//! Which controllers exist, and on which core each is owned. Consulted at Connect and by Identify, never by I/O.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::predecessors::Predecessors;
use crate::view::SubsystemView;

/// A controller, as other cores know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Never used again: messages to a controller that is gone find nothing.
    pub(crate) id: u64,
    pub(crate) core: usize,
    pub(crate) hostnqn: String,
    pub(crate) hostid: [u8; 16],
}

#[derive(Default)]
struct Subsystem {
    next: u16,
    controllers: BTreeMap<u16, Owner>,
}

/// All controllers, by subsystem NQN and controller identifier.
#[derive(Default)]
pub(crate) struct Directory {
    subsystems: HashMap<String, Subsystem>,
    /// Controllers that are ending: their queues may still have commands in a device.
    pub(crate) predecessors: Predecessors,
}

impl Directory {
    pub(crate) fn find(&self, nqn: &str, cntlid: u16) -> Option<&Owner> {
        self.subsystems.get(nqn)?.controllers.get(&cntlid)
    }

    /// Gives a new controller an identifier from the subsystem's range: the one after the last given, so that an identifier
    /// rests as long as possible before it is used again. `None` if all are taken.
    pub(crate) fn insert(&mut self, sub: &SubsystemView, owner: Owner) -> Option<u16> {
        let (min, max) = (sub.options.min_cntlid, sub.options.max_cntlid);
        let s = self.subsystems.entry(sub.nqn().to_owned()).or_default();
        let size = u32::from(max - min) + 1;
        if s.next < min || s.next > max {
            s.next = min;
        }
        for i in 0..size {
            let id = min + ((u32::from(s.next - min) + i) % size) as u16;
            if let Entry::Vacant(free) = s.controllers.entry(id) {
                free.insert(owner);
                s.next = id.wrapping_add(1);
                return Some(id);
            }
        }
        None
    }

    /// Forgets a controller, if this entry is still its own.
    pub(crate) fn remove(&mut self, nqn: &str, cntlid: u16, id: u64) {
        if let Some(s) = self.subsystems.get_mut(nqn)
            && s.controllers.get(&cntlid).is_some_and(|o| o.id == id)
        {
            s.controllers.remove(&cntlid);
        }
    }

    /// Identifiers of a subsystem's controllers, ascending, with their hosts.
    pub(crate) fn list(&self, nqn: &str) -> impl Iterator<Item = (u16, &Owner)> {
        self.subsystems.get(nqn).into_iter().flat_map(|s| s.controllers.iter().map(|(i, o)| (*i, o)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::SubsystemOptions;
    use std::sync::Arc;

    fn owner(id: u64) -> Owner {
        Owner { id, core: 0, hostnqn: String::new(), hostid: [0; 16] }
    }

    #[test]
    fn identifiers_stay_in_the_range_and_rest_before_reuse() {
        let mut o = SubsystemOptions::new("nqn.2016-06.io.spdk:a");
        (o.min_cntlid, o.max_cntlid) = (5, 7);
        let sub = SubsystemView {
            id: 1,
            options: Arc::new(o),
            discovery: false,
            allow_any_host: true,
            hosts: Default::default(),
            listeners: Vec::new(),
            namespaces: Default::default(),
            ana_changes: 0,
        };
        let mut d = Directory::default();
        assert_eq!(d.insert(&sub, owner(1)), Some(5));
        assert_eq!(d.insert(&sub, owner(2)), Some(6));
        d.remove(sub.nqn(), 5, 1);
        assert_eq!(d.insert(&sub, owner(3)), Some(7), "5 is free but rests");
        assert_eq!(d.insert(&sub, owner(4)), Some(5));
        assert_eq!(d.insert(&sub, owner(5)), None, "the range is used up");
        d.remove(sub.nqn(), 6, 99);
        assert!(d.find(sub.nqn(), 6).is_some(), "a stale removal changes nothing");
    }
}
