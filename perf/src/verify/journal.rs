//! The journal of a verified run: which writes were submitted, which were acknowledged.
//!
//! A record is in the kernel before its write is submitted, so the journal is right whoever is killed: the target, this
//! program, or both. It makes no claim about a machine that loses power: it lies in the page cache until the end.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"LSVERIF1";
/// Bytes of the header and of each record.
const RECORD: usize = 32;

/// What a journal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Seed that the blocks are stamped with.
    pub(crate) seed: u64,
    /// Bytes per block.
    pub(crate) block_size: u32,
    /// Blocks per write.
    pub(crate) unit_blocks: u32,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A write is about to be submitted.
    Submitted {
        /// First block.
        lba: u64,
        /// Generation of all its blocks.
        generation: u64,
    },
    /// It was acknowledged.
    Acknowledged {
        /// First block.
        lba: u64,
        /// Generation of all its blocks.
        generation: u64,
        /// It had FUA set.
        fua: bool,
    },
    /// A flush is about to be submitted.
    FlushSubmitted {
        /// Number of the flush.
        id: u64,
    },
    /// It was acknowledged.
    FlushAcknowledged {
        /// Number of the flush.
        id: u64,
    },
    /// A check found a block whole. Counts if the check says that it is complete.
    Found {
        /// The block.
        lba: u64,
        /// Its generation; 0: not of this journal's writes.
        generation: u64,
    },
    /// A check is complete: after that event, what it found is what is there, and nothing submitted before is to come.
    Settled(After),
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD] {
        let (kind, a, b, flags) = match self {
            Record::Submitted { lba, generation } => (1u32, lba, generation, 0u32),
            Record::Acknowledged { lba, generation, fua } => (2, lba, generation, u32::from(fua)),
            Record::FlushSubmitted { id } => (3, id, 0, 0),
            Record::FlushAcknowledged { id } => (4, id, 0, 0),
            Record::Found { lba, generation } => (5, lba, generation, 0),
            Record::Settled(after) => (6, 0, 0, u32::from(after == After::PowerLoss)),
        };
        let mut out = [0; RECORD];
        out[0..4].copy_from_slice(&kind.to_le_bytes());
        out[4..8].copy_from_slice(&flags.to_le_bytes());
        out[8..16].copy_from_slice(&a.to_le_bytes());
        out[16..24].copy_from_slice(&b.to_le_bytes());
        out
    }

    fn from_bytes(bytes: &[u8]) -> Option<Record> {
        let kind = u32::from_le_bytes(bytes.get(0..4)?.try_into().ok()?);
        let flags = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        let a = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        let b = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
        match kind {
            1 => Some(Record::Submitted { lba: a, generation: b }),
            2 => Some(Record::Acknowledged { lba: a, generation: b, fua: flags & 1 != 0 }),
            3 => Some(Record::FlushSubmitted { id: a }),
            4 => Some(Record::FlushAcknowledged { id: a }),
            5 => Some(Record::Found { lba: a, generation: b }),
            6 => Some(Record::Settled(if flags & 1 != 0 { After::PowerLoss } else { After::Kill })),
            _ => None,
        }
    }
}

