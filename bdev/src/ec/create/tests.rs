use super::*;
use crate::device::Geometry;
use crate::ec::check::{ReadAt, Scope, Verdict, check};
use crate::ec::format::{MemberEntry, MemberState, Stamp};
use crate::ec::images::Image;
use crate::ec::layout::LayoutOptions;
use crate::malloc::Malloc;
use crate::testing::run;
use uuid::Uuid;

const BYTES: u64 = 512 << 10;

fn devices(n: usize) -> (Arc<Registry>, Vec<String>) {
    let registry = Registry::new();
    let names: Vec<String> = (0..n).map(|i| format!("m{i}")).collect();
    for name in &names {
        register(&registry, name, 512, BYTES);
    }
    (registry, names)
}

fn register(registry: &Arc<Registry>, name: &str, block: u32, bytes: u64) {
    let malloc = Malloc::new(Geometry::plain(block, bytes / u64::from(block))).unwrap();
    registry.register(name, None, malloc).unwrap();
}

fn options(k: u32, m: u32, names: &[String]) -> Options {
    Options {
        name: "vol0".into(),
        data_chunk_count: k,
        parity_chunk_count: m,
        strip_size_kb: 4,
        base_bdevs: names.to_vec(),
        layout: LayoutOptions { journal_slots: Some(4), alignment: Some(4096), region_stripes: Some(4) },
        ..Options::default()
    }
}

fn nobody() -> Told {
    Arc::new(|_, _| {})
}

async fn make(registry: &Arc<Registry>, o: &Options) -> Result<Prepared, BdevError> {
    prepare(registry, o, &nobody()).await
}

async fn refused(registry: &Arc<Registry>, o: &Options) -> String {
    make(registry, o).await.err().expect("refused").to_string()
}

async fn content(registry: &Arc<Registry>, names: &[String]) -> Vec<Image> {
    let mut images = Vec::new();
    for name in names {
        let io = MemberIo::open(registry, name, Box::new(|_| {})).unwrap();
        let bytes = io.read(0, io.bytes() as usize).await.unwrap();
        images.push(Image { name: name.clone(), bytes });
    }
    images
}

async fn put(registry: &Arc<Registry>, name: &str, at: u64, bytes: &[u8]) {
    let io = MemberIo::open(registry, name, Box::new(|_| {})).unwrap();
    let mut block = io.read(at / 512 * 512, 512).await.unwrap();
    block[(at % 512) as usize..][..bytes.len()].copy_from_slice(bytes);
    io.write(at / 512 * 512, &block).await.unwrap();
}

#[test]
fn what_is_made_is_an_array_that_the_check_finds_sound() {
    run(|_| async {
        let (registry, names) = devices(6);
        let uuid = Uuid::new_v4();
        let made = make(&registry, &Options { uuid: Some(uuid), ..options(4, 2, &names) }).await.unwrap();
        assert!(made.fresh && made.members.iter().all(Option::is_some) && made.head.array == uuid);
        assert_eq!(registry.find("m3").unwrap().claim().unwrap().module, MODULE);
        drop(made);
        assert!(registry.find("m3").unwrap().claim().is_none());
        let images = content(&registry, &names).await;
        let report = check(&images.iter().map(|i| i as &dyn ReadAt).collect::<Vec<_>>(), Scope::default());
        assert_eq!(report.verdict, Verdict::Sound, "{report}");
    });
}

#[test]
fn the_same_array_again_in_any_order_is_found_and_nothing_is_written() {
    run(|_| async {
        let (registry, names) = devices(3);
        let made = make(&registry, &options(2, 1, &names)).await.unwrap();
        let array = made.head.array;
        drop(made);
        let before = content(&registry, &names).await;
        let mixed: Vec<String> = [2, 0, 1].map(|i: usize| names[i].clone()).to_vec();
        for o in [options(2, 1, &names), Options { force: true, ..options(2, 1, &mixed) }] {
            let again = make(&registry, &o).await.unwrap();
            assert!(!again.fresh && again.head.array == array);
            let by_slot: Vec<_> = again.members.iter().map(|m| m.as_ref().unwrap().node().name().to_owned()).collect();
            assert_eq!(by_slot, names);
        }
        for (before, after) in before.iter().zip(content(&registry, &names).await) {
            assert!(before.bytes == after.bytes, "{}", before.name);
        }
    });
}

