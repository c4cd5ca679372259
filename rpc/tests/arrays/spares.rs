//! Devices that stand by.

use super::*;
use crate::rig::DISK;

const BYTES: usize = 512 << 10;

fn with_spare(name: &str) -> (Disks, Rig) {
    let disks = Disks::new(name, 5);
    let rig = Rig::on(&disks, 5);
    rig.call("bdev_ec_create", create()).unwrap();
    assert!(rig.write(BYTES, 0x61).is_ok());
    rig.call("bdev_ec_add_spare", json!({"bdev_name": "d3", "ec_name": "Ec0"})).unwrap();
    (disks, rig)
}

fn names(array: &Value) -> Vec<Option<&str>> {
    array["base_bdevs"].as_array().unwrap().iter().map(|b| b["name"].as_str()).collect()
}

#[test]
fn a_spare_takes_the_place_of_a_member_that_fails_by_itself_and_one_after_another() {
    let (disks, rig) = with_spare("taken");
    let before = block_on(config::dump(&rig.app));
    assert!(before.contains("bdev_ec_add_spare"), "{before}");
    rig.call("bdev_ec_add_spare", json!({"bdev_name": "d4"})).unwrap();
    assert_eq!(rig.array()["spares"], json!(["d3", "d4"]));
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "d4"})).unwrap()[0]["claimed"], json!(true));
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    let a = rig.array_when(|a| states(a) == ["normal"; 3] && names(a)[1] == Some("d3"));
    assert_eq!((&a["spares"], rig.events().contains(&"bdev_ec_spare_used".into())), (&json!(["d4"]), true));
    rig.call("bdev_uring_delete", json!({"name": "d0"})).unwrap();
    let a = rig.array_when(|a| states(a) == ["normal"; 3] && names(a)[0] == Some("d4"));
    assert_eq!((&a["spares"], rig.read(BYTES)), (&json!([]), Ok(0x61)));
    let saved = block_on(config::dump(&rig.app));
    assert!(!saved.contains("bdev_ec_add_spare"), "{saved}");
    drop(rig);
    // One that was saved before the spare was used can be applied all the same.
    std::fs::write(disks.path(0), vec![0; DISK as usize]).unwrap();
    std::fs::write(disks.path(1), vec![0; DISK as usize]).unwrap();
    for config in [before, saved.clone()] {
        let rig = Rig::new();
        block_on(rig.app.init()).unwrap();
        for i in [2, 3, 4, 0, 1] {
            rig.attach(&disks, i);
        }
        rig.settle();
        for method in ["bdev_ec_create", "bdev_ec_add_spare"] {
            for params in calls_of(&config, method) {
                assert_eq!(rig.call(method, params.clone()), Ok(json!(true)), "{method} {params}");
            }
        }
        let a = rig.whole();
        assert_eq!(
            (names(&a), &a["spares"], rig.read(BYTES)),
            (vec![Some("d4"), Some("d3"), Some("d2")], &json!([]), Ok(0x61))
        );
    }
    // And as a daemon applies its own: the same array, and nothing else to save.
    let rig = Rig::new();
    block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, false)).unwrap();
    let a = rig.array();
    assert_eq!(
        (states(&a), names(&a), &a["spares"]),
        (vec!["normal"; 3], vec![Some("d4"), Some("d3"), Some("d2")], &json!([]))
    );
    assert_eq!(block_on(config::dump(&rig.app)), saved);
}

#[test]
fn a_configuration_saved_while_a_spare_is_being_rebuilt_starts_the_same_array_whose_rebuild_goes_on() {
    let (_disks, rig) = with_spare("halfway");
    rig.call("bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0", "paused": true})).unwrap();
    rig.call("bdev_ec_set_options", json!({"member_timeout_ms": 7000})).unwrap();
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    rig.array_when(|a| states(a)[1] == "replacing");
    let saved = block_on(config::dump(&rig.app));
    assert!(!saved.contains("bdev_ec_add_spare"), "{saved}");
    let at = |what: &str| saved.find(what).unwrap_or_else(|| panic!("no {what}: {saved}"));
    assert!(at("bdev_ec_set_options") < at("bdev_uring_create"), "or arrays are found before it holds: {saved}");
    drop(rig);
    let rig = Rig::new();
    block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, false)).unwrap();
    assert_eq!(block_on(config::dump(&rig.app)), saved);
    rig.call("bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0"})).unwrap();
    let a = rig.whole();
    assert_eq!(
        (names(&a), &a["spares"], rig.read(BYTES)),
        (vec![Some("d0"), Some("d3"), Some("d2")], &json!([]), Ok(0x61))
    );
}

#[test]
fn every_kind_of_event_that_an_array_has_told_is_among_the_types() {
    let (_disks, rig) = with_spare("types");
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    rig.whole();
    rig.call("bdev_ec_start_scrub", json!({"ec_name": "Ec0"})).unwrap();
    while rig.call("bdev_ec_get_scrub_progress", json!({"ec_name": "Ec0"})).unwrap()["state"] != "finished" {
        std::thread::yield_now();
    }
    let types = rig.call("notify_get_types", Value::Null).unwrap();
    let told = rig.events();
    for kind in [
        "bdev_ec_member_failed",
        "bdev_ec_degraded",
        "bdev_ec_spare_used",
        "bdev_ec_rebuild_finished",
        "bdev_ec_scrub_finished",
    ] {
        assert!(told.contains(&kind.into()), "no {kind}: {told:?}");
    }
    for kind in told {
        assert!(types.as_array().unwrap().contains(&json!(kind)), "{kind}");
    }
}

