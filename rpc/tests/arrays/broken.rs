//! What a user sees of members that are missing, foreign, twice there, damaged, of another version, too small, failing or hanging.

use longshore_bdev::Status;
use longshore_bdev::ec::format::{Superblock, payload_checksum};

use super::*;
use crate::rig::DISK;

const SB: usize = 4096;
const COPIES: [usize; 2] = [0, 64 << 10];

/// Disks that hold Ec0, with 0x5a in its first 256 KiB, and nobody on them.
fn written(name: &str, n: usize) -> Disks {
    let disks = Disks::new(name, n);
    let rig = Rig::on(&disks, 3);
    rig.call("bdev_ec_create", create()).unwrap();
    assert!(rig.write(256 << 10, 0x5a).is_ok());
    drop(rig);
    disks
}

/// The copy that is the newer one.
fn newest(disk: &[u8]) -> usize {
    let epoch = |at: usize| Superblock::decode(&disk[at..at + SB]).map_or(0, |s| s.stamp.epoch);
    COPIES[usize::from(epoch(COPIES[1]) > epoch(COPIES[0]))]
}

/// Puts another superblock in place of each that is there.
fn rewrite(disk: &mut [u8], change: impl Fn(&mut Superblock)) {
    for at in COPIES {
        let Ok(mut s) = Superblock::decode(&disk[at..at + SB]) else { continue };
        change(&mut s);
        s.encode(&mut disk[at..at + SB]);
    }
}

fn not_started(rig: &Rig) -> String {
    rig.settle();
    let (code, says) = rig.call("bdev_ec_get_bdevs", json!({"name": "Ec0"})).unwrap_err();
    assert_eq!(code, -19, "{says}");
    says.strip_prefix("No such device (code -19): array 'Ec0' is not started: ").expect(&says).to_owned()
}

fn not_made(rig: &Rig, params: Value) -> String {
    let (code, says) = rig.call("bdev_ec_create", params).unwrap_err();
    assert_eq!(code, -22, "{says}");
    says.strip_prefix("Invalid argument (code -22): ").expect(&says).to_owned()
}

#[test]
fn without_a_member_the_array_starts_degraded_and_says_so_and_without_two_it_says_what_is_missing() {
    let disks = written("missing", 3);
    {
        let rig = Rig::on(&disks, 1);
        rig.attach(&disks, 2);
        rig.settle();
        let a = rig.array();
        assert_eq!((states(&a), &a["failed_count"]), (vec!["normal", "failed", "normal"], &json!(1)));
        assert_eq!((rig.read(256 << 10), rig.events().contains(&"bdev_ec_degraded".into())), (Ok(0x5a), true));
    }
    let rig = Rig::on(&disks, 1);
    let why = "1 members are in sync and there, 2 are needed; none in slots 1, 2. Attach the members that are missing: \
               a salvage would need as many members as data_chunk_count, and fewer are there";
    assert_eq!(not_started(&rig), why);
    let (code, says) = rig.call("bdev_ec_create", create()).unwrap_err();
    assert_eq!((code, says.as_str()), (-19, "No such device (code -19): no bdev is named 'd1'"));
}

#[test]
fn a_member_of_another_array_is_not_taken_and_not_destroyed() {
    let (disks, other) = (written("foreign", 3), written("other", 3));
    let mut uuid = String::new();
    other.edit(1, |disk| {
        rewrite(disk, |s| s.name = "Ec9".into());
        uuid = Superblock::decode(&disk[newest(disk)..][..SB]).unwrap().array.to_string();
    });
    std::fs::copy(other.path(1), disks.path(1)).unwrap();
    let rig = Rig::on(&disks, 3);
    rig.settle();
    assert_eq!(states(&rig.array()), ["normal", "failed", "normal"]);
    let (code, says) = rig.call("bdev_ec_get_bdevs", json!({"name": "Ec9"})).unwrap_err();
    assert!(
        code == -19
            && says.contains(
                "array 'Ec9' is not started: 1 members are in sync and there, 2 are needed; none in slots 0, 2"
            ),
        "{says}"
    );
    let mut params = create();
    params["name"] = "New".into();
    params["data_chunk_count"] = 1.into();
    params["base_bdevs"] = json!(["d1", "d1"]);
    assert_eq!(not_made(&rig, params.clone()), "base bdev 'd1' is given twice: it is 'd1'");
    rig.call("bdev_malloc_create", json!({"name": "M", "num_blocks": DISK / 512, "block_size": 512})).unwrap();
    params["base_bdevs"] = json!(["M", "d1"]);
    assert_eq!(
        not_made(&rig, params),
        format!("base bdev 'd1' holds slot 1 of array 'Ec9' ({uuid}): force destroys it")
    );
}

