//! Rows of a stripe for tasks: the same bytes of many strips, read, checked against each other, decoded and rewritten.

mod elsewhere;

use std::rc::Rc;
use std::time::Duration;

use longshore_nvme::wire::Status;
use longshore_reactor::DmaBuf;

use super::engine::Engine;
use super::flush::Offline;
use super::txn::masked;
use super::txn::plan::Span;
use crate::io::{IoFlags, Op};

/// Bytes that all strips of a task take together, if their blocks are not larger.
const WINDOW: usize = 1 << 20;
/// Most bytes of one strip at a time.
const MOST: usize = 64 << 10;
/// How long a task waits before it asks for memory again.
const AGAIN: Duration = Duration::from_millis(1);

/// The memory of a task: one buffer for each strip.
pub(super) struct Rows {
    bufs: Vec<DmaBuf>,
    /// In place of those that a request uses which hangs: as many as members may, if none comes back meanwhile.
    spare: Vec<DmaBuf>,
    scratch: Vec<Vec<u8>>,
    /// Bytes of each buffer.
    pub(super) most: u32,
}

/// The lowest `count` bits of `mask`.
pub(super) fn lowest(mask: u64, count: usize) -> u64 {
    masked(mask).take(count).fold(0, |m, i| m | 1 << i)
}

impl Rows {
    /// What was read or decoded of strip `i`.
    pub(super) fn strip(&self, i: usize, len: u32) -> &[u8] {
        &self.bufs[i].as_slice()[..len as usize]
    }

    /// Takes `bytes` for strip `i`. False: there is no memory left for it.
    #[must_use]
    pub(super) fn put(&mut self, i: usize, bytes: &[u8]) -> bool {
        let owned = self.own(i);
        if owned {
            self.bufs[i].get_mut().expect("no request is out")[..bytes.len()].copy_from_slice(bytes);
        }
        owned
    }

    /// Makes sure that no request uses the buffer of strip `i`: one that was given up, on a member that failed, may still. False: it may, and all
    /// others are used up: members hung, came back and hung again during one task.
    fn own(&mut self, i: usize) -> bool {
        if !self.bufs[i].is_unique() {
            let Some(other) = self.spare.pop() else { return false };
            self.bufs[i] = other;
        }
        true
    }

    /// Decodes the strips of `lost` from `sources`, k strips, in place. False: there is no memory left for it.
    #[must_use]
    pub(super) fn decode(&mut self, engine: &Engine, lost: u64, sources: u64, len: u32) -> bool {
        if lost == 0 {
            return true;
        }
        let decoder = engine.decoder(lost, sources);
        if !masked(lost).all(|i| self.own(i)) {
            return false;
        }
        let len = len as usize;
        let (mut src, mut dst) = (vec![&[][..]; decoder.sources().len()], Vec::new());
        for (i, buf) in self.bufs.iter_mut().enumerate() {
            if let Some(at) = decoder.sources().iter().position(|&s| s == i) {
                src[at] = &buf.as_slice()[..len];
            } else if lost >> i & 1 != 0 {
                // In ascending order, as the decoder has them.
                dst.push(&mut buf.get_mut().expect("no request is out")[..len]);
            }
        }
        decoder.decode(&src, &mut dst);
        true
    }

    /// The first byte of rows where strips of `have` do not fit together, those of `distrust` left out; `None`: they fit, or there
    /// are only k.
    pub(super) async fn mismatch(&mut self, engine: &Engine, have: u64, distrust: u64, len: u32) -> Option<usize> {
        let sources = lowest(have & !distrust, engine.shared.layout.k);
        let rest = have & !distrust & !sources;
        if rest == 0 {
            return None;
        }
        let decoder = engine.decoder(rest, sources);
        let count = rest.count_ones() as usize;
        self.scratch.resize_with(self.scratch.len().max(count), Vec::new);
        let len = len as usize;
        self.scratch[..count].iter_mut().for_each(|s| s.resize(len, 0));
        let read = (decoder.sources().len() * len) as u64;
        if let Some(offload) = engine.offload.as_ref().filter(|o| o.pays(read, count as u64)) {
            let sources = decoder.sources().iter().map(|&i| self.bufs[i].clone()).collect();
            let results = std::mem::take(&mut self.scratch);
            self.scratch = elsewhere::decode(engine, offload, &decoder, sources, results, len).await;
        } else {
            let src: Vec<&[u8]> = decoder.sources().iter().map(|&i| &self.bufs[i].as_slice()[..len]).collect();
            let mut dst: Vec<&mut [u8]> = self.scratch[..count].iter_mut().map(|s| &mut s[..]).collect();
            decoder.decode(&src, &mut dst);
        }
        let differ = |(i, s): (usize, &Vec<u8>)| {
            let read = &self.bufs[i].as_slice()[..len];
            if read == &s[..] { None } else { read.iter().zip(s).position(|(a, b)| a != b) }
        };
        masked(rest).zip(&self.scratch).filter_map(differ).min()
    }
}

