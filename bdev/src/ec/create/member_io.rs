//! Reads and writes of whole structures on a device, for slow paths.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::Reactor;

use crate::channel::Channel;
use crate::core::CoreState;
use crate::desc::BdevDesc;
use crate::ec::format::{FormatError, Superblock};
use crate::ec::layout::{Layout, SUPERBLOCK_BYTES};
use crate::event::EventSink;
use crate::io::IoFlags;
use crate::node::ClaimKind;
use crate::registry::{BdevError, Registry};

/// Name of the module that claims members.
pub const MODULE: &str = "ec";
/// Bytes of a request.
const CHUNK: usize = 64 << 10;
/// Patience with a request: a device that hangs must not hang whoever asked for an array.
const PATIENCE: Duration = Duration::from_secs(30);

/// A device opened for writing, claimed, on this core.
pub(crate) struct MemberIo {
    desc: BdevDesc,
    channel: Channel,
    block: u64,
    reactor: Reactor,
}

impl MemberIo {
    /// Opens and claims the device `name`. `sink` is told of its removal.
    pub(crate) fn open(registry: &Arc<Registry>, name: &str, sink: EventSink) -> Result<MemberIo, BdevError> {
        let desc = registry.open(name, true, sink)?;
        desc.claim(ClaimKind::ExclusiveWrite, MODULE)?;
        MemberIo::of(desc)
    }

    /// Opens the device `name` for reading.
    pub(crate) fn look(registry: &Arc<Registry>, name: &str) -> Result<MemberIo, BdevError> {
        MemberIo::of(registry.open(name, false, Box::new(|_| {}))?)
    }

    fn of(desc: BdevDesc) -> Result<MemberIo, BdevError> {
        let channel = desc.channel()?;
        let block = u64::from(desc.node().geometry().block_size);
        Ok(MemberIo { desc, channel, block, reactor: CoreState::current().reactor().clone() })
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        self.desc.node().name()
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.desc.node().num_blocks().saturating_mul(self.block)
    }

    /// Bytes of its block.
    pub(crate) fn block(&self) -> u32 {
        self.block as u32
    }

    /// Keeps it open and claimed, and gives up the channel.
    pub(crate) fn into_desc(self) -> BdevDesc {
        self.desc
    }

    async fn end<T>(
        &self,
        what: &str,
        at: u64,
        io: impl Future<Output = T>,
        status: impl Fn(&T) -> Status,
    ) -> Result<T, BdevError> {
        let failed = |why: &dyn std::fmt::Display, errno| BdevError::Os {
            errno,
            what: format!("cannot {what} '{}' at byte {at}, {why}", self.name()),
        };
        match within(&self.reactor, PATIENCE, io).await {
            None => Err(failed(&format!("no answer within {} s", PATIENCE.as_secs()), libc::ETIMEDOUT)),
            Some(out) if status(&out).is_err() => Err(failed(&status(&out), libc::EIO)),
            Some(out) => Ok(out),
        }
    }

    fn buffer(&self, len: usize) -> Result<longshore_reactor::DmaBuf, BdevError> {
        let dry = || BdevError::NoMemory(format!("no buffer of {len} bytes for '{}'", self.name()));
        self.reactor.dma().alloc(len).ok_or_else(dry)
    }

    /// Reads `len` bytes at `offset`, both multiples of the block.
    pub(crate) async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, BdevError> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let (at, n) = (offset + out.len() as u64, (len - out.len()).min(CHUNK));
            let io = self.channel.read(at / self.block, (n as u64 / self.block) as u32, self.buffer(n)?);
            let (_, data) = self.end("read", at, io, |(status, _)| *status).await?;
            let data = data.ok_or_else(|| BdevError::NoMemory(format!("'{}' gave no buffer back", self.name())))?;
            out.extend_from_slice(&data.as_slice()[..n]);
        }
        Ok(out)
    }

    /// The superblock, if there is one; the outer error is one of reading.
    pub(crate) async fn superblock(&self) -> Result<Result<Superblock, FormatError>, BdevError> {
        let least = Layout::superblock_at(1) + SUPERBLOCK_BYTES;
        if !SUPERBLOCK_BYTES.is_multiple_of(self.block) || self.bytes() < least {
            return Ok(Err(FormatError::Short { want: least as usize, have: self.bytes() as usize }));
        }
        let mut copies = Vec::new();
        for copy in 0..2 {
            copies.push(self.read(Layout::superblock_at(copy), SUPERBLOCK_BYTES as usize).await?);
        }
        Ok(Superblock::select([&copies[0], &copies[1]]))
    }

    /// Writes `bytes` at `offset`; length and offset are multiples of the block. Durable after [`flush`](MemberIo::flush).
    pub(crate) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), BdevError> {
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            let at = offset + (i * CHUNK) as u64;
            let mut buf = self.buffer(chunk.len())?;
            if let Some(out) = buf.get_mut() {
                out[..chunk.len()].copy_from_slice(chunk);
            }
            let io = self.channel.write(at / self.block, (chunk.len() as u64 / self.block) as u32, buf, IoFlags::NONE);
            self.end("write", at, io, |(status, _)| *status).await?;
        }
        Ok(())
    }

    /// Writes `len` zeroes at `offset`.
    pub(crate) async fn zero(&self, offset: u64, len: u64) -> Result<(), BdevError> {
        let step = 1 << 20;
        for at in (offset..offset + len).step_by(step) {
            let n = (offset + len - at).min(step as u64);
            let io = self.channel.write_zeroes(at / self.block, (n / self.block) as u32, IoFlags::NONE);
            self.end("zero", at, io, |(status, _)| *status).await?;
        }
        Ok(())
    }

    /// Makes everything written durable.
    pub(crate) async fn flush(&self) -> Result<(), BdevError> {
        if !self.desc.node().geometry().volatile_cache {
            return Ok(());
        }
        self.end("flush", 0, self.channel.flush(), |(status, _)| *status).await?;
        Ok(())
    }
}

/// The future's outcome, if it comes in time. The request behind a future that is dropped keeps its memory until it ends.
pub(crate) async fn within<F: Future>(reactor: &Reactor, limit: Duration, future: F) -> Option<F::Output> {
    let (mut future, mut timer) = (pin!(future), pin!(reactor.sleep(limit)));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(out) => Poll::Ready(Some(out)),
        Poll::Pending => timer.as_mut().poll(cx).map(|_| None),
    })
    .await
}
