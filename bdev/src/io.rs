//! The request: [`Io`], and its owning handle [`IoRef`]; `memory` has access to the memory it describes.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;

use longshore_nvme::wire::Status;
use longshore_reactor::DmaBuf;

use crate::frame::{FRAME_SLOTS, Frame};
use crate::pool::Pool;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Device to buffer.
    Read = 0,
    /// Buffer to device.
    Write = 1,
    /// All writes completed before this one was submitted become durable.
    Flush = 2,
    /// Deallocate the range. What it reads afterwards is the device's choice.
    Unmap = 3,
    /// The range reads as zeroes afterwards. Needs no buffer.
    WriteZeroes = 4,
    /// Compare the range with the buffer; `COMPARE_FAILURE` if they differ.
    Compare = 5,
    /// Compare with buffer 0, then write buffer 1, atomically in regard to every other request.
    CompareAndWrite = 6,
    /// Copy `nblocks` from `aux` (source LBA) to `lba`.
    Copy = 7,
    /// Fail everything in flight and bring the device back to a known state.
    Reset = 8,
}

impl Op {
    /// Number of operation kinds: the length of per-operation tables.
    pub const COUNT: usize = 9;
    /// Every operation, in numeric order.
    pub const ALL: [Op; Op::COUNT] = [
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::Unmap,
        Op::WriteZeroes,
        Op::Compare,
        Op::CompareAndWrite,
        Op::Copy,
        Op::Reset,
    ];

    /// True if the operation moves data between a buffer and the device.
    pub const fn has_buffer(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::Compare | Op::CompareAndWrite)
    }

    /// True if the operation names a range of blocks that must lie inside the device.
    pub const fn has_range(self) -> bool {
        !matches!(self, Op::Flush | Op::Reset)
    }

    /// True if the operation changes what the device holds.
    pub const fn modifies(self) -> bool {
        matches!(self, Op::Write | Op::Unmap | Op::WriteZeroes | Op::CompareAndWrite | Op::Copy)
    }
}

/// Modifiers of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoFlags(pub u8);

impl IoFlags {
    /// No modifier.
    pub const NONE: IoFlags = IoFlags(0);
    /// Force unit access: a write is durable when it completes.
    pub const FUA: IoFlags = IoFlags(1);
    /// Write zeroes may deallocate (NVMe DEAC).
    pub const MAY_UNMAP: IoFlags = IoFlags(2);
    /// Write zeroes must not deallocate.
    pub const NO_UNMAP: IoFlags = IoFlags(4);
    /// A read from a device that holds no data may leave its buffer as it is: what the buffer held is no secret.
    pub const KEEP_BUFFER: IoFlags = IoFlags(8);
    /// A read without a buffer, for a channel that [lends](crate::Channel::lends): the device gives one that shows its own memory,
    /// which stays as it is until the last reference goes. If it cannot, the read ends with [`NOT_LENT`]: nothing counts it, in
    /// statistics and rate limits neither, and it is to be submitted again with a buffer.
    pub const LEND: IoFlags = IoFlags(16);
    /// Said of a compare-and-write by the block layer: its write may have begun. If it fails, and not for its comparison, what its
    /// range holds is unknown, and to submit it again might compare with its own data.
    pub const WRITE_BEGUN: IoFlags = IoFlags(32);
    /// A read of another reconstruction of what it names: the attempt is in place of a copy's source. Only for channels that
    /// [offer](crate::Channel::offers_alternates) that; see [`Channel::read_alternate`](crate::Channel::read_alternate).
    pub const ALTERNATE: IoFlags = IoFlags(64);
    /// A write that says of an alternate read's outcome that it is right; see
    /// [`Channel::heal_alternate`](crate::Channel::heal_alternate).
    pub const HEAL: IoFlags = IoFlags(128);

    /// True if every bit of `other` is set.
    pub const fn has(self, other: IoFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of modifiers.
    pub const fn with(self, other: IoFlags) -> IoFlags {
        IoFlags(self.0 | other.0)
    }
}

/// How a read ends that came to be lent the device's memory ([`IoFlags::LEND`]) and was not. No host sees it.
pub const NOT_LENT: Status = Status::new(7, 0xff);

/// How an alternate read ends when there is no such reconstruction ([`IoFlags::ALTERNATE`]), and a heal when what it names does not
/// stand any more ([`IoFlags::HEAL`]). No host sees it.
pub const NO_ALTERNATE: Status = Status::new(7, 0xfe);

/// A piece of memory, laid out as `struct iovec`.
pub type IoVec = libc::iovec;

/// Names one use of one request, to abort it: stale ids are recognised and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Where a request is in its life. Only the owner of the slot changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Free = 0,
    /// Held by an [`IoRef`].
    Owned = 1,
}

/// One request. Lives in its core's pool, never moves, is reached through [`IoRef`].
///
/// Cache line 0 is all that a leaf device touches; line 1 holds buffers; the rest are completion frames.
#[repr(C, align(64))]
pub struct Io {
    pub(crate) op: Op,
    pub(crate) flags: IoFlags,
    pub(crate) state: State,
    pub(crate) status: Status,
    pub(crate) md_len: u16,
    pub(crate) nblocks: u32,
    pub(crate) index: u32,
    pub(crate) lba: u64,
    pub(crate) iov: *const IoVec,
    pub(crate) iovcnt: u32,
    pub(crate) generation: u32,
    /// The frame that runs next. Never leaves `frames` while somebody else can see it.
    pub(crate) top: *mut Frame,
    pub(crate) next: Option<NonNull<Io>>,
    pub(crate) pool: NonNull<Pool>,
    // line 1
    pub(crate) inline: [IoVec; 2],
    /// Copy: source LBA. Layers may use it for operations that do not.
    pub(crate) aux: u64,
    /// Two words for the device that holds the request at present.
    pub(crate) words: [u64; 2],
    /// Buffers that the request owns are in `owners`.
    pub(crate) owned: bool,
    /// How many splits and emulations this request is a child of.
    pub(crate) nest: u8,
    // lines 2..
    pub(crate) frames: [Frame; FRAME_SLOTS],
    pub(crate) owners: [Option<DmaBuf>; 2],
    pub(crate) md: *mut u8,
}

