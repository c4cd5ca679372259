//! Files and block devices through the ring.
#![allow(unsafe_code)]

use crate::dma::DmaBuf;
use crate::engine::{Completion, OpId, RingOp};
use crate::op;
use crate::reactor::Reactor;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// How to open a file. The default reads and writes an existing one through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Open for writing too.
    pub write: bool,
    /// Create it if it does not exist (mode 0600).
    pub create: bool,
    /// `O_DIRECT`: bypass the page cache; memory, offset and length must be aligned to [`File::block_size`].
    pub direct: bool,
    /// `O_DSYNC`: every write is durable when it completes.
    pub dsync: bool,
    /// `O_EXCL`: fail if a created file exists, or a block device is in use by the system.
    pub exclusive: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        FileOptions { write: true, create: false, direct: false, dsync: false, exclusive: false }
    }
}

#[derive(Debug)]
enum Handle {
    Os(OwnedFd),
    Sim(RawFd),
}

/// An open file or block device. `Send` and `Sync`: any reactor may use it. Within a simulation it is a simulated one.
#[derive(Debug)]
pub struct File {
    handle: Handle,
    path: PathBuf,
    block_device: bool,
}

impl File {
    /// Opens `path`. This is a blocking call of the control plane.
    pub fn open(path: impl AsRef<Path>, o: &FileOptions) -> io::Result<File> {
        let path = path.as_ref();
        if let Some(r) = Reactor::try_current()
            && let Some(sim) = r.sim_engine()
        {
            if o.direct && !sim.world().settings.direct {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let fd = sim.world().open(path, o.create, o.direct).ok_or(io::ErrorKind::NotFound)?;
            return Ok(File { handle: Handle::Sim(fd), path: path.into(), block_device: false });
        }
        let mut flags = OFlags::CLOEXEC;
        flags |= if o.write { OFlags::RDWR } else { OFlags::RDONLY };
        for (on, flag) in [
            (o.create, OFlags::CREATE),
            (o.direct, OFlags::DIRECT),
            (o.dsync, OFlags::DSYNC),
            (o.exclusive, OFlags::EXCL),
        ] {
            if on {
                flags |= flag;
            }
        }
        let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is neither a regular file nor a block device", path.display()),
            ));
        }
        Ok(File { handle: Handle::Os(fd), path: path.into(), block_device: kind == FileType::BlockDevice })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, for [`RingOp`]s. It stays open while this value lives: keep that until the last completion.
    pub fn fd(&self) -> RawFd {
        match &self.handle {
            Handle::Os(fd) => fd.as_raw_fd(),
            Handle::Sim(fd) => *fd,
        }
    }

    /// The descriptor for other system calls; `None` in a simulation.
    pub fn os_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.handle {
            Handle::Os(fd) => Some(fd.as_fd()),
            Handle::Sim(_) => None,
        }
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Bytes, of a file or a block device, now.
    pub fn size(&self) -> io::Result<u64> {
        match &self.handle {
            // The file offset is nobody's: all I/O is positioned.
            Handle::Os(fd) => Ok(rustix::fs::seek(fd, SeekFrom::End(0))?),
            Handle::Sim(_) => self.simulated(|d| d.len() as u64),
        }
    }

    /// Bytes of the unit that direct I/O must be aligned to.
    pub fn block_size(&self) -> io::Result<u32> {
        let Handle::Os(fd) = &self.handle else { return Ok(512) };
        if self.block_device {
            let mut size: libc::c_int = 0;
            // SAFETY: BLKSSZGET writes one int.
            if unsafe { libc::ioctl(fd.as_raw_fd(), libc::BLKSSZGET, &mut size) } < 0 {
                return Err(io::Error::last_os_error());
            }
            return Ok(size as u32);
        }
        // SAFETY: zero is a valid statx buffer, and the call fills it.
        let align = unsafe {
            let mut st: libc::statx = std::mem::zeroed();
            let r = libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut st);
            (r == 0 && st.stx_mask & libc::STATX_DIOALIGN != 0).then_some(st.stx_dio_offset_align)
        };
        // A file system that does not tell: its block size is always right.
        Ok(match align {
            Some(a) if a > 0 => a,
            _ => rustix::fs::fstatvfs(fd)?.f_bsize.clamp(512, 4096) as u32,
        })
    }

    /// Changes the size of a regular file. Blocking.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.handle {
            Handle::Os(fd) => Ok(rustix::fs::ftruncate(fd, len)?),
            Handle::Sim(_) => self.simulated(|d| d.set_len(len as usize)),
        }
    }

    /// Allocates the blocks of the first `len` bytes, growing the file to that. Blocking.
    pub fn preallocate(&self, len: u64) -> io::Result<()> {
        match &self.handle {
            Handle::Os(fd) => Ok(rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len)?),
            Handle::Sim(_) => self.simulated(|d| d.set_len(d.len().max(len as usize))),
        }
    }

    fn simulated<R>(&self, f: impl FnOnce(&mut crate::sim::disk::Disk) -> R) -> io::Result<R> {
        let r = Reactor::try_current().ok_or(io::ErrorKind::NotFound)?;
        let sim = r.sim_engine().ok_or(io::ErrorKind::NotFound)?;
        let mut world = sim.world();
        Ok(f(world.disk(self.fd()).ok_or(io::ErrorKind::NotFound)?))
    }

    /// Reads into `buf` from `off`; the result may be short at the end of the file.
    pub async fn read_at(&self, r: &Reactor, buf: DmaBuf, off: u64) -> (io::Result<usize>, DmaBuf) {
        let fd = self.fd();
        let make = |b: &mut DmaBuf| RingOp::Read {
            fd,
            buf: b.as_ptr(),
            len: b.len() as u32,
            off,
            flags: 0,
            index: b.fixed_index(),
        };
        // SAFETY: the buffer is the payload.
        let (res, buf) = unsafe { op::start(r, buf, make) }.wait().await;
        (outcome(res), buf)
    }

    /// Writes `buf` at `off`; with `dsync` it is durable when this returns. The result may be short.
    pub async fn write_at(&self, r: &Reactor, buf: DmaBuf, off: u64, dsync: bool) -> (io::Result<usize>, DmaBuf) {
        let fd = self.fd();
        let make = |b: &mut DmaBuf| RingOp::Write {
            fd,
            buf: b.as_ptr(),
            len: b.len() as u32,
            off,
            flags: if dsync { libc::RWF_DSYNC } else { 0 },
            index: b.fixed_index(),
        };
        // SAFETY: the buffer is the payload.
        let (res, buf) = unsafe { op::start(r, buf, make) }.wait().await;
        (outcome(res), buf)
    }

    /// `fdatasync`: writes that completed before this call are durable when it succeeds.
    pub async fn sync(&self, r: &Reactor) -> io::Result<()> {
        let fd = self.fd();
        // SAFETY: the operation uses no memory.
        let op = unsafe { op::start(r, (), |_| RingOp::Fsync { fd, datasync: true }) };
        outcome(op.wait().await.0).map(drop)
    }

    /// Deallocates a range, which reads as zeroes then.
    pub async fn punch_hole(&self, r: &Reactor, off: u64, len: u64) -> io::Result<()> {
        let (fd, mode) = (self.fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
        // SAFETY: the operation uses no memory.
        let op = unsafe { op::start(r, (), |_| RingOp::Fallocate { fd, mode, off, len }) };
        outcome(op.wait().await.0).map(drop)
    }

    /// Reads or writes vectors, telling `done`: the path of the block layer.
    ///
    /// # Safety
    /// As for [`Reactor::submit`]; and this file outlives the completion.
    pub unsafe fn submit_rw(&self, r: &Reactor, rw: Rw, done: Completion) -> OpId {
        let Rw { write, iov, cnt, off, flags } = rw;
        let fd = self.fd();
        let op = match write {
            true => RingOp::WriteV { fd, iov, cnt, off, flags },
            false => RingOp::ReadV { fd, iov, cnt, off, flags },
        };
        // SAFETY: passed on from the caller.
        unsafe { r.submit(op, done) }
    }
}

/// A vectored read or write.
#[derive(Clone, Copy, Debug)]
pub struct Rw {
    /// Write rather than read.
    pub write: bool,
    /// Vectors, stable until completion.
    pub iov: *const libc::iovec,
    /// Number of vectors, at most 1,024.
    pub cnt: u32,
    /// Byte offset.
    pub off: u64,
    /// `RWF_*`; `RWF_DSYNC` makes a write durable at its completion.
    pub flags: i32,
}

impl Drop for File {
    fn drop(&mut self) {
        if let Handle::Sim(fd) = self.handle
            && let Some(r) = Reactor::try_current()
            && let Some(sim) = r.sim_engine()
        {
            sim.world().close(fd);
        }
    }
}

fn outcome(res: i32) -> io::Result<usize> {
    usize::try_from(res).map_err(|_| io::Error::from_raw_os_error(-res))
}
