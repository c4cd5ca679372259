//! Arrays that are made, found again, listed and deleted.

use super::*;

#[test]
fn an_array_is_made_listed_claimed_and_deleted() {
    let disks = Disks::new("made", 3);
    let rig = Rig::on(&disks, 3);
    assert_eq!(rig.call("bdev_ec_create", create()), Ok(json!(true)));
    assert_eq!(rig.call("bdev_ec_create", create()), Ok(json!(true)), "the same again");
    let a = rig.array();
    assert_eq!((&a["k"], &a["m"], &a["n"], &a["strip_size_kb"]), (&json!(2), &json!(1), &json!(3), &json!(64)));
    assert_eq!((&a["failed_count"], &a["offline"], states(&a)), (&json!(0), &json!(false), vec!["normal"; 3]));
    let overhead = a["overhead_percent"].as_f64().unwrap();
    assert!(overhead > 33.3 && overhead < 75.0, "{overhead}");
    let bdev = &rig.call("bdev_get_bdevs", json!({"name": "Ec0"})).unwrap()[0];
    assert_eq!((&bdev["product_name"], &bdev["uuid"]), (&json!("ErasureCode Volume"), &a["uuid"]));
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "d1"})).unwrap()[0]["claimed"], json!(true));
    let (code, says) = rig.call("bdev_ec_delete", json!({"name": "d1"})).unwrap_err();
    assert_eq!(code, -19, "{says}");
    let of = json!({"ec_name": "Ec0"});
    assert_eq!(rig.call("bdev_ec_get_scrub_progress", of.clone()).unwrap()["state"], json!("none"));
    assert_eq!(rig.call("bdev_ec_start_scrub", json!({"ec_name": "Ec0", "max_stripes_per_sec": 0})), Ok(json!(true)));
    let asked = std::time::Instant::now();
    let p = loop {
        let p = rig.call("bdev_ec_get_scrub_progress", of.clone()).unwrap();
        if p["state"] == "finished" {
            break p;
        }
        assert!(asked.elapsed().as_secs() < 60, "an empty array is scrubbed at once: {p}");
    };
    assert_eq!((&p["stripes_done"], &p["mismatches"]), (&p["stripes_total"], &json!(0)));
    assert_eq!(rig.call("bdev_ec_stop_scrub", of), Ok(json!(false)), "it has ended");
    let (code, says) = rig.call("bdev_ec_start_scrub", json!({"ec_name": "d1"})).unwrap_err();
    assert_eq!(code, -19, "{says}");
    assert_eq!(rig.call("bdev_ec_delete", json!({"name": "Ec0", "clear_sb": true})), Ok(json!(true)));
    assert_eq!(rig.call("bdev_ec_get_bdevs", Value::Null), Ok(json!([])));
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "d1"})).unwrap()[0]["claimed"], json!(false));
}

#[test]
fn what_makes_no_array_is_refused_with_the_reason() {
    let disks = Disks::new("refused", 3);
    std::fs::write(disks.path(1), [&[0; 1080][..], b"\x53\xef", &[0; 1 << 20]].concat()).unwrap();
    std::fs::File::options().write(true).open(disks.path(1)).unwrap().set_len(16 << 20).unwrap();
    let rig = Rig::on(&disks, 3);
    let with = |key: &str, value: Value| {
        let mut params = create();
        params[key] = value;
        rig.call("bdev_ec_create", params)
    };
    let (code, says) = with("strip_size_kb", json!(65)).unwrap_err();
    assert!(code == -22 && says.contains("strip_size_kb is 65: must be a power of two, 4 to 1024"), "{says}");
    let (code, says) = with("base_bdevs", json!(["d0", "d1", "d9"])).unwrap_err();
    assert!(code == -19 && says.contains("no bdev is named 'd9'"), "{says}");
    let (code, says) = with("name", json!("Ec0")).unwrap_err();
    assert!(code == -22 && says.contains("base bdev 'd1' holds an ext2 file system: force destroys it"), "{says}");
    assert_eq!(with("force", json!(true)), Ok(json!(true)));
}

#[test]
fn a_saved_configuration_finds_the_array_again_and_also_without_a_member() {
    let disks = Disks::new("saved", 3);
    let (uuid, saved) = {
        let rig = Rig::on(&disks, 3);
        rig.call("bdev_ec_set_options", json!({"assemble_timeout_sec": 1})).unwrap();
        rig.call("bdev_ec_create", create()).unwrap();
        (rig.array()["uuid"].clone(), block_on(config::dump(&rig.app)))
    };
    assert!(saved.contains("\"bdev_ec_create\"") && !saved.contains("force"), "{saved}");
    {
        let rig = Rig::new();
        block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, false)).unwrap();
        let a = rig.array();
        assert_eq!((&a["uuid"], states(&a)), (&uuid, vec!["normal"; 3]));
        assert_eq!(block_on(config::dump(&rig.app)), saved);
    }
    std::fs::remove_file(disks.path(1)).unwrap();
    let rig = Rig::new();
    block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, true)).unwrap();
    let a = rig.array();
    assert_eq!((&a["uuid"], &a["failed_count"], states(&a)), (&uuid, &json!(1), vec!["normal", "failed", "normal"]));
}
