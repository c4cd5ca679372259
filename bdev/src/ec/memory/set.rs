//! What the children of one attempt use.

use longshore_reactor::DmaBuf;

use super::super::spare::{Spare, SpareSet};
use crate::io::{IoRef, IoVec};

/// What the children of one attempt use.
pub(super) struct Set {
    /// Children name it: it is not the only one if children of an earlier one hang.
    pub(super) number: u16,
    pub(super) bufs: Vec<Option<DmaBuf>>,
    /// The last one is always empty, and lent while an accel core works on the memory of all others.
    pub(super) vecs: Vec<Vec<IoVec>>,
    /// Of each vector the host's requests whose memory it points to.
    pub(super) of: Vec<u64>,
    /// Child requests at hand.
    pub(super) idle: Vec<IoRef>,
    /// Vectors that children use which are out.
    pub(super) lent: u128,
    /// Those of them that nobody waits for any more.
    pub(super) given_up: u128,
    /// Taken from what is set aside.
    pub(super) spare: Option<SpareSet>,
}

impl Set {
    pub(super) fn new(number: u16, bufs: usize, vecs: usize) -> Set {
        Set {
            number,
            bufs: (0..bufs).map(|_| None).collect(),
            vecs: (0..=vecs).map(|_| Vec::new()).collect(),
            of: vec![0; vecs + 1],
            idle: Vec::new(),
            lent: 0,
            given_up: 0,
            spare: None,
        }
    }

    /// Gives everything back. No child is out.
    pub(super) fn give_back(&mut self, spare: &Spare) {
        assert_eq!(self.lent, 0, "memory of requests in flight must stay as it is");
        self.vecs.iter_mut().for_each(Vec::clear);
        self.of.fill(0);
        if let Some(mut set) = self.spare.take() {
            set.bufs.iter_mut().zip(&mut self.bufs).for_each(|(kept, buf)| {
                if kept.is_none() {
                    *kept = buf.take();
                }
            });
            set.ios.extend(self.idle.drain(..set.count));
            spare.give_back(set);
        }
        self.idle.drain(..).for_each(IoRef::release);
        self.bufs.iter_mut().for_each(|b| *b = None);
    }

    /// The host's requests whose memory children use.
    pub(super) fn lent_hosts(&self) -> u64 {
        let lent = |&(v, _): &(usize, &u64)| self.lent >> v & 1 != 0;
        self.of.iter().enumerate().filter(lent).fold(0, |mask, (_, of)| mask | of)
    }

    /// Empties the vectors that no child uses.
    pub(super) fn forget(&mut self) {
        for (v, vec) in self.vecs.iter_mut().enumerate().filter(|(v, _)| self.lent >> v & 1 == 0) {
            vec.clear();
            self.of[v] = 0;
        }
    }
}
