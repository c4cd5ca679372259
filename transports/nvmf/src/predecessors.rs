//! A host comes back while commands of its former controllers are still in a device.
//!
//! It is known by its NQN. A former controller is one whose end this target has noticed when the new one connects; others are taken for
//! paths that the host uses besides.
//!
//! It sends again what was not acknowledged, and what it sent before must not land after that. So its new controller waits until
//! all queues of those before it have ended, which takes as long as their commands are in a device. Where a device neither
//! completes nor aborts its commands, that would lock the host out of every namespace of the subsystem. So a queue that has not
//! ended after [`GRACE`] says in which namespaces its commands are. When every queue that is left has said so, the new controller
//! waits no longer, and these namespaces answer it with Namespace Not Ready until the last such command has left its device.
//!
//! What is held never grows for a controller: a queue that ends takes no more commands, and a controller is let in only when
//! everything that it has to be kept from is known. So it is enough to look here when a table of namespaces is made
//! ([`Access::rebuild`](crate::access::Access::rebuild)), which happens before Connect is answered, and to make the tables anew when a namespace is free.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::time::Duration;

use uuid::Uuid;

use crate::access::Identity;
use crate::poll_group::PollGroup;
use crate::qpair::{Life, Qpair};
use crate::request::Phase;
use crate::view::Namespace;

/// How long a queue pair whose connection has ended may keep its host from coming back: long enough for devices that are slow, and
/// less than the time that a transport gives a new connection for its Connect.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// A host's relation to a subsystem: number of the subsystem, host NQN. The host identifier does not count: an initiator may draw a
/// new one whenever it starts, and what it sent before must be known for its own all the same. Where several machines share an NQN,
/// one may wait for another's end, or lack a namespace that the other's commands hang in.
pub(crate) type Association = (u64, String);

/// What a namespace's device is recognised by, also where the namespace was removed and added again: its number, the name of the
/// device, and the identity that hosts see.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    key: u64,
    bdev: String,
    uuid: Uuid,
}

/// A queue's commands that name one namespace, in devices that have not let them go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    nsid: u32,
    commands: u32,
    /// More than one if the identifier was given to another device while commands were on the way.
    devices: Vec<Device>,
}

impl Held {
    /// True if commands to this namespace could be overtaken.
    pub(crate) fn keeps(&self, ns: &Namespace) -> bool {
        self.devices.iter().any(|d| d.key == ns.key || d.bdev == ns.bdev_name || d.uuid == ns.uuid)
    }
}

/// A controller that is ending.
struct Ending {
    /// Controllers with larger numbers came after its end began.
    since: u64,
    /// Its queue pairs that have not ended. With what they hold, once they have said it: nothing more is to be waited for then.
    queues: BTreeMap<u64, Option<Vec<Held>>>,
    /// It was logged that a successor was let in.
    told: bool,
}

/// The controllers that are ending, by host.
#[derive(Default)]
pub(crate) struct Predecessors {
    of: HashMap<Association, BTreeMap<u64, Ending>>,
}

impl Predecessors {
    /// A controller begins to end. `since` is a number drawn now: controllers whose numbers are drawn from now on are its successors.
    pub(crate) fn begin(&mut self, of: Association, controller: u64, since: u64, queues: impl Iterator<Item = u64>) {
        let queues = queues.map(|q| (q, None)).collect();
        self.of.entry(of).or_default().insert(controller, Ending { since, queues, told: false });
    }

    /// One of its queue pairs has ended.
    pub(crate) fn queue_ended(&mut self, of: &Association, controller: u64, queue: u64) {
        if let Some(e) = self.find(of, controller) {
            e.queues.remove(&queue);
        }
    }

    /// It has ended, with all its queue pairs.
    pub(crate) fn end(&mut self, of: &Association, controller: u64) {
        if let Some(all) = self.of.get_mut(of) {
            all.remove(&controller);
            if all.is_empty() {
                self.of.remove(of);
            }
        }
    }

    /// True while a new controller of this host has to wait.
    pub(crate) fn must_wait(&self, of: &Association) -> bool {
        self.endings(of).any(|e| e.queues.values().any(Option::is_none))
    }

    /// A queue pair does not end, and says what it holds. False if that is not known of its controller: then it says it again.
    fn give_up(&mut self, of: &Association, controller: u64, queue: u64, held: Vec<Held>) -> bool {
        let known = self.find(of, controller).and_then(|e| e.queues.get_mut(&queue));
        known.map(|q| *q = Some(held)).is_some()
    }