#[test]
fn whatever_is_known_on_a_device_is_refused_by_name_unless_forced() {
    run(|_| async {
        let (registry, names) = devices(3);
        put(&registry, "m1", 1080, b"\x53\xef").await;
        let says = refused(&registry, &options(2, 1, &names)).await;
        assert_eq!(says, "base bdev 'm1' holds an ext2 file system: force destroys it");
        assert!(names.iter().all(|n| registry.find(n).unwrap().claim().is_none()), "nothing stays claimed");
        put(&registry, "m1", 1080, &[0, 0]).await;
        put(&registry, "m2", BYTES - 512, b"EFI PART").await;
        let says = refused(&registry, &options(2, 1, &names)).await;
        assert_eq!(says, "base bdev 'm2' holds the backup of a GPT partition table: force destroys it");
        let forced = Options { force: true, ..options(2, 1, &names) };
        assert!(make(&registry, &forced).await.unwrap().fresh);
        let other = Options { name: "vol1".into(), ..options(2, 1, &names) };
        let says = refused(&registry, &other).await;
        assert!(says.starts_with("base bdev 'm0' holds slot 0 of array 'vol0' ("), "{says}");
        assert!(make(&registry, &Options { force: true, ..other }).await.unwrap().fresh);
    });
}

#[test]
fn what_a_newer_version_made_is_refused() {
    run(|_| async {
        let (registry, names) = devices(3);
        drop(make(&registry, &options(2, 1, &names)).await.unwrap());
        let mut sb = content(&registry, &names[..1]).await.remove(0).bytes[64 << 10..68 << 10].to_vec();
        sb[8] = 2;
        let crc = crate::ec::format::payload_checksum(&sb[..4092]);
        sb[4092..].copy_from_slice(&crc.to_le_bytes());
        let io = MemberIo::open(&registry, "m0", Box::new(|_| {})).unwrap();
        io.write(64 << 10, &sb).await.unwrap();
        drop(io);
        let other = Options { name: "other".into(), ..options(2, 1, &names) };
        let says = refused(&registry, &other).await;
        assert!(
            says.contains("'m0' holds a member of an erasure-coded array: format version 2: this build knows"),
            "{says}"
        );
    });
}

/// 4+2 on the devices, as after some sessions.
async fn grown(registry: &Arc<Registry>, names: &[String]) -> Superblock {
    let mut head = make(registry, &options(4, 2, names)).await.unwrap().head;
    head.predecessor = head.stamp;
    head.stamp.epoch = 4;
    for (slot, name) in names.iter().enumerate() {
        superblock(registry, name, &head.for_slot(slot)).await;
    }
    head
}

async fn superblock(registry: &Arc<Registry>, name: &str, s: &Superblock) {
    let io = MemberIo::open(registry, name, Box::new(|_| {})).unwrap();
    write::superblock(&io, s).await.unwrap();
}

#[test]
fn an_array_with_a_member_replaced_by_an_empty_device_is_taken_without_it_if_its_uuid_is_given() {
    run(|_| async {
        let (registry, mut names) = devices(6);
        let array = grown(&registry, &names).await.array;
        register(&registry, "new", 512, BYTES);
        names[2] = "new".into();
        let says = refused(&registry, &options(4, 2, &names)).await;
        let whose = format!("array 'vol0' ({array}), which others hold");
        assert_eq!(
            says,
            format!(
                "base bdev 'new' is no member of {whose}: it holds nothing that is known. Give the array's UUID to start it without this one"
            )
        );
        let saved = |names: &[String]| Options { uuid: Some(array), ..options(4, 2, names) };
        let found = make(&registry, &saved(&names)).await.unwrap();
        assert!(!found.fresh && found.members[2].is_none());
        let why = "it holds nothing that is known, and nothing of the array";
        assert_eq!(found.rejected, [("new".to_owned(), why.to_owned())]);
        drop(found);
        for i in [3, 4] {
            register(&registry, &format!("new{i}"), 512, BYTES);
            names[i] = format!("new{i}");
        }
        let says = refused(&registry, &saved(&names)).await;
        assert!(
            says.contains("cannot start: 3 members are in sync and there, 4 are needed; none in slots 2, 3, 4"),
            "{says}"
        );
    });
}

