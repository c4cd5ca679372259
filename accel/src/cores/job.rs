//! What an accel core computes: steps, one after the other, over scattered memory of who wants it.
#![allow(unsafe_code)]

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::assign::Table;
use crate::coder::{Coder, Rebuilder};
use crate::erasure::{Codec, Decoder};
use crate::operation::Operation;

/// Lists of one step at most: every chunk of an erasure code.
const MOST: usize = 40;

/// Who had a job done by an accel core.
pub trait JobOwner: 'static {
    /// The job is done, and nobody uses its memory any more. Called from a task of the reactor that submitted it.
    fn job_done(self: Rc<Self>, job: Box<Job>);
}

#[derive(Clone, Copy)]
struct Piece {
    base: *mut u8,
    len: usize,
}

enum What {
    Encode(Arc<Codec>),
    Update(Arc<Codec>, usize),
    Decode(Arc<Decoder>),
    Xor,
    /// The checksum goes to this place.
    Crc32c(usize),
}

impl What {
    fn operation(&self) -> Operation {
        match self {
            What::Encode(_) => Operation::EcEncode,
            What::Update(..) => Operation::EcUpdate,
            What::Decode(_) => Operation::EcDecode,
            What::Xor => Operation::Xor,
            What::Crc32c(_) => Operation::Crc32c,
        }
    }
}

/// One operation: from so many lists to so many.
struct Step {
    what: What,
    sources: Range<usize>,
    results: Range<usize>,
    /// Bytes of each list.
    len: usize,
}

/// Makes results of sources, which are all of one length.
type Compute<'a> = dyn FnMut(&[&[u8]], &mut [&mut [u8]]) + 'a;

/// Work for an accel core, done in the order in which it was added. It keeps what it allocated when it is [cleared](Job::clear).
pub struct Job {
    table: Arc<Table>,
    pieces: Vec<Piece>,
    /// Of each list the pieces.
    lists: Vec<Range<usize>>,
    /// Lists that belong to steps.
    used: usize,
    steps: Vec<Step>,
    crcs: [u32; MOST],
}

// SAFETY: the pieces are memory that the promise of `list` makes good for whichever thread runs the job; all else is `Send` by itself.
unsafe impl Send for Job {}

impl Job {
    pub(crate) fn new(table: Arc<Table>) -> Job {
        Job { table, pieces: Vec::new(), lists: Vec::new(), used: 0, steps: Vec::new(), crcs: [0; MOST] }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.lists.clear();
        self.steps.clear();
        self.used = 0;
    }

    /// Adds a list of memory for the next step: those of its sources come first, then those of its results.
    ///
    /// # Safety
    /// Until this job is [cleared](Job::clear) or dropped: the pieces stay valid, for writing if the list is one of results; nobody else writes to
    /// them, nor reads results; within a step, results do not overlap each other or sources. Where it is submitted, the owner keeps them: a job that
    /// never comes back is leaked together with its owner.
    pub unsafe fn list(&mut self, pieces: impl Iterator<Item = (*mut u8, usize)>) {
        let start = self.pieces.len();
        self.pieces.extend(pieces.filter(|(_, len)| *len > 0).map(|(base, len)| Piece { base, len }));
        self.lists.push(start..self.pieces.len());
    }

    /// Makes a step of the lists that were added since the last one, of which the last `results` are written to.
    fn step(&mut self, what: What, sources: usize, results: usize, len: usize) {
        let lists = self.used..self.lists.len();
        assert_eq!(lists.len(), sources + results, "lists of sources and results");
        assert!(sources + results <= MOST, "{MOST} lists at most");
        let long = |l: &Range<usize>| self.pieces[l.clone()].iter().map(|p| p.len).sum::<usize>() >= len;
        assert!(self.lists[lists.clone()].iter().all(long), "every list has {len} bytes");
        self.used = lists.end;
        let at = lists.start + sources;
        self.steps.push(Step { what, sources: lists.start..at, results: at..lists.end, len });
    }

    /// As [`Coder::encode`]: the first `len` bytes of all data lists to all parity lists.
    pub fn encode(&mut self, coder: &Coder, len: usize) {
        let codec = coder.encoder().clone();
        let (k, m) = (codec.data_chunks(), codec.parity_chunks());
        self.step(What::Encode(codec), k, m, len);
    }