    /// A new controller of this host is let in: what it will have to do without, by namespace with the number of commands, if
    /// there is something that was not told yet.
    pub(crate) fn let_in(&mut self, of: &Association, controller: u64) -> Option<BTreeMap<u32, u32>> {
        let all = self.of.get_mut(of)?;
        let (mut news, mut held) = (false, BTreeMap::new());
        for e in all.values_mut().filter(|e| e.since < controller) {
            for h in e.queues.values().flatten().flatten() {
                news |= !e.told;
                *held.entry(h.nsid).or_default() += h.commands;
            }
            e.told = true;
        }
        news.then_some(held)
    }

    /// A command to `nsid` that a queue pair held has left its device. If it was the last one of this host to that namespace:
    /// whether a controller was let in meanwhile.
    fn left(&mut self, of: &Association, controller: u64, queue: u64, nsid: u32) -> Option<bool> {
        let e = self.find(of, controller)?;
        let told = e.told;
        let held = e.queues.get_mut(&queue)?.as_mut()?;
        let at = held.iter().position(|h| h.nsid == nsid)?;
        held[at].commands -= 1;
        if held[at].commands != 0 {
            return None;
        }
        held.swap_remove(at);
        let more = self.endings(of).flat_map(|e| e.queues.values().flatten().flatten()).any(|h| h.nsid == nsid);
        (!more).then_some(told)
    }

    /// What a controller has to be kept from.
    pub(crate) fn held(&self, who: &Identity) -> Vec<Held> {
        if self.of.is_empty() {
            return Vec::new();
        }
        self.held_for(&who.association(), who.controller)
    }

    fn held_for(&self, of: &Association, controller: u64) -> Vec<Held> {
        let before = self.endings(of).filter(|e| e.since < controller);
        before.flat_map(|e| e.queues.values().flatten().flatten()).cloned().collect()
    }

    fn endings(&self, of: &Association) -> impl Iterator<Item = &Ending> {
        self.of.get(of).into_iter().flat_map(BTreeMap::values)
    }

    fn find(&mut self, of: &Association, controller: u64) -> Option<&mut Ending> {
        self.of.get_mut(of)?.get_mut(&controller)
    }
}

/// A host was let in.
pub(crate) fn warn(who: &Identity, held: &BTreeMap<u32, u32>) {
    let mut ids = String::new();
    for id in held.keys() {
        let _ = write!(ids, "{}{id}", if ids.is_empty() { "" } else { ", " });
    }
    let commands: u32 = held.values().sum();
    tracing::warn!(
        "host '{}' is connected to '{}' again while {commands} of its former commands are in devices that neither complete nor \
         abort them: until they have left, this host's commands to namespace(s) {ids} end with Namespace Not Ready, so that \
         none is overtaken by an old one; see to the devices",
        who.hostnqn,
        who.nqn,
    );
}

impl Qpair {
    /// [`GRACE`] is over: if nothing is left but commands in devices, the host may come back.
    pub(crate) fn give_up(&self) {
        let Some(a) = self.access.get().filter(|_| self.life.get() == Life::Closing && !self.given_up.get()) else {
            return;
        };
        let (mut held, mut found): (Vec<Held>, u32) = (Vec::new(), 0);
        for r in &*self.slots {
            let r = r.borrow();
            let Some(live) = r.ns.as_ref().filter(|_| r.phase == Phase::Executing) else { continue };
            found += 1;
            let nsid = r.sqe.nsid.get();
            let at = held.iter().position(|h| h.nsid == nsid).unwrap_or_else(|| {
                held.push(Held { nsid, commands: 0, devices: Vec::new() });
                held.len() - 1
            });
            held[at].commands += 1;
            if held[at].devices.iter().all(|d| d.key != live.ns.key) {
                let (key, bdev, uuid) = (live.ns.key, live.ns.bdev_name.clone(), live.ns.uuid);
                held[at].devices.push(Device { key, bdev, uuid });
            }
        }
        if found == self.busy.get() {
            let mut d = self.group.target().directory();
            let ok = d.predecessors.give_up(&a.who.association(), a.who.controller, self.serial, held);
            self.given_up.set(ok);
            if ok {
                // Before anybody can find that it is not waited for any more.
                self.give_promise_back();
            }
            drop(d);
        }
    }

