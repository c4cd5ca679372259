//! One command in a queue pair's slot.

use std::rc::Rc;

use longshore_bdev::IoId;
use longshore_nvme::wire::{Sqe, Status};
use longshore_reactor::DmaBuf;

use crate::access::LiveNamespace;

/// What the transport does next with a command it received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// No data is needed from the host and no buffer: call `execute`.
    Execute,
    /// The host's data: `get_buffer`, fill it from the capsule or with R2T, then `execute`.
    NeedData {
        /// Bytes.
        len: u32,
        /// They are in the capsule, from its first data byte on.
        in_capsule: bool,
    },
    /// A buffer for data to the host: `get_buffer`, then `execute`.
    NeedBuffer {
        /// Bytes.
        len: u32,
        /// `execute` may do without: the device lends its own memory, which keeps writers from it until it is sent. If it turns out
        /// that it cannot, `QpairTransport::buffer_needed` comes.
        lent: bool,
    },
    /// The command was refused: send its completion as in `QpairTransport::respond`.
    Respond,
}

/// Where a command is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The slot holds no command.
    Free,
    /// The transport has it: buffer and data are being brought.
    Begun,
    /// The core has it.
    Executing,
    /// It has its status; the transport sends the response.
    Done,
}

/// Which set of opcodes a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Fabrics,
    Admin,
    Io,
}

/// A command's place in a fused pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Whole,
    First,
    Second,
}

/// No other half known yet.
pub(crate) const NO_SLOT: u16 = u16::MAX;

/// One command.
pub(crate) struct Request {
    pub(crate) sqe: Sqe,
    pub(crate) phase: Phase,
    /// Counts the commands that the slot has held.
    pub(crate) turn: u32,
    pub(crate) kind: Kind,
    pub(crate) half: Half,
    /// All data of this half of a fused pair is here.
    pub(crate) ready: bool,
    /// The buffer is on its way: the queue pair waits for one.
    pub(crate) waits_buffer: bool,
    /// The host's data is in the capsule.
    pub(crate) data_inside: bool,
    /// Whether data goes to the host.
    pub(crate) to_host: bool,
    pub(crate) status: Status,
    pub(crate) dw0: u32,
    pub(crate) dw1: u32,
    /// Bytes of data.
    pub(crate) len: u32,
    /// Slot of the other half.
    pub(crate) partner: u16,
    /// Parts in flight, and the next to start (dataset management).
    pub(crate) parts: u16,
    pub(crate) next_part: u16,
    pub(crate) buf: Option<DmaBuf>,
    /// The device in use, while it is.
    pub(crate) ns: Option<Rc<LiveNamespace>>,
    /// The block layer's request, to abort it.
    pub(crate) io: Option<IoId>,
    /// Those of all parts started (dataset management).
    pub(crate) part_ios: Vec<IoId>,
}

impl Request {
    pub(crate) fn new() -> Request {
        Request {
            sqe: Sqe::default(),
            phase: Phase::Free,
            turn: 0,
            kind: Kind::Io,
            half: Half::Whole,
            ready: false,
            waits_buffer: false,
            data_inside: false,
            to_host: false,
            status: Status::SUCCESS,
            dw0: 0,
            dw1: 0,
            len: 0,
            partner: NO_SLOT,
            parts: 0,
            next_part: 0,
            buf: None,
            ns: None,
            io: None,
            part_ios: Vec::new(),
        }
    }

    /// Takes a new command in.
    #[inline]
    pub(crate) fn start(&mut self, sqe: &Sqe, kind: Kind) {
        self.sqe = *sqe;
        self.kind = kind;
        self.phase = Phase::Begun;
        self.turn = self.turn.wrapping_add(1);
        self.half = Half::Whole;
        self.ready = false;
        self.waits_buffer = false;
        self.data_inside = false;
        self.to_host = false;
        self.status = Status::SUCCESS;
        self.dw0 = 0;
        self.dw1 = 0;
        self.len = 0;
        self.partner = NO_SLOT;
    }

    /// Forgets the command.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.phase = Phase::Free;
        self.buf = None;
        self.io = None;
    }
}