#[test]
fn a_base_that_holds_something_else_than_the_array_of_the_others_is_refused_by_name_and_left_as_it_is_if_forced() {
    run(|_| async {
        let (registry, mut names) = devices(6);
        let array = grown(&registry, &names).await.array;
        register(&registry, "other", 512, BYTES);
        names[2] = "other".into();
        let uuid = Some(array);
        let (ext, gpt): (&[u8], &[u8]) = (b"\x53\xef", b"EFI PART");
        for (at, bytes, what) in [(1080, ext, "an ext2 file system"), (512, gpt, "a GPT partition table")] {
            put(&registry, "other", at, bytes).await;
            for o in [options(4, 2, &names), Options { uuid, ..options(4, 2, &names) }] {
                let says = format!(
                    "base bdev 'other' holds {what}, and is no member of array 'vol0' ({array}), which others hold: force starts that without this one, which is left as it is"
                );
                assert_eq!(refused(&registry, &o).await, says);
            }
            let before = content(&registry, &names).await;
            let forced = make(&registry, &Options { force: true, ..options(4, 2, &names) }).await.unwrap();
            assert!(!forced.fresh && forced.members[2].is_none());
            drop(forced);
            let after = content(&registry, &names).await;
            assert!(before.iter().zip(&after).all(|(b, a)| b.bytes == a.bytes), "nothing is written");
            put(&registry, "other", at, &vec![0; bytes.len()]).await;
        }
        // A member of another array of the same name and figures.
        let (elsewhere, others) = devices(6);
        let foreign = grown(&elsewhere, &others).await;
        superblock(&registry, "other", &foreign.for_slot(2)).await;
        let says = refused(&registry, &Options { uuid, ..options(4, 2, &names) }).await;
        let what = format!("slot 2 of array 'vol0' ({}), and is no member of array 'vol0' ({array})", foreign.array);
        assert!(says.contains(&what), "{says}");
    });
}

#[test]
fn a_former_member_whose_slot_was_given_away_is_passed_over_if_the_uuid_is_given_and_a_stale_one_always() {
    run(|_| async {
        let (registry, names) = devices(6);
        let old = grown(&registry, &names).await;
        let mut head = old.clone();
        head.predecessor = Stamp { epoch: 8, ..old.stamp };
        head.stamp.epoch = 9;
        head.members[4].state = MemberState::Failed;
        for slot in [0, 1, 2, 3, 5] {
            superblock(&registry, &names[slot], &head.for_slot(slot)).await;
        }
        let found = make(&registry, &options(4, 2, &names)).await.unwrap();
        assert!(!found.fresh && found.members[4].is_none() && found.rejected[0].1.starts_with("stale: "));
        drop(found);
        head.members[4] = MemberEntry::in_sync(Uuid::new_v4());
        for slot in [0, 1, 2, 3, 5] {
            superblock(&registry, &names[slot], &head.for_slot(slot)).await;
        }
        let says = refused(&registry, &options(4, 2, &names)).await;
        assert!(
            says.starts_with("base bdev 'm4' is no member of array 'vol0' (")
                && says.contains("another member took its slot 4"),
            "{says}"
        );
        let saved = Options { uuid: Some(old.array), ..options(4, 2, &names) };
        let found = make(&registry, &saved).await.unwrap();
        assert_eq!(found.rejected, [("m4".to_owned(), "another member took its slot 4".to_owned())]);
    });
}

#[test]
fn a_member_whose_superblock_is_damaged_is_passed_over_if_the_uuid_is_given() {
    run(|_| async {
        let (registry, names) = devices(6);
        let uuid = Some(grown(&registry, &names).await.array);
        for at in [200, (64 << 10) + 200] {
            put(&registry, "m1", at, &[0xff; 8]).await;
        }
        let says = refused(&registry, &options(4, 2, &names)).await;
        assert!(says.starts_with("base bdev 'm1' holds a member of an erasure-coded array: torn or damaged"), "{says}");
        let found = make(&registry, &Options { uuid, ..options(4, 2, &names) }).await.unwrap();
        assert!(!found.fresh && found.members[1].is_none());
    });
}

