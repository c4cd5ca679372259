//! Commands as futures, for the control plane. A dropped future only orphans its command: the queue pair keeps the memory.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use longshore_reactor::Reactor;

use crate::wire::{Sqe, Status};

use super::error::HostError;
use super::qpair::{Completer, Data, Done, Qpair, Rejected};

/// Data of an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminData {
    /// The command has none.
    None,
    /// So many bytes from the controller, at most 2 MiB, a multiple of 4.
    Read(usize),
    /// These bytes to the controller, at most 2 MiB, a multiple of 4.
    Write(Vec<u8>),
}

/// Answer to an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminReply {
    /// Its status; success unless it was asked for with [`Controller::admin_any`](super::Controller::admin_any).
    pub status: Status,
    /// Dwords 1 and 0 of the completion.
    pub result: u64,
    /// What was read.
    pub data: Vec<u8>,
}

#[derive(Default)]
struct Waiting {
    done: Option<Done>,
    waker: Option<Waker>,
}

impl Completer for RefCell<Waiting> {
    fn completed(&self, done: &Done) {
        let waker = {
            let mut w = self.borrow_mut();
            w.done = Some(*done);
            w.waker.take()
        };
        if let Some(w) = waker {
            w.wake();
        }
    }
}

/// Submits a command and waits for its end, whatever it is.
pub(crate) async fn end_of(q: &Qpair, sqe: &Sqe, data: Data<'_>) -> Result<Done, HostError> {
    let w = Rc::new(RefCell::new(Waiting::default()));
    match q.submit(sqe, data, w.clone(), 0) {
        Ok(_) => {}
        Err(Rejected::Full) => return Err(HostError::Exhausted("all entries of the queue are in use".into())),
        Err(Rejected::Ended) => return Err(HostError::Lost(q.why())),
        Err(Rejected::BadLength) => return Err(HostError::Invalid("data is no multiple of 4 bytes".into())),
    }
    let done = poll_fn(|cx| {
        let mut w = w.borrow_mut();
        match w.done.take() {
            Some(d) => Poll::Ready(d),
            None => {
                w.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await;
    if done.status.is(Status::ABORTED_BY_HOST) && !q.is_open() {
        return Err(HostError::Lost(q.why()));
    }
    Ok(done)
}

impl Qpair {
    /// Runs a command from async code and returns how it ended, whatever its status. For many commands at a high rate use
    /// [`submit`](Qpair::submit), which allocates nothing.
    ///
    /// # Errors
    /// The command was not taken, or the connection was lost under it.
    pub async fn run(&self, sqe: &Sqe, data: Data<'_>) -> Result<Done, HostError> {
        end_of(self, sqe, data).await
    }
}

/// Submits a command and waits until it succeeds.
pub(crate) async fn success(q: &Qpair, what: &'static str, sqe: &Sqe, data: Data<'_>) -> Result<Done, HostError> {
    let done = end_of(q, sqe, data).await?;
    if done.status.is_err() {
        return Err(HostError::Refused { what, status: done.status, dw0: done.result as u32 });
    }
    Ok(done)
}

/// Runs an admin command with its data.
pub(crate) async fn transfer(q: &Qpair, sqe: &Sqe, data: AdminData) -> Result<AdminReply, HostError> {
    let dry = || HostError::Exhausted("no memory for the data of an admin command, of 2 MiB at most".into());
    let pool = q.reactor().dma();
    let (done, read) = match data {
        AdminData::None | AdminData::Read(0) => (end_of(q, sqe, Data::None).await?, None),
        AdminData::Read(n) => {
            let mut buf = pool.alloc(n).ok_or_else(dry)?;
            if let Some(b) = buf.get_mut() {
                b.fill(0);
            }
            (end_of(q, sqe, Data::Read(buf.clone())).await?, Some(buf))
        }
        AdminData::Write(bytes) => {
            let mut buf = pool.alloc(bytes.len()).ok_or_else(dry)?;
            if let Some(b) = buf.get_mut() {
                b.copy_from_slice(&bytes);
            }
            (end_of(q, sqe, Data::Write(buf)).await?, None)
        }
    };
    let data = read.map_or_else(Vec::new, |b| b.as_slice().to_vec());
    Ok(AdminReply { status: done.status, result: done.result, data })
}

/// Waits for `f`, but not longer than `limit`.
/// # Errors
/// It took longer; `what` says what did.
pub async fn within<F: Future>(r: &Reactor, limit: Duration, what: &str, f: F) -> Result<F::Output, HostError> {
    let (mut f, mut late) = (pin!(f), pin!(r.sleep(limit)));
    poll_fn(|cx| {
        if let Poll::Ready(v) = f.as_mut().poll(cx) {
            return Poll::Ready(Ok(v));
        }
        late.as_mut().poll(cx).map(|()| Err(HostError::TimedOut { what: what.to_owned() }))
    })
    .await
}
