mod drained;
mod hung;
mod removal;
mod salvage;
mod takeover;

use super::*;
use crate::device::Geometry;
use crate::ec::format::MemberState;
use crate::ec::layout::LayoutOptions;
use crate::io::IoFlags;
use crate::malloc::Malloc;
use crate::testing::{filled, open, run};

const BYTES: u64 = 1 << 20;

struct World {
    registry: Arc<Registry>,
    arrays: Arc<Arrays>,
    disks: Vec<Arc<Malloc>>,
}

impl World {
    fn new(reactor: &Reactor, n: usize) -> World {
        let registry = Registry::new();
        let arrays = Arrays::install(&registry, vec![reactor.handle()], Arc::default());
        let disk = || Malloc::new(Geometry::plain(512, BYTES / 512)).unwrap();
        let disks = (0..n).map(|_| disk()).collect();
        World { registry, arrays, disks }
    }

    fn attach(&self, slots: impl IntoIterator<Item = usize>) {
        for slot in slots {
            self.registry.register(&format!("m{slot}"), None, self.disks[slot].clone()).unwrap();
        }
    }

    /// All devices vanish, arrays first, and what looks at devices afterwards is new: a restart.
    async fn restart(self, reactor: &Reactor) -> World {
        let mut nodes = self.registry.list();
        nodes.reverse();
        nodes.sort_by_key(|node| array(node).is_none());
        for node in nodes {
            close(&self.registry, &node).await.unwrap();
        }
        World { disks: self.disks, ..World::new(reactor, 0) }
    }

    fn options(&self, k: u32, m: u32) -> Options {
        Options {
            name: "vol0".into(),
            data_chunk_count: k,
            parity_chunk_count: m,
            strip_size_kb: 4,
            base_bdevs: (0..k + m).map(|i| format!("m{i}")).collect(),
            layout: LayoutOptions { journal_slots: Some(8), alignment: Some(4096), region_stripes: Some(4) },
            ..Options::default()
        }
    }

    async fn create(&self, k: u32, m: u32) -> Result<Arc<BdevNode>, BdevError> {
        self.arrays.create(&self.registry, self.options(k, m)).await
    }

    async fn write(&self, r: &Reactor, byte: u8) {
        let (_desc, ch) = open(&self.registry, "vol0");
        let blocks = (self.registry.find("vol0").unwrap().num_blocks() as u32).min(64);
        let (status, _) = ch.write(0, blocks, filled(r, blocks as usize * 512, byte), IoFlags::FUA).await;
        assert!(status.is_ok(), "{status}");
    }

    async fn reads(&self, r: &Reactor, byte: u8) -> bool {
        let (_desc, ch) = open(&self.registry, "vol0");
        let (status, data) = ch.read(0, 64, filled(r, 64 * 512, 0)).await;
        assert!(status.is_ok(), "{status}");
        data.unwrap().as_slice().iter().all(|&b| b == byte)
    }
}

fn states(node: &BdevNode, n: usize) -> Vec<MemberState> {
    (0..n).map(|slot| array(node).unwrap().member_state(slot)).collect()
}

use MemberState::{Failed, InSync};

#[test]
fn an_array_that_was_made_is_found_on_its_devices_after_a_restart_with_what_was_written() {
    run(|r| async move {
        let w = World::new(&r, 3);
        w.attach(0..3);
        let uuid = w.create(2, 1).await.unwrap().uuid();
        w.write(&r, 0x77).await;
        let w = w.restart(&r).await;
        w.attach([2, 0, 1]);
        w.registry.wait_for_examine().await;
        let node = w.registry.find("vol0").expect("it was found");
        assert_eq!((node.uuid(), states(&node, 3)), (uuid, vec![InSync; 3]));
        assert!(w.reads(&r, 0x77).await);
        assert!(Arc::ptr_eq(&w.create(2, 1).await.unwrap(), &node), "the same array again is a success");
        let other = Options { strip_size_kb: 8, ..w.options(2, 1) };
        let e = w.arrays.create(&w.registry, other).await.unwrap_err();
        assert_eq!(e, BdevError::Exists("vol0".into()));
        drop(node);
        w.restart(&r).await;
    });
}

