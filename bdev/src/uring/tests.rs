use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::{OpKind, Reactor};

use super::*;
use crate::IoFlags;
use crate::testing::{filled, open, run, run_on};

/// A file that goes with the value.
struct Temp(PathBuf);

impl Temp {
    fn new(len: u64) -> Temp {
        let path = std::env::temp_dir().join(format!("longshore-{}-{}", std::process::id(), Uuid::new_v4()));
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        Temp(path)
    }

    fn options(&self, name: &str) -> Options {
        Options { block_size: 4096, ..Options::new(name, self.0.to_str().unwrap(), Family::Uring) }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn fail(r: &Reactor, kind: OpKind, res: i32, times: u32) {
    let mut left = times;
    r.inject(Some(Box::new(move |k| {
        (k == kind && left > 0).then(|| {
            left -= 1;
            res
        })
    })));
}

#[test]
fn writes_reach_the_file_and_reads_come_from_it() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        let node = create(&reg, file.options("f")).unwrap();
        assert_eq!((node.num_blocks(), node.geometry().volatile_cache), (16, true));
        let (_desc, ch) = open(&reg, "f");
        assert_eq!(ch.write(2, 2, filled(&r, 8192, 7), IoFlags::NONE).await.0, Status::SUCCESS);
        assert_eq!(ch.write(5, 1, filled(&r, 4096, 8), IoFlags::FUA).await.0, Status::SUCCESS);
        assert_eq!(ch.flush().await.0, Status::SUCCESS);
        let all = file.bytes();
        assert!(all[8192..16384].iter().all(|&b| b == 7) && all[20480..24576].iter().all(|&b| b == 8));
        assert!(all[16384..20480].iter().all(|&b| b == 0));
        let (st, buf) = ch.read(1, 3, filled(&r, 12288, 1)).await;
        assert_eq!(st, Status::SUCCESS);
        assert_eq!(buf.unwrap().as_slice(), &all[4096..16384]);
        assert_eq!(ch.read(15, 2, filled(&r, 8192, 1)).await.0, Status::LBA_OUT_OF_RANGE);
    });
}

#[test]
fn memory_at_any_address_is_fine() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        let odd = |byte| filled(&r, 8192 + 3, byte).slice(3, 8192);
        assert_eq!(ch.write(2, 2, odd(9), IoFlags::NONE).await.0, Status::SUCCESS);
        assert!(file.bytes()[8192..16384].iter().all(|&b| b == 9));
        let (st, buf) = ch.read(2, 2, odd(0)).await;
        assert_eq!(st, Status::SUCCESS);
        assert!(buf.unwrap().as_slice().iter().all(|&b| b == 9));
    });
}

#[test]
fn unmapped_and_zeroed_ranges_read_as_zeroes() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        for refuse in [false, true] {
            assert!(ch.write(0, 16, filled(&r, 64 << 10, 7), IoFlags::NONE).await.0.is_ok());
            if refuse {
                // A file system without fallocate: zeroes are written instead.
                fail(&r, OpKind::Fallocate, -libc::EOPNOTSUPP, u32::MAX);
            }
            assert!(ch.write_zeroes(4, 2, IoFlags::FUA).await.0.is_ok());
            assert!(ch.write_zeroes(8, 2, IoFlags::MAY_UNMAP).await.0.is_ok());
            assert!(ch.unmap(12, 1).await.0.is_ok());
            let all = file.bytes();
            for (block, zero) in [(3, false), (4, true), (5, true), (6, false), (8, true), (9, true), (10, false)] {
                assert_eq!(all[block * 4096..][..4096].iter().all(|&b| b == 0), zero, "block {block}");
            }
            assert_eq!(all[12 * 4096], if refuse { 7 } else { 0 });
            r.inject(None);
        }
    });
}

#[test]
fn after_a_failed_sync_no_flush_and_no_fua_write_succeeds_until_it_is_opened_again() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        let node = create(&reg, file.options("f")).unwrap();
        {
            let (_desc, ch) = open(&reg, "f");
            fail(&r, OpKind::Fsync, -libc::EIO, 1);
            assert_eq!(ch.flush().await.0, Status::WRITE_FAULT);
            r.inject(None);
            assert_eq!(ch.flush().await.0, Status::WRITE_FAULT);
            assert_eq!(ch.write(0, 1, filled(&r, 4096, 1), IoFlags::FUA).await.0, Status::WRITE_FAULT);
            assert_eq!(ch.write(0, 1, filled(&r, 4096, 1), IoFlags::NONE).await.0, Status::SUCCESS);
            assert!(node.device().as_any().downcast_ref::<FileDev>().unwrap().failed());
        }
        r.yield_now().await;
        drop(node);
        reg.delete::<FileDev>("f").await.unwrap();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        assert_eq!(ch.flush().await.0, Status::SUCCESS);
    });
}

