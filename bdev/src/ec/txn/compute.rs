//! The memory of a transaction: which buffers it needs, where data come from, and parity.
//!
//! Buffers: `0..k` old data, `k..n` parity, `n..n + k` what several writes of the host leave in a strip, `n + k` headers of records.
//! Vectors: `i` what is written of strip `i`; `n + d` all rows of data strip `d`, as parity sees them; `2n + i` what the request
//! in flight for strip `i` moves.

use std::rc::Rc;

use longshore_accel::Rebuilder;

use super::super::engine::Engine;
use super::super::layout::{Layout, MAX_DATA, MAX_MEMBERS, MAX_PARITY};
use super::super::memory::{Holdings, VecId};
use super::masked;
use super::plan::{self, Plan, Span, Touch, Way};
use super::state::{Kind, State};
use crate::io::{IoRef, Op};

/// Bytes of the stripe's data that a write of the host covers.
pub(in crate::ec) fn range(l: &Layout, stripe: u64, io: &IoRef) -> (u64, u64) {
    let (first, block) = (stripe * l.stripe_blocks(), u64::from(l.block));
    let start = (io.lba() - first) * block;
    (start, start + u64::from(io.nblocks()) * block)
}

/// The buffer of the headers.
pub(super) fn headers(l: &Layout) -> usize {
    l.n() + l.k
}

/// Whether strip `d` is put together from several writes, or has gaps between them.
fn is_joined(t: &Touch, d: usize) -> bool {
    t.writes[d] > 1
}

/// The buffers of a transaction with their sizes.
pub(super) fn buffers(
    l: &Layout,
    live: bool,
    t: &Touch,
    p: &Plan,
) -> impl Iterator<Item = (usize, usize)> + Clone + use<> {
    let (k, n, rows) = (l.k, l.n(), t.rows.len() as usize);
    let (read, decode, way, touch) = (p.read, p.decode, p.way, t.clone());
    let old = (0..k).filter(move |i| (read | decode) >> i & 1 != 0);
    let old = old.map(move |i| (i, if way == Way::Modify { touch.own[i].len() as usize } else { rows }));
    let parity = (k..n).map(move |i| (i, rows));
    let (own, writes) = (t.own, t.writes);
    let joined = (0..k).filter(move |&d| writes[d] > 1).map(move |d| (n + d, own[d].len() as usize));
    let header = live.then_some((n + k, n * l.block as usize));
    old.chain(parity).chain(joined).chain(header)
}

/// What is read of strip `i`.
pub(super) fn read_span(t: &Touch, way: Way, i: usize) -> Span {
    if way == Way::Modify && t.touched >> i & 1 != 0 { t.own[i] } else { t.rows }
}

/// What is written of strip `i`.
pub(super) fn write_span(l: &Layout, t: &Touch, i: usize) -> Span {
    if i < l.k { t.own[i] } else { t.rows }
}

/// Strips that are written: data strips that are touched, and parity.
pub(super) fn written(l: &Layout, s: &State) -> u64 {
    s.touch.touched | ((1 << l.m) - 1) << l.k
}

/// Finds what is written of each data strip: vectors `0..k`. Requests have the memory that they say.
#[inline]
pub(super) fn data(l: &Layout, s: &mut State) {
    let n = l.n();
    for d in masked(s.touch.touched) {
        let own = s.touch.own[d];
        s.h.clear(d);
        let joined = is_joined(&s.touch, d);
        if joined && s.touch.covered >> d & 1 == 0 {
            let from = if s.kind == Kind::First { None } else { Some(old_offset(s, d)) };
            let len = own.len() as usize;
            match from {
                // What lies between the writes stays.
                Some(off) => {
                    s.h.clear(n + d);
                    s.h.push_buf(n + d, d, off, len);
                    s.h.combine(&[n + d], &[(n + d, 0)], len, |src, dst| dst[0].copy_from_slice(src[0]));
                }
                None => s.h.buf_mut(n + d)[..len].fill(0),
            }
        }
        for host in masked(s.active) {
            let io = s.h.host(host);
            let (start, end) = range(l, s.stripe, io);
            let zeroes = io.op() == Op::WriteZeroes;
            let span = plan::within(l.strip, d, start, end).meet(s.window);
            if span.is_empty() {
                continue;
            }
            let from = (d as u64 * u64::from(l.strip) + u64::from(span.lo) - start) as usize;
            let len = span.len() as usize;
            let there = match (joined, zeroes) {
                (false, false) => s.h.push_host(d, host, from, len),
                (false, true) => {
                    s.h.push_zeroes(d, len);
                    true
                }
                (true, zeroes) => {
                    let to = (span.lo - own.lo) as usize;
                    if zeroes {
                        s.h.buf_mut(n + d)[to..to + len].fill(0);
                        true
                    } else {
                        s.h.copy_from_host(host, from, n + d, to, len)
                    }
                }
            };
            assert!(there, "a write's memory was measured when it came");
        }
        if joined {
            s.h.push_buf(d, n + d, 0, own.len() as usize);
        }
    }
}

/// Where in its buffer of old data what is written of strip `d` begins.
fn old_offset(s: &State, d: usize) -> usize {
    if s.plan.way == Way::Modify { 0 } else { (s.touch.own[d].lo - s.touch.rows.lo) as usize }
}

/// Who computes.
pub(super) trait Computer {
    /// Adds a vector to a buffer.
    fn xor(&mut self, engine: &Engine, h: &mut Holdings, buf: usize, v: VecId);

