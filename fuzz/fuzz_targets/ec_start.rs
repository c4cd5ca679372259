//! An erasure-coded array that is started from members which somebody prepared, used, stopped, and started again.
//!
//! Nothing may panic, allocate without bound or take long; a start ends, with an array or an error, and so do the requests of an array
//! that was started. With all members in sync, what was written is read.
//!
//! Input: byte 0: bit 0, salvage what does not start by itself; bits 1 and 2, the member that is absent (3: none); bit 3, it comes later; bit 4,
//! records keep the checksum of their payload. Byte 1: how large members are. Then changes to an array of 2+1: see [`ec_images::changed`].

#![no_main]

#[path = "../src/ec_images.rs"]
mod ec_images;

use std::sync::Arc;
use std::time::Duration;

use ec_images::changed;
use libfuzzer_sys::fuzz_target;
use longshore_bdev::ec::Tuning;
use longshore_bdev::ec::arrays::{Arrays, array, close};
use longshore_bdev::ec::create::Options;
use longshore_bdev::ec::format::{MemberState, Superblock};
use longshore_bdev::malloc::Malloc;
use longshore_bdev::{Bdev, BdevNode, CoreOptions, CoreState, Geometry, IoFlags, Registry};
use longshore_reactor::Reactor;
use longshore_reactor::sim::Sim;

const BLOCK: usize = 512;
const PAGE: usize = 4096;
/// Longer than everything that is waited for.
const LONG: Duration = Duration::from_secs(3600);

struct Case {
    salvage: bool,
    absent: usize,
    late: bool,
    images: Vec<Vec<u8>>,
    bytes: u64,
}

impl Case {
    fn of(control: u8, size: u8, changes: &[u8]) -> Case {
        Case {
            salvage: control & 1 != 0,
            absent: usize::from(control >> 1 & 3),
            late: control & 8 != 0,
            images: changed(changes, control & 16 == 0),
            bytes: (256 << 10) << (size % 5),
        }
    }

    /// The devices, which hold the images.
    async fn disks(&self, r: &Reactor) -> Vec<Arc<Malloc>> {
        let registry = Registry::new();
        let mut disks = Vec::new();
        for (slot, image) in self.images.iter().enumerate() {
            let disk = Malloc::new(Geometry::plain(BLOCK as u32, self.bytes / BLOCK as u64)).expect("a device");
            let name = format!("m{slot}");
            registry.register(&name, None, disk.clone()).expect("registers");
            {
                let desc = registry.open(&name, true, Box::new(|_| {})).expect("opens");
                let ch = desc.channel().expect("a channel");
                for (page, bytes) in image.chunks(PAGE).enumerate().filter(|(_, b)| b.iter().any(|&b| b != 0)) {
                    let mut buf = r.dma().alloc(PAGE).expect("memory");
                    buf.get_mut().expect("its own").copy_from_slice(bytes);
                    let lba = (page * PAGE / BLOCK) as u64;
                    assert!(ch.write(lba, (PAGE / BLOCK) as u32, buf, IoFlags::NONE).await.0.is_ok());
                }
            }
            registry.unregister(&name).await.expect("goes");
            disks.push(disk);
        }
        disks
    }

    /// What somebody would ask for who wants this array back.
    fn options(&self) -> Option<Options> {
        let of = |image: &Vec<u8>| Superblock::select([&image[..PAGE], &image[65536..65536 + PAGE]]).ok();
        let s = self.images.iter().find_map(of)?;
        Some(Options {
            name: s.name,
            data_chunk_count: s.layout.k as u32,
            parity_chunk_count: s.layout.m as u32,
            strip_size_kb: s.layout.strip / 1024,
            base_bdevs: (0..s.layout.k + s.layout.m).map(|slot| format!("m{slot}")).collect(),
            salvage_requested: true,
            ..Options::default()
        })
    }

    async fn life(&self, r: &Reactor, disks: &[Arc<Malloc>], nonce: u64) {
        let registry = Registry::new();
        let arrays = Arrays::install(&registry, vec![r.handle()], Default::default());
        arrays.set_assemble_timeout(Duration::ZERO);
        arrays.set_tuning(Tuning { nonce: Some(nonce), ..Tuning::default() });
        let attach = |slot: usize| registry.register(&format!("m{slot}"), None, disks[slot].clone()).is_ok();
        (0..disks.len()).filter(|slot| *slot != self.absent).for_each(|slot| assert!(attach(slot)));
        registry.wait_for_examine().await;
        let started = || registry.list().into_iter().find(|node| array(node).is_some());
        if let (None, true, Some(o)) = (started(), self.salvage, self.options()) {
            let _ = arrays.create(&registry, o).await;
        }
        if self.late && self.absent < disks.len() {
            // The array may have its name.
            let _ = attach(self.absent);
            registry.wait_for_examine().await;
        }
        if let Some(node) = started() {
            serve(r, &registry, &node).await;
        }
        let mut nodes = registry.list();
        nodes.sort_by_key(|node| array(node).is_none());
        for node in nodes {
            close(&registry, &node).await.expect("nobody else removes it");
        }
    }
}

/// Asks for a few blocks here and there.
async fn serve(r: &Reactor, registry: &Arc<Registry>, node: &Arc<BdevNode>) {
    let desc = registry.open(&node.uuid().to_string(), true, Box::new(|_| {})).expect("opens");
    let ch = desc.channel().expect("a channel");
    let (block, blocks) = (node.geometry().block_size as usize, node.num_blocks());
    for (turn, lba) in [0, 5 * 16 + 3, blocks / 2, blocks - 1].into_iter().enumerate() {
        let lba = lba.min(blocks - 1);
        let n = (blocks - lba).min(24) as u32;
        let buf = || r.dma().alloc(n as usize * block).expect("memory");
        let _ = ch.read(lba, n, buf()).await;
        let mut new = buf();
        let byte = 0x11 * (turn as u8 + 1);
        new.get_mut().expect("its own").fill(byte);
        let flags = if turn % 2 == 0 { IoFlags::FUA } else { IoFlags::NONE };
        if ch.write(lba, n, new, flags).await.0.is_err() {
            continue;
        }
        let ec = array(node).expect("it is one");
        let (status, read) = ch.read(lba, n, buf()).await;
        let members = ec.base_names().len();
        if status.is_ok() && (0..members).all(|slot| ec.member_state(slot) == MemberState::InSync) {
            assert!(read.expect("data").as_slice().iter().all(|&b| b == byte), "what was written is read");
        }
    }
    let _ = ch.unmap(0, blocks.min(64) as u32).await;
    let _ = ch.flush().await;
}

fuzz_target!(|data: &[u8]| {
    let [control, size, changes @ ..] = data else { return };
    let case = Case::of(*control, *size, changes);
    Sim::new(1).block_on(move |r| async move {
        CoreState::init(&r, CoreOptions { requests: 1024, child_reserve: 256 });
        let _limit = r.timer(LONG, |_| panic!("something does not end"));
        let disks = case.disks(&r).await;
        for nonce in [1001, 1002] {
            case.life(&r, &disks, nonce).await;
        }
        for _ in 0..4 {
            r.yield_now().await;
        }
        CoreState::shutdown();
    });
});