const _: () = assert!(std::mem::offset_of!(Io, inline) == 64);
const _: () = assert!(std::mem::offset_of!(Io, frames) == 128);
const _: () = assert!(std::mem::size_of::<Io>() <= 448);

/// The unique, owning handle of a request in flight or being prepared.
///
/// Dropping one is a bug ("io leaked"): complete it, submit it, or [`release`](IoRef::release) it.
#[must_use = "a dropped request is never completed"]
pub struct IoRef {
    ptr: NonNull<Io>,
    _not_send: PhantomData<*mut ()>,
}

#[cfg(debug_assertions)]
impl Drop for IoRef {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("io leaked: {:?} lba {} blocks {}", self.op(), self.lba(), self.nblocks());
        }
    }
}

impl IoRef {
    /// # Safety
    /// The caller gives up its own claim on `ptr`, which points to an `Io` of this thread's pool.
    #[inline]
    pub(crate) unsafe fn from_ptr(ptr: NonNull<Io>) -> IoRef {
        IoRef { ptr, _not_send: PhantomData }
    }

    /// Gives up the handle without completing the request: it is now linked in a list of the core.
    #[inline]
    pub(crate) fn into_ptr(self) -> NonNull<Io> {
        let p = self.ptr;
        std::mem::forget(self);
        p
    }

    #[inline]
    pub(crate) fn slot(&self) -> *mut Io {
        self.ptr.as_ptr()
    }

    #[inline]
    pub(crate) fn io(&self) -> &Io {
        // SAFETY: an IoRef is the only handle to a live slot of a pool that outlives every request.
        unsafe { self.ptr.as_ref() }
    }

    #[inline]
    pub(crate) fn io_mut(&mut self) -> &mut Io {
        // SAFETY: as in `io`, and `&mut self` makes the access unique.
        unsafe { self.ptr.as_mut() }
    }

    /// The operation.
    #[inline]
    pub fn op(&self) -> Op {
        self.io().op
    }

    /// The modifiers.
    #[inline]
    pub fn flags(&self) -> IoFlags {
        self.io().flags
    }

    /// First block.
    #[inline]
    pub fn lba(&self) -> u64 {
        self.io().lba
    }

    /// Number of blocks.
    #[inline]
    pub fn nblocks(&self) -> u32 {
        self.io().nblocks
    }

    /// Source LBA of a copy.
    #[inline]
    pub fn copy_source(&self) -> u64 {
        self.io().aux
    }

    /// The status of the completion that is unwinding.
    #[inline]
    pub fn status(&self) -> Status {
        self.io().status
    }

    /// Whether the completion that is unwinding is that of a read which was to be lent something, and was not.
    pub(crate) fn is_unlent(&self) -> bool {
        self.status() == NOT_LENT && self.flags().has(IoFlags::LEND)
    }

    /// The name under which this use of the request can be aborted.
    #[inline]
    pub fn id(&self) -> IoId {
        IoId { index: self.io().index, generation: self.io().generation }
    }

    /// Prepares the request: operation and range. Keeps its buffers.
    #[inline]
    pub fn prepare(&mut self, op: Op, flags: IoFlags, lba: u64, nblocks: u32) {
        let io = self.io_mut();
        io.op = op;
        io.flags = flags;
        io.lba = lba;
        io.nblocks = nblocks;
    }

    /// Changes the modifiers.
    #[inline]
    pub fn set_flags(&mut self, flags: IoFlags) {
        self.io_mut().flags = flags;
    }

    /// Redirects the request to another LBA; the layer that does so restores it when it completes.
    #[inline]
    pub fn set_lba(&mut self, lba: u64) {
        self.io_mut().lba = lba;
    }

    /// Sets the source LBA of a copy.
    #[inline]
    pub fn set_copy_source(&mut self, lba: u64) {
        self.io_mut().aux = lba;
    }

    /// Two words for the device that holds the request at present.
    #[inline]
    pub fn words(&self) -> [u64; 2] {
        self.io().words
    }

    /// Sets the device's words.
    #[inline]
    pub fn set_words(&mut self, words: [u64; 2]) {
        self.io_mut().words = words;
    }

    /// Ends the request with `status`, from completion context: the frames above run now.
    #[inline]
    pub fn complete(mut self, status: Status) {
        self.io_mut().status = status;
        self.unwind();
    }

    /// Ends the request with `status` from inside a `submit`: the frames above run in the core's next poll.
    #[inline]
    pub fn complete_later(mut self, status: Status) {
        self.io_mut().status = status;
        // SAFETY: the pool outlives every request of it and is of this thread.
        let pool = unsafe { self.io().pool.as_ref() };
        pool.push_done(self);
    }

    /// Gives the request and its buffers back to the pool.
    #[inline]
    pub fn release(self) {
        // SAFETY: as in `complete_later`.
        let pool = unsafe { self.io().pool.as_ref() };
        pool.put(self);
    }
}
