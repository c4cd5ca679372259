//! A daemon that was killed with SIGKILL is followed by the next one at once, on the same port.

mod served;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use served::Place;

#[test]
fn a_killed_daemon_is_started_again_at_once_on_its_port_twenty_times() {
    let bdev = r#"{"method": "bdev_null_create", "params": {"name": "Null0", "num_blocks": 4096, "block_size": 512}}"#;
    let place = Place::new("restart", bdev, &["Null0"]);
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let start = Instant::now();
        // It says that it is ready when its listener is open, or ends.
        let daemon = place.daemon();
        slowest = slowest.max(start.elapsed());
        let connected = TcpStream::connect(("127.0.0.1", place.port()));
        assert!(connected.is_ok(), "start {round}: nobody listens");
        drop(daemon);
    }
    println!("the slowest start took {slowest:?}");
}