/// An open journal. Records of several threads may be written at once: each is one append.
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Opens a journal to go on with, or makes one; returns what it holds already.
    ///
    /// # Errors
    /// The file cannot be used, or is the journal of another kind of run.
    pub(crate) fn open(path: &Path, header: Header) -> Result<(Journal, History), String> {
        let fail = |e: &dyn std::fmt::Display| format!("journal {}: {e}", path.display());
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(|e| fail(&e))?;
        let len = file.metadata().map_err(|e| fail(&e))?.len();
        let history = if len == 0 {
            file.write_all(&encode_header(header)).map_err(|e| fail(&e))?;
            History::new(header)
        } else {
            // A record cut short by a kill would shift all that follow.
            file.set_len(len - len % RECORD as u64).map_err(|e| fail(&e))?;
            let h = History::read(&mut file).map_err(|e| fail(&e))?;
            // The seed is the one that the journal began with, whatever this run would have chosen.
            if (h.header.block_size, h.header.unit_blocks) != (header.block_size, header.unit_blocks) {
                return Err(fail(&format!(
                    "it is of writes of {} blocks of {} bytes; use the same -o, or another file",
                    h.header.unit_blocks, h.header.block_size
                )));
            }
            h
        };
        Ok((Journal { file }, history))
    }

    /// Opens a journal that is there, to add what a check found.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn again(path: &Path) -> Result<Journal, String> {
        let open = || {
            let file = OpenOptions::new().append(true).open(path)?;
            let len = file.metadata()?.len();
            file.set_len(len - len % RECORD as u64)?;
            Ok(Journal { file })
        };
        open().map_err(|e: io::Error| format!("journal {}: {e}", path.display()))
    }

    /// Adds a record; when this returns, a kill of this process does not lose it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn add(&self, record: Record) -> io::Result<()> {
        (&self.file).write_all(&record.to_bytes())
    }
}

fn encode_header(h: Header) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&h.seed.to_le_bytes());
    out[16..20].copy_from_slice(&h.block_size.to_le_bytes());
    out[20..24].copy_from_slice(&h.unit_blocks.to_le_bytes());
    out
}

fn decode_header(b: &[u8; RECORD]) -> Result<Header, String> {
    if b[0..8] != MAGIC {
        return Err("this is no journal of longshore-perf".into());
    }
    let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let h = Header {
        seed: u64::from_le_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        block_size: word(16),
        unit_blocks: word(20),
    };
    if h.block_size < 512 || h.unit_blocks == 0 { Err("the header is damaged".into()) } else { Ok(h) }
}

/// What may be in one unit (the blocks of one write).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitHistory {
    /// Newest write that must be there; 0: none, so anything older may be.
    required: u64,
    /// What the last check found in each block, if they may differ; anything newer that is required counts instead.
    settled: Vec<u64>,
    /// Newer writes, each of which may be there.
    pub(crate) possible: Vec<u64>,
    /// Newest write of all.
    pub(crate) newest: u64,
    /// Acknowledged writes that no acknowledged flush covers yet, newest last.
    undurable: Vec<u64>,
    /// Writes whose end is not recorded.
    open: Vec<u64>,
}

/// Everything a journal says.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// What it is about.
    pub(crate) header: Header,
    /// By first block.
    pub(crate) units: BTreeMap<u64, UnitHistory>,
    /// Acknowledged writes.
    pub(crate) acknowledged: u64,
    /// Writes whose end is not recorded.
    pub(crate) unacknowledged: u64,
    /// What a check that is not known to be complete found, by block.
    found: BTreeMap<u64, u64>,
}

/// After which event the device is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// A process was killed: what was acknowledged is there.
    Kill,
    /// Power was lost: what was acknowledged with FUA, or before a flush that was acknowledged, is there.
    PowerLoss,
}

impl History {
    fn new(header: Header) -> History {
        History { header, units: BTreeMap::new(), acknowledged: 0, unacknowledged: 0, found: BTreeMap::new() }
    }