impl Engine {
    /// Memory for rows of at most `wanted` bytes of each strip; waits for it. Nothing must be locked meanwhile.
    ///
    /// # Errors
    /// The array went offline.
    pub(super) async fn rows(self: &Rc<Self>, wanted: u32) -> Result<Rows, Offline> {
        let l = &self.shared.layout;
        let share = (WINDOW / l.n()).next_power_of_two() / 2;
        let most = share.clamp(l.block as usize, MOST).min(wanted as usize);
        loop {
            if self.shared.is_offline() {
                return Err(Offline);
            }
            // Hosts that wait for memory come first.
            if !self.is_starving() {
                let mut bufs: Vec<_> = (0..l.n() + l.m).map_while(|_| self.core.reactor().dma().alloc(most)).collect();
                if bufs.len() == l.n() + l.m {
                    let spare = bufs.split_off(l.n());
                    return Ok(Rows { bufs, spare, scratch: Vec::new(), most: most as u32 });
                }
            }
            self.core.reactor().sleep(AGAIN).await;
        }
    }

    /// Reads rows `span` of the strips of `want`; returns those that could be read.
    pub(super) async fn read_rows(self: &Rc<Self>, rows: &Rows, stripe: u64, span: Span, want: u64) -> u64 {
        let l = self.shared.layout;
        let at = l.strip_offset(stripe) + u64::from(span.lo);
        let mut pending = Vec::with_capacity(l.n());
        for i in masked(want) {
            self.count_read(span.len());
            let buf = rows.bufs[i].slice(0, span.len() as usize);
            pending.push((i, self.request(l.slot_of(stripe, i), Op::Read, IoFlags::NONE, at, &buf).await));
        }
        let mut have = 0;
        for (i, p) in pending {
            if p.done().await.is_ok() {
                have |= 1 << i;
            }
        }
        have
    }

    /// Writes rows `span` of the strips of `which` in place, as `rows` has them. Members that fail it are failed members.
    ///
    /// Only for strips that are not what the others say, which the caller has found under the stripe's lock, alone. Such a write
    /// needs no record: what it overwrites is no data that anybody could still want, but a value that the others contradict, or that
    /// cannot be read. A crash leaves each of its blocks wrong as it was, or right, or unreadable; all others of its rows stay what
    /// they are, so the same others still say what it must be, and no row has more wrong strips than before.
    pub(super) async fn rewrite(
        self: &Rc<Self>,
        rows: &Rows,
        stripe: u64,
        span: Span,
        which: u64,
    ) -> Result<(), Offline> {
        self.until_stable().await?;
        let l = self.shared.layout;
        let at = l.strip_offset(stripe) + u64::from(span.lo);
        let mut pending = Vec::new();
        for i in masked(which & self.up(stripe)) {
            self.count_write(span.len());
            let (slot, buf) = (l.slot_of(stripe, i), rows.bufs[i].slice(0, span.len() as usize));
            pending.push((slot, self.request(slot, Op::Write, IoFlags::NONE, at, &buf).await));
        }
        for (slot, p) in pending {
            if p.done().await != Status::SUCCESS && !self.shared.is_offline() {
                self.fail_member(slot, "a write failed");
            }
        }
        self.until_stable().await
    }

    /// Strips of `stripe` on members in sync: bit `i` is strip `i`.
    pub(super) fn in_sync(&self, stripe: u64) -> u64 {
        let l = &self.shared.layout;
        masked(self.shared.readable()).fold(0, |up, slot| up | 1 << l.index_at(stripe, slot))
    }
}
