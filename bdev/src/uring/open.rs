//! Opening a file or block device: direct I/O where there is any, block size, size.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use longshore_reactor::Reactor;
use longshore_reactor::file::{File, FileOptions};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use super::Options;
use super::lock::{self, FileLock};
use super::sync::Syncs;
use crate::registry::BdevError;

enum Handle {
    Os(OwnedFd),
    /// A file of a simulated world.
    Simulated(File),
}

impl Handle {
    fn fd(&self) -> RawFd {
        match self {
            Handle::Os(fd) => fd.as_raw_fd(),
            Handle::Simulated(f) => f.fd(),
        }
    }
}

fn same_file(fd: &OwnedFd, as_stat: &rustix::fs::Stat) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|s| lock::key(&s) == lock::key(as_stat))
}

/// An open file or block device, shared by the cores.
pub(super) struct Medium {
    handle: Handle,
    /// For flushes alone: see `sync`. Open before anything is written.
    sync: Handle,
    path: PathBuf,
    pub(super) name: String,
    flags: OFlags,
    pub(super) direct: bool,
    pub(super) block_device: bool,
    pub(super) block_size: u32,
    /// Memory of direct I/O is aligned to this many bytes.
    pub(super) mem_align: u32,
    /// Offsets and lengths of direct I/O are multiples of this; 1 otherwise.
    pub(super) unit: u32,
    /// Fewer blocks are allocated than the size says.
    pub(super) sparse: bool,
    pub(super) health: Health,
    pub(super) syncs: Syncs,
    /// Cores share `handle` because they could open no file of their own: said once.
    shared: AtomicBool,
    _lock: Option<Arc<FileLock>>,
}

/// What the cores learn about the medium as they use it.
#[derive(Default)]
pub(super) struct Health {
    /// A sync failed: what was acknowledged before may be lost, so no later sync may claim success.
    poisoned: AtomicBool,
    /// The file system cannot punch holes.
    pub(super) no_punch: AtomicBool,
    /// The file system cannot zero ranges.
    pub(super) no_zero: AtomicBool,
}

impl Health {
    /// A flush or a FUA write failed.
    pub(super) fn poisoned(&self) -> bool {
        self.poisoned.load(Relaxed)
    }

    /// True for the first who says so.
    fn poison(&self) -> bool {
        !self.poisoned.swap(true, Relaxed)
    }
}

fn direct_alignment(fd: &OwnedFd) -> Option<(u32, u32)> {
    // SAFETY: an all-zero statx buffer is valid, the path is empty and terminated, and the call only fills the buffer.
    let st = unsafe {
        let mut st: libc::statx = std::mem::zeroed();
        let r = libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut st);
        (r == 0).then_some(st)?
    };
    (st.stx_mask & libc::STATX_DIOALIGN != 0).then_some((st.stx_dio_mem_align, st.stx_dio_offset_align))
}