    /// Reads a journal file.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub(crate) fn load(path: &Path) -> Result<History, String> {
        let read = || {
            let mut f = File::open(path).map_err(|e| e.to_string())?;
            History::read(&mut f)
        };
        read().map_err(|e| format!("journal {}: {e}", path.display()))
    }

    fn read(from: &mut impl Read) -> Result<History, String> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        let (records, _cut_short) = bytes.as_chunks::<RECORD>();
        let (first, rest) = records.split_first().ok_or("it is empty")?;
        let mut h = History::new(decode_header(first)?);
        // Which unit's acknowledged writes a flush covers: those acknowledged before it was submitted.
        let mut flushes: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for (i, r) in rest.iter().enumerate() {
            let record = Record::from_bytes(r).ok_or_else(|| format!("record {i} is damaged"))?;
            h.apply(record, &mut flushes);
        }
        Ok(h)
    }

    fn apply(&mut self, r: Record, flushes: &mut BTreeMap<u64, Vec<(u64, u64)>>) {
        match r {
            Record::Submitted { lba, generation } => {
                let u = self.units.entry(lba).or_default();
                u.newest = u.newest.max(generation);
                u.open.push(generation);
                self.unacknowledged += 1;
            }
            Record::Acknowledged { lba, generation, fua } => {
                let u = self.units.entry(lba).or_default();
                u.open.retain(|&g| g != generation);
                u.undurable.push(generation);
                if fua {
                    u.make_durable(generation);
                }
                self.acknowledged += 1;
                self.unacknowledged = self.unacknowledged.saturating_sub(1);
            }
            Record::FlushSubmitted { id } => {
                let covered = self.units.iter().filter_map(|(&lba, u)| u.undurable.last().map(|&g| (lba, g))).collect();
                flushes.insert(id, covered);
            }
            Record::FlushAcknowledged { id } => {
                for (lba, generation) in flushes.remove(&id).unwrap_or_default() {
                    if let Some(u) = self.units.get_mut(&lba) {
                        u.make_durable(generation);
                    }
                }
            }
            Record::Found { lba, generation } => {
                self.found.insert(lba, generation);
            }
            Record::Settled(after) => {
                let found = std::mem::take(&mut self.found);
                for (&lba, u) in &mut self.units {
                    u.expect(after);
                    u.settle(lba, self.header.unit_blocks, &found);
                }
                // A flush of before says nothing about what comes.
                flushes.clear();
            }
        }
    }

    /// What each unit must and may hold.
    pub(crate) fn expect(mut self, after: After) -> History {
        self.units.values_mut().for_each(|u| u.expect(after));
        self
    }
}

impl UnitHistory {
    /// Newest write that must be in block `index` of the unit; 0: none.
    pub(crate) fn required(&self, index: usize) -> u64 {
        self.settled.get(index).copied().unwrap_or(0).max(self.required)
    }

    fn expect(&mut self, after: After) {
        let acknowledged = self.undurable.last().copied().unwrap_or(0).max(self.required);
        let mut possible = self.open.clone();
        match after {
            After::Kill => self.required = acknowledged,
            After::PowerLoss => possible.extend(&self.undurable),
        }
        possible.retain(|&g| g > self.required);
        possible.sort_unstable();
        self.possible = possible;
    }

    /// What is `found` is there, and none of the writes so far will change it.
    fn settle(&mut self, lba: u64, blocks: u32, found: &BTreeMap<u64, u64>) {
        if !self.possible.is_empty() {
            let known = (lba..lba + u64::from(blocks)).zip(0..);
            self.settled = known.map(|(at, i)| found.get(&at).copied().unwrap_or(0).max(self.required(i))).collect();
        }
        self.undurable.clear();
        self.open.clear();
        self.possible.clear();
    }

