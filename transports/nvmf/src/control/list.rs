//! What goes on: controllers, queue pairs, counters.

use std::sync::Arc;

use crate::address::{Address, TrType};
use crate::error::TargetError;
use crate::poll_group::PollGroup;
use crate::tally::Traffic;
use crate::target::Target;

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Identifier.
    pub cntlid: u16,
    /// Host that it serves.
    pub hostnqn: String,
    /// Host identifier.
    pub hostid: [u8; 16],
    /// True for a discovery controller.
    pub discovery: bool,
    /// Its queue pairs, the admin queue included, as clients expect.
    pub num_io_qpairs: u32,
    /// Core that owns it.
    pub core: usize,
}

/// A queue pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpairInfo {
    /// Controller identifier.
    pub cntlid: u16,
    /// Queue identifier; 0 for the admin queue.
    pub qid: u16,
    /// False once it is being closed.
    pub enabled: bool,
    /// Core that serves it.
    pub core: usize,
    /// Host.
    pub hostnqn: String,
    /// The listener it came in by.
    pub listen_address: Address,
    /// The host's end.
    pub peer_address: Address,
    /// What it has moved, and how often it had to wait.
    pub traffic: Traffic,
}

/// What a host has of what a core shares among all hosts. What each queue pair has for itself is not in it, until it has given up after the end of its controller: what its
/// commands in devices have then counts here, even if it is more than the host may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostShare {
    /// NQN, by which it is known.
    pub hostnqn: String,
    /// The host identifier that it gave last.
    pub hostid: [u8; 16],
    /// Bytes of buffers.
    pub buffer_bytes: u64,
    /// The most that it may hold.
    pub max_buffer_bytes: u64,
    /// Requests of the block layer.
    pub requests: u32,
    /// The most that it may have.
    pub max_requests: u32,
}

/// Counters of one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Core.
    pub core: usize,
    /// Admin queues ever connected.
    pub admin_qpairs: u32,
    /// I/O queues ever connected.
    pub io_qpairs: u32,
    /// Admin queues now.
    pub current_admin_qpairs: u32,
    /// I/O queues now.
    pub current_io_qpairs: u32,
    /// Connections without a successful Connect.
    pub current_unassociated_qpairs: u32,
    /// Times that a command had to wait for a request of the block layer.
    pub pending_bdev_io: u64,
    /// Commands ended.
    pub completed_nvme_io: u64,
    /// What all queue pairs ever connected have moved, and how often they had to wait.
    pub traffic: Traffic,
    /// The hosts that are connected.
    pub hosts: Vec<HostShare>,
    /// Connects refused because the core has no buffer or request left to promise, to anybody or to that host.
    pub refused_connects: u64,
    /// Transports that exist.
    pub transports: Vec<TrType>,
}

/// Queue pairs that one message describes.
const PART: usize = 64;

impl Target {
    async fn gather<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl Fn(&PollGroup) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let asked: Vec<_> = self
            .cores
            .iter()
            .map(|c| {
                let (me, f) = (self.clone(), f.clone());
                c.call(move |_| PollGroup::of(&me).map(|g| f(&g)))
            })
            .collect();
        let mut all = Vec::new();
        for a in asked {
            all.extend(a.await.ok().flatten());
        }
        all
    }

    /// The controllers of a subsystem, by identifier.
    ///
    /// # Errors
    /// No such subsystem.
    pub async fn controllers(self: &Arc<Self>, nqn: &str) -> Result<Vec<ControllerInfo>, TargetError> {
        let id = self.subsystem(nqn)?.id;
        let mut all: Vec<_> = self.gather(move |g| g.list_controllers(id)).await.into_iter().flatten().collect();
        all.sort_by_key(|c| c.cntlid);
        Ok(all)
    }

    /// The queue pairs of a subsystem, by controller and queue.
    ///
    /// # Errors
    /// No such subsystem.
    pub async fn qpairs(self: &Arc<Self>, nqn: &str) -> Result<Vec<QpairInfo>, TargetError> {
        let id = self.subsystem(nqn)?.id;
        let mut all: Vec<_> = self.gather(move |g| g.list_qpairs(id)).await.into_iter().flatten().collect();
        all.sort_by_key(|q| (q.cntlid, q.qid));
        Ok(all)
    }

    /// Every queue pair, after the identifier of its subsystem. A few at a time are asked of each core, so that no turn is long.
    pub async fn all_qpairs(self: &Arc<Self>) -> Vec<(u64, QpairInfo)> {
        let mut all = Vec::new();
        for core in &self.cores {
            let me = self.clone();
            let keys = core.call(move |_| PollGroup::of(&me).map(|g| g.qpair_keys())).await.ok().flatten();
            for part in keys.unwrap_or_default().chunks(PART) {
                let (me, part) = (self.clone(), part.to_vec());
                let found = core.call(move |_| PollGroup::of(&me).map(|g| g.describe_qpairs(&part))).await.ok();
                all.extend(found.flatten().into_iter().flatten());
            }
        }
        all.sort_by(|(a, x), (b, y)| (a, x.cntlid, x.qid).cmp(&(b, y.cntlid, y.qid)));
        all
    }

    /// Counters of every core.
    pub async fn stats(self: &Arc<Self>) -> Vec<GroupStats> {
        let transports: Vec<TrType> = self.view().transports.keys().copied().collect();
        let mut all = self.gather(|g| g.stats()).await;
        for s in &mut all {
            s.transports.clone_from(&transports);
        }
        all
    }
}
