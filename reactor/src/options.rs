//! What a runtime is started with.

use std::time::Duration;

/// Everything [`Runtime::start`](crate::Runtime::start) needs to know. `Options::default()` is one adaptive reactor on core 0.
#[derive(Clone, Debug)]
pub struct Options {
    /// CPUs to run a reactor on, one thread each, in the order of their reactor index.
    pub cores: Vec<u32>,
    /// What an idle reactor does.
    pub poll: PollMode,
    /// Sizes of each reactor's ring.
    pub ring: RingOptions,
    /// Size of each reactor's DMA memory.
    pub dma: DmaOptions,
    /// Pin each thread to its CPU. A CPU outside the process's affinity mask is an error; any other failure to pin is
    /// logged and ignored.
    pub pin: bool,
    /// Threads are named `{name}-{index}`.
    pub name: String,
    /// Messages that can wait in one reactor's inbox (rounded up to a power of two).
    pub inbox: usize,
    /// io-wq worker threads per reactor for file operations that block.
    pub workers: u32,
    /// Raise the soft limit of open files to the hard one.
    pub raise_nofile: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cores: vec![0],
            poll: PollMode::default(),
            ring: RingOptions::default(),
            dma: DmaOptions::default(),
            pin: true,
            name: "reactor".into(),
            inbox: 1024,
            workers: 8,
            raise_nofile: true,
        }
    }
}

/// What an idle reactor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Spin for `spin` after the last work, then sleep in the ring until something happens. Idle CPU is close to 0 %.
    Adaptive {
        /// How long to spin.
        spin: Duration,
        /// How long to stay awake after the last [request](crate::Reactor::serving) that somebody waits for; zero: no longer than after
        /// other work. After `spin` the CPU is yielded between turns, and where somebody else keeps it, the reactor sleeps.
        linger: Duration,
    },
    /// Spin always. Valgrind needs it (with `--fair-sched=yes`): it holds all threads up while one waits in `io_uring_enter`.
    Busy,
}

impl Default for PollMode {
    fn default() -> Self {
        PollMode::Adaptive { spin: Duration::from_micros(50), linger: Duration::ZERO }
    }
}

/// Sizes of one reactor's io_uring and of the receive slices sockets share.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Submission queue entries. When it is full the reactor submits and goes on.
    pub sq_entries: u32,
    /// Completion queue entries. An overflow is kept by the kernel and costs an extra flush.
    pub cq_entries: u32,
    /// Operations in flight at most; what exceeds it completes with `-EAGAIN`.
    pub max_ops: u32,
    /// Bytes of one receive slice.
    pub rx_slice: u32,
    /// Receive slices at start; doubled when the kernel runs out of them.
    pub rx_slices: u16,
    /// Receive slices at most (a power of two, at most 32768).
    pub rx_slices_max: u16,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions {
            sq_entries: 512,
            cq_entries: 4096,
            max_ops: 1 << 18,
            rx_slice: 256 << 10,
            rx_slices: 1,
            rx_slices_max: 64,
        }
    }
}

/// Size of one reactor's DMA memory.
#[derive(Clone, Debug)]
pub struct DmaOptions {
    /// Bytes of address space reserved, and the most that is ever committed (rounded up to 2 MiB).
    pub max_bytes: usize,
    /// Use explicit huge pages while the system has free ones; otherwise transparent ones.
    pub huge: bool,
    /// Register memory with the ring on first use by file I/O, as far as the locked-memory limit goes.
    pub register: bool,
}

impl Default for DmaOptions {
    fn default() -> Self {
        DmaOptions { max_bytes: 256 << 20, huge: true, register: true }
    }
}