#[test]
fn a_copy_of_a_member_stops_the_array_until_it_is_taken_away() {
    let disks = written("duplicate", 4);
    std::fs::copy(disks.path(1), disks.path(3)).unwrap();
    let rig = Rig::new();
    block_on(rig.app.init()).unwrap();
    for i in [0, 1, 3, 2] {
        rig.attach(&disks, i);
    }
    let why = "'d1' and 'd3' are both the member in slot 1: one is a copy and has to be taken away";
    assert_eq!(not_started(&rig), why);
    let mut params = create();
    params["base_bdevs"] = json!(["d0", "d1", "d3"]);
    assert_eq!(
        not_made(&rig, params),
        format!("the base bdevs hold array 'Ec0' already, and it cannot start: {why}. force destroys it")
    );
    rig.call("bdev_uring_delete", json!({"name": "d3"})).unwrap();
    assert_eq!(rig.call("bdev_ec_create", create()), Ok(json!(true)));
    assert_eq!((states(&rig.array()), rig.read(256 << 10)), (vec!["normal"; 3], Ok(0x5a)));
}

#[test]
fn a_torn_superblock_is_made_up_for_by_the_other_copy_and_without_both_the_member_is_named() {
    let disks = written("torn", 3);
    // As a power cut in the middle of an update leaves it: the rest of the newest copy is of before.
    disks.edit(1, |disk| {
        let at = newest(disk);
        disk[at + 512..at + SB].fill(0);
    });
    {
        let rig = Rig::on(&disks, 3);
        rig.settle();
        assert_eq!((states(&rig.array()), rig.read(256 << 10)), (vec!["normal"; 3], Ok(0x5a)));
    }
    disks.edit(1, |disk| COPIES.into_iter().for_each(|at| disk[at + 200] ^= 1));
    let rig = Rig::new();
    block_on(rig.app.init()).unwrap();
    rig.call("bdev_ec_set_options", json!({"assemble_timeout_sec": 1})).unwrap();
    let torn = json!({"name": "torn1", "filename": disks.path(1), "block_size": 512});
    rig.call("bdev_uring_create", torn).unwrap();
    rig.attach(&disks, 0);
    rig.attach(&disks, 2);
    rig.settle();
    assert_eq!((states(&rig.array()), rig.read(256 << 10)), (vec!["normal", "failed", "normal"], Ok(0x5a)));
    assert!(said(&["WARN", "'torn1' is not taken as a member of an array: torn or damaged: checksum "]));
    rig.call("bdev_malloc_create", json!({"name": "M", "num_blocks": DISK / 512, "block_size": 512})).unwrap();
    let new = json!({"name": "New", "data_chunk_count": 1, "parity_chunk_count": 1, "strip_size_kb": 64, "base_bdevs": ["M", "torn1"]});
    let says = not_made(&rig, new);
    let what = "base bdev 'torn1' holds a member of an erasure-coded array: torn or damaged: checksum ";
    assert!(says.starts_with(what) && says.ends_with(": force destroys it"), "{says}");
}

