//! What cannot be read, added up by member: a device that fails everywhere is one finding.

use std::collections::BTreeMap;

use super::Opened;

/// What to do about blocks of a member that cannot be read.
pub(super) const REPLACE: &str = "replace the member (bdev_ec_replace_base_bdev)";

/// Failures of one kind, by the slot of their member.
#[derive(Default)]
pub(super) struct Tally(BTreeMap<usize, Failures>);

/// Failures of one member.
pub(super) struct Failures {
    /// How many.
    pub(super) count: u64,
    /// Where the first is.
    pub(super) first: u64,
    /// What is wrong there.
    pub(super) why: String,
}

impl Tally {
    /// Counts a failure of the member in `slot`.
    pub(super) fn add(&mut self, slot: usize, at: u64, why: String) {
        self.0.entry(slot).or_insert(Failures { count: 0, first: at, why }).count += 1;
    }

    /// Members with failures, in words, and what failed.
    pub(super) fn members<'a>(&'a self, opened: &'a Opened<'_>) -> impl Iterator<Item = (String, &'a Failures)> {
        self.0.iter().map(|(slot, failures)| (opened.title(*slot), failures))
    }
}

/// `count` of `thing`, whose plural takes an s.
pub(super) fn many(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}
