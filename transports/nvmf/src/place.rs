//! Which core a new connection goes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use longshore_nvme::wire::fabrics::{ConnectCmd, ConnectData};

use crate::target::Target;

/// Queue pairs that a core serves or was promised.
#[derive(Default)]
pub(crate) struct CoreLoad {
    admin: AtomicU32,
    io: AtomicU32,
}

/// A place on a core for one connection; counted there until it is dropped. Give it to `Qpair::new`.
pub struct Placement {
    target: Arc<Target>,
    core: usize,
    admin: bool,
}

impl Placement {
    /// Index of the core.
    pub fn core(&self) -> usize {
        self.core
    }

    fn count(target: &Target, core: usize, admin: bool) -> &AtomicU32 {
        let l = &target.loads[core];
        if admin { &l.admin } else { &l.io }
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        Placement::count(&self.target, self.core, self.admin).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Target {
    /// Chooses the core for the connection that this Connect asks for: an admin queue goes to the core with the fewest
    /// controllers, an I/O queue to the core with the fewest I/O queues; among equals the one `qid` after the admin queue's.
    pub fn place(self: &Arc<Self>, cmd: &ConnectCmd, data: &ConnectData) -> Placement {
        let n = self.cores.len().max(1);
        let qid = usize::from(cmd.qid.get());
        let admin = qid == 0;
        let first = if admin {
            0
        } else {
            let nqn = data.subnqn.get().unwrap_or("");
            let owner = self.directory().find(nqn, data.cntlid.get()).map_or(0, |c| c.core);
            (owner + qid) % n
        };
        let load = |c: usize| Placement::count(self, c, admin).load(Ordering::Relaxed);
        let mut core = first;
        for i in 1..n {
            let c = (first + i) % n;
            if load(c) < load(core) {
                core = c;
            }
        }
        Placement::count(self, core, admin).fetch_add(1, Ordering::Relaxed);
        Placement { target: self.clone(), core, admin }
    }
}
