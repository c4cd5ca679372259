//! The listening socket: one owner per path, told apart from a stale one by a lock file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that the kernel holds for us while all places are taken.
const BACKLOG: i32 = 512;

/// A listener that owns its path; dropping it removes the socket and the lock.
#[derive(Debug)]
pub struct Listener {
    /// The listener, non-blocking.
    pub socket: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Listener {
    /// Takes the path: lock `<path>.lock`, remove a stale socket, bind and listen.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        let explain = |what: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("RPC socket {}: {what} ({error})", path.display()))
        };
        let address =
            SocketAddrUnix::new(path).map_err(|e| explain("not a usable socket path (107 bytes at most)", e.into()))?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| explain("cannot create its lock file; choose a writable directory with -r PATH", e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            explain("another process serves it; stop that one or choose another path with -r PATH", e.into())
        })?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(explain("cannot remove the stale socket", e)),
            _ => {}
        }
        let open = || -> io::Result<UnixListener> {
            let fd = socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            bind(&fd, &address)?;
            listen(&fd, BACKLOG)?;
            Ok(UnixListener::from(fd))
        };
        let socket =
            open().map_err(|e| explain("cannot listen; does the directory exist and may you write there?", e))?;
        Ok(Listener { socket, path: path.to_owned(), lock_path, _lock: lock })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The lock goes last: who gets it next must not find our socket removed under it.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_path_has_one_owner_and_a_stale_socket_is_replaced() {
        let dir = std::env::temp_dir().join(format!("longshore-rpc-socket-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a socket file that nobody serves");
        let first = Listener::bind(&path).unwrap();
        let mode = std::fs::metadata(dir.join("s.sock.lock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Listener::bind(&path).unwrap_err().to_string();
        assert!(second.contains("another process serves it"), "{second}");
        assert!(path.exists(), "the loser leaves the winner's socket alone");
        drop(first);
        assert!(!path.exists());
        Listener::bind(&path).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
