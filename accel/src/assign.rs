//! Which engine does which operation, and the way to them from one core.

use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::coder::Coder;
use crate::cores::{Cores, Job, Offload};
use crate::crypto::{Crypt, Key, KeyError, Keyring};
use crate::engine::{Capability, Engine};
use crate::erasure::{ErasureError, MatrixKind};
use crate::operation::Operation;
use crate::pieces::{each_pair, each_run};
use crate::software::Software;
use crate::stats::{Counting, OpStats, Stats};

/// Why an operation is not assigned to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssignError {
    /// No engine has this name; those that there are.
    NoSuchEngine(String, Vec<&'static str>),
    /// The engine does not do it.
    NotDone(&'static str, Operation),
    /// Assignments are over: the framework was started.
    Started,
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssignError::NoSuchEngine(name, there) => write!(f, "no module '{name}'; there are: {}", there.join(", ")),
            AssignError::NotDone(engine, op) => write!(f, "module '{engine}' does not do '{}'", op.name()),
            AssignError::Started => f.write_str("the framework is started: assign before framework_start_init"),
        }
    }
}

impl std::error::Error for AssignError {}

pub(crate) type Table = [Arc<dyn Engine>; Operation::COUNT];

/// The engines, what is assigned to them, the keys and the counters. One per process, shared by all threads.
pub struct Accel {
    engines: Vec<Arc<dyn Engine>>,
    wanted: Mutex<Vec<(Operation, Arc<dyn Engine>)>>,
    table: OnceLock<Arc<Table>>,
    /// The keys of block devices.
    pub keys: Keyring,
    stats: Arc<Stats>,
    cores: Option<Arc<Cores>>,
}

impl Default for Accel {
    /// With all engines of this build.
    fn default() -> Accel {
        Accel::new(vec![
            #[cfg(feature = "isal")]
            Arc::new(crate::isal::Isal),
        ])
    }
}

fn capability(engine: &dyn Engine, op: Operation) -> Option<Capability> {
    engine.capabilities().into_iter().find(|c| c.operation == op)
}

fn does(engine: &dyn Engine, op: Operation) -> bool {
    capability(engine, op).is_some()
}

impl Accel {
    /// With `engines` beside the software one. Until it is assigned, each operation belongs to the last one whose device does it, and without
    /// such to the first that does it: of engines that take the core's time, none is known to be faster than the software one.
    pub fn new(engines: Vec<Arc<dyn Engine>>) -> Accel {
        let mut all: Vec<Arc<dyn Engine>> = vec![Arc::new(Software)];
        all.extend(engines);
        Accel {
            engines: all,
            wanted: Mutex::default(),
            table: OnceLock::new(),
            keys: Keyring::default(),
            stats: Arc::default(),
            cores: None,
        }
    }

    /// With cores of their own for what would keep others for long.
    #[must_use]
    pub fn with_cores(self, cores: Arc<Cores>) -> Accel {
        Accel { cores: Some(cores), ..self }
    }

    /// The cores that are there for long jobs, if there are any.
    pub fn cores(&self) -> Option<&Arc<Cores>> {
        self.cores.as_ref()
    }

    /// The way from the calling reactor to those cores; none if there are none. Not to be opened per job.
    ///
    /// # Panics
    /// If there are, and the calling thread is not a reactor's.
    pub fn offload(&self) -> Option<Offload> {
        self.cores.as_ref().map(|cores| cores.open(self.stats.open()))
    }

    fn wanted(&self) -> MutexGuard<'_, Vec<(Operation, Arc<dyn Engine>)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All engines, the software one first.
    pub fn engines(&self) -> &[Arc<dyn Engine>] {
        &self.engines
    }

    /// Assigns an operation. Before the start.
    ///
    /// # Errors
    /// It is too late, there is no such engine, or it does not do that.
    pub fn assign(&self, op: Operation, engine: &str) -> Result<(), AssignError> {
        let mut wanted = self.wanted();
        if self.table.get().is_some() {
            return Err(AssignError::Started);
        }
        let Some(engine) = self.engines.iter().find(|e| e.name() == engine) else {
            let there = self.engines.iter().map(|e| e.name()).collect();
            return Err(AssignError::NoSuchEngine(engine.to_owned(), there));
        };
        if !does(&**engine, op) {
            return Err(AssignError::NotDone(engine.name(), op));
        }
        wanted.retain(|(o, _)| *o != op);
        wanted.push((op, engine.clone()));
        Ok(())
    }