    fn make_durable(&mut self, generation: u64) {
        self.required = self.required.max(generation);
        self.undurable.retain(|&g| g > generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { seed: 3, block_size: 4096, unit_blocks: 2 };

    fn temp(name: &str) -> std::path::PathBuf {
        let p = std::env::temp_dir().join(format!("longshore-perf-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&p);
        p
    }

    fn history(records: &[Record], after: After) -> History {
        let mut h = History::new(HEADER);
        let mut flushes = BTreeMap::new();
        records.iter().for_each(|&r| h.apply(r, &mut flushes));
        h.expect(after)
    }

    fn sub(lba: u64, generation: u64) -> Record {
        Record::Submitted { lba, generation }
    }

    fn ack(lba: u64, generation: u64) -> Record {
        Record::Acknowledged { lba, generation, fua: false }
    }

    #[test]
    fn after_a_kill_the_acknowledged_write_is_required_and_the_open_one_possible() {
        let h = history(&[sub(0, 1), ack(0, 1), sub(0, 2), sub(8, 1)], After::Kill);
        assert_eq!((h.units[&0].required, &h.units[&0].possible[..]), (1, &[2][..]));
        assert_eq!((h.units[&8].required, &h.units[&8].possible[..]), (0, &[1][..]));
        assert_eq!((h.acknowledged, h.unacknowledged), (1, 2));
    }

    #[test]
    fn after_power_loss_only_flushed_and_fua_writes_are_required() {
        let flush = [Record::FlushSubmitted { id: 1 }, Record::FlushAcknowledged { id: 1 }];
        let mut r = vec![sub(0, 1), ack(0, 1), flush[0], sub(0, 2), ack(0, 2), flush[1], sub(8, 1)];
        r.push(Record::Acknowledged { lba: 8, generation: 1, fua: true });
        let h = history(&r, After::PowerLoss);
        // generation 2 was acknowledged after the flush was submitted: not covered
        assert_eq!((h.units[&0].required, &h.units[&0].possible[..]), (1, &[2][..]));
        assert_eq!((h.units[&8].required, h.units[&8].possible.len()), (1, 0));
        let h = history(&r[..5], After::PowerLoss);
        assert_eq!((h.units[&0].required, &h.units[&0].possible[..]), (0, &[1, 2][..]));
    }

    #[test]
    fn what_a_check_found_is_all_that_may_be_there_from_then_on() {
        let found = |lba, generation| Record::Found { lba, generation };
        let mut r = vec![sub(0, 1), ack(0, 1), sub(0, 2), ack(0, 2), sub(8, 1), ack(8, 1), sub(8, 2)];
        r.extend([Record::FlushSubmitted { id: 1 }, sub(16, 1)]);
        // Not complete: nothing follows from it.
        let h = history(&[&r[..], &[found(0, 2)]].concat(), After::PowerLoss);
        assert_eq!((h.units[&0].required(0), &h.units[&0].possible[..]), (0, &[1, 2][..]));

        r.extend([found(0, 2), found(1, 1), found(8, 0), found(9, 0), Record::Settled(After::PowerLoss)]);
        let h = history(&r, After::PowerLoss);
        let held = |lba: u64| [0, 1].map(|i| h.units[&lba].required(i));
        assert_eq!((held(0), held(8), held(16)), ([2, 1], [0, 0], [0, 0]));
        assert!(h.units.values().all(|u| u.possible.is_empty()));
        assert_eq!(h.units[&8].newest, 2);

        // Neither a flush of before nor one of after makes durable what was lost.
        r.extend([Record::FlushAcknowledged { id: 1 }, Record::FlushSubmitted { id: 2 }]);
        r.extend([Record::FlushAcknowledged { id: 2 }, sub(0, 3)]);
        let h = history(&r, After::PowerLoss);
        assert_eq!([0, 1].map(|i| h.units[&0].required(i)), [2, 1]);
        assert_eq!((h.units[&8].required(0), &h.units[&0].possible[..]), (0, &[3][..]));
        r.push(ack(0, 3));
        let h = history(&r, After::Kill);
        assert_eq!([0, 1].map(|i| h.units[&0].required(i)), [3, 3]);
    }

    #[test]
    fn a_journal_is_continued_and_a_record_cut_short_is_dropped() {
        let path = temp("continued");
        let (j, h) = Journal::open(&path, HEADER).unwrap();
        assert!(h.units.is_empty());
        j.add(sub(4, 1)).unwrap();
        j.add(ack(4, 1)).unwrap();
        drop(j);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[1, 0, 0]).unwrap();
        let (j, h) = Journal::open(&path, Header { seed: 99, ..HEADER }).unwrap();
        assert_eq!((h.units[&4].newest, h.header.seed), (1, 3));
        j.add(sub(4, 2)).unwrap();
        drop(j);
        let h = History::load(&path).unwrap().expect(After::Kill);
        assert_eq!((h.units[&4].required, &h.units[&4].possible[..]), (1, &[2][..]));
        let other = Header { unit_blocks: 4, ..HEADER };
        assert!(Journal::open(&path, other).err().unwrap().contains("2 blocks of 4096 bytes"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_journal_is_refused() {
        let path = temp("foreign");
        for bytes in [&b""[..], b"short", &[7; 64]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(History::load(&path).is_err());
        }
        std::fs::remove_file(&path).unwrap();
    }
}
