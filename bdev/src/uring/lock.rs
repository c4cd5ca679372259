//! One daemon per file: an exclusive `flock`, shared by the devices of this process.
//!
//! It does not cover what outlives its process: a write that a killed daemon had given to the kernel, which holds the file it is
//! written to but not this lock, may land after the next daemon has locked it, until the device has ended it. The descriptions that
//! I/O goes through cannot hold locks as well: those of one process are strangers to each other for `flock`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};

use crate::registry::BdevError;

pub(super) type Key = (u64, u64, u64);

static HELD: LazyLock<Mutex<HashMap<Key, Weak<FileLock>>>> = LazyLock::new(Mutex::default);

/// Holds a file for this process.
pub(super) struct FileLock {
    _fd: OwnedFd,
    key: Key,
    read_only: bool,
}

impl FileLock {
    /// It holds the file that `stat` is of.
    pub(super) fn is_of(&self, stat: &Stat) -> bool {
        self.key == key(stat)
    }
}

/// What tells one file or device from another.
pub(super) fn key(stat: &Stat) -> Key {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => (0, 0, stat.st_rdev),
        _ => (stat.st_dev, stat.st_ino, 0),
    }
}

/// Locks `path` for this process; shared if only read. A block device must not be in use by the system either.
pub(super) fn lock(path: &Path, read_only: bool) -> Result<Arc<FileLock>, BdevError> {
    let os = |what: &str, e: rustix::io::Errno| BdevError::Os {
        errno: e.raw_os_error(),
        what: format!("{what} '{}'", path.display()),
    };
    let stat = rustix::fs::stat(path).map_err(|e| os("cannot open", e))?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    let key = key(&stat);
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|_, l| l.strong_count() > 0);
    if let Some(l) = held.get(&key).and_then(Weak::upgrade) {
        if l.read_only && !read_only {
            return Err(BdevError::Busy {
                name: path.display().to_string(),
                why: "a read-only bdev of this daemon uses it, and others may read it too: delete that bdev first",
            });
        }
        tracing::warn!("'{}' is the medium of more than one bdev: their writes are not ordered", path.display());
        return Ok(l);
    }
    let mode = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let exclusive = if device && !read_only { OFlags::EXCL } else { OFlags::empty() };
    let fd = rustix::fs::open(path, mode | exclusive | OFlags::CLOEXEC, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::BUSY => BdevError::Busy {
            name: path.display().to_string(),
            why: "the system uses this device (mounted, or part of a volume): unmount it first",
        },
        e => os("cannot open", e),
    })?;
    let how = if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    rustix::fs::flock(&fd, how).map_err(|e| match e {
        rustix::io::Errno::AGAIN => BdevError::Busy {
            name: path.display().to_string(),
            why: "another process has locked it: is a second daemon serving it?",
        },
        e => os("cannot lock", e),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| os("cannot open", e))?;
    let l = Arc::new(FileLock { key: self::key(&stat), _fd: fd, read_only });
    held.insert(l.key, Arc::downgrade(&l));
    Ok(l)
}
