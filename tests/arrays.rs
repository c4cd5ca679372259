//! Erasure-coded arrays of real daemons, on files.

mod served;

use std::process::{Command, Stdio};

use served::{Place, text};

/// Bytes of a disk.
const DISK: u64 = 16 << 20;

/// The configuration of 2+1 on files `disk0` to `disk2`.
fn config() -> String {
    let disk = |i| {
        format!(
            r#"{{"method": "bdev_uring_create", "params": {{"name": "d{i}", "filename": "DIR/disk{i}", "block_size": 512}}}},"#
        )
    };
    let array = r#"{"method": "bdev_ec_create", "params": {"name": "Ec0", "data_chunk_count": 2, "parity_chunk_count": 1,
        "strip_size_kb": 64, "base_bdevs": ["d0", "d1", "d2"]}}"#;
    (0..3).map(disk).collect::<String>() + array
}

fn place(test: &str, disks: usize) -> Place {
    let place = Place::new(test, &config(), &["Ec0"]);
    for i in 0..disks {
        let disk = std::fs::File::create(place.dir.join(format!("disk{i}"))).expect("a disk");
        disk.set_len(DISK).expect("room for a disk");
    }
    place
}

#[test]
fn a_second_daemon_on_the_same_files_is_refused_and_says_why() {
    let place = place("arrays-second", 3);
    let _first = place.daemon();
    let second = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .arg("-c")
        .arg(place.dir.join("config.json"))
        .arg("-r")
        .arg(place.dir.join("second.sock"))
        .args(["-m", &format!("[{}]", place.cpu)])
        .stdin(Stdio::null())
        .output()
        .expect("the daemon runs");
    let said = text(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    let disk = place.dir.join("disk0").display().to_string();
    let why = format!("bdev '{disk}' is busy: another process has locked it: is a second daemon serving it?");
    assert!(said.contains(&why), "{said}");
}
