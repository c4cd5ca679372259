//! The loop over epoll, read and writev.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::SPIN;
use super::conn::{Conn, Role};

/// Pieces of memory that the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// Runs the connections until `go_on` says no, or all are closed.
pub(super) fn run<R: Role>(conns: &mut [Conn<R>], mut go_on: impl FnMut() -> bool) -> io::Result<()> {
    let ep = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut open = conns.len();
    let mut blocked = vec![false; conns.len()];
    for (i, c) in conns.iter_mut().enumerate() {
        c.stream.set_nonblocking(true)?;
        epoll::add(&ep, &c.stream, epoll::EventData::new_u64(i as u64), epoll::EventFlags::IN)?;
        send(c)?;
    }
    let mut events = Vec::with_capacity(conns.len().clamp(16, 1024));
    let mut idle_since: Option<Instant> = None;
    while open > 0 && go_on() {
        // Spin for a while after the last work, then sleep: as a reactor does.
        let spinning = idle_since.is_none_or(|t| t.elapsed() < SPIN);
        let wait = if spinning { Duration::ZERO } else { Duration::from_millis(50) };
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
        events.clear();
        match epoll::wait(&ep, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if events.is_empty() {
            idle_since.get_or_insert_with(Instant::now);
            continue;
        }
        idle_since = None;
        for e in &events {
            let (i, flags) = (e.data.u64() as usize, e.flags);
            let c = &mut conns[i];
            if c.closed {
                continue;
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                receive(c)?;
            }
            let now_blocked = send(c)?;
            if c.closed {
                open -= 1;
                epoll::delete(&ep, &c.stream)?;
            } else if now_blocked != blocked[i] {
                blocked[i] = now_blocked;
                let flags =
                    if now_blocked { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
                epoll::modify(&ep, &c.stream, epoll::EventData::new_u64(i as u64), flags)?;
            }
        }
    }
    Ok(())
}

fn receive<R: Role>(c: &mut Conn<R>) -> io::Result<()> {
    let (mut stream, space) = c.rx_space();
    match stream.read(space) {
        Ok(n) => c.received(n),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => c.closed = true,
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Sends what is queued; true if the socket takes no more for now.
fn send<R: Role>(c: &mut Conn<R>) -> io::Result<bool> {
    while !c.closed && !c.tx.is_empty() {
        let pieces: Vec<IoSlice> = c.tx.pieces().take(MAX_PIECES).map(IoSlice::new).collect();
        match (&c.stream).write_vectored(&pieces) {
            Ok(n) => {
                drop(pieces);
                c.tx.advance(n);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => c.closed = true,
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
