//! Stopping in the middle of everything: it ends, nobody waits for ever, and nothing is in flight.

use longshore_reactor::file::{File, FileOptions};
use longshore_reactor::sock::{Next, Sock, SockHandler};
use longshore_reactor::{DmaBuf, Options, Reactor, Runtime, oneshot};
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Sends back more than it receives, so that it is always busy.
struct Chatter(Arc<AtomicUsize>);

impl SockHandler for Chatter {
    fn on_recv(&self, s: &Sock, data: &[u8]) -> Next {
        if s.queued() < 1 << 20 {
            s.send_bytes(data);
            s.send_buf(s.reactor().dma().alloc(16 << 10).expect("the pool is large enough"));
        }
        match data.len() % 2 {
            0 => Next::Ring,
            _ => Next::Direct { buf: s.reactor().dma().alloc(32 << 10).unwrap(), off: 0, len: 32 << 10 },
        }
    }
    fn on_direct(&self, _: &Sock, _: DmaBuf, _: usize, _: &[u8]) -> Next {
        Next::Ring
    }
    fn on_close(&self, s: &Sock, _: io::Error) {
        // Its reactor still takes part in everything.
        s.reactor().defer(|_| ());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn busy(r: &Reactor, closed: &Arc<AtomicUsize>, path: &std::path::Path) {
    for _ in 0..4 {
        let (a, b) = UnixStream::pair().unwrap();
        for (fd, first) in [(a, &b"x"[..]), (b, &[])] {
            let s = Sock::from_fd(r, fd.into(), Rc::new(Chatter(closed.clone()))).unwrap();
            s.send_bytes(first);
            s.start(Next::Ring);
        }
    }
    let file = Rc::new(File::open(path, &FileOptions { create: true, ..FileOptions::default() }).unwrap());
    for i in 0..4u64 {
        let (r2, file) = (r.clone(), file.clone());
        drop(r.spawn(async move {
            loop {
                let buf = r2.dma().alloc(64 << 10).unwrap();
                let (res, buf) = file.write_at(&r2, buf, i << 20, false).await;
                if res.is_err() || file.read_at(&r2, buf, 0).await.0.is_err() {
                    return;
                }
            }
        }));
    }
    // Messages to and fro, for ever.
    for peer in r.peers().to_vec() {
        drop(r.spawn(async move { while peer.call(|r| r.index()).await.is_ok() {} }));
    }
    r.every(Duration::from_micros(50), |r| r.defer(|_| ())).detach();
    std::mem::forget(r.poller("busy", |r| r.now() as usize % 2));
}

#[test]
fn a_runtime_stops_in_the_middle_of_everything() {
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("stopping-{}", std::process::id()));
    for round in 0..20 {
        let rt = Runtime::start(Options { cores: vec![0, 1], pin: false, ..Options::default() }).unwrap();
        let closed = Arc::new(AtomicUsize::new(0));
        for core in rt.cores() {
            let (closed, path) = (closed.clone(), path.clone());
            core.call(move |r| busy(r, &closed, &path)).wait().unwrap();
        }
        let forever: Vec<_> = rt.cores().iter().map(|c| c.spawn(|_| std::future::pending::<()>())).collect();
        while rt.cores().iter().map(|c| c.stats().ops).sum::<u64>() < 50 * round {
            std::thread::yield_now();
        }
        rt.stop();
        assert_eq!(closed.load(Ordering::Relaxed), 16, "each connection is told once");
        for f in forever {
            assert_eq!(f.wait(), Err(oneshot::Canceled));
        }
    }
    let _ = std::fs::remove_file(path);
}
