//! The two engines behind one face. A match, not a trait object: the loop calls these several times a turn.
#![allow(unsafe_code)]

use super::sim::SimEngine;
use super::uring::{EngineStats, Uring};
use super::{Cqe, OpId, RingOp, Wait};
use std::io;
use std::os::fd::RawFd;

/// What carries out a reactor's operations.
pub(crate) enum Engine {
    /// The kernel's ring.
    Uring(Box<Uring>),
    /// A simulation.
    Sim(Box<SimEngine>),
}

impl Engine {
    /// # Safety
    /// Everything `op` points to stays valid until its last completion was reaped.
    #[inline]
    pub(crate) unsafe fn push(&self, op: &RingOp, user_data: u64) {
        match self {
            // SAFETY: passed on from the caller.
            Engine::Uring(e) => unsafe { e.push(op, user_data) },
            // SAFETY: passed on from the caller.
            Engine::Sim(e) => unsafe { e.push(op, user_data) },
        }
    }

    pub(crate) fn cancel(&self, id: OpId) {
        match self {
            Engine::Uring(e) => e.cancel(id),
            Engine::Sim(e) => e.cancel(id),
        }
    }

    pub(crate) fn cancel_all(&self) {
        match self {
            Engine::Uring(e) => e.cancel_all(),
            Engine::Sim(e) => e.cancel_all(),
        }
    }

    /// Wakes another reactor through its ring. A simulation has one reactor.
    pub(crate) fn wake_peer(&self, ring_fd: RawFd, token: u64) {
        if let Engine::Uring(e) = self {
            e.wake_peer(ring_fd, token);
        }
    }

    pub(crate) fn arm_bell(&self, fd: RawFd) {
        if let Engine::Uring(e) = self {
            e.arm_bell(fd);
        }
    }

    #[inline]
    pub(crate) fn wants_enter(&self) -> bool {
        match self {
            Engine::Uring(e) => e.wants_enter(),
            Engine::Sim(e) => e.wants_enter(),
        }
    }

    #[inline]
    pub(crate) fn has_completions(&self) -> bool {
        match self {
            Engine::Uring(e) => e.has_completions(),
            Engine::Sim(e) => e.has_completions(),
        }
    }

    #[inline]
    pub(crate) fn turn(&self, wait: Wait) -> io::Result<()> {
        match self {
            Engine::Uring(e) => e.turn(wait),
            Engine::Sim(e) => {
                e.turn(wait);
                Ok(())
            }
        }
    }

    #[inline]
    pub(crate) fn reap(&self, out: &mut Vec<Cqe>, max: usize) {
        match self {
            Engine::Uring(e) => e.reap(out, max),
            Engine::Sim(e) => e.reap(out, max),
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        match self {
            Engine::Uring(e) => e.stats(),
            Engine::Sim(e) => e.stats(),
        }
    }

    pub(crate) fn inject_sq_full(&self, n: u32) {
        match self {
            Engine::Uring(e) => e.inject_sq_full.set(n),
            Engine::Sim(e) => e.inject_sq_full.set(n),
        }
    }

    /// The kernel's ring, which alone has sockets and registered memory.
    #[inline]
    pub(crate) fn uring(&self) -> Option<&Uring> {
        match self {
            Engine::Uring(e) => Some(e),
            Engine::Sim(_) => None,
        }
    }
}
