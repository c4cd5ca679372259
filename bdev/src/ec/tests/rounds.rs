//! What durability costs (I5): rounds of member flushes, one after the other, and whom they ask.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::probe::{Act, Judges, Kind, array, ec};
use super::*;
use crate::Op;
use crate::ec::format::MemberState::Failed;
use crate::testing::open;

/// Data strips, members, blocks of a stripe.
const K: usize = 4;
const N: usize = 6;
const STRIPE: u64 = 32;
/// What a flush takes; nothing else takes time, so that serial rounds are told by it.
const FLUSH: Duration = Duration::from_millis(1);

/// Flushes that each member was sent.
type Flushes = Arc<[AtomicU64; N]>;

fn count(judges: &Judges) -> Flushes {
    let flushes = Flushes::default();
    let all = flushes.clone();
    judges.set(move |slot, io| {
        if io.op() != Op::Flush {
            return Act::Pass;
        }
        all[slot].fetch_add(1, Relaxed);
        Act::After(FLUSH)
    });
    flushes
}

/// An array whose members have volatile caches or not, and what flushes of it cost.
struct Rig {
    r: Reactor,
    s: Small,
    judges: Arc<Judges>,
    flushes: Flushes,
    node: Arc<BdevNode>,
}

impl Rig {
    async fn new(r: &Reactor, kind: Kind) -> Rig {
        let (s, judges) = array(K, N - K, 24, kind);
        s.create(r).await;
        let node = s.start(r, &[]).await.unwrap();
        let flushes = count(&judges);
        Rig { r: r.clone(), s, judges, flushes, node }
    }

    /// Serial rounds that `requests` waited for, which have to succeed, and flushes by member.
    async fn cost(&self, requests: impl AsyncFnOnce(&Channel) -> Vec<Status>) -> (u64, [u64; N]) {
        let sent = || std::array::from_fn::<u64, N, _>(|slot| self.flushes[slot].load(Relaxed));
        let (_desc, ch) = open(&self.s.registry, "a");
        let (counted, before, began) = (self.s.stats().member_flushes, sent(), self.r.now());
        let statuses = requests(&ch).await;
        let (took, one) = (self.r.now() - began, self.r.ticks(FLUSH));
        assert!(statuses.iter().all(|s| s.is_ok()), "{statuses:?}");
        let now = sent();
        let by_member: [u64; N] = std::array::from_fn(|slot| now[slot] - before[slot]);
        assert_eq!(self.s.stats().member_flushes - counted, by_member.iter().sum::<u64>(), "the counter tells");
        ((took + one / 2) / one, by_member)
    }

    async fn write(&self, ch: &Channel, lba: u64, blocks: u32, flags: IoFlags) -> Status {
        ch.write(lba, blocks, filled(&self.r, blocks as usize * 512, lba as u8), flags).await.0
    }

    /// What each way to make writes durable costs: its name, rounds and flushes by member. Stripes 0 to 3 and more become live.
    async fn ways(&self) -> Vec<(&'static str, u64, [u64; N])> {
        let mut ways = Vec::new();
        let mut way = |name, (rounds, flushes)| ways.push((name, rounds, flushes));
        way(
            "a FUA write to an empty stripe",
            self.cost(async |ch| vec![self.write(ch, 3, 5, IoFlags::FUA).await]).await,
        );
        let whole = self.cost(async |ch| vec![self.write(ch, STRIPE, 32, IoFlags::FUA).await]);
        way("a FUA write of a whole empty stripe", whole.await);
        for lba in [2 * STRIPE, 3 * STRIPE + 7] {
            let ch = open(&self.s.registry, "a");
            assert!(self.write(&ch.1, lba, 9, IoFlags::NONE).await.is_ok());
        }
        way("a flush of writes to empty stripes", self.cost(async |ch| vec![ch.flush().await.0]).await);
        way("a FUA write to a live stripe", self.cost(async |ch| vec![self.write(ch, 1, 9, IoFlags::FUA).await]).await);
        let whole = self.cost(async |ch| vec![self.write(ch, STRIPE, 32, IoFlags::FUA).await]);
        way("a FUA write of a whole live stripe", whole.await);
        let both = async |ch: &Channel| vec![self.write(ch, 2, 9, IoFlags::NONE).await, ch.flush().await.0];
        // The write's own barrier is not the flush's.
        let (rounds, flushes) = self.cost(both).await;
        way("a flush of a write to a live stripe", (rounds.saturating_sub(1), flushes));
        way("a flush of nothing", self.cost(async |ch| vec![ch.flush().await.0]).await);
        ways
    }

