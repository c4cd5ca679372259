//! Counters of an array: what the host asked for, and what that cost below.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Written by the cores that serve the array, read by anyone.
        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Count,)*
        }

        /// Counters of an array at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct EcStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> EcStats {
                EcStats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Reads of the host.
    host_reads,
    /// Writes of the host, write zeroes of parts of stripes included.
    host_writes,
    /// Flushes of the host.
    host_flushes,
    /// Unmaps and writes of zeroes of the host.
    host_unmaps,
    /// Bytes that the host read.
    host_read_bytes,
    /// Bytes that the host wrote.
    host_written_bytes,
    /// Reads sent to members.
    member_reads,
    /// Writes of data and parity sent to members.
    member_writes,
    /// Records written to journals.
    journal_writes,
    /// Flushes sent to members.
    member_flushes,
    /// Bytes read from members.
    member_read_bytes,
    /// Bytes of data and parity written to members.
    member_written_bytes,
    /// Bytes of records written to journals, headers included.
    journal_written_bytes,
    /// Pages of the map and of the write-intent bitmap, and superblocks, written to members.
    metadata_writes,
    /// Writes that were joined to another one of their stripe.
    joined_writes,
    /// Writes that covered whole stripes.
    full_stripe_writes,
    /// Transactions that read old data and old parity.
    read_modify_writes,
    /// Transactions that read the data that they did not write.
    reconstruct_writes,
    /// Strips that reads got from the other members.
    reconstructed_reads,
    /// Read errors that were healed by rewriting.
    healed_reads,
    /// Reads with more losses than parity.
    unrecovered_reads,
    /// Reads that asked for another reconstruction.
    alternate_reads,
    /// Strips that were rewritten because a layer above found them wrong.
    healed_alternates,
    /// Strips that scrubs found wrong and rewrote.
    scrub_repaired,
    /// Stripes that scrubs found wrong and left as they were: more than one cause was possible.
    scrub_ambiguous,
    /// Times a request waited for memory, requests or journal slots.
    waits,
    /// Superblock updates.
    epochs,
}

/// A counter that one core adds to, or rarely several.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
