//! `bdev_nvme_*_discovery*`: controllers attached because a discovery service lists them.

use std::sync::Arc;
use std::time::Duration;

use longshore_bdev::nvme::{AttachOptions, TransportId};
use serde_json::{Value, json};

use super::bdev_nvme::{address, hostnqn, reconnect, trid};
use crate::app::App;
use crate::config::Entry;
use crate::error::{EEXIST, EINVAL, ENOENT, Reply};
use crate::method::{Method, Registry, When};
use crate::params;

params! {
    struct Start {
        /// Name of the service; controllers are called this and a number.
        name: String,
        /// Transport: tcp.
        trtype: String,
        /// Address.
        traddr: String,
        /// Family: ipv4 or ipv6; without it what the address looks like.
        adrfam: Option<String>,
        /// Port; without it 8009.
        trsvcid: Option<String>,
        /// NQN of this host; without it one that follows from /etc/machine-id and the path of the RPC socket.
        hostnqn: Option<String>,
        /// Answer when everything that is listed was attached.
        wait_for_attach: bool = false,
        /// Answer so, or fail after this many ms; 0: no limit.
        attach_timeout_ms: u64 = 0,
        /// Of controllers that are attached: as in bdev_nvme_attach_controller, like the next two.
        ctrlr_loss_timeout_sec: Option<i32>,
        /// Seconds between attempts to reconnect.
        reconnect_delay_sec: Option<u32>,
        /// Seconds after which I/O to a lost controller fails.
        fast_io_fail_timeout_sec: Option<u32>,
    }
}

params! {
    struct Stop {
        /// Name of the service.
        name: String,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    let there = json!({
        "name": "Remote", "trtype": "TCP", "traddr": "127.0.0.1", "adrfam": "IPv4", "trsvcid": "8009",
        "wait_for_attach": true,
    });
    registry.add(
        Method::new("bdev_nvme_start_discovery", When::Runtime, start)
            .doc("Attaches what a discovery service lists, as `name`0, `name`1, ... in the order in which subsystems appear, and detaches what it does not list any more. A controller that was given up is attached again when it is back. Of several addresses of a subsystem one is used at a time; referrals are used when the address itself cannot be reached.")
            .changes()
            .error(-EEXIST, "File exists: the name is taken, or another service has this address")
            .error(-EINVAL, "Failed to parse trtype: %s; likewise for other parameters")
            .error(-110, "Connection timed out: not everything was attached within attach_timeout_ms")
            .example(there, json!(true)),
    );
    registry.add(
        Method::new("bdev_nvme_stop_discovery", When::Runtime, stop)
            .doc("Stops a discovery service and detaches what it attached.")
            .changes()
            .error(-ENOENT, "No such file or directory")
            .example(json!({"name": "Remote"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_nvme_get_discovery_info", When::Runtime, |app, ()| info(app))
            .doc("The discovery services.")
            .result("array of {name, trid{}, referrals[{trid{}}]}")
            .example(json!({}), json!([{"name": "Remote", "trid": {"trtype": "TCP"}, "referrals": []}])),
    );
}

async fn start(app: Arc<App>, p: Start) -> Reply {
    let at = address(&p.trtype, &p.traddr, p.adrfam.as_deref(), p.trsvcid.as_deref(), "8009")?;
    let options = AttachOptions {
        hostnqn: hostnqn(p.hostnqn.as_ref())?,
        reconnect: reconnect(&app, p.ctrlr_loss_timeout_sec, p.reconnect_delay_sec, p.fast_io_fail_timeout_sec)?,
        disable_sq_flow_control: false,
        ..AttachOptions::default()
    };
    let limit = (p.attach_timeout_ms != 0).then(|| Duration::from_millis(p.attach_timeout_ms));
    let wait = p.wait_for_attach || limit.is_some();
    app.controllers.start_discovery(&p.name, TransportId::discovery(at), options, wait, limit).await?;
    Ok(json!(true))
}

async fn stop(app: Arc<App>, p: Stop) -> Reply {
    app.controllers.stop_discovery(&p.name).await?;
    Ok(json!(true))
}

async fn info(app: Arc<App>) -> Reply {
    let all = app.controllers.discovery_services();
    Ok(all
        .iter()
        .map(|s| {
            let referrals: Vec<Value> = s.referrals.iter().map(|id| json!({"trid": trid(id)})).collect();
            json!({"name": s.name, "trid": trid(&s.id), "referrals": referrals})
        })
        .collect())
}

/// The calls that start all services again.
pub(super) fn dump(app: &App) -> Vec<Entry> {
    let all = app.controllers.discovery_services();
    let calls = all.iter().map(|s| {
        let r = &s.options.reconnect;
        let mut params = json!({"name": s.name});
        let rest = [
            trid(&s.id),
            json!({
                "hostnqn": s.options.hostnqn, "wait_for_attach": s.wait_for_attach,
                "ctrlr_loss_timeout_sec": r.ctrlr_loss_timeout_sec, "reconnect_delay_sec": r.reconnect_delay_sec,
                "fast_io_fail_timeout_sec": r.fast_io_fail_timeout_sec,
            }),
        ];
        if let Value::Object(all) = &mut params {
            for part in rest {
                if let Value::Object(part) = part {
                    all.extend(part);
                }
            }
            // A discovery service has but one name.
            all.remove("subnqn");
            if s.options.hostnqn.is_empty() {
                all.remove("hostnqn");
            }
        }
        Entry::new("bdev_nvme_start_discovery", params)
    });
    calls.collect()
}
