//! The seam between the reactor and what carries out its operations: io_uring, or a simulation of it.

pub(crate) mod ops;
mod seam;
pub(crate) mod sim;
pub(crate) mod uring;

pub(crate) use seam::Engine;
use std::os::fd::RawFd;

/// One operation for the ring. Pointers must stay valid until its last completion (see [`Reactor::submit`](crate::Reactor::submit)).
#[derive(Clone, Copy, Debug)]
pub enum RingOp {
    /// Completes with 0.
    Nop,
    /// `preadv2` with `RWF_*` flags.
    ReadV {
        /// File.
        fd: RawFd,
        /// Vectors, stable until completion.
        iov: *const libc::iovec,
        /// Number of vectors, at most 1,024.
        cnt: u32,
        /// Byte offset.
        off: u64,
        /// `RWF_*`.
        flags: i32,
    },
    /// `pwritev2` with `RWF_*` flags.
    WriteV {
        /// File.
        fd: RawFd,
        /// Vectors, stable until completion.
        iov: *const libc::iovec,
        /// Number of vectors, at most 1,024.
        cnt: u32,
        /// Byte offset.
        off: u64,
        /// `RWF_*`.
        flags: i32,
    },
    /// Read into one buffer, registered as `index` if that is given.
    Read {
        /// File.
        fd: RawFd,
        /// Destination.
        buf: *mut u8,
        /// Bytes.
        len: u32,
        /// Byte offset.
        off: u64,
        /// `RWF_*`.
        flags: i32,
        /// Registered buffer that holds the destination ([`DmaBuf::fixed_index`](crate::DmaBuf::fixed_index)).
        index: Option<u16>,
    },
    /// Write from one buffer, registered as `index` if that is given.
    Write {
        /// File.
        fd: RawFd,
        /// Source.
        buf: *const u8,
        /// Bytes.
        len: u32,
        /// Byte offset.
        off: u64,
        /// `RWF_*`.
        flags: i32,
        /// Registered buffer that holds the source ([`DmaBuf::fixed_index`](crate::DmaBuf::fixed_index)).
        index: Option<u16>,
    },
    /// `fsync`, or `fdatasync`.
    Fsync {
        /// File.
        fd: RawFd,
        /// Only what is needed to read the data back.
        datasync: bool,
    },
    /// `fallocate`.
    Fallocate {
        /// File.
        fd: RawFd,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Byte offset.
        off: u64,
        /// Bytes.
        len: u64,
    },
    /// Multishot accept: one completion per connection while `IORING_CQE_F_MORE` is set.
    AcceptMulti {
        /// Listening socket.
        fd: RawFd,
    },
    /// `connect`.
    Connect {
        /// Socket.
        fd: RawFd,
        /// Address, stable until completion.
        addr: *const libc::sockaddr,
        /// Its length.
        len: libc::socklen_t,
    },
    /// Receive into a slice the kernel picks from the reactor's provided-buffer ring.
    RecvSelect {
        /// Socket.
        fd: RawFd,
        /// Wait for readability before trying (the socket is known to be empty).
        poll_first: bool,
    },
    /// `recvmsg`.
    RecvMsg {
        /// Socket.
        fd: RawFd,
        /// Header, stable until completion, like all it points to.
        msg: *mut libc::msghdr,
        /// Wait for readability before trying.
        poll_first: bool,
    },
    /// `sendmsg` with `MSG_NOSIGNAL`.
    SendMsg {
        /// Socket.
        fd: RawFd,
        /// Header, stable until completion, like all it points to.
        msg: *const libc::msghdr,
    },
    /// Poll for `POLL*` events, once or (multishot) while `IORING_CQE_F_MORE` is set.
    Poll {
        /// Any pollable file.
        fd: RawFd,
        /// `POLLIN` ...
        events: u32,
        /// Keep polling.
        multi: bool,
    },
    /// `shutdown`.
    Shutdown {
        /// Socket.
        fd: RawFd,
        /// `SHUT_*`.
        how: i32,
    },
    /// `close`.
    Close {
        /// File; gone even if the result is an error.
        fd: RawFd,
    },
}

/// What kind of operation a [`RingOp`] is, for fault injection and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum OpKind {
    Nop,
    Read,
    Write,
    Fsync,
    Fallocate,
    Accept,
    Connect,
    Recv,
    Send,
    Poll,
    Shutdown,
    Close,
}

impl RingOp {
    /// The kind of this operation.
    pub fn kind(&self) -> OpKind {
        match self {
            RingOp::Nop => OpKind::Nop,
            RingOp::ReadV { .. } | RingOp::Read { .. } => OpKind::Read,
            RingOp::WriteV { .. } | RingOp::Write { .. } => OpKind::Write,
            RingOp::Fsync { .. } => OpKind::Fsync,
            RingOp::Fallocate { .. } => OpKind::Fallocate,
            RingOp::AcceptMulti { .. } => OpKind::Accept,
            RingOp::Connect { .. } => OpKind::Connect,
            RingOp::RecvSelect { .. } | RingOp::RecvMsg { .. } => OpKind::Recv,
            RingOp::SendMsg { .. } => OpKind::Send,
            RingOp::Poll { .. } => OpKind::Poll,
            RingOp::Shutdown { .. } => OpKind::Shutdown,
            RingOp::Close { .. } => OpKind::Close,
        }
    }
}

/// Whom to tell: called on the reactor's thread from the reap phase, never from within `submit`.
/// Arguments: `ctx`, the result (negative: `-errno`), and the completion's `IORING_CQE_F_*` flags. For a multishot operation it
/// is called until flags lack [`CQE_F_MORE`].
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The function.
    pub func: unsafe fn(ctx: *mut (), res: i32, flags: u32),
    /// Its first argument.
    pub ctx: *mut (),
}

/// Names an operation in flight. Generation-checked: naming one that has completed is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(pub(crate) u64);

impl OpId {
    /// As a word, to be kept where there is room for one.
    #[inline]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Back from [`raw`](OpId::raw). Any other number names nothing.
    #[inline]
    pub fn from_raw(raw: u64) -> OpId {
        OpId(raw)
    }
}

/// More completions of the same multishot operation follow.
pub const CQE_F_MORE: u32 = 1 << 1;
/// The socket holds more data.
pub const CQE_F_SOCK_NONEMPTY: u32 = 1 << 2;
/// The completion carries a provided buffer; its number is in the upper 16 bits.
pub const CQE_F_BUFFER: u32 = 1 << 0;

/// The reactor's group of provided buffers.
pub(crate) const RX_GROUP: u16 = 1;

/// Completions that belong to the engine rather than to an operation carry this bit.
pub(crate) const INTERNAL: u64 = 1 << 63;
/// A peer's MSG_RING arrived: nothing to do but be awake.
pub(crate) const TOKEN_WAKE: u64 = INTERNAL | 1;
/// The eventfd became readable.
pub(crate) const TOKEN_BELL: u64 = INTERNAL | 2;
/// A cancel request finished.
pub(crate) const TOKEN_CANCEL: u64 = INTERNAL | 3;
/// A MSG_RING this reactor sent finished; the peer's index is in the low 16 bits.
pub(crate) const TOKEN_SENT: u64 = INTERNAL | 0x1_0000;

/// One completion.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cqe {
    pub(crate) user_data: u64,
    pub(crate) res: i32,
    pub(crate) flags: u32,
}

/// How the enter of a turn waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// Until a completion, or for so many nanoseconds.
    Nanos(u64),
    /// Until a completion.
    Forever,
}
