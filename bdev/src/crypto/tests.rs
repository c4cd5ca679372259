use std::rc::Rc;

use longshore_accel::crypto::{KeySpec, TweakMode};
use longshore_reactor::DmaBuf;

use super::*;
use crate::io::IoFlags;
use crate::malloc::Malloc;
use crate::testing::{Recorder, filled, open, run};
use crate::{Channel, Status, error};

/// 0, 1, 2... to 63.
fn key(accel: &Accel) -> Arc<Key> {
    let material: Vec<u8> = (0..64).collect();
    let spec = KeySpec { name: "k".into(), tweak: TweakMode::SimpleLba, material: material.into(), file: None };
    accel.keys.add(Key::new(spec).unwrap()).unwrap()
}

fn options(base: &str) -> Options {
    let accel = Arc::<Accel>::default();
    Options { name: "c".into(), base: base.into(), uuid: None, key: key(&accel), accel }
}

/// Device `c` over `m`, of memory.
fn over_malloc(block_size: u32, blocks: u64) -> (Arc<Registry>, Arc<BdevNode>) {
    let reg = Registry::new();
    reg.register("m", None, Malloc::new(Geometry::plain(block_size, blocks)).unwrap()).unwrap();
    let node = create(&reg, options("m")).unwrap().unwrap();
    (reg, node)
}

fn sample(r: &Reactor, len: usize, seed: usize) -> DmaBuf {
    let mut buf = r.dma().alloc(len).unwrap();
    for (i, byte) in buf.get_mut().unwrap().iter_mut().enumerate() {
        *byte = (i * 7 + (i >> 8) + seed) as u8;
    }
    buf
}

async fn bytes(ch: &Channel, lba: u64, n: u32, buf: DmaBuf) -> Vec<u8> {
    let (status, buf) = ch.read(lba, n, buf).await;
    assert_eq!(status, Status::SUCCESS);
    buf.unwrap().as_slice().to_vec()
}

