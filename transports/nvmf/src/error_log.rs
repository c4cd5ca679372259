//! The last failed commands of a controller, for its Error Information log page. Written only when a command fails.

use std::collections::VecDeque;
use std::sync::Mutex;

use longshore_nvme::wire::log::ErrorEntry;

use crate::request::{Kind, Request};

/// Entries kept, and reported as ELPE + 1.
pub(crate) const ENTRIES: usize = 128;

#[derive(Default)]
struct Inner {
    count: u64,
    entries: VecDeque<ErrorEntry>,
}

/// The last failed commands of a controller, over all its queues.
#[derive(Default)]
pub(crate) struct ErrorLog(Mutex<Inner>);

impl ErrorLog {
    #[cold]
    pub(crate) fn record(&self, qid: u16, r: &Request) {
        let mut g = self.0.lock().unwrap_or_else(|e| e.into_inner());
        g.count += 1;
        let mut e = ErrorEntry {
            error_count: g.count.into(),
            sqid: qid.into(),
            cid: r.sqe.cid,
            location: 0xffff.into(),
            nsid: r.sqe.nsid,
            opcode: r.sqe.opcode,
            lpver: 1,
            ..ErrorEntry::default()
        };
        e.set_status(r.status);
        if r.kind == Kind::Io {
            e.lba = r.sqe.slba().into();
        }
        if g.entries.len() == ENTRIES {
            g.entries.pop_back();
        }
        g.entries.push_front(e);
    }

    /// Failed commands so far, and the last of them, newest first.
    pub(crate) fn read(&self) -> (u64, Vec<ErrorEntry>) {
        let g = self.0.lock().unwrap_or_else(|e| e.into_inner());
        (g.count, g.entries.iter().copied().collect())
    }
}