#[test]
fn a_superblock_of_a_newer_version_is_refused_by_name_and_one_that_went_back_in_time_is_stale() {
    let disks = written("downgraded", 4);
    let old = std::fs::read(disks.path(1)).unwrap();
    {
        // It misses this session.
        let rig = Rig::on(&disks, 1);
        rig.attach(&disks, 2);
        rig.settle();
        assert!(rig.write(256 << 10, 0x33).is_ok());
    }
    {
        let rig = Rig::on(&disks, 3);
        rig.settle();
        let a = rig.whole();
        assert_eq!((rig.read(256 << 10), &a["unused_bdevs"]), (Ok(0x33), &json!([])), "it was brought up to date");
        assert!(said(&["WARN", "array 'Ec0' does not use 'd1': stale: has epoch "]));
    }
    std::fs::write(disks.path(3), old).unwrap();
    disks.edit(3, |disk| {
        for at in COPIES {
            disk[at + 8] = 2;
            let crc = payload_checksum(&disk[at..at + SB - 4]);
            disk[at + SB - 4..at + SB].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let rig = Rig::new();
    block_on(rig.app.init()).unwrap();
    rig.call("bdev_uring_create", json!({"name": "newer1", "filename": disks.path(3), "block_size": 512})).unwrap();
    rig.settle();
    let why = "format version 2: this build knows version 1 only";
    assert!(said(&["WARN", &format!("'newer1' is not taken as a member of an array: {why}")]));
    rig.call("bdev_malloc_create", json!({"name": "M", "num_blocks": DISK / 512, "block_size": 512})).unwrap();
    let new = json!({"name": "New", "data_chunk_count": 1, "parity_chunk_count": 1, "strip_size_kb": 64, "base_bdevs": ["newer1", "M"]});
    let says = not_made(&rig, new);
    assert_eq!(says, format!("base bdev 'newer1' holds a member of an erasure-coded array: {why}: force destroys it"));
}

#[test]
fn two_volumes_with_one_uuid_do_not_start_and_both_are_named() {
    let disks = written("twins", 6);
    for i in 0..3 {
        std::fs::copy(disks.path(i), disks.path(i + 3)).unwrap();
        disks.edit(i + 3, |disk| {
            rewrite(disk, |s| {
                s.created += 1;
                s.members.iter_mut().for_each(|m| m.uuid = uuid::Uuid::from_u128(m.uuid.as_u128() ^ 1));
            });
        });
    }
    let rig = Rig::new();
    block_on(rig.app.init()).unwrap();
    for i in [0, 3, 1, 4, 2, 5] {
        rig.attach(&disks, i);
    }
    let says = not_started(&rig);
    let parts = ["'d0' and 'd3' are of two arrays that have the same UUID ", ": take one of them away"];
    assert!(says.starts_with(parts[0]) && says.ends_with(parts[1]), "{says}");
}

#[test]
fn a_base_that_shrank_is_not_taken_and_one_that_shrinks_under_the_array_fails() {
    let disks = written("shrank", 3);
    let cut = |i: usize, bytes: u64| {
        std::fs::File::options().write(true).open(disks.path(i)).unwrap().set_len(bytes).unwrap()
    };
    cut(1, DISK / 2);
    {
        let rig = Rig::on(&disks, 3);
        rig.settle();
        let a = rig.array();
        assert_eq!((states(&a), rig.read(256 << 10)), (vec!["normal", "failed", "normal"], Ok(0x5a)));
        let needed = DISK - a["base_bdevs"][0]["unused"].as_u64().unwrap();
        let why = format!("shrank to {} bytes, the array needs {needed}", DISK / 2);
        assert_eq!(a["unused_bdevs"], json!([{"name": "d1", "reason": why}]));
    }
    let disks = written("shrinks", 3);
    let rig = Rig::on(&disks, 3);
    rig.settle();
    std::fs::File::options().write(true).open(disks.path(2)).unwrap().set_len(DISK / 2).unwrap();
    rig.call("bdev_uring_rescan", json!({"name": "d2"})).unwrap();
    let a = rig.array_when(|a| a["failed_count"] == 1);
    let why = "its device shrank to less than the array needs";
    assert_eq!((states(&a), &a["base_bdevs"][2]["reason"]), (vec!["normal", "normal", "failed"], &json!(why)));
    assert!(said(&["ERROR", "array 'Ec0': member 2 shrank to 8388608 bytes, ", " are needed"]));
    assert_eq!(rig.read(256 << 10), Ok(0x5a));
}

/// Ec0 on devices that fail when they are told to.
fn on_error_devices(disks: &Disks) -> Rig {
    let rig = Rig::on(disks, 3);
    for i in 0..3 {
        rig.call("bdev_error_create", json!({"base_name": format!("d{i}")})).unwrap();
    }
    let mut params = create();
    params["base_bdevs"] = json!(["EE_d0", "EE_d1", "EE_d2"]);
    rig.call("bdev_ec_set_options", json!({"member_timeout_ms": 200})).unwrap();
    rig.call("bdev_ec_create", params).unwrap();
    assert!(rig.write(256 << 10, 1).is_ok());
    rig
}

fn inject(rig: &Rig, device: &str, io: &str, error: &str) {
    let params = json!({"name": device, "io_type": io, "error_type": error, "num": 1_000_000});
    rig.call("bdev_error_inject_error", params).unwrap();
}

#[test]
fn read_errors_of_one_member_are_not_seen_and_of_two_they_end_the_array_as_if_both_were_gone() {
    let disks = Disks::new("reads", 3);
    let rig = on_error_devices(&disks);
    inject(&rig, "EE_d0", "read", "failure");
    assert_eq!(rig.read(128 << 10), Ok(1));
    inject(&rig, "EE_d1", "read", "failure");
    let refused = rig.read(128 << 10).unwrap_err();
    assert_eq!((refused, refused.sct(), refused.sc()), (Status::NAMESPACE_NOT_READY, 0, 0x82));
    assert_eq!(rig.array()["offline"], json!(true));
}

#[test]
fn a_member_that_fails_a_write_is_out_with_the_reason_and_one_more_takes_the_array_offline() {
    let disks = Disks::new("writes", 3);
    let rig = on_error_devices(&disks);
    inject(&rig, "EE_d1", "write", "failure");
    assert!(rig.write(256 << 10, 2).is_ok());
    let a = rig.array();
    assert_eq!(states(&a), ["normal", "failed", "normal"]);
    assert!(a["base_bdevs"][1]["reason"].as_str().is_some_and(|why| why.contains("writ")), "{a:#}");
    assert_eq!((rig.read(256 << 10), &a["offline"]), (Ok(2), &json!(false)));
    assert!(said(&["ERROR", "array 'Ec0': member 1 ('EE_d1') failed: "]));
    inject(&rig, "EE_d2", "write", "failure");
    let refused = rig.write(256 << 10, 3);
    assert_eq!((refused, refused.sct(), refused.sc()), (Status::NAMESPACE_NOT_READY, 0, 0x82));
    assert!(!refused.dnr(), "to be retried");
    let a = rig.array();
    assert_eq!((&a["offline"], &a["offline_reason"]), (&json!(true), &json!("too few members are left")));
    let events = rig.events();
    assert!(
        events.contains(&"bdev_ec_member_failed".into()) && events.contains(&"bdev_ec_offline".into()),
        "{events:?}"
    );
    // The way back, once what was wrong with its members is mended.
    for device in ["EE_d1", "EE_d2"] {
        inject(&rig, device, "clear", "failure");
    }
    let mut params = create();
    params["base_bdevs"] = json!(["EE_d0", "EE_d1", "EE_d2"]);
    let (_, e) = rig.call("bdev_ec_create", params.clone()).unwrap_err();
    assert!(e.contains("offline: see 'Offline'"), "{e}");
    rig.call("bdev_ec_delete", json!({"name": "Ec0"})).unwrap();
    rig.call("bdev_ec_create", params).unwrap();
    assert_eq!(rig.array()["offline"], json!(false));
    assert!(matches!(rig.read(256 << 10), Ok(2 | 3)) && rig.write(256 << 10, 4).is_ok());
}

#[test]
fn a_member_that_hangs_is_given_up_after_its_timeout_and_one_that_is_slow_is_not() {
    let disks = Disks::new("stalls", 3);
    let rig = on_error_devices(&disks);
    inject(&rig, "EE_d1", "all", "pending");
    assert!(rig.write(256 << 10, 2).is_ok());
    let a = rig.array();
    assert_eq!((states(&a), rig.read(256 << 10)), (vec!["normal", "failed", "normal"], Ok(2)));
    assert!(a["base_bdevs"][1]["reason"].as_str().is_some_and(|why| why.contains("in time")), "{a:#}");

    let slow = Disks::new("slow", 3);
    let rig = Rig::on(&slow, 3);
    let delay = json!({"base_bdev_name": "d1", "name": "Slow", "avg_read_latency": 20_000, "p99_read_latency": 20_000,
        "avg_write_latency": 20_000, "p99_write_latency": 20_000});
    rig.call("bdev_delay_create", delay).unwrap();
    rig.call("bdev_ec_set_options", json!({"member_timeout_ms": 10_000})).unwrap();
    let mut params = create();
    params["base_bdevs"] = json!(["d0", "Slow", "d2"]);
    rig.call("bdev_ec_create", params).unwrap();
    assert!(rig.write(256 << 10, 3).is_ok());
    assert_eq!((rig.read(256 << 10), states(&rig.array())), (Ok(3), vec!["normal"; 3]));
    let (code, says) = rig.call("bdev_ec_set_options", json!({"member_timeout_ms": 99})).unwrap_err();
    assert!(code == -22 && says.contains("member_timeout_ms is 99: must be at least 100"), "{says}");
}