#[test]
fn flushes_that_come_during_a_sync_share_the_next_one() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        let before = r.handle().stats().ops;
        let flushes: Vec<_> = (0..10).map(|_| ch.flush()).collect();
        for f in flushes {
            assert_eq!(f.await.0, Status::SUCCESS);
        }
        r.yield_now().await;
        assert!(r.handle().stats().ops - before <= 2);
    });
}

#[test]
fn errors_and_short_transfers_are_told_for_what_they_are() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        fail(&r, OpKind::Read, -libc::EIO, 1);
        assert_eq!(ch.read(0, 1, filled(&r, 4096, 0)).await.0, Status::UNRECOVERED_READ_ERROR);
        fail(&r, OpKind::Write, -libc::ENOSPC, 1);
        assert_eq!(ch.write(0, 1, filled(&r, 4096, 0), IoFlags::NONE).await.0, Status::CAPACITY_EXCEEDED);
        fail(&r, OpKind::Write, -libc::EAGAIN, 2);
        assert_eq!(ch.write(0, 1, filled(&r, 4096, 4), IoFlags::NONE).await.0, Status::SUCCESS, "tried again");
        // The first 4 KiB are claimed done, with 100 bytes that do not make a block; the rest is asked for anew.
        fail(&r, OpKind::Write, 4196, 1);
        assert_eq!(ch.write(4, 3, filled(&r, 12288, 5), IoFlags::NONE).await.0, Status::SUCCESS);
        let all = file.bytes();
        assert!(all[16384..20480].iter().all(|&b| b == 0) && all[20480..28672].iter().all(|&b| b == 5));
        fail(&r, OpKind::Read, 0, 1);
        assert_eq!(ch.read(0, 1, filled(&r, 4096, 0)).await.0, Status::LBA_OUT_OF_RANGE, "the file has shrunk");
        r.inject(None);
    });
}

#[test]
fn what_waits_for_resources_can_be_aborted() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        fail(&r, OpKind::Write, -libc::EAGAIN, u32::MAX);
        let w = ch.write(0, 1, filled(&r, 4096, 0), IoFlags::NONE);
        r.sleep(Duration::from_millis(3)).await;
        ch.abort_all();
        assert_eq!(w.await.0, Status::ABORT_REQUESTED);
        r.inject(None);
    });
}

#[test]
fn a_file_locked_by_somebody_else_is_refused() {
    let file = Temp::new(8192);
    let other = std::fs::File::open(&file.0).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let reg = Registry::new();
    let err = create(&reg, file.options("f")).unwrap_err();
    assert!(matches!(err, BdevError::Busy { .. }), "{err}");
    drop(other);
    create(&reg, file.options("f")).unwrap();
    create(&reg, file.options("g")).expect("a second device of the same process may share it");
}

#[test]
fn a_file_that_is_only_read_is_not_written_by_a_second_device() {
    let file = Temp::new(8192);
    let reg = Registry::new();
    let read_only = |name| Options { readonly: true, ..file.options(name) };
    create(&reg, read_only("f")).unwrap();
    create(&reg, read_only("g")).expect("both only read");
    let err = create(&reg, file.options("h")).unwrap_err();
    assert!(matches!(err, BdevError::Busy { .. }) && err.to_string().contains("delete that bdev first"), "{err}");
    // The lock is shared with other processes, which is what the refusal is for.
    let other = std::fs::File::open(&file.0).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockShared).expect("others may read");
}

/// Writes and flushes until one fails; returns how many flushes succeeded.
async fn flush_until_failure(r: Reactor, reg: Arc<Registry>, lba: u64) -> u32 {
    let (_desc, ch) = open(&reg, "f");
    let mut n = 0;
    loop {
        assert!(ch.write(lba, 1, filled(&r, 4096, n as u8), IoFlags::NONE).await.0.is_ok());
        let two = (ch.flush(), ch.flush());
        match (two.0.await.0, two.1.await.0) {
            (Status::SUCCESS, Status::SUCCESS) => n += 1,
            failed => {
                assert_eq!(failed.1, Status::WRITE_FAULT);
                return n;
            }
        }
    }
}

