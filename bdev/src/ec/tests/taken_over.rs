//! An array whose members another writer has taken over.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::probe::{Act, Kind, array, ec, ended};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::InSync;
use crate::testing::{Recorder, open};

#[test]
fn nothing_is_sent_to_members_any_more_that_changes_them() {
    for seed in 0..12 {
        sim(seed, move |r| async move {
            let (s, judges) = array(3, 2, 40, Kind { volatile: seed % 2 == 0, ..Kind::default() });
            s.create(&r).await;
            let node = s.start(&r, &[]).await.unwrap();
            let mut m = Model::new(&s);
            {
                let (_desc, ch) = open(&s.registry, "a");
                assert!(m.write(&r, &ch, 512, 0, 30 * 24, 1).await.is_ok());
                assert!(ch.flush().await.0.is_ok());
                let mut sb = s.superblock(&r, 1).await;
                (sb.stamp.epoch, sb.stamp.nonce) = (sb.stamp.epoch + 1, 4711);
                let mut other = vec![0; 4096];
                sb.for_slot(1).encode(&mut other);
                s.put(&r, 1, Layout::superblock_at(sb.copy()), &other).await;
                let (late, count) = (Arc::new(AtomicU32::new(0)), AtomicU64::new(seed));
                let data = s.layout.strip_offset(0);
                let (array, counted) = (node.clone(), late.clone());
                judges.set(move |slot, io| {
                    let changes = io.op() != Op::Read;
                    if changes && ec(&array).is_offline() {
                        counted.fetch_add(1, Relaxed);
                    }
                    let n = count.fetch_add(1, Relaxed);
                    match slot {
                        // It fails, and so the others' superblocks are looked at; one write alone would do.
                        4 if changes && n > 60 => Act::Fail(Status::INTERNAL_ERROR),
                        0 if io.op() == Op::Read && io.lba() * 512 >= data && n % 7 == 0 => {
                            Act::Fail(Status::UNRECOVERED_READ_ERROR)
                        }
                        _ => Act::After(Duration::from_micros(30 + 50 * (n * 7919 % 13))),
                    }
                });
                let all = Rc::new(Recorder::default());
                for i in 0..160u64 {
                    let (op, lba, n) = match i % 8 {
                        0 => (Op::Unmap, (i / 8 % 30) * 24, 24),
                        1 => (Op::Flush, 0, 0),
                        2 => (Op::Read, i * 5 % 700, 4),
                        // Stripes that hold nothing yet.
                        3 => (Op::Write, 720 + i % 200, 3),
                        _ => (Op::Write, i * 11 % 700, 5),
                    };
                    all.submit(&ch, op, lba, n, filled(&r, n as usize * 512, 2), i);
                }
                let outcome = ended(&r, &all, 160).await;
                assert!(ec(&node).is_offline());
                assert!(outcome.iter().any(|e| e.1 == Status::NAMESPACE_NOT_READY));
                r.sleep(Duration::from_secs(100)).await;
                assert_eq!(late.load(Relaxed), 0, "requests that change members after the array went offline");
                assert!((0..4).all(|slot| ec(&node).member_state(slot) == InSync), "nothing is wrong with the others");
                judges.pass_all();
            }
            drop(node);
            s.stop().await;
            assert_eq!(s.superblock(&r, 1).await.stamp.nonce, 4711);
        });
    }
}
