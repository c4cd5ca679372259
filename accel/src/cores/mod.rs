//! Cores of their own for jobs that would keep a reactor for long.
//!
//! Each is a reactor of a runtime apart: a pinned thread that sleeps in its ring while there is nothing to do, and is woken as reactors wake each
//! other. It runs nothing but jobs, one at a time. An [`Offload`] is the way to all of them from one core.

mod job;
mod lane;
mod offload;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use longshore_reactor::{CoreHandle, DmaOptions, Options, PollMode, RingOptions, Runtime, StartError};

pub use job::{Job, JobOwner};
pub use offload::Offload;

use crate::stats::Counting;

/// Jobs that an accel core has at a time, the one that it runs among them. Who finds none free computes on its own core.
pub const QUEUE: usize = 32;

/// What a job has to weigh at least to be moved; see [`Offload::pays`]. Nothing that takes less than 75 us with the fastest kernels is; what it costs
/// to have it done elsewhere, `examples/handover.rs` says: a few microseconds, and 15 us of the reactor's own if the accel core has to be woken.
pub const LEAST: u64 = 3 << 20;

/// How long an accel core looks for more after its last job before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// Called on an accel core before each job, for tests and simulations: the job begins as much later as it says.
pub type Before = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How accel cores work.
#[derive(Clone)]
pub struct CoresOptions {
    /// What a job has to weigh at least to be moved.
    pub least: u64,
    /// Called before each job.
    pub before: Option<Before>,
}

impl Default for CoresOptions {
    fn default() -> Self {
        CoresOptions { least: LEAST, before: None }
    }
}

/// What an accel core did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// Its CPU.
    pub cpu: u32,
    /// The kernel's thread id.
    pub tid: i32,
    /// Jobs that it has done.
    pub jobs: u64,
    /// Bytes that they read.
    pub bytes: u64,
    /// Nanoseconds that they took.
    pub busy_ns: u64,
    /// Jobs that wait for it or that it runs.
    pub queued: usize,
}

/// One accel core.
struct Core {
    handle: CoreHandle,
    queued: AtomicUsize,
    jobs: AtomicU64,
    bytes: AtomicU64,
    ticks: AtomicU64,
}

/// The accel cores of a process.
pub struct Cores {
    cores: Vec<Arc<Core>>,
    options: CoresOptions,
    /// None: they are reactors of somebody else.
    _runtime: Option<Runtime>,
}

impl std::fmt::Debug for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.cores.iter().map(|c| c.handle.cpu())).finish()
    }
}

impl Cores {
    /// Starts a thread on each of these CPUs. They end when the last reference does: every [`Offload`] has one.
    ///
    /// # Errors
    /// As [`Runtime::start`].
    pub fn start(cpus: Vec<u32>, options: CoresOptions) -> Result<Arc<Cores>, StartError> {
        let runtime = Runtime::start(Options {
            cores: cpus,
            poll: PollMode::Adaptive { spin: SPIN, linger: Duration::ZERO },
            // They do no I/O and own no memory that any is done with.
            ring: RingOptions {
                sq_entries: 8,
                cq_entries: 16,
                max_ops: 64,
                rx_slice: 4096,
                rx_slices: 1,
                rx_slices_max: 1,
            },
            dma: DmaOptions { max_bytes: 2 << 20, huge: false, register: false },
            name: "accel".into(),
            workers: 1,
            ..Options::default()
        })?;
        Ok(Cores::of(runtime.cores().to_vec(), options, Some(runtime)))
    }

    /// The same on reactors that are there: for simulations.
    pub fn on(reactors: Vec<CoreHandle>, options: CoresOptions) -> Arc<Cores> {
        Cores::of(reactors, options, None)
    }

    fn of(reactors: Vec<CoreHandle>, options: CoresOptions, runtime: Option<Runtime>) -> Arc<Cores> {
        let core = |handle| {
            Arc::new(Core {
                handle,
                queued: AtomicUsize::new(0),
                jobs: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                ticks: AtomicU64::new(0),
            })
        };
        Arc::new(Cores { cores: reactors.into_iter().map(core).collect(), options, _runtime: runtime })
    }

    /// What each of them did, in the order of the CPUs.
    pub fn stats(&self) -> Vec<CoreStats> {
        let one = |c: &Arc<Core>| CoreStats {
            cpu: c.handle.cpu(),
            tid: c.handle.tid(),
            jobs: c.jobs.load(Relaxed),
            bytes: c.bytes.load(Relaxed),
            busy_ns: longshore_reactor::nanos(c.ticks.load(Relaxed)),
            queued: c.queued.load(Relaxed),
        };
        self.cores.iter().map(one).collect()
    }

    /// The way to them from the calling reactor, by which what is done is counted.
    pub(crate) fn open(self: &Arc<Self>, counting: std::rc::Rc<Counting>) -> Offload {
        Offload::open(self.clone(), counting)
    }
}
