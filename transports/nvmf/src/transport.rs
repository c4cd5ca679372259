//! What a transport implements, and what it is given.

use std::sync::Arc;

use longshore_reactor::oneshot;

use crate::address::{Address, TrType};
use crate::options::TransportOptions;
use crate::target::Target;

/// Why the target core closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The host sent Disconnect: the response is queued already, close after it was sent.
    Requested,
    /// No keep-alive came in time.
    KeepAliveExpired,
    /// The controller was reset, shut down or lost its admin queue.
    ControllerGone,
    /// The host may not use the subsystem any more, or the subsystem or listener was removed.
    Revoked,
    /// The target shuts down.
    Shutdown,
}

/// One connection, as its queue pair sees it. All calls come on the connection's own reactor.
pub trait QpairTransport {
    /// The request in `slot` has ended: send its data (`Qpair::take_data`) and its completion (`Qpair::cqe`), then
    /// call `Qpair::release`. May be called from inside `Qpair::begin` (for another slot), `execute`, `fail`, and from the
    /// reactor's poll phase.
    fn respond(&self, slot: u16);

    /// `Qpair::get_buffer` said no for `slot`; now the buffer is there. From the poll phase.
    fn buffer_ready(&self, slot: u16);

    /// The command in `slot`, executed without a buffer because the device would lend its memory, needs one after all: as after
    /// [`Begin::NeedBuffer`](crate::Begin::NeedBuffer) without `lent`.
    fn buffer_needed(&self, slot: u16);

    /// Close the connection. Ends in `Qpair::shutdown`, as every other end of a connection does. Called at most once,
    /// and once more after [`Disconnect::Requested`] if another reason comes: then what is left is not sent any more.
    fn disconnect(&self, why: Disconnect);

    /// `Abort` names `slot`, whose data the transport is waiting for. True: the transport gave up on it and `respond` may be
    /// called for it now, which the caller does. Default: cannot.
    fn abort_transfer(&self, slot: u16) -> bool {
        let _ = slot;
        false
    }

    /// The listener the host came in by, as it was configured.
    fn listener(&self) -> &Address;

    /// This end, where it can differ from the listener: one that listens on every address of the machine.
    fn local(&self) -> Option<Address> {
        None
    }

    /// The host's end.
    fn peer(&self) -> Address;
}

/// Why an address cannot be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenError {
    /// errno, positive; 0 if there is none.
    pub errno: i32,
    /// Why, for people.
    pub why: String,
}

/// A kind of transport: how listeners are opened. Registered once with [`Target::register_transport`].
pub trait TransportKind: Send + Sync {
    /// Which.
    fn trtype(&self) -> TrType;

    /// Looks at options before a transport is created with them.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    fn check(&self, options: &TransportOptions) -> Result<(), String> {
        let _ = options;
        Ok(())
    }

    /// Starts to listen. Called once per address, however many subsystems use it, and not again before it ended or `unlisten`
    /// was called. This and `unlisten` are called under a lock: they may not call the target's control plane.
    fn listen(
        &self,
        target: &Arc<Target>,
        options: &Arc<TransportOptions>,
        address: &Address,
    ) -> oneshot::Receiver<Result<(), ListenError>>;

    /// Stops to listen, or to try to: a `listen` under way ends soon, with an error or not, and the address is closed. A `listen` after
    /// this call comes after it. Established connections stay; the target closes those it wants closed.
    fn unlisten(&self, address: &Address) -> oneshot::Receiver<()>;
}
