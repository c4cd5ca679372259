//! The state directory of the embedded default: its file and its saved configuration.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation};

/// Left free on the file system when the file is preallocated.
const KEEP_FREE: u64 = 1 << 30;

/// An open and locked state directory.
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// How the file got its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// It was there.
    Existing,
    /// All its blocks are allocated.
    Preallocated,
    /// Space was too short, or the file system cannot preallocate: blocks are allocated as they are written.
    Sparse,
}

impl StateDir {
    /// Where state is kept unless told otherwise: systemd's choice, else the system's place for root, else the user's.
    pub(crate) fn default_path() -> PathBuf {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(dirs) = var("STATE_DIRECTORY") {
            // Several are separated by colons; the first is ours.
            let first = dirs.to_string_lossy().split(':').next().map(PathBuf::from);
            return first.unwrap_or(dirs);
        }
        if rustix::process::geteuid().is_root() {
            return "/var/lib/longshore".into();
        }
        var("XDG_STATE_HOME")
            .or_else(|| var("HOME").map(|h| h.join(".local/state")))
            .unwrap_or_else(|| "/var/tmp".into())
            .join("longshore")
    }

    /// Makes the directory if need be and locks it for this process.
    ///
    /// # Errors
    /// One line that says what is wrong and how to mend it.
    pub(crate) fn open(path: &Path) -> Result<StateDir, String> {
        let hint = "choose another with --state-dir";
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| format!("cannot make the state directory {}: {e}; {hint}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| format!("cannot open {}: {e}; {hint}", lock_path.display()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            format!("another longshore uses the state directory {}; stop it, or {hint}", path.display())
        })?;
        Ok(StateDir { path: path.to_owned(), _lock: lock })
    }

    /// The saved configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The file that is served.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path.join("disk0.img")
    }

    /// Makes the file with `size` bytes unless it is there.
    ///
    /// # Errors
    /// What went wrong, with the path.
    pub(crate) fn create_disk(&self, size: u64) -> Result<Backing, String> {
        let path = self.disk();
        let err = |e: io::Error| format!("cannot make {} of {size} bytes: {e}", path.display());
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let file = file.map_err(err)?;
        if file.metadata().map_err(err)?.len() >= size {
            return Ok(Backing::Existing);
        }
        let free = rustix::fs::fstatvfs(&file).map(|s| s.f_bavail.saturating_mul(s.f_frsize)).unwrap_or(0);
        let backing = if free >= size.saturating_add(KEEP_FREE)
            && rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size).is_ok()
        {
            Backing::Preallocated
        } else {
            file.set_len(size).map_err(err)?;
            Backing::Sparse
        };
        file.sync_all().map_err(err)?;
        File::open(&self.path).and_then(|d| d.sync_all()).map_err(err)?;
        Ok(backing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let p = std::env::temp_dir().join(format!("longshore-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&p);
        p
    }

    #[test]
    fn a_second_daemon_is_refused_the_directory() {
        let p = scratch("lock");
        let first = StateDir::open(&p).expect("first");
        let e = StateDir::open(&p).err().expect("second is refused");
        assert!(e.contains("another longshore") && e.contains("--state-dir"), "{e}");
        drop(first);
        StateDir::open(&p).expect("free again");
        std::fs::remove_dir_all(&p).expect("removed");
    }

    #[test]
    fn the_file_is_made_once_and_keeps_its_content() {
        let p = scratch("disk");
        let s = StateDir::open(&p).expect("state");
        assert_ne!(s.create_disk(1 << 20), Ok(Backing::Existing));
        std::fs::write(s.disk(), vec![7u8; 1 << 20]).expect("written");
        assert_eq!(s.create_disk(1 << 20), Ok(Backing::Existing));
        assert!(std::fs::read(s.disk()).expect("read").iter().all(|&b| b == 7));
        std::fs::remove_dir_all(&p).expect("removed");
    }
}