    /// What was assigned by name, in the order of [`Operation::ALL`].
    pub fn assigned(&self) -> Vec<(Operation, &'static str)> {
        let mut all: Vec<_> = self.wanted().iter().map(|(op, engine)| (*op, engine.name())).collect();
        all.sort_by_key(|(op, _)| *op as u8);
        all
    }

    /// Ends assigning. The first channel does so too.
    pub fn start(&self) {
        self.table();
    }

    fn table(&self) -> &Arc<Table> {
        let wanted = self.wanted();
        self.table.get_or_init(|| {
            Arc::new(std::array::from_fn(|i| {
                let op = Operation::ALL[i];
                let by_name = wanted.iter().find(|(o, _)| *o == op).map(|(_, engine)| engine);
                let on_device = |e: &&Arc<dyn Engine>| capability(&***e, op).is_some_and(|c| c.hardware);
                let device = || self.engines.iter().rev().find(on_device);
                let able = || self.engines.iter().find(|e| does(&***e, op));
                by_name.or_else(device).or_else(able).unwrap_or(&self.engines[0]).clone()
            }))
        })
    }

    /// The engine of an operation; none if no engine does it.
    pub fn engine(&self, op: Operation) -> Option<&Arc<dyn Engine>> {
        Some(&self.table()[op as usize]).filter(|engine| does(&***engine, op))
    }

    /// The way from one core. Not to be opened per job.
    pub fn channel(&self) -> Channel {
        Channel { table: self.table().clone(), counting: self.stats.open() }
    }

    /// What was done of each operation, in the order of [`Operation::ALL`].
    pub fn stats(&self) -> [OpStats; Operation::COUNT] {
        self.stats.sum()
    }
}

/// The way to the engines from one core, which it does not leave. Memory is scattered: what is read and what is written are lists of pieces, cut each in
/// its own way.
pub struct Channel {
    table: Arc<Table>,
    counting: Rc<Counting>,
}

impl Channel {
    fn engine(&self, op: Operation) -> &dyn Engine {
        &*self.table[op as usize]
    }

    /// A job for accel cores, with nothing to do so far. Not to be made per job: it is used again.
    pub fn job(&self) -> Box<Job> {
        Box::new(Job::new(self.table.clone()))
    }

    /// Counts a job that was done by a [`Crypt`], which does not count by itself.
    #[inline]
    pub fn count(&self, op: Operation, bytes: usize) {
        self.counting.count(op, bytes);
    }

    /// Counts a job that failed.
    pub fn count_failed(&self, op: Operation) {
        self.counting.fail(op);
    }

    /// Copies `src` to `dst`, until one of them ends. Returns the bytes copied, as the others here.
    pub fn copy<'a, 'b>(
        &self,
        dst: impl IntoIterator<Item = &'a mut [u8]>,
        src: impl IntoIterator<Item = &'b [u8]>,
    ) -> usize {
        let engine = self.engine(Operation::Copy);
        let n = each_run(dst, src, |to, from| engine.copy(to, from));
        self.count(Operation::Copy, n);
        n
    }

