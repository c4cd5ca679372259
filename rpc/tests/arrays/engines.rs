//! Who computes for arrays.

use super::*;
use longshore_bdev::IoFlags;

/// Bytes of the array that are written: four stripes of 4+2.
const BYTES: usize = 64 << 10;

/// Bytes without a pattern that strips could share.
fn scrambled(mut seed: u64) -> impl Iterator<Item = u8> {
    std::iter::repeat_with(move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    })
}

/// What was done of an operation: module, bytes.
fn done(rig: &Rig, op: &str) -> Option<(String, u64)> {
    let all = rig.call("accel_get_stats", Value::Null).unwrap();
    let of = all["operations"].as_array().unwrap().iter().find(|o| o["opcode"] == op)?.clone();
    assert!(of["executed"].as_u64().unwrap() > 0 && of["failed"] == 0, "{of}");
    Some((of["module_name"].as_str().unwrap().to_owned(), of["num_bytes"].as_u64().unwrap()))
}

/// Encodes by `module` what `software` then checks, byte by byte, and decodes.
fn encode_by(module: &str) {
    let disks = Disks::new(&format!("engines-{module}"), 6);
    let rig = Rig::new();
    rig.call("accel_assign_opc", json!({"opname": "ec_encode", "module": module})).unwrap();
    for op in ["ec_decode", "ec_update"] {
        rig.call("accel_assign_opc", json!({"opname": op, "module": "software"})).unwrap();
    }
    block_on(rig.app.init()).unwrap();
    (0..6).for_each(|i| rig.attach(&disks, i));
    let create = json!({"name": "Ec0", "data_chunk_count": 4, "parity_chunk_count": 2, "strip_size_kb": 4,
        "base_bdevs": ["d0", "d1", "d2", "d3", "d4", "d5"]});
    rig.call("bdev_ec_create", create).unwrap();
    assert_eq!((done(&rig, "ec_encode"), done(&rig, "ec_decode")), (None, None));
    rig.io(async |r, channel| {
        let mut buf = r.dma().alloc(BYTES).unwrap();
        buf.get_mut().unwrap().iter_mut().zip(scrambled(1)).for_each(|(b, s)| *b = s);
        assert!(channel.write(0, (BYTES / 512) as u32, buf, IoFlags::FUA).await.0.is_ok());
    });
    assert_eq!(done(&rig, "ec_encode"), Some((module.to_owned(), BYTES as u64)));
    rig.call("bdev_ec_start_scrub", json!({"ec_name": "Ec0"})).unwrap();
    let progress = || rig.call("bdev_ec_get_scrub_progress", json!({"ec_name": "Ec0"})).unwrap();
    while progress()["state"] != "finished" {
        std::thread::yield_now();
    }
    assert_eq!((&progress()["checked"], &progress()["mismatches"]), (&json!(4), &json!(0)));
    // All of the parity, from all of the data.
    assert_eq!(done(&rig, "ec_decode"), Some(("software".into(), BYTES as u64)));
    for gone in ["d1", "d4"] {
        rig.call("bdev_uring_delete", json!({"name": gone})).unwrap();
    }
    rig.io(async |r, channel| {
        let (status, data) = channel.read(0, (BYTES / 512) as u32, r.dma().alloc(BYTES).unwrap()).await;
        assert!(status.is_ok(), "{status:?}");
        assert!(data.unwrap().as_slice().iter().copied().zip(scrambled(1)).all(|(b, s)| b == s), "other bytes");
    });
    assert!(done(&rig, "ec_decode").unwrap().1 > BYTES as u64, "lost strips were decoded");
}

#[test]
fn what_arrays_compute_is_counted_and_engines_agree_on_every_byte() {
    encode_by("software");
}

#[cfg(feature = "isal")]
#[test]
fn isa_l_encodes_for_arrays_when_it_is_assigned_and_software_finds_every_byte_right() {
    encode_by("isal");
}

#[cfg(feature = "isal")]
#[test]
fn isa_l_is_a_module_that_says_what_it_does_and_is_not_taken_unasked() {
    let rig = Rig::new();
    block_on(rig.app.init()).unwrap();
    let info = rig.call("accel_get_module_info", Value::Null).unwrap();
    assert_eq!(info[1], json!({"module": "isal", "supported ops": ["ec_encode", "ec_decode", "ec_update"]}));
    let can = rig.call("accel_get_capabilities", Value::Null).unwrap();
    let encode = json!({"operation": "ec_encode", "algorithms": ["cauchy", "vandermonde"],
        "limits": {"data_chunks_max": 32, "parity_chunks_max": 8}, "hardware": false, "implementation": "ISA-L"});
    assert_eq!((&can[1]["module"], &can[1]["operations"][0]), (&json!("isal"), &encode));
    assert_eq!(rig.call("accel_get_opc_assignments", Value::Null).unwrap()["ec_encode"], "software");
}
