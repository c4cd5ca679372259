//! What happens in a run: lives, each with its members, its requests, and the moment at which power fails.

use std::fmt;

/// What a member has that returns, to a running device or before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// What it had when it was lost.
    AsItWas,
    /// What it had at the start of some life before.
    Older,
    /// Zeroes: another device in its place.
    Blank,
    /// What a member of another device of the same kind has.
    Foreign,
}

/// Something that is done in a life. Places are in blocks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write of so many blocks, perhaps with FUA.
    Write(u64, u64, bool),
    /// A write of zeroes, perhaps with FUA.
    Zeroes(u64, u64, bool),
    /// A read.
    Read(u64, u64),
    /// A flush.
    Flush,
    /// An unmap.
    Unmap(u64, u64),
    /// A member vanishes, unless too many are damaged. Not a request.
    Lose(usize),
    /// A member vanishes, however many have. Not a request.
    Exceed(usize),
    /// A member's block cannot be read until it is written, unless too many members are damaged. Not a request.
    Spoil(usize, usize),
    /// A member becomes slow, or normal again. Not a request.
    Slow(usize, bool),
    /// So many of a thousand requests to a member hang, unless too many members are damaged. Not a request.
    Hang(usize, u32),
    /// A member that is damaged, or as of now counts as that, is taken out of the running device and comes back, to be rebuilt; then it is
    /// whole. Not a request.
    Return(usize, Comes),
    /// No member that returned is being rebuilt any more, or it takes too long. Not a request.
    Rebuilt,
    /// While nothing else is under way, some blocks of as many members as can be told become wrong, and the device looks for what is
    /// wrong and mends it. The number decides which. Not a request.
    Scrub(u64),
    /// Power fails after so many more requests to and answers of members. Not a request.
    Cut(u64),
    /// Power fails after so many microseconds. Not a request.
    CutAfter(u64),
    /// All requests until now end before the next begins. Not a request.
    Settle,
}

impl Step {
    /// True if the step asks the device for something.
    pub fn is_request(&self) -> bool {
        use Step::{Flush, Read, Unmap, Write, Zeroes};
        matches!(self, Write(..) | Zeroes(..) | Read(..) | Flush | Unmap(..))
    }

    /// True if it begins when everything before has ended, and nothing else begins before it has.
    pub fn is_alone(&self) -> bool {
        matches!(self, Step::Settle | Step::Scrub(_))
    }
}

/// From power on to power off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Members that are not there. Of more than may be damaged, the last ones are there all the same.
    pub absent: Vec<usize>,
    /// They are absent even if that is too many: the device need not start.
    pub exceed: bool,
    /// So many members are absent that the device does not start, and it is told to start with what is there. The number decides who is. If that
    /// cannot be, it is a life like others.
    pub salvage: Option<u64>,
    /// Members that have something else when it begins. None that are absent or without which too few would be left.
    pub swapped: Vec<(usize, Comes)>,
    /// Some blocks of as many members as can be told are wrong when it begins; the device looks for them before anything is read. The
    /// number decides which.
    pub rotten: Option<u64>,
    /// Every second request under way comes from another core than the device's.
    pub away: bool,
    /// Power fails when members have been asked and have answered so often; `None`: when the steps have ended.
    pub crash_in: Option<u64>,
    /// The device is stopped in order when the steps have ended, before power goes.
    pub orderly: bool,
    /// Requests under way at once.
    pub depth: usize,
    /// What is done.
    pub steps: Vec<Step>,
}

impl Life {
    /// Blocks, and how many, that are zeroed or unmapped.
    pub(super) fn cleared(&self) -> impl Iterator<Item = (u64, u64)> {
        self.steps.iter().filter_map(|s| match *s {
            Step::Zeroes(lba, n, _) | Step::Unmap(lba, n) if n > 0 => Some((lba, n)),
            _ => None,
        })
    }

    /// Members that return, or have something else when it begins.
    pub(super) fn returned(&self) -> impl Iterator<Item = usize> {
        let back = self.steps.iter().filter_map(|s| if let Step::Return(m, _) = s { Some(*m) } else { None });
        back.chain(self.swapped.iter().map(|&(m, _)| m))
    }
}

/// All lives of a run. The device is read as a whole when each begins, and once more after the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script(pub Vec<Life>);

impl Script {
    /// Requests in all lives.
    pub fn requests(&self) -> usize {
        self.0.iter().flat_map(|l| &l.steps).filter(|s| s.is_request()).count()
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, l) in self.0.iter().enumerate() {
            write!(f, "life {}:", i + 1)?;
            if !l.absent.is_empty() {
                write!(f, " without members {:?}{},", l.absent, if l.exceed { " at all events" } else { "" })?;
            }
            if let Some(which) = l.salvage {
                write!(f, " salvaged {which},")?;
            }
            if !l.swapped.is_empty() {
                write!(f, " other contents of members {:?},", l.swapped)?;
            }
            if let Some(which) = l.rotten {
                write!(f, " wrong blocks {which},")?;
            }
            if l.away {
                write!(f, " from two cores,")?;
            }
            match l.crash_in {
                Some(n) => write!(f, " power fails at step {n}")?,
                None if l.orderly => write!(f, " stopped in order")?,
                None => write!(f, " power fails at the end")?,
            }
            writeln!(f, ", {} at once", l.depth)?;
            l.steps.iter().try_for_each(|s| writeln!(f, "    {s:?}"))?;
        }
        Ok(())
    }
}

/// What a script is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Blocks of the device.
    pub blocks: u64,
    /// Blocks of a stripe, or of what else requests should lie across.
    pub stripe: u64,
    /// Members.
    pub members: usize,
    /// Members that may be missing at once, and keep missing.
    pub tolerates: usize,
    /// Strips that are redundant: of half as many wrong ones it can be told which they are.
    pub redundancy: usize,
    /// More than [`tolerates`](Shape::tolerates) may be missing for a while: then requests end with NAMESPACE NOT READY, or it does not
    /// start, and when they are back nothing was lost.
    pub exceeds: bool,
    /// It can be told to start with fewer members than it starts with by itself.
    pub salvages: bool,
    /// Members may return to the running device.
    pub rebuilds: bool,
    /// Members that have a volatile cache, a bit each.
    pub volatile: u64,
    /// Blocks of a member.
    pub member_blocks: usize,
    /// Unmaps zero aligned groups of so many blocks and leave everything else; 0: there are none.
    pub unmap_unit: u64,
    /// About how many requests its members get when it starts.
    pub start_requests: u64,
    /// About how many requests its members get when it is made before that, if power shall fail meanwhile; else 0.
    pub make_requests: u64,
}