#[test]
fn a_running_array_is_what_was_asked_for_only_if_all_bases_are_its_members_or_its_uuid_is_given() {
    run(|r| async move {
        let w = World::new(&r, 5);
        w.attach(0..5);
        let node = w.create(2, 2).await.unwrap();
        let mixed = |names: [&str; 4]| Options { base_bdevs: names.map(String::from).to_vec(), ..w.options(2, 2) };
        let ask = async |o: Options| w.arrays.create(&w.registry, o).await;
        let says = |e: Result<Arc<BdevNode>, BdevError>| e.unwrap_err().to_string();
        let stranger = format!(
            "array 'vol0' ({}) runs already, and base bdev 'm4' is no member of it: list its members, or give its UUID if they were replaced",
            node.uuid()
        );
        let with_m4 = || mixed(["m0", "m1", "m2", "m4"]);
        assert_eq!(says(ask(with_m4()).await), stranger);
        assert_eq!(says(ask(Options { force: true, ..with_m4() }).await), stranger, "nor by force");
        assert!(ask(Options { uuid: Some(node.uuid()), ..with_m4() }).await.is_ok());
        let other = Options { uuid: Some(uuid::Uuid::from_u128(1)), ..w.options(2, 2) };
        assert_eq!(ask(other).await.unwrap_err(), BdevError::Exists("vol0".into()));
        assert!(ask(mixed(["m3", "m1", "m0", "m2"])).await.is_ok(), "in any order");
        let says_twice = says(ask(mixed(["m0", "m0", "m1", "m2"])).await);
        assert_eq!(says_twice, "base bdev 'm0' is given twice: it is 'm0'");
        // None is lost, so that one which is not there is another array's.
        let says_absent = says(ask(mixed(["m0", "m1", "m2", "m9"])).await);
        assert!(says_absent.contains("base bdev 'm9' is no member of it"), "{says_absent}");
        drop(w.registry.remove(&w.registry.find("m1").unwrap()));
        while array(&node).unwrap().member_state(1) != Failed {
            r.sleep(Duration::from_millis(1)).await;
        }
        assert!(ask(w.options(2, 2)).await.is_ok(), "what it lost may be listed");
        assert_eq!(says(ask(with_m4()).await), stranger);
        drop(node);
        w.restart(&r).await;
    });
}

#[test]
fn an_absent_member_is_waited_for_and_then_done_without() {
    run(|r| async move {
        let w = World::new(&r, 4);
        w.attach(0..4);
        w.create(3, 1).await.unwrap();
        w.write(&r, 0x31).await;
        let w = w.restart(&r).await;
        w.arrays.set_assemble_timeout(Duration::from_millis(200));
        let before = r.now();
        w.attach([0, 1, 3]);
        assert!(w.registry.find("vol0").is_none());
        w.registry.wait_for_examine().await;
        assert!(r.now() - before >= r.ticks(Duration::from_millis(200)), "it was not waited");
        let node = w.registry.find("vol0").expect("three of four are enough");
        assert_eq!(states(&node, 4), [InSync, InSync, Failed, InSync]);
        assert!(w.reads(&r, 0x31).await);
        assert!(Arc::ptr_eq(&w.create(3, 1).await.unwrap(), &node), "although a base is missing");
        drop(node);
        w.restart(&r).await;
    });
}

#[test]
fn fewer_than_a_quorum_do_not_start_and_more_that_come_do() {
    run(|r| async move {
        let w = World::new(&r, 3);
        w.attach(0..3);
        w.create(2, 1).await.unwrap();
        let w = w.restart(&r).await;
        w.arrays.set_assemble_timeout(Duration::from_millis(20));
        w.attach([1]);
        w.registry.wait_for_examine().await;
        assert!(w.registry.find("vol0").is_none());
        w.attach([0, 2]);
        w.registry.wait_for_examine().await;
        assert_eq!(states(&w.registry.find("vol0").unwrap(), 3), [InSync; 3]);
        w.restart(&r).await;
    });
}

#[test]
fn a_member_that_is_removed_is_failed_and_a_stale_one_is_taken_back() {
    run(|r| async move {
        let w = World::new(&r, 4);
        w.attach(0..4);
        let node = w.create(2, 2).await.unwrap();
        w.write(&r, 1).await;
        drop(w.registry.remove(&w.registry.find("m1").unwrap()));
        w.write(&r, 2).await;
        assert_eq!(states(&node, 4), [InSync, Failed, InSync, InSync]);
        drop(node);
        let w = w.restart(&r).await;
        w.attach(0..4);
        w.registry.wait_for_examine().await;
        let node = w.registry.find("vol0").expect("the stale member is not waited for");
        assert!(w.registry.find("m1").unwrap().claim().is_some());
        while states(&node, 4) != [InSync; 4] {
            r.sleep(Duration::from_millis(1)).await;
        }
        assert!(w.reads(&r, 2).await);
        for slot in [0, 2] {
            w.registry.unregister(&format!("m{slot}")).await.unwrap();
        }
        drop(node);
        w.restart(&r).await;
    });
}

#[test]
fn a_deleted_array_comes_back_unless_its_superblocks_are_cleared() {
    run(|r| async move {
        let w = World::new(&r, 3);
        w.attach(0..3);
        w.create(2, 1).await.unwrap();
        w.write(&r, 9).await;
        w.arrays.delete(&w.registry, "vol0", false).await.unwrap();
        assert!(w.registry.find("vol0").is_none() && w.registry.find("m0").unwrap().claim().is_none());
        w.create(2, 1).await.unwrap();
        assert!(w.reads(&r, 9).await);
        w.arrays.delete(&w.registry, "vol0", true).await.unwrap();
        w.create(2, 1).await.unwrap();
        assert!(w.reads(&r, 0).await, "a new array reads zero");
        let e = w.arrays.delete(&w.registry, "m0", true).await.unwrap_err();
        assert_eq!(e, BdevError::NotFound("m0".into()));
        w.restart(&r).await;
    });
}
