//! The loop over io_uring: per connection one receive and one vectored send in flight.
#![allow(unsafe_code)]

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use super::SPIN;
use super::conn::{Conn, Role};

/// Pieces of memory that the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = 1024;
/// Marks a send; receives have the bare connection number.
const SEND: u64 = 1 << 32;

/// Operations of one connection that the kernel holds. Boxed: the kernel reads `msg` and `pieces` where they lie.
struct Flight {
    receiving: bool,
    sending: bool,
    pieces: Vec<libc::iovec>,
    msg: libc::msghdr,
}

/// Runs the connections until `go_on` says no, or all are closed. Nothing is in flight when it returns.
pub(super) fn run<R: Role>(conns: &mut [Conn<R>], mut go_on: impl FnMut() -> bool) -> io::Result<()> {
    let entries = (conns.len() as u32 * 2).next_power_of_two().clamp(64, 4096);
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(entries * 2)
        .build(entries)?;
    let mut flights: Vec<Box<Flight>> = conns.iter().map(|_| Box::new(Flight::idle())).collect();
    let outcome = turn_until_done(&mut ring, conns, &mut flights, &mut go_on);
    // Buffers and headers are borrowed by the kernel until each operation ended, whatever happened above.
    for c in conns.iter_mut() {
        let _ = c.stream.shutdown(Shutdown::Both);
        c.closed = true;
    }
    while flights.iter().any(|f| f.receiving || f.sending) {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            // Not returning is the only safe answer: memory that the kernel may still write must not be freed.
            Err(e) => {
                eprintln!("longshore-perf: io_uring failed with operations in flight: {e}");
                std::process::abort();
            }
        }
        for cqe in ring.completion() {
            let f = &mut flights[cqe.user_data() as u32 as usize];
            if cqe.user_data() & SEND != 0 { f.sending = false } else { f.receiving = false }
        }
    }
    outcome
}

fn turn_until_done<R: Role>(
    ring: &mut IoUring,
    conns: &mut [Conn<R>],
    flights: &mut [Box<Flight>],
    go_on: &mut impl FnMut() -> bool,
) -> io::Result<()> {
    let mut open = conns.len();
    let mut dirty: Vec<usize> = (0..conns.len()).collect();
    let mut idle_since: Option<Instant> = None;
    while open > 0 && go_on() {
        for i in dirty.drain(..) {
            arm(ring, i, &mut conns[i], &mut flights[i])?;
        }
        // As the other loop: spin for a while after the last work, then sleep.
        let spinning = idle_since.is_none_or(|t| t.elapsed() < SPIN);
        let work = {
            let sq = ring.submission();
            !sq.is_empty() || sq.taskrun()
        };
        if work || !spinning {
            let timeout = types::Timespec::from(if spinning { Duration::ZERO } else { Duration::from_millis(50) });
            match ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout)) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => {}
                Err(e) => return Err(e),
            }
        }
        let mut reaped = false;
        for cqe in ring.completion() {
            reaped = true;
            let i = cqe.user_data() as u32 as usize;
            let (c, f) = (&mut conns[i], &mut flights[i]);
            let was_open = !c.closed;
            if cqe.user_data() & SEND != 0 {
                f.sending = false;
                if cqe.result() >= 0 { c.tx.advance(cqe.result() as usize) } else { c.closed = true }
            } else {
                f.receiving = false;
                if cqe.result() >= 0 { c.received(cqe.result() as usize) } else { c.closed = true }
            }
            if was_open && c.closed {
                open -= 1;
                let _ = c.stream.shutdown(Shutdown::Both);
            }
            if !dirty.contains(&i) {
                dirty.push(i);
            }
        }
        if reaped {
            idle_since = None;
        } else {
            idle_since.get_or_insert_with(Instant::now);
        }
    }
    Ok(())
}

/// Queues the send and the receive that the connection can have now.
fn arm<R: Role>(ring: &mut IoUring, i: usize, c: &mut Conn<R>, f: &mut Flight) -> io::Result<()> {
    if c.closed {
        return Ok(());
    }
    let fd = types::Fd(c.stream.as_raw_fd());
    if !f.sending && !c.tx.is_empty() {
        f.pieces.clear();
        f.pieces.extend(
            c.tx.pieces()
                .take(MAX_PIECES)
                .map(|p| libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() }),
        );
        f.msg.msg_iov = f.pieces.as_mut_ptr();
        f.msg.msg_iovlen = f.pieces.len();
        let e = opcode::SendMsg::new(fd, &raw const f.msg)
            .flags(libc::MSG_NOSIGNAL as u32)
            .build()
            .user_data(i as u64 | SEND);
        // SAFETY: `f` is boxed and its vector untouched while `sending`; the pieces are bytes of the header ring, which has
        // room for every header that can be queued, and of the payload region, which nobody writes. `run` returns only
        // after the operation ended.
        unsafe { push(ring, &e)? };
        f.sending = true;
    }
    if !f.receiving {
        let (_, space) = c.rx_space();
        let e = opcode::Recv::new(fd, space.as_mut_ptr(), space.len() as u32).build().user_data(i as u64);
        // SAFETY: the receive buffer is never reallocated and is read only after this receive ended (`received`);
        // `run` returns only after the operation ended.
        unsafe { push(ring, &e)? };
        f.receiving = true;
    }
    Ok(())
}

/// # Safety
/// What the entry points to stays valid until its completion was reaped.
unsafe fn push(ring: &mut IoUring, e: &io_uring::squeue::Entry) -> io::Result<()> {
    // SAFETY: the caller's promise.
    while unsafe { ring.submission().push(e) }.is_err() {
        ring.submit()?;
    }
    Ok(())
}

impl Flight {
    fn idle() -> Flight {
        // SAFETY: a msghdr of zeroes is a valid, empty one.
        let msg = unsafe { std::mem::zeroed() };
        Flight { receiving: false, sending: false, pieces: Vec::with_capacity(MAX_PIECES), msg }
    }
}
