//! Members that are replaced, and rebuilt.

use super::*;
use crate::rig::DISK;

const BYTES: usize = 1 << 20;

/// Ec0 on d0 to d2, written, and more disks.
fn made(name: &str, disks: usize) -> (Disks, Rig) {
    let disks_of = Disks::new(name, disks);
    let rig = Rig::on(&disks_of, disks);
    rig.call("bdev_ec_create", create()).unwrap();
    assert!(rig.write(BYTES, 0x11).is_ok());
    (disks_of, rig)
}

fn replace(rig: &Rig, slot: u32, device: &str) -> Result<Value, (i32, String)> {
    rig.call("bdev_ec_replace_base_bdev", json!({"ec_name": "Ec0", "slot": slot, "new_bdev_name": device}))
}

fn refused(rig: &Rig, slot: u32, device: &str) -> (i32, String) {
    let (code, says) = replace(rig, slot, device).unwrap_err();
    (code, says.split_once("): ").expect(&says).1.to_owned())
}

fn pause(rig: &Rig, paused: bool) {
    rig.call("bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0", "paused": paused})).unwrap();
}

#[test]
fn a_lost_member_is_replaced_rebuilt_and_carries_the_array_when_another_one_is_lost() {
    let (disks, rig) = made("replaced", 4);
    let idle = "No such file or directory (code -2): no member of array 'Ec0' is being rebuilt";
    let of = json!({"ec_name": "Ec0"});
    assert_eq!(rig.call("bdev_ec_get_rebuild_progress", of.clone()), Err((-2, idle.into())));
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    assert!(rig.write(BYTES / 2, 0x22).is_ok());
    let a = rig.array();
    let lost = &a["base_bdevs"][1];
    assert_eq!(
        (&lost["state"], &lost["needs_rebuild"], &lost["reason"]),
        (&json!("failed"), &json!(true), &json!("its device was removed"))
    );
    let wib = rig.call("bdev_ec_get_wib_status", of.clone()).unwrap();
    assert!(wib["generation"] != 0 && wib["dirty_regions"].as_u64() > Some(0), "{wib}");
    let mapped = rig.call("bdev_ec_get_unmap_status", of.clone()).unwrap();
    assert_eq!(mapped["mapped_stripes"], json!(BYTES / (128 << 10)));

    pause(&rig, true);
    assert_eq!(replace(&rig, 1, "d3"), Ok(json!(true)));
    let p = rig.call("bdev_ec_get_rebuild_progress", of.clone()).unwrap();
    assert_eq!(
        (&p["slot"], &p["mode"], &p["state"], &p["stripes_rebuilt"]),
        (&json!(1), &json!("full"), &json!("paused"), &json!(0))
    );
    let a = rig.array();
    assert_eq!(
        (states(&a), &a["replace_in_progress"], &a["rebuild_in_progress"]),
        (vec!["normal", "replacing", "normal"], &json!(true), &json!(true))
    );
    assert!(a["rebuild_progress"].as_f64() < Some(100.0), "{a:#}");
    assert_eq!((&a["base_bdevs"][1]["name"], &a["failed_count"]), (&json!("d3"), &json!(1)));
    assert_eq!(rig.call("bdev_ec_stop_rebuild", of.clone()), Ok(json!(true)));
    pause(&rig, false);
    let p = rig.call("bdev_ec_get_rebuild_progress", of.clone()).unwrap();
    assert_eq!(p["state"], json!("stopped"));
    assert!(rig.write(BYTES / 4, 0x33).is_ok(), "hosts go on");
    assert_eq!(rig.call("bdev_ec_start_rebuild", of.clone()), Ok(json!(true)));
    let a = rig.whole();
    assert_eq!(
        (&a["replace_in_progress"], &a["rebuild_in_progress"], a.get("rebuild_progress")),
        (&json!(false), &json!(false), None)
    );
    assert_eq!(rig.call("bdev_ec_get_rebuild_progress", of.clone()), Err((-2, idle.into())));
    assert_eq!(rig.call("bdev_ec_get_wib_status", of.clone()).unwrap()["generation"], json!(0));
    let (code, says) = rig.call("bdev_ec_stop_rebuild", of.clone()).unwrap_err();
    assert!(code == -16 && says.ends_with("no member is being rebuilt"), "{says}");
    let (code, says) = rig.call("bdev_ec_start_rebuild", of).unwrap_err();
    assert!(code == -22 && says.ends_with("array 'Ec0': no member is being rebuilt, and no failed one has its device: use bdev_ec_replace_base_bdev"), "{says}");
    let events = rig.events();
    for kind in ["bdev_ec_member_failed", "bdev_ec_rebuild_started", "bdev_ec_rebuild_finished"] {
        assert!(events.contains(&kind.into()), "{events:?}");
    }

    // The saved configuration names the members of now, and the old one is not taken for one.
    let saved = block_on(config::dump(&rig.app));
    assert!(saved.contains(r#""d0","#) && !saved.contains("bdev_ec_set_rebuild_qos"), "{saved}");
    drop(rig);
    let rig = Rig::on(&disks, 4);
    rig.settle();
    let a = rig.array();
    let names: Vec<_> = a["base_bdevs"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!((states(&a), names), (vec!["normal"; 3], vec!["d0", "d3", "d2"]));
    assert_eq!(a["unused_bdevs"], json!([{"name": "d1", "reason": "another member took its slot 1"}]));
    let (code, says) = rig.call("bdev_ec_create", create()).unwrap_err();
    assert!(code == -22 && says.contains("runs already, and base bdev 'd1' is no member of it"), "{says}");
    let mut older = create();
    older["uuid"] = a["uuid"].clone();
    assert_eq!(rig.call("bdev_ec_create", older), Ok(json!(true)), "a saved call has the UUID");
    rig.call("bdev_uring_delete", json!({"name": "d0"})).unwrap();
    assert_eq!((rig.read(BYTES / 4), rig.array()["failed_count"].clone()), (Ok(0x33), json!(1)));
}

#[test]
fn a_member_in_sync_is_replaced_on_purpose_unless_too_few_would_be_left() {
    let (_disks, rig) = made("purpose", 5);
    assert_eq!(replace(&rig, 0, "d3"), Ok(json!(true)));
    let a = rig.whole();
    assert_eq!(a["base_bdevs"][0]["name"], json!("d3"));
    assert_eq!(rig.read(BYTES), Ok(0x11));
    rig.call("bdev_uring_delete", json!({"name": "d3"})).unwrap();
    let few =
        "array 'Ec0': without member 1 only 1 would be in sync, and 2 are needed: replace or rebuild others first";
    assert_eq!(refused(&rig, 1, "d4"), (-22, few.into()));
    assert_eq!(states(&rig.array()), ["failed", "normal", "normal"]);
    // The old device is free, and holds what makes it known.
    let (code, says) = refused(&rig, 0, "d0");
    assert!(
        code == -22
            && says.starts_with("bdev 'd0' holds slot 0 of array 'Ec0' (")
            && says.ends_with("): force destroys it"),
        "{says}"
    );
    let force = json!({"ec_name": "Ec0", "slot": 0, "new_bdev_name": "d0", "force": true});
    assert_eq!(rig.call("bdev_ec_replace_base_bdev", force), Ok(json!(true)));
    rig.whole();
}

#[test]
fn newcomers_that_cannot_be_members_are_refused_with_the_reason_and_nothing_changes() {
    let (disks, rig) = made("newcomers", 3);
    let small = json!({"name": "small", "num_blocks": 2048, "block_size": 512});
    rig.call("bdev_malloc_create", small).unwrap();
    rig.call("bdev_malloc_create", json!({"name": "coarse", "num_blocks": DISK / 4096, "block_size": 4096})).unwrap();
    let ext = disks.path(8);
    std::fs::write(&ext, [&[0; 1080][..], b"\x53\xef", &[0; 64 << 10]].concat()).unwrap();
    std::fs::File::options().write(true).open(&ext).unwrap().set_len(DISK).unwrap();
    rig.attach(&disks, 8);
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    let a = rig.array();
    let needed = DISK - a["base_bdevs"][0]["unused"].as_u64().unwrap();
    let cases = [
        (
            "small",
            -22,
            format!("bdev 'small' is too small: it has 1048576 bytes, a member of array 'Ec0' needs {needed}"),
        ),
        ("coarse", -22, "bdev 'coarse' has blocks of 4096 bytes, which do not fit the array's of 512".into()),
        ("d8", -22, "bdev 'd8' holds an ext2 file system: force destroys it".into()),
        ("d0", -1, "bdev 'd0' is claimed by module ec".into()),
        ("nothing", -19, "no bdev is named 'nothing'".into()),
    ];
    for (device, code, says) in cases {
        assert_eq!(refused(&rig, 1, device), (code, says));
    }
    assert_eq!(refused(&rig, 3, "d8"), (-22, "slot is 3: array 'Ec0' has slots 0 to 2".into()));
    assert_eq!(refused(&rig, 0, "d0"), (-22, "bdev 'd0' is in use as member 0 of array 'Ec0' already".into()));
    let of_none = json!({"ec_name": "Ec7", "slot": 1, "new_bdev_name": "d8"});
    assert_eq!(
        rig.call("bdev_ec_replace_base_bdev", of_none),
        Err((-19, "No such device (code -19): no bdev is named 'Ec7'".into()))
    );
    assert_eq!((states(&rig.array()), rig.read(BYTES)), (vec!["normal", "failed", "normal"], Ok(0x11)));
    let force = json!({"ec_name": "Ec0", "slot": 1, "new_bdev_name": "d8", "force": true});
    assert_eq!(rig.call("bdev_ec_replace_base_bdev", force), Ok(json!(true)));
    rig.whole();
}

#[test]
fn a_rebuild_that_a_restart_cut_short_goes_on_and_its_rate_is_saved() {
    let (disks, rig) = made("resumed", 4);
    rig.call("bdev_uring_delete", json!({"name": "d2"})).unwrap();
    let slow = json!({"ec_name": "Ec0", "max_stripes_per_sec": 7, "paused": true});
    rig.call("bdev_ec_set_rebuild_qos", slow).unwrap();
    assert_eq!(replace(&rig, 2, "d3"), Ok(json!(true)));
    let saved = block_on(config::dump(&rig.app));
    drop(rig);
    let rig = Rig::new();
    block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, false)).unwrap();
    assert_eq!(block_on(config::dump(&rig.app)), saved);
    // It goes on as soon as the array is found, and so little may be done before the saved pause comes.
    if let Ok(p) = rig.call("bdev_ec_get_rebuild_progress", json!({"ec_name": "Ec0"})) {
        assert_eq!((&p["slot"], &p["state"]), (&json!(2), &json!("paused")));
    }
    pause(&rig, false);
    rig.whole();
    drop(rig);
    let rig = Rig::on(&disks, 1);
    rig.attach(&disks, 3);
    rig.settle();
    assert_eq!((states(&rig.array()), rig.read(BYTES)), (vec!["normal", "failed", "normal"], Ok(0x11)));
}

#[test]
fn a_member_that_is_back_is_brought_up_to_date_by_the_write_intent_bitmap() {
    let (disks, rig) = made("back", 3);
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    assert!(rig.write(128 << 10, 0x44).is_ok());
    pause(&rig, true);
    rig.attach(&disks, 1);
    rig.settle();
    let p = rig.call("bdev_ec_get_rebuild_progress", json!({"ec_name": "Ec0"})).unwrap();
    assert_eq!((&p["slot"], &p["mode"], &p["state"]), (&json!(1), &json!("wib"), &json!("paused")));
    pause(&rig, false);
    rig.whole();
    drop(rig);
    // Stale at a start.
    {
        let rig = Rig::on(&disks, 1);
        rig.attach(&disks, 2);
        rig.settle();
        assert!(rig.write(128 << 10, 0x55).is_ok());
    }
    let rig = Rig::on(&disks, 3);
    rig.settle();
    let a = rig.whole();
    assert_eq!(a["unused_bdevs"], json!([]));
    rig.call("bdev_uring_delete", json!({"name": "d0"})).unwrap();
    assert_eq!(rig.read(128 << 10), Ok(0x55));
}

#[test]
fn a_stale_member_is_asked_for_once_at_each_start_and_nothing_is_said_against_it() {
    let (disks, rig) = made("once", 3);
    rig.call("bdev_ec_delete", json!({"name": "Ec0", "clear_sb": true})).unwrap();
    let named = json!({"name": "StaleOnce", "data_chunk_count": 2, "parity_chunk_count": 1, "strip_size_kb": 64, "base_bdevs": ["d0", "d1", "d2"]});
    rig.call("bdev_ec_create", named).unwrap();
    let failed =
        |rig: &Rig| rig.call("bdev_ec_get_bdevs", json!({"name": "StaleOnce"})).unwrap()[0]["failed_count"].clone();
    drop(rig);
    for turn in 0..10 {
        {
            let rig = Rig::on(&disks, 1);
            rig.call("bdev_ec_set_options", json!({"assemble_timeout_sec": 0})).unwrap();
            rig.attach(&disks, 2);
            rig.settle();
            assert_eq!(failed(&rig), json!(1), "turn {turn}");
        }
        let rig = Rig::on(&disks, 3);
        rig.settle();
        let started = std::time::Instant::now();
        while failed(&rig) != json!(0) {
            assert!(started.elapsed().as_secs() < 60, "it is not taken back");
            std::thread::yield_now();
        }
    }
    assert!(said(&["'StaleOnce'", "is back as member 1"]));
    assert!(!said(&["'StaleOnce' does not take"]), "it was asked for twice");
}

#[test]
fn a_failed_member_whose_device_is_mended_is_taken_back_by_starting_its_rebuild() {
    let disks = Disks::new("mended", 3);
    let rig = Rig::on(&disks, 3);
    rig.call("bdev_error_create", json!({"base_name": "d1"})).unwrap();
    let mut params = create();
    params["base_bdevs"] = json!(["d0", "EE_d1", "d2"]);
    rig.call("bdev_ec_create", params).unwrap();
    let fault = |io: &str| json!({"name": "EE_d1", "io_type": io, "error_type": "failure", "num": 1000});
    rig.call("bdev_error_inject_error", fault("write")).unwrap();
    assert!(rig.write(BYTES, 1).is_ok());
    rig.array_when(|a| a["failed_count"] == 1);
    let start = json!({"ec_name": "Ec0", "slot": 1});
    let (code, says) = rig.call("bdev_ec_start_rebuild", start.clone()).unwrap_err();
    assert!(code == -5 && says.contains("'EE_d1' has not become member 1: a write to it failed"), "{says}");
    rig.call("bdev_error_inject_error", fault("clear")).unwrap();
    assert_eq!(rig.call("bdev_ec_start_rebuild", start), Ok(json!(true)));
    rig.whole();
    rig.call("bdev_uring_delete", json!({"name": "d2"})).unwrap();
    assert_eq!(rig.read(BYTES), Ok(1));
}

#[test]
fn a_copy_of_a_member_that_comes_while_the_array_runs_is_left_alone_and_named() {
    let (disks, rig) = made("copied", 3);
    drop(rig);
    std::fs::copy(disks.path(1), disks.path(3)).unwrap();
    let rig = Rig::on(&disks, 3);
    rig.settle();
    rig.attach(&disks, 3);
    rig.settle();
    let a = rig.array();
    let why = "'d1' is member 1 already, so one of them is a copy: take this one away";
    assert_eq!((states(&a), &a["unused_bdevs"]), (vec!["normal"; 3], &json!([{"name": "d3", "reason": why}])));
}

#[test]
fn no_patience_with_what_hangs_on_an_old_device_is_refused() {
    let rig = Rig::new();
    let options = json!({"replace_timeout_sec": 0});
    let (code, says) = rig.call("bdev_ec_set_options", options).unwrap_err();
    assert!(code == -22 && says.contains("replace_timeout_sec is 0: must be at least 1"), "{says}");
}