    /// Brings parity, in the buffers `results`, up to date with the change of data strip `d` in a vector.
    fn update(&mut self, engine: &Engine, h: &mut Holdings, d: usize, v: VecId, results: &[(usize, usize)], len: usize);

    /// Computes parity.
    fn encode(&mut self, engine: &Engine, h: &mut Holdings, sources: &[VecId], results: &[(usize, usize)], len: usize);

    /// Decodes what was lost.
    fn decode(
        &mut self,
        decoder: &Rebuilder,
        h: &mut Holdings,
        sources: &[VecId],
        results: &[(usize, usize)],
        len: usize,
    );
}

/// This core, at once.
pub(super) struct Here;

impl Computer for Here {
    #[inline]
    fn xor(&mut self, engine: &Engine, h: &mut Holdings, buf: usize, v: VecId) {
        h.xor_into(&engine.accel, buf, 0, v);
    }

    #[inline]
    fn update(
        &mut self,
        engine: &Engine,
        h: &mut Holdings,
        d: usize,
        v: VecId,
        results: &[(usize, usize)],
        len: usize,
    ) {
        let coder = &engine.coder;
        h.combine(&[v], results, len, |src, dst| coder.update(d, src[0], dst));
    }

    #[inline]
    fn encode(&mut self, engine: &Engine, h: &mut Holdings, sources: &[VecId], results: &[(usize, usize)], len: usize) {
        let coder = &engine.coder;
        h.combine(sources, results, len, |src, dst| coder.encode(src, dst));
    }

    #[inline]
    fn decode(
        &mut self,
        decoder: &Rebuilder,
        h: &mut Holdings,
        sources: &[VecId],
        results: &[(usize, usize)],
        len: usize,
    ) {
        h.combine(sources, results, len, |src, dst| decoder.decode(src, dst));
    }
}

/// Decodes the data that could not be read.
#[inline]
pub(super) fn decode(engine: &Rc<Engine>, s: &mut State, by: &mut impl Computer) {
    let l = &engine.shared.layout;
    for i in masked(s.plan.read) {
        let v = 2 * l.n() + i;
        s.h.clear(v);
        s.h.push_buf(v, i, 0, s.touch.rows.len() as usize);
    }
    let decoder = engine.decoder(s.plan.decode, s.plan.read);
    let mut sources = [0; MAX_MEMBERS];
    let mut results = [(0, 0); MAX_MEMBERS];
    for (v, &i) in sources.iter_mut().zip(decoder.sources()) {
        *v = 2 * l.n() + i;
    }
    for (r, &i) in results.iter_mut().zip(decoder.lost()) {
        *r = (i, 0);
    }
    let rows = s.touch.rows.len() as usize;
    let (ns, nr) = (decoder.sources().len(), decoder.lost().len());
    by.decode(&decoder, &mut s.h, &sources[..ns], &results[..nr], rows);
}

/// Computes new parity and sets vectors `k..n`.
#[inline]
pub(super) fn parity(engine: &Rc<Engine>, s: &mut State, by: &mut impl Computer) {
    let l = &engine.shared.layout;
    let (k, m, n) = (l.k, l.m, l.n());
    let rows = s.touch.rows;
    let len = rows.len() as usize;
    let mut results = [(0, 0); MAX_PARITY];
    for (p, r) in results.iter_mut().enumerate().take(m) {
        *r = (k + p, 0);
    }
    if s.plan.way == Way::Modify {
        for d in masked(s.touch.touched) {
            let own = s.touch.own[d];
            // Old data become the difference.
            by.xor(engine, &mut s.h, d, d);
            let at = (own.lo - rows.lo) as usize;
            results[..m].iter_mut().for_each(|r| r.1 = at);
            s.h.clear(n + d);
            s.h.push_buf(n + d, d, 0, own.len() as usize);
            by.update(engine, &mut s.h, d, n + d, &results[..m], own.len() as usize);
        }
    } else if s.up >> k != 0 || s.kind == Kind::First {
        let mut sources = [0; MAX_DATA];
        for (d, v) in sources.iter_mut().enumerate().take(k) {
            *v = n + d;
            s.h.clear(n + d);
            let own = s.touch.own[d];
            let whole = s.touch.touched >> d & 1 != 0;
            let (lo, hi) = if whole { (own.lo - rows.lo, own.hi - rows.lo) } else { (0, 0) };
            fill(s, n + d, d, 0, lo as usize);
            if whole {
                s.h.push_vec(n + d, d);
            }
            fill(s, n + d, d, hi as usize, len);
        }
        by.encode(engine, &mut s.h, &sources[..k], &results[..m], len);
    }
    for p in k..n {
        s.h.clear(p);
        s.h.push_buf(p, p, 0, len);
    }
}

/// Appends rows `from..to` of data strip `d` as they stay.
fn fill(s: &mut State, v: usize, d: usize, from: usize, to: usize) {
    if from >= to {
        return;
    }
    if s.kind == Kind::First {
        s.h.push_zeroes(v, to - from);
    } else {
        s.h.push_buf(v, d, from, to - from);
    }
}

/// All of strip `i`, with zeroes around what is written: vector `2n + i`.
pub(super) fn whole_strip(l: &Layout, s: &mut State, i: usize) -> Span {
    let v = 2 * l.n() + i;
    s.h.clear(v);
    let span = if i >= l.k || s.touch.touched >> i & 1 != 0 { write_span(l, &s.touch, i) } else { Span::default() };
    s.h.push_zeroes(v, span.lo as usize);
    if !span.is_empty() {
        s.h.push_vec(v, i);
    }
    s.h.push_zeroes(v, (l.strip - span.hi) as usize);
    Span { lo: 0, hi: l.strip }
}
