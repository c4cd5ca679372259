use super::*;
use crate::channel::Channel;
use crate::malloc::Malloc;
use crate::testing::{filled, open, run, run_on};
use crate::{IoFlags, Status};
use longshore_reactor::Reactor;

const BLOCKS: u64 = 64;

fn options(seed: u64) -> Options {
    Options { name: "v".into(), base: "m".into(), uuid: None, seed, cache_bytes: DEFAULT_CACHE_BYTES }
}

/// A base in memory, which keeps what it got when the layer is deleted.
fn base() -> Arc<Registry> {
    let reg = Registry::new();
    reg.register("m", None, Malloc::new(Geometry::plain(512, BLOCKS)).unwrap()).unwrap();
    reg
}

async fn first_bytes(r: &Reactor, ch: &Channel) -> Vec<u8> {
    let (status, buf) = ch.read(0, BLOCKS as u32, filled(r, BLOCKS as usize * 512, 255)).await;
    assert_eq!(status, Status::SUCCESS);
    let buf = buf.unwrap();
    buf.as_slice()
        .chunks(512)
        .inspect(|b| assert!(b.iter().all(|x| *x == b[0]), "a torn block"))
        .map(|b| b[0])
        .collect()
}

/// Deletes the layer, as a power cut would, and says what the base has.
async fn cut(r: &Reactor, reg: &Arc<Registry>) -> Vec<u8> {
    reg.unconfigure(MODULE, "v").await.unwrap();
    let (_desc, ch) = open(reg, "m");
    first_bytes(r, &ch).await
}

#[test]
fn what_was_flushed_or_written_with_fua_stays_and_of_the_rest_any_part() {
    let mut kept = [0; 3];
    for seed in 0..24 {
        let found = run(move |r| async move {
            let reg = base();
            let node = create(&reg, options(seed)).unwrap().unwrap();
            assert!(node.geometry().volatile_cache);
            let (desc, ch) = open(&reg, "v");
            for lba in 0..BLOCKS {
                assert!(ch.write(lba, 1, filled(&r, 512, 1), IoFlags::NONE).await.0.is_ok());
            }
            assert!(ch.flush().await.0.is_ok());
            assert!(ch.write(0, 20, filled(&r, 20 * 512, 2), IoFlags::NONE).await.0.is_ok());
            assert!(ch.write(10, 2, filled(&r, 1024, 3), IoFlags::FUA).await.0.is_ok());
            assert!(ch.write_zeroes(30, 2, IoFlags::NONE).await.0.is_ok());
            let seen = first_bytes(&r, &ch).await;
            assert_eq!((seen[9], seen[10], seen[12], seen[19], seen[20], seen[30]), (2, 3, 2, 2, 1, 0));
            drop((node, ch, desc));
            cut(&r, &reg).await
        });
        assert_eq!(found[10..12], [3, 3], "seed {seed}: written with FUA");
        assert!(found[20..30].iter().chain(&found[32..]).all(|&b| b == 1), "seed {seed}: flushed\n{found:?}");
        let rest = [&found[..10], &found[12..20]].concat();
        assert!(rest.iter().all(|b| [1, 2].contains(b)), "seed {seed}: old or new\n{found:?}");
        let new = rest.iter().filter(|b| **b == 2).count();
        kept[if new == 0 {
            0
        } else if new == rest.len() {
            2
        } else {
            1
        }] += 1;
    }
    assert!(kept[0] > 0 && kept[1] > 0, "none, some or all of the unflushed survived so often: {kept:?}");
}

#[test]
fn reads_see_held_blocks_among_those_of_the_base_in_any_pieces() {
    run(|r| async move {
        let reg = base();
        create(&reg, options(1)).unwrap();
        let (_desc, ch) = open(&reg, "v");
        assert!(ch.write(0, 8, filled(&r, 4096, 1), IoFlags::NONE).await.0.is_ok());
        assert!(ch.flush().await.0.is_ok());
        assert!(ch.write(2, 3, filled(&r, 1536, 2), IoFlags::NONE).await.0.is_ok());
        assert!(ch.write(4, 2, filled(&r, 1024, 3), IoFlags::NONE).await.0.is_ok());
        assert_eq!(first_bytes(&r, &ch).await[..9], [1, 1, 2, 2, 3, 3, 1, 1, 0]);
        assert!(ch.unmap(3, 2).await.0.is_ok());
        assert_eq!(first_bytes(&r, &ch).await[..9], [1, 1, 2, 0, 0, 3, 1, 1, 0]);
    });
}

#[test]
fn a_full_cache_writes_the_oldest_to_the_base_and_holds_no_more_than_it_may() {
    run(|r| async move {
        let reg = base();
        let node = create(&reg, Options { cache_bytes: 8 * 512, ..options(5) }).unwrap().unwrap();
        let dev = node.device().as_any().downcast_ref::<Volatile>().unwrap();
        let (desc, ch) = open(&reg, "v");
        for lba in 0..BLOCKS {
            assert!(ch.write(lba, 1, filled(&r, 512, 7), IoFlags::NONE).await.0.is_ok());
            assert!(dev.unflushed_bytes() <= 8 * 512);
        }
        // More than it holds at all.
        assert!(ch.write(0, 32, filled(&r, 32 * 512, 8), IoFlags::NONE).await.0.is_ok());
        assert_eq!(first_bytes(&r, &ch).await[30..34], [8, 8, 7, 7]);
        assert!(ch.flush().await.0.is_ok());
        assert_eq!(dev.unflushed_bytes(), 0);
        drop((ch, desc, node));
        assert_eq!(cut(&r, &reg).await[30..34], [8, 8, 7, 7]);
    });
}

#[test]
fn a_flush_on_one_core_covers_what_another_wrote() {
    run_on(2, |r| async move {
        let reg = base();
        let node = create(&reg, options(9)).unwrap().unwrap();
        let (desc, ch) = open(&reg, "v");
        let peer = r.peers().iter().find(|p| p.index() != r.index()).unwrap().clone();
        for round in 1..20 {
            let reg2 = reg.clone();
            let there = peer.spawn(move |r: Reactor| async move {
                let (_desc, ch) = open(&reg2, "v");
                for lba in (0..BLOCKS).step_by(2) {
                    assert!(ch.write(lba, 1, filled(&r, 512, round), IoFlags::NONE).await.0.is_ok());
                }
            });
            for lba in (1..BLOCKS).step_by(2) {
                assert!(ch.write(lba, 1, filled(&r, 512, round), IoFlags::NONE).await.0.is_ok());
            }
            there.await.unwrap();
            assert!(ch.flush().await.0.is_ok());
            assert!(ch.write(0, 4, filled(&r, 2048, 99), IoFlags::NONE).await.0.is_ok());
        }
        drop((ch, desc, node));
        let found = cut(&r, &reg).await;
        assert!(found[..4].iter().all(|b| [19, 99].contains(b)) && found[4..].iter().all(|&b| b == 19), "{found:?}");
    });
}

#[test]
fn what_it_cannot_hold_is_refused() {
    run(|_| async move {
        let reg = base();
        let why = create(&reg, Options { cache_bytes: 0, ..options(1) }).unwrap_err().to_string();
        assert_eq!(why, "a cache of 0 bytes is not between 1 and 4294967296");
        let g = Geometry { md_size: 8, ..Geometry::plain(512, 8) };
        reg.register("md", None, Malloc::new(g).unwrap()).unwrap();
        let why = create(&reg, Options { base: "md".into(), ..options(1) }).unwrap_err().to_string();
        assert!(why.contains("'md' has separate metadata"), "{why}");
    });
}
