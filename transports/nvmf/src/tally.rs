//! What a queue pair has moved.

use std::cell::Cell;

/// Reads and writes that succeeded. Of one core: plain cells.
#[derive(Default)]
pub(crate) struct Tally {
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
    writes: Cell<u64>,
    written_bytes: Cell<u64>,
}

/// Counters of queue pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Reads that succeeded.
    pub reads: u64,
    /// Bytes that they gave.
    pub read_bytes: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes that they took.
    pub written_bytes: u64,
    /// Times that a command had to wait for a buffer.
    pub buffer_waits: u64,
    /// Times that a command had to wait for a request of the block layer.
    pub request_waits: u64,
}

impl Tally {
    #[inline]
    pub(crate) fn count_read(&self, bytes: u32) {
        self.reads.set(self.reads.get() + 1);
        self.read_bytes.set(self.read_bytes.get() + u64::from(bytes));
    }

    #[inline]
    pub(crate) fn count_write(&self, bytes: u32) {
        self.writes.set(self.writes.get() + 1);
        self.written_bytes.set(self.written_bytes.get() + u64::from(bytes));
    }

    pub(crate) fn traffic(&self, buffer_waits: u64, request_waits: u64) -> Traffic {
        Traffic {
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            buffer_waits,
            request_waits,
        }
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, o: Traffic) {
        self.reads += o.reads;
        self.read_bytes += o.read_bytes;
        self.writes += o.writes;
        self.written_bytes += o.written_bytes;
        self.buffer_waits += o.buffer_waits;
        self.request_waits += o.request_waits;
    }
}