/// Parameters of the calls of `method` in a configuration.
fn calls_of(config: &str, method: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(config).unwrap();
    let entries =
        all["subsystems"].as_array().unwrap().iter().flat_map(|s| s["config"].as_array().into_iter().flatten());
    entries.filter(|e| e["method"] == method).map(|e| e["params"].clone()).collect()
}

#[test]
fn spares_that_cannot_be_used_are_refused_or_passed_over_and_one_is_given_back() {
    let (disks, rig) = with_spare("spares");
    rig.call("bdev_malloc_create", json!({"name": "small", "num_blocks": 2048, "block_size": 512})).unwrap();
    std::fs::write(disks.path(8), [&[0; 1080][..], b"\x53\xef", &[0; 512 - 1082 % 512][..], &[0; 64 << 10]].concat())
        .unwrap();
    rig.attach(&disks, 8);
    let add = |params: Value| {
        rig.call("bdev_ec_add_spare", params)
            .map_err(|(code, says)| (code, says.split_once("): ").unwrap().1.to_owned()))
    };
    let needed = DISK - rig.array()["base_bdevs"][0]["unused"].as_u64().unwrap();
    let cases = [
        (
            json!({"bdev_name": "small", "ec_name": "Ec0"}),
            -22,
            format!("bdev 'small' is too small: it has 1048576 bytes, a member of array 'Ec0' needs {needed}"),
        ),
        (json!({"bdev_name": "d8"}), -22, "bdev 'd8' holds an ext2 file system: force destroys it".into()),
        (json!({"bdev_name": "d9"}), -19, "no bdev is named 'd9'".into()),
        (json!({"bdev_name": "d4", "ec_name": "Ec7"}), -19, "no bdev is named 'Ec7'".into()),
        (json!({"bdev_name": "d3"}), -22, "bdev 'd3' is a spare of array 'Ec0' already: remove it there first".into()),
    ];
    for (params, code, says) in cases {
        assert_eq!(add(params), Err((code, says)));
    }
    assert_eq!(add(json!({"bdev_name": "d3", "ec_name": "Ec0"})), Ok(json!(true)), "the same again");
    assert_eq!(add(json!({"bdev_name": "small"})), Ok(json!(true)), "for any array, and too small for this one");
    assert_eq!(rig.call("bdev_ec_remove_spare", json!({"bdev_name": "d3"})), Ok(json!(true)));
    let (code, says) = rig.call("bdev_ec_remove_spare", json!({"bdev_name": "d3"})).unwrap_err();
    assert!(code == -19, "{says}");
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "d3"})).unwrap()[0]["claimed"], json!(false));
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    rig.settle();
    assert_eq!(states(&rig.array()), ["normal", "failed", "normal"], "nothing fits");
    // A spare that comes later is used at once.
    assert_eq!(add(json!({"bdev_name": "d8", "force": true})), Ok(json!(true)));
    rig.settle();
    assert_eq!(states(&rig.array()), ["normal", "failed", "normal"], "this one is too small, too");
    assert_eq!(add(json!({"bdev_name": "d4"})), Ok(json!(true)));
    let a = rig.whole();
    assert_eq!((names(&a), rig.read(BYTES)), (vec![Some("d0"), Some("d4"), Some("d2")], Ok(0x61)));
    rig.call("bdev_ec_delete", json!({"name": "Ec0"})).unwrap();
}

#[test]
fn a_member_that_returns_before_the_delay_is_over_leaves_the_spare_unused() {
    let (disks, rig) = with_spare("delayed");
    rig.call("bdev_ec_set_options", json!({"spare_delay_sec": 1})).unwrap();
    assert!(block_on(config::dump(&rig.app)).contains(r#""spare_delay_sec""#));
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    rig.attach(&disks, 1);
    rig.settle();
    let a = rig.whole();
    assert_eq!((names(&a), &a["spares"]), (vec![Some("d0"), Some("d1"), Some("d2")], &json!(["d3"])));
    rig.call("bdev_uring_delete", json!({"name": "d1"})).unwrap();
    let a = rig.whole();
    assert_eq!(names(&a)[1], Some("d3"));
}

#[test]
fn a_spare_is_used_when_a_replacement_failed_for_which_a_member_in_sync_was_retired() {
    let (_disks, rig) = with_spare("instead");
    rig.call("bdev_error_create", json!({"base_name": "d4"})).unwrap();
    let fault = json!({"name": "EE_d4", "io_type": "write", "error_type": "failure", "num": 1000});
    rig.call("bdev_error_inject_error", fault).unwrap();
    let replace = json!({"ec_name": "Ec0", "slot": 1, "new_bdev_name": "EE_d4"});
    let (code, says) = rig.call("bdev_ec_replace_base_bdev", replace).unwrap_err();
    assert!(code == -5 && says.contains("'EE_d4' has not become member 1: a write to it failed"), "{says}");
    let a = rig.array_when(|a| states(a) == ["normal"; 3] && names(a)[1] == Some("d3"));
    assert_eq!((&a["spares"], rig.read(BYTES)), (&json!([]), Ok(0x61)));
}