    /// The command in `slot` has left its device after this queue pair had given up.
    #[cold]
    pub(crate) fn held_ended(&self, slot: u16) {
        let Some(a) = self.access.get() else { return };
        let nsid = self.slots[usize::from(slot)].borrow().sqe.nsid.get();
        let (of, target) = (a.who.association(), self.group.target());
        let free = target.directory().predecessors.left(&of, a.who.controller, self.serial, nsid);
        let Some(told) = free else { return };
        if told {
            tracing::info!(
                "the last former command of host '{}' to namespace {nsid} of '{}' has left its device: it serves that host again",
                a.who.hostnqn,
                a.who.nqn,
            );
        }
        // By message also here: what the tables hold may not be dropped inside a completion.
        for core in 0..target.cores().len() {
            let of = of.clone();
            target.send(core, move |g: &std::rc::Rc<PollGroup>| g.rebuild_access(|a| a.who.is_of(&of)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str) -> Association {
        (7, host.to_owned())
    }

    fn held(nsid: u32, commands: u32) -> Held {
        let d = Device { key: u64::from(nsid) + 100, bdev: format!("b{nsid}"), uuid: Uuid::from_u128(nsid.into()) };
        Held { nsid, commands, devices: vec![d] }
    }

    fn ids(p: &Predecessors, of: &Association, controller: u64) -> Vec<u32> {
        let mut ids: Vec<_> = p.held_for(of, controller).iter().map(|h| h.nsid).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_host_waits_until_every_queue_has_ended_or_said_what_it_holds() {
        let (mut p, a) = (Predecessors::default(), of("a"));
        assert!(!p.must_wait(&a));
        p.begin(a.clone(), 1, 10, [2, 3, 4].into_iter());
        assert!(p.must_wait(&a) && !p.must_wait(&of("b")));
        assert!(p.give_up(&a, 1, 3, vec![held(1, 1)]));
        assert!(p.give_up(&a, 1, 4, vec![held(1, 1), held(2, 1)]));
        assert!(p.must_wait(&a), "queue 2 may hold anything");
        p.queue_ended(&a, 1, 2);
        assert!(!p.must_wait(&a));
        assert_eq!(ids(&p, &a, 11), [1, 1, 2]);
        assert!(!p.give_up(&a, 1, 2, vec![held(3, 1)]), "it has ended");
        assert!(!p.give_up(&a, 5, 6, vec![held(3, 1)]), "its controller is not ending yet");
        p.queue_ended(&a, 1, 3);
        p.queue_ended(&a, 1, 4);
        p.end(&a, 1);
        assert!(p.of.is_empty());
    }

    #[test]
    fn only_controllers_that_came_after_the_end_began_are_held() {
        let (mut p, a) = (Predecessors::default(), of("a"));
        p.begin(a.clone(), 1, 10, [2].into_iter());
        assert!(p.give_up(&a, 1, 2, vec![held(1, 1)]));
        assert_eq!(ids(&p, &a, 9), [0u32; 0], "another path of the host, which was there before");
        assert_eq!(ids(&p, &a, 11), [1]);
        assert_eq!(ids(&p, &of("b"), 11), [0u32; 0]);
        // The successor ends, too: the next one waits for it, and is then held by both.
        p.begin(a.clone(), 11, 20, [12].into_iter());
        assert!(p.must_wait(&a));
        assert!(p.give_up(&a, 11, 12, vec![held(2, 1)]));
        assert_eq!(ids(&p, &a, 21), [1, 2]);
    }

    #[test]
    fn a_namespace_is_free_when_the_last_command_of_all_queues_has_left() {
        let (mut p, a) = (Predecessors::default(), of("a"));
        p.begin(a.clone(), 1, 10, [2].into_iter());
        p.begin(a.clone(), 11, 20, [12].into_iter());
        assert!(p.give_up(&a, 1, 2, vec![held(1, 2), held(2, 1)]));
        assert!(p.give_up(&a, 11, 12, vec![held(1, 1)]));
        assert_eq!(p.let_in(&a, 9), None);
        assert_eq!(p.let_in(&a, 21), Some(BTreeMap::from([(1, 3), (2, 1)])));
        assert_eq!(p.let_in(&a, 31), None, "that was told");
        assert_eq!(p.left(&a, 1, 2, 1), None);
        assert_eq!(p.left(&a, 1, 2, 1), None, "the other controller's is left");
        assert_eq!(ids(&p, &a, 21), [1, 2]);
        assert_eq!(p.left(&a, 1, 2, 2), Some(true));
        assert_eq!(p.left(&a, 11, 12, 1), Some(true));
        assert_eq!(ids(&p, &a, 21), [0u32; 0]);
        assert_eq!(p.let_in(&a, 31), None);
    }
}