    /// Fills `dst` with one byte.
    pub fn fill<'a>(&self, dst: impl IntoIterator<Item = &'a mut [u8]>, byte: u8) -> usize {
        let engine = self.engine(Operation::Fill);
        let mut n = 0;
        for piece in dst {
            engine.fill(piece, byte);
            n += piece.len();
        }
        self.count(Operation::Fill, n);
        n
    }

    /// Copies `src` to two places.
    pub fn dualcast(&self, first: &mut [u8], second: &mut [u8], src: &[u8]) {
        let engine = self.engine(Operation::Dualcast);
        engine.copy(first, src);
        engine.copy(second, src);
        self.count(Operation::Dualcast, src.len());
    }

    /// Whether `a` and `b` hold the same, as far as both go.
    pub fn compare<'a, 'b>(
        &self,
        a: impl IntoIterator<Item = &'a [u8]>,
        b: impl IntoIterator<Item = &'b [u8]>,
    ) -> bool {
        let engine = self.engine(Operation::Compare);
        let mut same = true;
        let n = each_pair(a, b, |x, y| {
            same = engine.compare(x, y);
            same
        });
        self.count(Operation::Compare, n);
        same
    }

    /// CRC-32C of all pieces together, after what `crc` is that of (0: nothing).
    pub fn crc32c<'a>(&self, crc: u32, data: impl IntoIterator<Item = &'a [u8]>) -> u32 {
        let engine = self.engine(Operation::Crc32c);
        self.checksum(Operation::Crc32c, crc, data, |crc, piece| engine.crc32c(crc, piece))
    }

    /// CRC-64/NVME, likewise.
    pub fn crc64_nvme<'a>(&self, crc: u64, data: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        let engine = self.engine(Operation::Crc64Nvme);
        self.checksum(Operation::Crc64Nvme, crc, data, |crc, piece| engine.crc64_nvme(crc, piece))
    }

    /// CRC-16/T10-DIF, likewise.
    pub fn crc16_t10dif<'a>(&self, crc: u16, data: impl IntoIterator<Item = &'a [u8]>) -> u16 {
        let engine = self.engine(Operation::Crc16T10Dif);
        self.checksum(Operation::Crc16T10Dif, crc, data, |crc, piece| engine.crc16_t10dif(crc, piece))
    }

    fn checksum<'a, C>(
        &self,
        op: Operation,
        mut crc: C,
        data: impl IntoIterator<Item = &'a [u8]>,
        step: impl Fn(C, &[u8]) -> C,
    ) -> C {
        let mut n = 0;
        for piece in data {
            crc = step(crc, piece);
            n += piece.len();
        }
        self.count(op, n);
        crc
    }

    /// Copies, and takes the CRC-32C of what was copied, after what `crc` is that of.
    pub fn copy_crc32c<'a, 'b>(
        &self,
        crc: u32,
        dst: impl IntoIterator<Item = &'a mut [u8]>,
        src: impl IntoIterator<Item = &'b [u8]>,
    ) -> u32 {
        let engine = self.engine(Operation::CopyCrc32c);
        let mut crc = crc;
        let n = each_run(dst, src, |to, from| {
            engine.copy(to, from);
            crc = engine.crc32c(crc, to); // of what arrived: `src` may be somebody's who changes it
        });
        self.count(Operation::CopyCrc32c, n);
        crc
    }

    /// Adds (XOR) `src` to `dst`, until one of them ends.
    pub fn xor<'a, 'b>(
        &self,
        dst: impl IntoIterator<Item = &'a mut [u8]>,
        src: impl IntoIterator<Item = &'b [u8]>,
    ) -> usize {
        let engine = self.engine(Operation::Xor);
        let n = each_run(dst, src, |to, from| engine.xor(to, from));
        self.count(Operation::Xor, n);
        n
    }

    /// Prepares a key for blocks of `block_size` bytes, on this core.
    ///
    /// # Errors
    /// The engine does not do that.
    pub fn crypt(&self, key: &Key, block_size: usize) -> Result<Crypt, KeyError> {
        let (out, back) = (self.engine(Operation::Encrypt), self.engine(Operation::Decrypt));
        Crypt::new(key, block_size, out.cipher(key)?, back.cipher(key)?)
    }

    /// Prepares an erasure code for this core: encoding, updating and rebuilding each by the engine that it is assigned to.
    ///
    /// # Errors
    /// As [`Codec::new`](crate::erasure::Codec::new).
    pub fn coder(&self, kind: MatrixKind, data: usize, parity: usize) -> Result<Coder, ErasureError> {
        let table = &self.table;
        let make = |op: Operation| table[op as usize].codec(kind, data, parity).map(Arc::new);
        let encode = make(Operation::EcEncode)?;
        let same = |op: Operation| Arc::ptr_eq(&table[op as usize], &table[Operation::EcEncode as usize]);
        let other = |op| if same(op) { Ok(encode.clone()) } else { make(op) };
        let (update, decode) = (other(Operation::EcUpdate)?, other(Operation::EcDecode)?);
        Ok(Coder::new(encode, update, decode, self.counting.clone()))
    }
}
