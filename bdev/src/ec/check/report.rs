//! What a check found.

use std::fmt;

use uuid::Uuid;

use crate::ec::format::Superblock;

/// Findings that are kept one by one; further ones are counted.
const KEPT: usize = 200;

/// The outcome in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// All members are there, and everything agrees.
    #[default]
    Sound,
    /// Everything that is there agrees, but members are missing, stale or being filled, or cannot read all that they hold: there is less to spare.
    Degraded,
    /// Something that must agree does not, or was lost, or cannot be read of enough members.
    Damaged,
    /// The devices do not make an array that could start.
    NotAssembled,
}

impl Verdict {
    /// The exit status that says so: 0 sound, 1 degraded, 2 damaged, 3 not an array that could start.
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// To be known.
    Note,
    /// A member lacks what others make up for: something is to be done before more is lost.
    Degraded,
    /// It must not be.
    Damage,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// What it is.
    pub text: String,
}

/// One device that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The slot that its superblock names.
    pub slot: Option<usize>,
    /// Its part in the array, or why it has none.
    pub note: String,
}

/// How much there was of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Stripes of the array.
    pub stripes: u64,
    /// Stripes that hold data.
    pub mapped: u64,
    /// Stripes whose strips were found to agree.
    pub agree: u64,
    /// Stripes that have no strip to spare, so that nothing can be compared.
    pub unverifiable: u64,
    /// Stripes whose strips do not agree, or of which too few can be read.
    pub bad: u64,
    /// Stripes of which not all strips that count can be read: they are among the others, too.
    pub unreadable: u64,
    /// Pages of the map that are not the same on all members: a start makes them so.
    pub map_pages_differ: u64,
    /// Regions with writes that a missing member lacks.
    pub intent_regions: u64,
    /// Transactions that a start would roll forward.
    pub redone: u64,
    /// Transactions that had not reached all members: nothing of theirs was written in place.
    pub discarded: u64,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The outcome.
    pub verdict: Verdict,
    /// Name and UUID of the array.
    pub array: Option<(String, Uuid)>,
    /// What it is made of, in words.
    pub geometry: String,
    /// The devices, as they were given.
    pub devices: Vec<Device>,
    /// Slots without a member in sync.
    pub degraded: usize,
    /// Figures.
    pub counts: Counts,
    /// What was found: at most 200, and what is said once for each member.
    pub findings: Vec<Finding>,
    /// What was found beyond those.
    pub more: u64,
    damaged: bool,
    weakened: bool,
}

impl Report {
    pub(super) fn note(&mut self, text: String) {
        self.add(Finding { weight: Weight::Note, text });
    }

    /// Always kept: say such a thing once for each member.
    pub(super) fn degrade(&mut self, text: String) {
        self.weakened = true;
        self.findings.push(Finding { weight: Weight::Degraded, text });
    }

    /// What to do. Always kept, as [`degrade`](Report::degrade).
    pub(super) fn advise(&mut self, text: String) {
        self.findings.push(Finding { weight: Weight::Note, text });
    }

    pub(super) fn damage(&mut self, text: String) {
        self.damaged = true;
        self.add(Finding { weight: Weight::Damage, text });
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < KEPT {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn array(&mut self, head: &Superblock) {
        let l = &head.layout;
        self.array = Some((head.name.clone(), head.array));
        self.counts.stripes = l.stripes;
        self.geometry = format!(
            "{}+{}, strips of {} KiB, blocks of {}, {} stripes, {} bytes; {}",
            l.k,
            l.m,
            l.strip / 1024,
            l.block,
            l.stripes,
            l.num_blocks() * u64::from(l.block),
            head.stamp
        );
    }

    pub(super) fn conclude(&mut self) {
        self.verdict = match () {
            () if self.damaged => Verdict::Damaged,
            () if self.weakened || self.degraded > 0 => Verdict::Degraded,
            () => Verdict::Sound,
        };
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.array {
            Some((name, uuid)) => writeln!(f, "array '{name}' {uuid}: {}", self.geometry)?,
            None => writeln!(f, "no array")?,
        }
        for device in &self.devices {
            writeln!(f, "  {}: {}", device.name, device.note)?;
        }
        let c = &self.counts;
        if self.array.is_some() {
            writeln!(
                f,
                "  journal: {} transactions to roll forward, {} void; write intents: {} regions; map pages that differ: {}",
                c.redone, c.discarded, c.intent_regions, c.map_pages_differ
            )?;
            writeln!(
                f,
                "  stripes: {} of {} hold data: {} agree, {} have nothing to compare with, {} are bad; {} have strips that cannot be read",
                c.mapped, c.stripes, c.agree, c.unverifiable, c.bad, c.unreadable
            )?;
        }
        for finding in &self.findings {
            let word = match finding.weight {
                Weight::Note => "note",
                Weight::Degraded => "degraded",
                Weight::Damage => "DAMAGE",
            };
            writeln!(f, "  {word}: {}", finding.text)?;
        }
        if self.more > 0 {
            writeln!(f, "  and {} findings more", self.more)?;
        }
        f.write_str(match self.verdict {
            Verdict::Sound => "sound",
            Verdict::Degraded => "degraded: what is there and can be read agrees",
            Verdict::Damaged => "DAMAGED",
            Verdict::NotAssembled => "does not make an array that could start",
        })
    }
}
