//! What holders of a device are told, and the log of registrations that clients read.

use std::collections::VecDeque;
use std::sync::Mutex;

/// Something happened to a device that somebody holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BdevEvent {
    /// The device is going away: stop using it and close it.
    Remove,
    /// The device now has this many blocks.
    Resize {
        /// New number of blocks.
        num_blocks: u64,
    },
}

/// Told of events, on whatever thread caused them. Must not block; post to the reactor that is concerned.
pub type EventSink = Box<dyn Fn(BdevEvent) + Send + Sync>;

/// One entry of the log: clients read it with `notify_get_notifications`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Running number, from 0.
    pub id: u64,
    /// `bdev_register`, `bdev_unregister` or `bdev_resize`.
    pub kind: &'static str,
    /// Name of the device.
    pub ctx: String,
}

/// The last [`CAPACITY`](Self::CAPACITY) notifications.
#[derive(Default)]
pub struct NotificationLog(Mutex<(u64, VecDeque<Notification>)>);

impl NotificationLog {
    /// Entries kept.
    pub const CAPACITY: usize = 1024;

    /// Adds an entry.
    pub fn push(&self, kind: &'static str, ctx: &str) {
        let mut g = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let id = g.0;
        g.0 += 1;
        if g.1.len() == Self::CAPACITY {
            g.1.pop_front();
        }
        g.1.push_back(Notification { id, kind, ctx: ctx.to_owned() });
    }

    /// At most `max` entries from number `id` on, or from the oldest that is still kept.
    pub fn since(&self, id: u64, max: usize) -> Vec<Notification> {
        let g = self.0.lock().unwrap_or_else(|e| e.into_inner());
        g.1.iter().filter(|n| n.id >= id).take(max).cloned().collect()
    }
}
