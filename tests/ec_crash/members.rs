//! The files that an array lies on, and what befalls them while nobody serves them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use longshore_reactor::sim::Random;

use super::{FILES, N};

/// Bytes of the smallest file; each is a bit larger than the one before.
const BYTES: u64 = 16 << 20;
/// What is copied at once, if it is not all zeroes.
const PIECE: usize = 64 << 10;
const SUPERBLOCK: u64 = 4096;
/// Where the other superblock is.
const SPACING: u64 = 64 << 10;

/// The files of one array.
pub(crate) struct Members {
    dir: PathBuf,
    /// The file of each slot, and, last, the one that stands by.
    pub(crate) files: [usize; FILES],
    /// Slots of which there is an older copy.
    pub(crate) copied: [bool; N],
}

/// A newest superblock, as far as this test must understand it: see `docs/format-ec.md`.
struct Superblock {
    copy: u64,
    strip: u64,
    stripes: u64,
    map: u64,
    wib: u64,
    data: u64,
}

fn word(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

impl Members {
    pub(crate) fn new(dir: &Path) -> Members {
        let m = Members { dir: dir.to_owned(), files: std::array::from_fn(|file| file), copied: [false; N] };
        (0..FILES).for_each(|slot| m.blank(slot));
        m
    }

    pub(crate) fn path(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("member{}", self.files[slot]))
    }

    /// The file that stood by is the member in `slot`, and that one's stands by.
    pub(crate) fn trade(&mut self, slot: usize) {
        self.files.swap(slot, N);
        self.copied[slot] = false;
    }

    fn aside(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("away{slot}"))
    }

    fn copy(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("copy{slot}"))
    }

    fn open(&self, slot: usize) -> File {
        OpenOptions::new().read(true).write(true).open(self.path(slot)).expect("a member's file")
    }

    /// Waits until nothing that a killed daemon had in the kernel is under way any more.
    pub(crate) fn settle(&self) {
        for slot in (0..FILES).filter(|&slot| self.path(slot).exists()) {
            rustix::fs::flock(self.open(slot), rustix::fs::FlockOperation::LockExclusive).expect("a lock");
        }
    }

    /// The member is another, empty device from now on.
    pub(crate) fn blank(&self, slot: usize) {
        let _ = std::fs::remove_file(self.path(slot));
        let file = File::create_new(self.path(slot)).expect("a file for a member");
        file.set_len(BYTES + (self.files[slot] as u64) * (64 << 10)).expect("its size");
    }

    /// Its device is not there.
    pub(crate) fn take_away(&self, slot: usize) {
        std::fs::rename(self.path(slot), self.aside(slot)).expect("a file to take away");
    }

    /// Its device is there again as it was when it went.
    pub(crate) fn bring_back(&self, slot: usize) {
        std::fs::rename(self.aside(slot), self.path(slot)).expect("a file to bring back");
    }

    /// Remembers what it holds now.
    pub(crate) fn remember(&mut self, slot: usize) {
        copy(&self.path(slot), &self.copy(slot));
        self.copied[slot] = true;
    }

    /// It holds what it held when that was last remembered.
    pub(crate) fn put_back(&self, slot: usize) {
        copy(&self.copy(slot), &self.path(slot));
    }

    /// Keeps all files as they are now, for a look at what a start made of them.
    pub(crate) fn keep(&self, into: &Path) {
        std::fs::create_dir_all(into).expect("a directory");
        for slot in 0..FILES {
            let to = into.join(format!("member{}", self.files[slot]));
            let _ = std::fs::remove_file(&to);
            if self.path(slot).exists() {
                copy(&self.path(slot), &to);
            }
        }
    }

    fn superblock(&self, slot: usize) -> Option<Superblock> {
        let file = self.open(slot);
        let mut newest: Option<(u64, Superblock)> = None;
        for copy in 0..2 {
            let mut b = vec![0; SUPERBLOCK as usize];
            file.read_exact_at(&mut b, copy * SPACING).expect("a superblock's place");
            let epoch = word(&b, 136);
            if &b[..8] != b"LSEC-SB\0" || newest.as_ref().is_some_and(|(e, _)| *e > epoch) {
                continue;
            }
            let strip = word(&b, 80) & 0xffff_ffff;
            let (stripes, map, wib, data) = (word(&b, 96), word(&b, 104), word(&b, 112), word(&b, 128));
            newest = Some((epoch, Superblock { copy, strip, stripes, map, wib, data }));
        }
        newest.map(|(_, s)| s)
    }

    fn spoil(&self, slot: usize, at: u64, bytes: u64, r: &mut Random) {
        let noise: Vec<u8> = (0..bytes).map(|_| r.bits() as u8).collect();
        self.open(slot).write_all_at(&noise, at).expect("a member's file is written");
    }

    /// Its newest superblock is spoiled, or both are. False: it has none.
    pub(crate) fn spoil_superblocks(&self, slot: usize, both: bool, r: &mut Random) -> bool {
        let Some(s) = self.superblock(slot) else { return false };
        let one_block = 512 * r.below(SUPERBLOCK / 512);
        self.spoil(slot, s.copy * SPACING + one_block, 512, r);
        if both {
            self.spoil(slot, (1 - s.copy) * SPACING + one_block, 512, r);
        }
        true
    }

    /// The first page of its map or of its write-intent bitmap is spoiled, both sides of it.
    pub(crate) fn spoil_page(&self, slot: usize, r: &mut Random) -> bool {
        let Some(s) = self.superblock(slot) else { return false };
        self.spoil(slot, if r.chance(500) { s.map } else { s.wib }, 8192, r);
        true
    }

    /// Some of its strips of stripes that hold data are spoiled. False: none does.
    pub(crate) fn spoil_strips(&self, slot: usize, r: &mut Random) -> bool {
        let Some(s) = self.superblock(slot) else { return false };
        // The newer side of the first page of the map: its number is at 16, its bits from 56 on.
        let mut sides = [[0; 4096], [0; 4096]];
        for (side, at) in sides.iter_mut().zip([s.map, s.map + 4096]) {
            self.open(slot).read_exact_at(side, at).expect("a page");
        }
        let newer = sides.iter().filter(|b| &b[..8] == b"LSEC-PG\0").max_by_key(|b| word(&b[..], 16));
        let Some(page) = newer else { return false };
        let used: Vec<u64> = (0..s.stripes).filter(|&i| page[56 + i as usize / 8] >> (i % 8) & 1 == 1).collect();
        for _ in 0..3.min(used.len()) {
            let stripe = used[r.below(used.len() as u64) as usize];
            let within = 512 * r.below(s.strip / 512);
            self.spoil(slot, s.data + stripe * s.strip + within, 512, r);
        }
        !used.is_empty()
    }
}

/// Copies a file; what is zero becomes a hole.
fn copy(from: &Path, to: &Path) {
    let from = File::open(from).expect("a file to copy");
    let to = File::create(to).expect("a file to copy to");
    let len = from.metadata().expect("its size").len();
    to.set_len(len).expect("a size");
    let mut piece = vec![0; PIECE];
    for at in (0..len).step_by(PIECE) {
        let n = PIECE.min((len - at) as usize);
        from.read_exact_at(&mut piece[..n], at).expect("a file is read");
        if piece[..n].iter().any(|&b| b != 0) {
            to.write_all_at(&piece[..n], at).expect("a file is written");
        }
    }
}