impl Medium {
    pub(super) fn open(o: &Options) -> Result<Medium, BdevError> {
        if Reactor::try_current().is_some_and(|r| r.is_simulated()) {
            return Self::open_simulated(o);
        }
        let path = Path::new(&o.filename);
        let lock = lock::lock(path, o.readonly)?;
        let rw = if o.readonly { OFlags::RDONLY } else { OFlags::RDWR } | OFlags::CLOEXEC;
        let os = |e: rustix::io::Errno| BdevError::Os {
            errno: e.raw_os_error(),
            what: format!("cannot open '{}'", path.display()),
        };
        let (mut fd, mut direct) = match rustix::fs::open(path, rw | OFlags::DIRECT, Mode::empty()) {
            Ok(fd) => (fd, true),
            Err(rustix::io::Errno::INVAL) => (rustix::fs::open(path, rw, Mode::empty()).map_err(os)?, false),
            Err(e) => return Err(os(e)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(os)?;
        let sync = rustix::fs::open(path, rw, Mode::empty()).map_err(os)?;
        if !lock.is_of(&stat) || !same_file(&sync, &stat) {
            return Err(BdevError::Invalid(format!(
                "'{}' was replaced by another file while it was opened: try again",
                path.display()
            )));
        }
        let block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            other => {
                return Err(BdevError::Invalid(format!(
                    "'{}' is neither a regular file nor a block device but {other:?}",
                    path.display()
                )));
            }
        };
        let align = direct_alignment(&fd);
        if direct && align.is_some_and(|(_, off)| off == 0) {
            fd = rustix::fs::open(path, rw, Mode::empty()).map_err(os)?;
            direct = false;
        }
        if !direct {
            tracing::warn!(
                "'{}' is on a file system without direct I/O: bdev '{}' goes through the page cache",
                path.display(),
                o.name
            );
        }
        let natural = if block_device {
            rustix::fs::ioctl_blksszget(&fd).map_err(os)?
        } else {
            let s = u32::try_from(stat.st_blksize).unwrap_or(4096).clamp(512, 4096);
            if s.is_power_of_two() { s } else { 4096 }
        };
        let (mem_align, unit) = match align {
            Some((mem, off)) if direct && off != 0 => (mem.max(1), off),
            // A kernel that does not tell: what the device says, or a page, is always right.
            _ if direct => (natural.max(512), if block_device { natural } else { 512 }),
            _ => (1, 1),
        };
        let block_size = match o.block_size {
            0 => natural.max(unit),
            given => given,
        };
        let m = Medium {
            flags: if direct { rw | OFlags::DIRECT } else { rw },
            sparse: !block_device && (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64,
            handle: Handle::Os(fd),
            sync: Handle::Os(sync),
            path: path.to_owned(),
            name: o.name.clone(),
            direct,
            block_device,
            block_size,
            mem_align,
            unit,
            health: Health::default(),
            syncs: Syncs::default(),
            shared: AtomicBool::new(false),
            _lock: Some(lock),
        };
        if !block_size.is_power_of_two() || block_size < 512 {
            return Err(BdevError::Invalid(format!("block size {block_size} is not a power of two from 512 on")));
        }
        if !block_size.is_multiple_of(unit) {
            return Err(BdevError::Invalid(format!(
                "block size {block_size} is below {unit} bytes, the unit of direct I/O to '{}': use a multiple of it",
                path.display()
            )));
        }
        Ok(m)
    }

    /// A file of the simulated world that the calling thread is in.
    fn open_simulated(o: &Options) -> Result<Medium, BdevError> {
        let os = |e: std::io::Error| BdevError::Os {
            errno: e.raw_os_error().unwrap_or(libc::ENOENT),
            what: format!("cannot open '{}'", o.filename),
        };
        let cached = || File::open(&o.filename, &FileOptions::default()).map_err(os);
        let (file, direct) = match File::open(&o.filename, &FileOptions { direct: true, ..FileOptions::default() }) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (cached()?, false),
            file => (file.map_err(os)?, true),
        };
        let unit = if direct { 512 } else { 1 };
        Ok(Medium {
            handle: Handle::Simulated(file),
            sync: Handle::Simulated(cached()?),
            path: PathBuf::from(&o.filename),
            name: o.name.clone(),
            flags: OFlags::empty(),
            direct,
            block_device: false,
            block_size: if o.block_size == 0 { 4096 } else { o.block_size },
            mem_align: unit,
            unit,
            sparse: false,
            health: Health::default(),
            syncs: Syncs::default(),
            shared: AtomicBool::new(false),
            _lock: None,
        })
    }

    /// For reads and writes.
    pub(super) fn fd(&self) -> RawFd {
        self.handle.fd()
    }

    /// For flushes.
    pub(super) fn sync_fd(&self) -> RawFd {
        self.sync.fd()
    }

    /// A file description of one core's own, for reads and writes: by way of the open one, or by the path if that still leads to
    /// the same file. Without one the core shares that of the device, which is as safe but slower.
    pub(super) fn reopen(&self) -> Option<OwnedFd> {
        let Handle::Os(fd) = &self.handle else { return None };
        let open = |path: &Path| rustix::fs::open(path, self.flags, Mode::empty());
        let by_path = || {
            let stat = rustix::fs::fstat(fd)?;
            let fd = open(&self.path)?;
            if same_file(&fd, &stat) { Ok(fd) } else { Err(rustix::io::Errno::STALE) }
        };
        match open(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd()))).or_else(|_| by_path()) {
            Ok(fd) => Some(fd),
            Err(e) => {
                if !self.shared.swap(true, Relaxed) {
                    tracing::warn!(
                        bdev = self.name,
                        "cannot open '{}' again ({e}): cores share one",
                        self.path.display()
                    );
                }
                None
            }
        }
    }

    /// What was acknowledged before may be lost: from now on no flush and no FUA write succeeds.
    pub(super) fn poison(&self, errno: i32, what: &str) {
        if self.health.poison() {
            tracing::error!(
                bdev = self.name,
                "{what} failed ({}): acknowledged writes may be lost. Flushes and FUA writes fail from now on. Check the \
                 medium, then delete and create the bdev again",
                std::io::Error::from_raw_os_error(errno)
            );
        }
    }

    /// Bytes of now.
    pub(super) fn size(&self) -> std::io::Result<u64> {
        match &self.handle {
            // Nobody uses the file offset: all I/O is positioned.
            Handle::Os(fd) => Ok(rustix::fs::seek(fd.as_fd(), SeekFrom::End(0))?),
            Handle::Simulated(f) => f.size(),
        }
    }

    /// Blocks of now.
    pub(super) fn num_blocks(&self, name: &str) -> Result<u64, BdevError> {
        let size = self.size().map_err(|e| BdevError::Os {
            errno: e.raw_os_error().unwrap_or(libc::EIO),
            what: format!("cannot find the size of bdev '{name}'"),
        })?;
        let bs = u64::from(self.block_size);
        if size == 0 || !size.is_multiple_of(bs) {
            return Err(BdevError::Invalid(format!(
                "the size of bdev '{name}', {size} bytes, is not a positive multiple of its block size {bs}"
            )));
        }
        Ok(size / bs)
    }
}
