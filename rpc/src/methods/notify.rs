//! `notify_*`: what happened to block devices.

use longshore_bdev::ec::Event;
use serde_json::{Value, json};

use crate::error::INVALID_PARAMS;
use crate::method::{Method, Refusal, Registry, When};
use crate::params;

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
        Method::bare("notify_get_types", When::Runtime, "No parameters required", |_| async {
            let devices = ["bdev_register", "bdev_unregister", "bdev_resize"];
            Ok(devices.iter().chain(&Event::NAMES).copied().collect::<Value>())
        })
        .doc("The kinds of event that there are.")
        .result("array of strings")
        .error(INVALID_PARAMS, "No parameters required"),
    );
    registry.add(
        Method::new("notify_get_notifications", When::Runtime, |app, p: Get| async move {
            let events = app.bdevs.notifications.since(p.id, usize::try_from(p.max).unwrap_or(usize::MAX));
            Ok(events
                .iter()
                .map(|event| json!({"type": event.kind, "ctx": event.ctx, "id": event.id}))
                .collect::<Value>())
        })
        .doc("Events from a number on. The last 1024 are kept.")
        .refusal(Refusal::ARGUMENT)
        .result("array of {type, ctx, id}")
        .example(json!({"id": 0, "max": 10}), json!([{"type": "bdev_register", "ctx": "Malloc0", "id": 0}])),
    );
}
