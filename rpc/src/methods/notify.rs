//! `notify_*`: what happened to block devices.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::json;

use crate::app::App;
use crate::error::INVALID_PARAMS;
use crate::method::{Method, Refusal, Registry, When};
use crate::params;

/// Events kept; older ones are forgotten.
const KEPT: usize = 1024;
const TYPES: [&str; 3] = ["bdev_register", "bdev_unregister", "bdev_resize"];

/// The last events, numbered from 0.
#[derive(Default)]
pub struct Notifications {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    events: VecDeque<(&'static str, String)>,
}

impl Notifications {
    /// A block device has come.
    pub fn registered(&self, bdev: &str) {
        self.push(TYPES[0], bdev);
    }

    /// A block device has gone.
    pub fn unregistered(&self, bdev: &str) {
        self.push(TYPES[1], bdev);
    }

    /// A block device has another size.
    pub fn resized(&self, bdev: &str) {
        self.push(TYPES[2], bdev);
    }

    fn push(&self, what: &'static str, context: &str) {
        let mut state = App::lock(&self.state);
        state.next += 1;
        state.events.push_back((what, context.to_string()));
        if state.events.len() > KEPT {
            state.events.pop_front();
        }
    }

    fn since(&self, id: u64, max: u64) -> Vec<serde_json::Value> {
        let state = App::lock(&self.state);
        let first = state.next - state.events.len() as u64;
        let numbered = (first..).zip(&state.events).skip_while(|(number, _)| *number < id);
        numbered
            .take(usize::try_from(max).unwrap_or(usize::MAX))
            .map(|(id, (what, context))| json!({"type": what, "ctx": context, "id": id}))
            .collect()
    }
}

params! {
    struct Get {
        /// Number of the first event wanted; older ones that are forgotten are passed over.
        id: u64 = 0,
        /// How many at most.
        max: u64 = u64::MAX,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::bare("notify_get_types", When::Runtime, "No parameters required", |_| async { Ok(json!(TYPES)) })
            .doc("The kinds of event that there are.")
            .result("array of strings")
            .error(INVALID_PARAMS, "No parameters required"),
    );
    registry.add(
        Method::new("notify_get_notifications", When::Runtime, |app, p: Get| async move {
            Ok(app.notifications.since(p.id, p.max).into())
        })
        .doc("Events from a number on. The last 1024 are kept.")
        .refusal(Refusal::ARGUMENT)
        .result("array of {type, ctx, id}")
        .example(json!({"id": 0, "max": 10}), json!([{"type": "bdev_register", "ctx": "Malloc0", "id": 0}])),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_are_forgotten_and_numbers_go_on() {
        let log = Notifications::default();
        (0..KEPT + 6).for_each(|n| log.registered(&n.to_string()));
        let first = log.since(0, 1);
        assert_eq!((first[0]["id"].as_u64(), first[0]["ctx"].as_str()), (Some(6), Some("6")));
        assert_eq!(log.since(1028, 100).len(), 2);
        assert_eq!(log.since(9999, 100).len(), 0);
    }
}
