//! The progress line, on a terminal only.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::units;

/// A thread that shows, every second, how fast things go. Dropping it removes the line.
pub(crate) struct Progress {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows what `done` gains each second, of requests of `io_size` bytes, until `total` seconds are over.
    pub(crate) fn start(done: Arc<AtomicU64>, io_size: u32, total: f64, quiet: bool) -> Progress {
        let stop = Arc::new(AtomicBool::new(false));
        if quiet || !std::io::stderr().is_terminal() {
            return Progress { stop, thread: None };
        }
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let (mut last, mut last_at) = (0, start);
            loop {
                std::thread::park_timeout(Duration::from_secs(1).saturating_sub(last_at.elapsed()));
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if last_at.elapsed() < Duration::from_millis(900) {
                    continue;
                }
                let (now, n) = (Instant::now(), done.load(Ordering::Relaxed));
                let iops = (n - last) as f64 / (now - last_at).as_secs_f64();
                (last, last_at) = (n, now);
                let mib = iops * f64::from(io_size) / f64::from(1 << 20);
                let elapsed = (now - start).as_secs_f64();
                let iops = units::si(iops);
                let _ =
                    write!(std::io::stderr(), "\r\x1b[K{elapsed:.0} s of {total:.0} s   {iops}IOPS   {mib:.1} MiB/s");
            }
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        });
        Progress { stop, thread: Some(thread) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(t) = self.thread.take() {
            t.thread().unpark();
            let _ = t.join();
        }
    }
}