    async fn stop(self) {
        self.judges.pass_all();
        drop(self.node);
        self.s.stop().await;
    }
}

#[test]
fn a_fua_write_and_a_flush_wait_for_two_rounds_of_member_flushes_at_most() {
    sim(1, |r| async move {
        let rig = Rig::new(&r, Kind { volatile: true, ..Kind::default() }).await;
        let ways = rig.ways().await;
        for (way, rounds, flushes) in &ways {
            assert!(*rounds <= 2 && flushes.iter().all(|f| *f <= 2), "{way}: {rounds} rounds, {flushes:?}");
        }
        let asked = ways.iter().filter(|(_, rounds, _)| *rounds > 0).count();
        assert!(asked >= 5, "rounds are seen: {ways:?}");
        rig.stop().await;
    });
}

#[test]
fn members_without_a_volatile_cache_are_sent_no_flush() {
    sim(2, |r| async move {
        let rig = Rig::new(&r, Kind::default()).await;
        for (way, rounds, flushes) in rig.ways().await {
            assert_eq!((rounds, flushes), (0, [0; N]), "{way}");
        }
        rig.stop().await;
        let steady = [1, 4];
        let mixed = Kind { volatile: true, steady: 1 << steady[0] | 1 << steady[1], ..Kind::default() };
        let rig = Rig::new(&r, mixed).await;
        let ways = rig.ways().await;
        for (way, rounds, flushes) in &ways {
            assert!(*rounds <= 2 && steady.iter().all(|&slot| flushes[slot] == 0), "{way}: {rounds}, {flushes:?}");
        }
        assert!(ways.iter().any(|(_, _, flushes)| flushes[0] > 0), "others are: {ways:?}");
        rig.stop().await;
    });
}

#[test]
fn those_who_ask_at_once_share_rounds() {
    sim(3, |r| async move {
        let rig = Rig::new(&r, Kind { volatile: true, ..Kind::default() }).await;
        let all_at_once = async |ch: &Channel, lba: fn(u64) -> u64, n: u64| {
            let buf = || filled(&rig.r, 4096, 9);
            let parts: Vec<_> = (0..n).map(|i| ch.write(lba(i), 8, buf(), IoFlags::FUA)).collect();
            let mut ends = Vec::new();
            for part in parts {
                ends.push(part.await.0);
            }
            ends
        };
        let (rounds, flushes) = rig.cost(async |ch| all_at_once(ch, |i| i * STRIPE, 20).await).await;
        assert!(rounds <= 3 && flushes.iter().all(|f| *f <= 3), "empty stripes: {rounds} rounds, {flushes:?}");
        // As many as there are slots of the journal.
        let (rounds, flushes) = rig.cost(async |ch| all_at_once(ch, |i| i * STRIPE + 8, 6).await).await;
        assert!(rounds <= 2 && flushes.iter().all(|f| *f <= 2), "live stripes: {rounds} rounds, {flushes:?}");
        rig.stop().await;
    });
}

#[test]
fn with_a_member_missing_a_fua_write_where_writes_are_noted_already_costs_no_more() {
    sim(4, |r| async move {
        let rig = Rig::new(&r, Kind { volatile: true, ..Kind::default() }).await;
        let (_desc, ch) = open(&rig.s.registry, "a");
        assert!(rig.write(&ch, 0, 64, IoFlags::FUA).await.is_ok());
        rig.s.break_member(2, Op::Write, u32::MAX);
        assert!(rig.write(&ch, 0, 64, IoFlags::FUA).await.is_ok());
        assert_eq!(ec(&rig.node).member_state(2), Failed);
        let again = rig.cost(async |ch| vec![rig.write(ch, 5, 20, IoFlags::FUA).await]).await;
        assert!(again.0 <= 2 && again.1.iter().all(|f| *f <= 2), "{again:?}");
        assert_eq!(again.1[2], 0, "who failed is sent none");
        let clean = rig.cost(async |ch| vec![rig.write(ch, 8 * STRIPE, 20, IoFlags::FUA).await]).await;
        assert!(clean.0 <= 2, "{clean:?}");
        drop((_desc, ch));
        rig.stop().await;
    });
}
