//! Verified load on a served namespace, journaled in its place, and the namespace as another daemon attaches it.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{NQN, Place, text};

/// Patience with anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The result of a method; a panic with what was called if it fails.
pub(crate) fn call(place: &Place, method: &str, params: Value) -> Value {
    super::rpc(place, method, &params).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
}

/// Parameters that attach the subsystem of `to` as `name`, to be given up after `loss` seconds.
pub(crate) fn attach(name: &str, to: &Place, loss: u64) -> Value {
    json!({"name": name, "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": to.port().to_string(), "subnqn": NQN,
        "ctrlr_loss_timeout_sec": loss, "reconnect_delay_sec": 1})
}

/// Starts verified writes with these options.
pub(crate) fn load(place: &Place, options: &str) -> Child {
    place
        .perf("", &format!("--json -w verify -q 16 {options} --verify-journal"))
        .arg(place.dir.join("journal"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the load starts")
}

/// Bytes of the journal: at least those that it has before the first write.
pub(crate) fn journaled(place: &Place) -> u64 {
    place.dir.join("journal").metadata().map_or(0, |m| m.len()).max(32)
}

/// Waits until the journal has more than so many bytes. The load must not end before.
pub(crate) fn grown(place: &Place, load: &mut Child, bytes: u64, what: &str) {
    let start = Instant::now();
    while journaled(place) <= bytes {
        assert!(load.try_wait().expect("wait").is_none(), "{what}: the load ended");
        assert!(start.elapsed() < PATIENCE, "{what}: nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the load said, when it has ended.
pub(crate) fn ended(load: Child, what: &str) -> Output {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || tx.send(load.wait_with_output()));
    rx.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: the load did not end")).expect("output")
}

/// Verified writes with these options, all of which must succeed.
pub(crate) fn written(place: &Place, options: &str) {
    let out = ended(load(place, options), "verified writes");
    assert!(out.status.success(), "{}", text(&out));
}

/// All that the journal says was acknowledged is there, as far as these options want it; what was found.
pub(crate) fn checked(place: &Place, options: &str, what: &str) -> Value {
    checked_by(place, place, options, what)
}

/// As [`checked`], with the journal of `writer`, seen through `place`.
pub(crate) fn checked_by(place: &Place, writer: &Place, options: &str, what: &str) -> Value {
    let mut check = place.perf("", &format!("-q 16 --json {options} --verify-check"));
    let out = check.arg(writer.dir.join("journal")).output().expect("the check runs");
    assert!(out.status.success(), "{what}: {}", text(&out));
    serde_json::from_slice(&out.stdout).expect("JSON")
}