#[test]
fn a_sync_that_fails_on_one_core_fails_the_flushes_of_all() {
    run_on(3, |r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let spawn = |i: usize| {
            let reg = reg.clone();
            r.peers()[i].spawn(move |r| flush_until_failure(r, reg, i as u64))
        };
        let others = [spawn(1), spawn(2)];
        let (_desc, ch) = open(&reg, "f");
        for _ in 0..50 {
            assert_eq!(ch.flush().await.0, Status::SUCCESS);
        }
        fail(&r, OpKind::Fsync, -libc::EIO, 1);
        // Another core may do the sync for this one: then the fault has not been met yet.
        while ch.flush().await.0.is_ok() {}
        assert_eq!(ch.write(0, 1, filled(&r, 4096, 1), IoFlags::FUA).await.0, Status::WRITE_FAULT);
        for o in others {
            o.await.unwrap();
        }
        r.inject(None);
    });
}

#[test]
fn a_sync_that_its_core_gives_up_is_done_for_the_others() {
    run_on(2, |r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        for again in [-libc::EAGAIN, -libc::ECANCELED] {
            // This core's syncs come to nothing.
            fail(&r, OpKind::Fsync, again, u32::MAX);
            let own = ch.flush();
            let other = {
                let reg = reg.clone();
                r.peers()[1].spawn(move |_| async move {
                    let (_desc, ch) = open(&reg, "f");
                    ch.flush().await.0
                })
            };
            r.sleep(Duration::from_millis(5)).await;
            ch.abort_all();
            assert_eq!(own.await.0, Status::ABORT_REQUESTED);
            r.inject(None);
            assert_eq!(other.await.unwrap(), Status::SUCCESS);
        }
        assert_eq!(ch.flush().await.0, Status::SUCCESS);
    });
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let reg = Registry::new();
    let file = Temp::new(4096 + 512);
    let err = create(&reg, file.options("f")).unwrap_err();
    assert!(err.to_string().contains("4608 bytes"), "{err}");
    let none = Options::new("f", "/nonexistent/f", Family::Aio);
    assert_eq!(create(&reg, none).unwrap_err().errno(), libc::ENOENT);
    let dir = Options::new("f", std::env::temp_dir().to_str().unwrap(), Family::Aio);
    assert!(create(&reg, dir).is_err());
    let odd = Options { block_size: 3000, ..file.options("f") };
    assert_eq!(create(&reg, odd).unwrap_err().errno(), libc::EINVAL);
}

#[test]
fn a_read_only_device_refuses_every_change() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        create(&reg, Options { readonly: true, ..file.options("f") }).unwrap();
        let (_desc, ch) = open(&reg, "f");
        let refused = Status::NAMESPACE_WRITE_PROTECTED;
        assert_eq!(ch.write(0, 1, filled(&r, 4096, 1), IoFlags::NONE).await.0, refused);
        assert_eq!(ch.unmap(0, 1).await.0, refused);
        assert_eq!(ch.write_zeroes(0, 1, IoFlags::NONE).await.0, refused);
        assert_eq!(ch.read(0, 1, filled(&r, 4096, 1)).await.0, Status::SUCCESS);
        assert_eq!(ch.flush().await.0, Status::SUCCESS);
    });
}

#[test]
fn a_file_that_grew_is_seen_after_a_rescan() {
    run(|r| async move {
        let file = Temp::new(64 << 10);
        let reg = Registry::new();
        let node = create(&reg, file.options("f")).unwrap();
        let (_desc, ch) = open(&reg, "f");
        let os = std::fs::File::options().write(true).open(&file.0).unwrap();
        os.set_len(128 << 10).unwrap();
        os.write_all_at(&[6; 4096], 100 << 10).unwrap();
        assert_eq!(ch.read(25, 1, filled(&r, 4096, 0)).await.0, Status::LBA_OUT_OF_RANGE);
        rescan(&reg, "f").unwrap();
        assert_eq!(node.num_blocks(), 32);
        let (_, buf) = ch.read(25, 1, filled(&r, 4096, 0)).await;
        assert!(buf.unwrap().as_slice().iter().all(|&b| b == 6));
        let kinds: Vec<_> = reg.notifications.since(0, 10).into_iter().map(|n| n.kind).collect();
        assert_eq!(kinds, ["bdev_register", "bdev_resize"]);
    });
}