    /// As [`Coder::update`]: from the list of what has changed to all parity lists.
    ///
    /// # Panics
    /// There is no such data chunk.
    pub fn update(&mut self, coder: &Coder, index: usize, len: usize) {
        let codec = coder.updater().clone();
        assert!(index < codec.data_chunks(), "data chunk {index} of {}", codec.data_chunks());
        let m = codec.parity_chunks();
        self.step(What::Update(codec, index), 1, m, len);
    }

    /// As [`Rebuilder::decode`]: from its sources to what was lost.
    pub fn decode(&mut self, rebuilder: &Rebuilder, len: usize) {
        let (sources, lost) = (rebuilder.sources().len(), rebuilder.lost().len());
        self.step(What::Decode(rebuilder.decoder().clone()), sources, lost, len);
    }

    /// Adds (XOR) a list to another.
    pub fn xor(&mut self, len: usize) {
        self.step(What::Xor, 1, 1, len);
    }

    /// Takes the CRC-32C of a list, which [`crc`](Job::crc) then says under the number `at`.
    ///
    /// # Panics
    /// The number is 40 or more.
    pub fn crc32c(&mut self, at: usize, len: usize) {
        assert!(at < MOST, "checksum {at} of {MOST}");
        self.step(What::Crc32c(at), 1, 0, len);
    }

    /// A checksum that was taken.
    pub fn crc(&self, at: usize) -> u32 {
        self.crcs[at]
    }

    /// Bytes that all steps read.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(|s| (s.sources.len() * s.len) as u64).sum()
    }

    /// Each operation with the bytes that it reads.
    pub(super) fn each(&self, mut f: impl FnMut(Operation, usize)) {
        self.steps.iter().for_each(|s| f(s.what.operation(), s.sources.len() * s.len));
    }

    /// Does it, on this core.
    pub fn run(&mut self) {
        let Job { table, pieces, lists, steps, crcs, .. } = self;
        for step in &*steps {
            let engine = |op: Operation| &*table[op as usize];
            let all = |f: &mut Compute<'_>| {
                walk(pieces, &lists[step.sources.clone()], &lists[step.results.clone()], step.len, f);
            };
            match &step.what {
                What::Encode(codec) => all(&mut |src, dst| codec.encode(src, dst)),
                What::Update(codec, index) => all(&mut |src, dst| codec.update(*index, src[0], dst)),
                What::Decode(decoder) => all(&mut |src, dst| decoder.decode(src, dst)),
                What::Xor => all(&mut |src, dst| engine(Operation::Xor).xor(dst[0], src[0])),
                What::Crc32c(at) => {
                    let mut crc = 0;
                    all(&mut |src, _| crc = engine(Operation::Crc32c).crc32c(crc, src[0]));
                    crcs[*at] = crc;
                }
            }
        }
    }
}

/// Calls `f` with pieces of all lists that are of one length, one after the other, `len` bytes in all.
fn walk(pieces: &[Piece], sources: &[Range<usize>], results: &[Range<usize>], len: usize, f: &mut Compute<'_>) {
    // The piece that each list is at, and how far in it.
    let mut at = [(0usize, 0usize); MOST];
    let lists = || sources.iter().chain(results);
    at.iter_mut().zip(lists()).for_each(|(at, list)| at.0 = list.start);
    let mut left = len;
    while left > 0 {
        let n = lists().zip(&at).fold(left, |n, (_, &(piece, off))| n.min(pieces[piece].len - off));
        let mut src: [&[u8]; MOST] = [&[]; MOST];
        let mut dst: [&mut [u8]; MOST] = std::array::from_fn(|_| &mut [][..]);
        for (i, at) in at.iter_mut().enumerate().take(sources.len() + results.len()) {
            let p = pieces[at.0];
            let base = p.base.wrapping_add(at.1);
            // SAFETY: `n` bytes are left in this piece, as was just seen, and each list has `len` bytes, as `Job::step` saw. Who made the list
            // promised that they are valid, that nobody writes to them meanwhile, and that results overlap nothing else in this step.
            unsafe {
                match i.checked_sub(sources.len()) {
                    None => src[i] = std::slice::from_raw_parts(base, n),
                    Some(i) => dst[i] = std::slice::from_raw_parts_mut(base, n),
                }
            }
            *at = if at.1 + n == p.len { (at.0 + 1, 0) } else { (at.0, at.1 + n) };
        }
        f(&src[..sources.len()], &mut dst[..results.len()]);
        left -= n;
    }
}
