//! What a controller tells its user without being asked.

use std::sync::Arc;

use crate::wire::AsyncEvent;

/// Something happened to a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerEvent {
    /// It reported an asynchronous event. Reading the log page that it names clears it.
    Async(AsyncEvent),
    /// An I/O queue ended that nobody disconnected.
    QueueLost {
        /// Its identifier.
        qid: u16,
        /// Why.
        why: String,
    },
    /// A command took too long, and its connection was ended for it.
    TimedOut {
        /// The queue; 0: the admin queue.
        qid: u16,
    },
    /// The admin queue ended: the controller is lost until it is reset.
    Lost {
        /// Why.
        why: String,
    },
}

/// Told of events, on some reactor: it may not block.
pub type EventSink = Arc<dyn Fn(ControllerEvent) + Send + Sync>;
