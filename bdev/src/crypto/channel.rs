//! An encrypting device on one core.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use longshore_accel::crypto::Crypt;
use longshore_accel::{Channel as Engines, Operation};
use longshore_nvme::wire::Status;
use longshore_reactor::{Account, DmaBuf, Reactor, Reserve, Timer};

use super::Crypto;
use crate::channel::Channel;
use crate::device::{Bdev, IoChannel, Layer};
use crate::io::{IoId, IoRef, Op};
use crate::memory::SetAside;
use crate::node::BdevNode;
use crate::queue::IoQueue;
use crate::registry::BdevError;

/// How often waiting writes look for memory that others gave back.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

struct CryptoChannel(Rc<Inner>);

struct Inner {
    lower: Channel,
    crypt: Crypt,
    engines: Engines,
    block_size: usize,
    reactor: Reactor,
    /// What this channel may hold of the core's pool: the devices below need some of it too.
    account: Rc<Account>,
    /// The buffer that always comes back: one write at least is under way while others wait.
    reserve: Reserve,
    /// Writes that wait for memory, in order. Bounded by the pool of requests.
    waiting: IoQueue,
    waits: Arc<AtomicU64>,
    timer: RefCell<Option<Timer>>,
    out: RefCell<Out>,
    me: Weak<Inner>,
}

/// The memory of writes that are below, by the number in their word; those that are free.
#[derive(Default)]
struct Out {
    memory: Vec<Option<SetAside>>,
    free: Vec<usize>,
}

pub(super) fn open(reactor: &Reactor, node: &Arc<BdevNode>, device: &Crypto) -> Result<Box<dyn IoChannel>, BdevError> {
    let g = device.geometry();
    let block_size = g.block_size as usize;
    let key = device.key().ok_or_else(|| BdevError::NotFound(node.name().to_owned()))?;
    let engines = device.accel.channel();
    let crypt = engines.crypt(&key, block_size);
    let crypt = crypt.map_err(|e| BdevError::Invalid(format!("bdev '{}': {e}", node.name())))?;
    let largest = g.max_io_blocks as usize * block_size;
    let reserve = reactor.dma().reserve(largest).ok_or_else(|| {
        BdevError::NoMemory(format!("bdev '{}': {largest} bytes of I/O memory to be set aside on a core", node.name()))
    })?;
    let lower = device.base.channel()?;
    Ok(Box::new(CryptoChannel(Rc::new_cyclic(|me| Inner {
        lower,
        crypt,
        engines,
        block_size,
        reactor: reactor.clone(),
        account: Rc::new(Account::new(reactor.dma().limit() / 4)),
        reserve,
        waiting: IoQueue::default(),
        waits: device.waits.clone(),
        timer: RefCell::default(),
        out: RefCell::default(),
        me: me.clone(),
    }))))
}

impl Out {
    /// Keeps it; the number is not 0.
    fn keep(&mut self, memory: SetAside) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.memory.push(None);
            self.memory.len() - 1
        });
        self.memory[at] = Some(memory);
        at as u64 + 1
    }

    fn give_back(&mut self, number: u64) -> Option<SetAside> {
        let at = number.checked_sub(1)? as usize;
        let memory = self.memory.get_mut(at)?.take()?;
        self.free.push(at);
        Some(memory)
    }
}

impl Inner {
    fn bytes(&self, io: &IoRef) -> usize {
        io.nblocks() as usize * self.block_size
    }

    /// Memory for a write, if there is any.
    fn memory(&self, len: usize) -> Option<DmaBuf> {
        self.reactor.dma().alloc_for(len, &self.account).ok().or_else(|| self.reserve.take(len))
    }

    fn write(&self, io: IoRef) {
        let len = self.bytes(&io);
        if self.waiting.is_empty()
            && let Some(buf) = self.memory(len)
        {
            return self.encrypt(io, buf);
        }
        self.reactor.dma().note_wait(len);
        self.waits.fetch_add(1, Relaxed);
        self.waiting.push(io);
        self.look_again();
    }

    /// Sends a write below, encrypted into `buf`.
    fn encrypt(&self, mut io: IoRef, mut buf: DmaBuf) {
        let done = buf.get_mut().is_some_and(|out| self.crypt.encrypt(io.lba(), io.segments(), out));
        if !done {
            self.engines.count_failed(Operation::Encrypt);
            return io.complete_later(Status::DATA_SGL_LENGTH_INVALID);
        }
        self.engines.count(Operation::Encrypt, buf.len());
        let plain = io.set_aside(buf);
        let number = self.out.borrow_mut().keep(plain);
        io.set_saved(number);
        self.lower.submit(io);
    }

    /// Goes on with writes that wait, in order, as far as there is memory.
    fn go_on(&self) {
        while let Some(len) = self.waiting.peek(|io| self.bytes(io)) {
            let Some(buf) = self.memory(len) else { return self.look_again() };
            if let Some(io) = self.waiting.pop() {
                self.encrypt(io, buf);
            }
        }
        self.timer.take();
    }

    /// Memory may come back from others without any request of ours ending.
    fn look_again(&self) {
        let mut timer = self.timer.borrow_mut();
        if timer.is_none() {
            let me = self.me.clone();
            *timer = Some(self.reactor.timer(LOOK_AGAIN, move |_| {
                if let Some(me) = me.upgrade() {
                    me.timer.take();
                    me.go_on();
                }
            }));
        }
    }

    /// A read that came back: its status, now that it is decrypted.
    fn decrypt(&self, io: &mut IoRef) -> Status {
        let (lba, len) = (io.lba(), self.bytes(io));
        if !self.crypt.decrypt_in_place(lba, io.segments_mut(), len) {
            self.engines.count_failed(Operation::Decrypt);
            return Status::DATA_SGL_LENGTH_INVALID;
        }
        self.engines.count(Operation::Decrypt, len);
        Status::SUCCESS
    }
}

impl IoChannel for CryptoChannel {
    fn submit(&self, io: IoRef) {
        match io.op() {
            Op::Write => self.0.write(io),
            _ => self.0.lower.submit(io),
        }
    }

    fn hooks_completion(&self) -> bool {
        true
    }

    fn completed(&self, mut io: IoRef) {
        let s = &self.0;
        let mut status = io.status();
        if io.op() == Op::Read && status == Status::SUCCESS {
            status = s.decrypt(&mut io);
        }
        let plain = s.out.borrow_mut().give_back(io.saved());
        if let Some(plain) = plain {
            io.restore(plain);
            if !s.waiting.is_empty() {
                s.go_on();
            }
        }
        io.complete(status);
    }

    fn abort(&self, id: IoId) -> bool {
        match self.0.waiting.remove(id) {
            Some(io) => {
                io.complete_later(Status::ABORT_REQUESTED);
                true
            }
            None => self.0.lower.abort(id),
        }
    }

    fn abort_all(&self) {
        let all = self.0.waiting.take();
        while let Some(io) = all.pop() {
            io.complete_later(Status::ABORT_REQUESTED);
        }
        self.0.lower.abort_all();
    }
}