/// What the base holds.
async fn below(reg: &Arc<Registry>, r: &Reactor, lba: u64, n: u32) -> Vec<u8> {
    let desc = reg.open("m", false, Box::new(|_| {})).unwrap();
    let ch = desc.channel().unwrap();
    let len = n as usize * desc.node().geometry().block_size as usize;
    bytes(&ch, lba, n, filled(r, len, 0)).await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_base_holds_what_openssl_makes_of_the_data() {
    run(|r| async move {
        for (block_size, first, last) in [
            (512, "6bb37da592d8c57f0cad44d672b9cf5c", "fa31819bdf7a52f36a77287c381b0d9f"),
            (4096, "6bb37da592d8c57f0cad44d672b9cf5c", "c6d748bb28de31c2869c6f37aa6b87bc"),
        ] {
            let (reg, _) = over_malloc(block_size, 64);
            let (_desc, ch) = open(&reg, "c");
            let n = 4096 / block_size;
            assert!(!ch.lends());
            let (status, buf) = ch.write(3, n, sample(&r, 4096, 0), IoFlags::NONE).await;
            assert_eq!(status, Status::SUCCESS);
            assert_eq!(buf.unwrap().as_slice(), sample(&r, 4096, 0).as_slice(), "the writer's memory stays as it is");
            let cipher = below(&reg, &r, 3, n).await;
            assert_eq!((hex(&cipher[..16]), hex(&cipher[4080..])), (first.to_owned(), last.to_owned()));
            assert_eq!(bytes(&ch, 3, n, filled(&r, 4096, 0)).await, sample(&r, 4096, 0).as_slice());
        }
    });
}

#[test]
fn memory_of_requests_may_lie_in_pieces() {
    run(|r| async move {
        let (reg, _) = over_malloc(512, 64);
        let (_desc, ch) = open(&reg, "c");
        let plain = sample(&r, 4096, 5);
        let ends = Rc::new(Recorder::default());
        let read = filled(&r, 4096, 0);
        for (op, memory) in [(Op::Write, &plain), (Op::Read, &read)] {
            let mut io = ch.core().get().unwrap();
            io.prepare(op, IoFlags::NONE, 9, 8);
            io.set_buf_in_pieces(memory.slice(0, 4096), &[1, 511, 1000, 8, 2576]);
            io.begin(ends.clone(), 0);
            ch.submit(io);
            let n = if op == Op::Write { 1 } else { 2 };
            assert_eq!(ends.ended(&r, n).await.last(), Some(&(0, Status::SUCCESS)));
        }
        assert_eq!(read.as_slice(), plain.as_slice());
        assert_eq!(plain.as_slice(), sample(&r, 4096, 5).as_slice());
    });
}

#[test]
fn zeroes_are_written_encrypted_and_comparing_sees_plain_data() {
    run(|r| async move {
        let (reg, _) = over_malloc(512, 64);
        let (_desc, ch) = open(&reg, "c");
        assert_eq!(ch.write_zeroes(0, 4, IoFlags::MAY_UNMAP).await.0, Status::SUCCESS);
        assert!(bytes(&ch, 0, 4, filled(&r, 2048, 1)).await.iter().all(|b| *b == 0));
        let cipher = below(&reg, &r, 0, 4).await;
        assert!(cipher.chunks(16).all(|block| block.iter().any(|b| *b != 0)));
        assert_eq!(ch.write(4, 1, filled(&r, 512, 7), IoFlags::FUA).await.0, Status::SUCCESS);
        assert_eq!(ch.compare(4, 1, filled(&r, 512, 7)).await.0, Status::SUCCESS);
        assert_eq!(ch.compare(4, 1, filled(&r, 512, 8)).await.0, Status::COMPARE_FAILURE);
        let (old, new) = (filled(&r, 512, 7), filled(&r, 512, 9));
        assert_eq!(ch.compare_and_write(4, 1, old, new, IoFlags::NONE).await.0, Status::SUCCESS);
        assert_eq!(ch.copy(4, 20, 1).await.0, Status::SUCCESS);
        assert!(bytes(&ch, 20, 1, filled(&r, 512, 1)).await.iter().all(|b| *b == 9));
        let (at_4, at_20) = (below(&reg, &r, 4, 1).await, below(&reg, &r, 20, 1).await);
        assert_ne!(at_4, at_20, "the same data looks different in another block");
        assert_eq!(ch.flush().await.0, Status::SUCCESS);
        assert_eq!(ch.unmap(4, 1).await.0, Status::SUCCESS);
        assert!(below(&reg, &r, 4, 1).await.iter().all(|b| *b == 0), "unmap goes to the base as it is");
        assert_eq!(ch.inflight(), 0);
    });
}

#[test]
fn long_requests_are_cut() {
    run(|r| async move {
        let (reg, node) = over_malloc(4096, 1024);
        assert_eq!(node.geometry().max_io_blocks, 64);
        let (_desc, ch) = open(&reg, "c");
        let data = sample(&r, 1 << 20, 3);
        assert_eq!(ch.write(11, 256, data, IoFlags::NONE).await.0, Status::SUCCESS);
        assert_eq!(bytes(&ch, 11, 256, filled(&r, 1 << 20, 0)).await, sample(&r, 1 << 20, 3).as_slice());
    });
}

/// All memory of the pool.
fn drain(r: &Reactor) -> Vec<DmaBuf> {
    [2 << 20, 256 << 10, 4096].into_iter().flat_map(|n| std::iter::from_fn(move || r.dma().alloc(n))).collect()
}

#[test]
fn writes_without_memory_wait_in_order_and_all_end() {
    run(|r| async move {
        let (reg, node) = over_malloc(512, 64);
        let (_desc, ch) = open(&reg, "c");
        let data: Vec<_> = (0..40).map(|i| filled(&r, 512, i)).collect();
        let all = drain(&r);
        let writes: Vec<_> =
            data.into_iter().enumerate().map(|(i, d)| ch.write(i as u64 % 32, 1, d, IoFlags::NONE)).collect();
        for w in writes {
            assert_eq!(w.await.0, Status::SUCCESS);
        }
        drop(all);
        let waits = node.device().as_any().downcast_ref::<Crypto>().unwrap().waits();
        assert_eq!(waits, 39, "the first has the memory that is set aside");
        for lba in 0..32_u8 {
            let last = if lba < 8 { lba + 32 } else { lba };
            assert_eq!(bytes(&ch, lba.into(), 1, filled(&r, 512, 0)).await, [last; 512]);
        }
    });
}

#[test]
fn memory_that_others_give_back_is_found_while_the_base_hangs() {
    run(|r| async move {
        let (reg, hung) = over_hung(&r).await;
        let (_desc, ch) = open(&reg, "c");
        let (first, second) = (filled(&r, 512, 1), filled(&r, 512, 2));
        let all = drain(&r);
        let first = ch.write(0, 1, first, IoFlags::NONE);
        let second = ch.write(1, 1, second, IoFlags::NONE);
        r.yield_now().await;
        drop(all);
        assert_eq!(second.await.0, Status::SUCCESS);
        hung.device().as_any().downcast_ref::<error::ErrorDev>().unwrap().resume_pending().await;
        assert_eq!(first.await.0, Status::SUCCESS);
        assert_eq!(ch.inflight(), 0);
    });
}

/// `c` over `EE_m` over `m`; the next write hangs in the middle.
async fn over_hung(_: &Reactor) -> (Arc<Registry>, Arc<BdevNode>) {
    let reg = Registry::new();
    reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
    let hung = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
    let device = hung.device().as_any().downcast_ref::<error::ErrorDev>().unwrap();
    let pending = error::Injection { op: Some(Op::Write), fault: error::Fault::Pending, count: 1, queue_depth: 0 };
    device.inject(pending).unwrap();
    create(&reg, options("EE_m")).unwrap().unwrap();
    (reg, hung)
}

#[test]
fn writes_that_wait_or_hang_are_aborted_and_their_memory_comes_back() {
    run(|r| async move {
        let (reg, _hung) = over_hung(&r).await;
        let (_desc, ch) = open(&reg, "c");
        let ends = Rc::new(Recorder::default());
        let data: Vec<_> = (0..3).map(|i| filled(&r, 512, i)).collect();
        let all = drain(&r);
        let ids: Vec<_> = data.into_iter().map(|d| ends.submit(&ch, Op::Write, 0, 1, d, 7)).collect();
        assert!(ch.abort(ids[1]));
        assert_eq!(ends.ended(&r, 1).await, [(7, Status::ABORT_REQUESTED)]);
        ch.abort_all();
        assert_eq!(ends.ended(&r, 3).await, [(7, Status::ABORT_REQUESTED); 3]);
        assert_eq!(ch.write(0, 1, filled_from(all), IoFlags::NONE).await.0, Status::SUCCESS);
        assert_eq!(ch.inflight(), 0);
    });
}

fn filled_from(all: Vec<DmaBuf>) -> DmaBuf {
    all[0].slice(0, 512)
}

#[test]
fn reads_that_fail_are_not_decrypted_and_keep_their_status() {
    run(|r| async move {
        let reg = Registry::new();
        reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        let below = error::create(&reg, error::Options { base: "m".into(), uuid: None }).unwrap().unwrap();
        create(&reg, options("EE_m")).unwrap().unwrap();
        let status = Status::new(2, 0x81);
        let fault =
            error::Injection { op: Some(Op::Read), fault: error::Fault::Nvme(status), count: 1, queue_depth: 0 };
        below.device().as_any().downcast_ref::<error::ErrorDev>().unwrap().inject(fault).unwrap();
        let (_desc, ch) = open(&reg, "c");
        let (s, buf) = ch.read(0, 1, filled(&r, 512, 3)).await;
        assert_eq!(s, status);
        assert!(buf.unwrap().as_slice().iter().all(|b| *b == 3));
    });
}

#[test]
fn bases_that_cannot_be_encrypted_are_refused() {
    run(|_| async move {
        let reg = Registry::new();
        let with_metadata = Geometry { md_size: 8, md_interleave: true, ..Geometry::plain(520, 64) };
        for (geometry, why) in [(with_metadata, "8 bytes of metadata"), (Geometry::plain(512, 64), "'m' is claimed")] {
            let claimed = geometry.md_size == 0;
            reg.register("m", None, Malloc::new(geometry).unwrap()).unwrap();
            if claimed {
                let o = crate::passthru::Options { name: "p".into(), base: "m".into(), uuid: None };
                crate::passthru::create(&reg, o).unwrap();
            }
            let o = options("m");
            let (key, accel) = (Arc::downgrade(&o.key), o.accel.clone());
            let error = create(&reg, o).err().unwrap().to_string();
            assert!(claimed || error.contains(why), "{error}");
            assert_eq!(accel.keys.destroy("k"), Ok(()), "nothing holds the key");
            assert!(key.upgrade().is_none() && reg.configurations().iter().all(|c| c.module() != MODULE));
            reg.unregister("m").await.unwrap();
        }
    });
}

#[test]
fn a_key_in_use_stays_until_its_device_is_deleted() {
    run(|_| async move {
        let reg = Registry::new();
        let o = options("m");
        let accel = o.accel.clone();
        assert!(create(&reg, o).unwrap().is_none(), "waits for its base");
        assert!(accel.keys.destroy("k").is_err());
        reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
        assert!(reg.find("c").is_some());
        reg.unconfigure(MODULE, "c").await.unwrap();
        assert_eq!(accel.keys.destroy("k"), Ok(()));
    });
}
