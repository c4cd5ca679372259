//! Run-to-completion reactors: one pinned thread per core, each with one io_uring, pollers, timers, an inbox, DMA memory
//! and a small executor.
//!
//! ```no_run
//! use longshore_reactor::{Options, Runtime};
//!
//! let runtime = Runtime::start(Options { cores: vec![0, 1], ..Options::default() })?;
//! let n = runtime.cores()[1].call(|r| r.index()).wait()?;
//! assert_eq!(n, 1);
//! runtime.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # One turn
//!
//! A reactor repeats: take messages from the inbox, run what was deferred, fire timers that are due, call pollers, poll
//! ready tasks, start the sends that all of these queued, make **one** `io_uring_enter` that submits everything and runs the
//! kernel's deferred work, and call the completions. A turn with nothing to submit and nothing to run in the kernel makes
//! no system call. Each phase has a budget per turn, so that none starves another.
//!
//! # What the reactor promises, and what it asks for
//!
//! - **Everything runs on the reactor's thread**, one thing at a time. A completion, a callback of a [`sock::Sock`], a poller, a
//!   timer or a task never runs inside a call that you make into the reactor: `submit`, `send_*`, `defer`, `spawn` only queue.
//! - **Nothing may block.** A poller, callback or task that takes long delays all others of that core; the longest turn is
//!   counted. Blocking work belongs on another thread, its answer in a message.
//! - **Pollers** are called every turn while the reactor is awake. A poller that returns 0 lets it sleep; it is called once more
//!   after the reactor announced that it is about to. If work may appear without a message, timer or ring completion, hold
//!   [`Poller::set_pending`] while it may.
//! - **Tasks** are polled when woken, from any thread, at most once per wake and 256 per turn. A task that is dropped orphans
//!   what it awaited: operations own their memory until the kernel is done with it, so dropping is always safe.
//! - **Completions** of [`Reactor::submit`] come exactly once per operation (multishot: until one lacks [`CQE_F_MORE`]), also when the
//!   reactor stops; every operation in flight is then cancelled and reaped before any memory is freed.
//! - **Messages** of one sender arrive in order. After the reactor has stopped they are dropped, and whoever waits for an
//!   answer gets [`oneshot::Canceled`].
//! - **A panic** in code called by [`CoreHandle::call`] or awaited by [`CoreHandle::spawn`] resumes at the receiver; any other on a reactor
//!   thread aborts the process, because the kernel may be writing to memory that unwinding would free.
//!
//! # Sleep
//!
//! Adaptive reactors ([`PollMode`]) spin for a while after the last work, longer after a [request](Reactor::serving) where that was asked for and nobody
//! else wants the CPU, and then sleep in the ring. Senders ring only a reactor that
//! announced sleep; the handshake is model-checked with loom.

mod clock;
mod dma;
mod doorbell;
mod engine;
mod error;
pub mod file;
mod fixed;
mod handoff;
mod inbox;
mod linger;
#[cfg(all(test, loom))]
mod model;
pub mod net;
pub mod oneshot;
mod op;
mod options;
mod poller;
mod reactor;
mod runtime;
mod shared;
pub mod sim;
pub mod sock;
mod sync;
mod task;
mod timer;
mod turn;

pub use clock::{nanos, rdtsc, tick_rate, ticks};
pub use dma::{Account, CHUNK, CLASSES, ClassStats, DmaBuf, DmaPool, DmaStats, MemRegistrar, Reserve, Shortage};
pub use engine::{CQE_F_BUFFER, CQE_F_MORE, CQE_F_SOCK_NONEMPTY, Completion, OpId, OpKind, RingOp};
pub use error::StartError;
pub use handoff::{Handed, Handoff};
pub use options::{DmaOptions, Options, PollMode, RingOptions};
pub use poller::{Poller, PollerStats, SAMPLE};
pub use reactor::{Reactor, Sleep, Timer};
pub use runtime::Runtime;
pub use shared::{CoreHandle, ReactorStats};
pub use task::JoinHandle;