#[test]
fn what_a_crash_left_of_the_same_preparation_is_passed_over() {
    run(|_| async {
        let (registry, names) = devices(6);
        drop(make(&registry, &options(4, 2, &names)).await.unwrap());
        for written in [5, 4, 1] {
            for name in &names[written..] {
                let io = MemberIo::open(&registry, name, Box::new(|_| {})).unwrap();
                io.zero(0, 128 << 10).await.unwrap();
            }
            let again = make(&registry, &options(4, 2, &names)).await.unwrap();
            assert!(again.fresh && again.members.iter().all(Option::is_some), "{written} superblocks");
        }
    });
}

#[test]
fn of_mixed_devices_the_array_has_the_largest_block_and_the_smallest_size() {
    run(|_| async {
        let (registry, mut names) = devices(2);
        register(&registry, "big", 4096, 8 << 20);
        names.push("big".into());
        let made = make(&registry, &options(2, 1, &names)).await.unwrap();
        let l = made.head.layout;
        assert_eq!(l.block, 4096);
        assert!(l.member_bytes() <= BYTES && BYTES - l.member_bytes() < 4096);
    });
}

#[test]
fn parameters_that_make_no_array_are_refused_by_name() {
    run(|_| async {
        let (registry, names) = devices(3);
        let good = options(2, 1, &names);
        let cases = [
            (Options { data_chunk_count: 0, ..good.clone() }, "data_chunk_count is 0: must be 1 to 32"),
            (Options { parity_chunk_count: 9, ..good.clone() }, "parity_chunk_count is 9: must be 1 to 8"),
            (Options { strip_size_kb: 24, ..good.clone() }, "strip_size_kb is 24: must be a power of two, 4 to 1024"),
            (
                Options { strip_size_kb: 2048, ..good.clone() },
                "strip_size_kb is 2048: must be a power of two, 4 to 1024",
            ),
            (Options { data_chunk_count: 3, ..good.clone() }, "3 base_bdevs: 3+1 needs 4"),
            (Options { name: String::new(), ..good.clone() }, "name '' is 0 bytes: must be 1 to 63"),
            (
                Options { base_bdevs: vec!["m0".into(), "m1".into(), "m0".into()], ..good.clone() },
                "base bdev 'm0' is given twice: it is 'm0'",
            ),
            (
                Options { base_bdevs: vec!["m0".into(), "m1".into(), "m9".into()], ..good.clone() },
                "no bdev is named 'm9'",
            ),
            (
                Options { strip_size_kb: 512, ..good.clone() },
                "smallest member's size is 524288: at least 3149824 bytes are needed (the smallest base bdev is 'm0')",
            ),
        ];
        for (o, says) in cases {
            let got = refused(&registry, &o).await;
            assert_eq!(got.split(':').next(), says.split(':').next());
        }
        let open = registry.open("m1", true, Box::new(|_| {})).unwrap();
        assert_eq!(refused(&registry, &good).await, "bdev 'm1' is busy: open for writing elsewhere");
        drop(open);
        let _held = make(&registry, &good).await.unwrap();
        assert_eq!(refused(&registry, &good).await, "bdev 'm0' is claimed by module ec");
    });
}

#[test]
fn a_cleared_array_is_none_and_other_arrays_stay() {
    run(|_| async {
        let (registry, names) = devices(3);
        let array = make(&registry, &options(2, 1, &names)).await.unwrap().head.array;
        clear(&registry, Uuid::new_v4(), &names).await.unwrap();
        assert!(!make(&registry, &options(2, 1, &names)).await.unwrap().fresh);
        clear(&registry, array, &names).await.unwrap();
        let again = make(&registry, &options(2, 1, &names)).await.unwrap();
        assert!(again.fresh && again.head.array != array);
    });
}

#[test]
fn the_owner_is_told_of_a_member_that_goes_away_by_its_slot() {
    run(|_| async {
        let (registry, names) = devices(3);
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink: Told = {
            let told = told.clone();
            Arc::new(move |slot, event| told.lock().unwrap().push((slot, event)))
        };
        let mixed: Vec<String> = [1, 2, 0].map(|i: usize| names[i].clone()).to_vec();
        let _made = prepare(&registry, &options(2, 1, &mixed), &sink).await.unwrap();
        let node = registry.find("m0").unwrap();
        drop(registry.remove(&node));
        assert_eq!(*told.lock().unwrap(), [(2, BdevEvent::Remove)]);
    });
}
