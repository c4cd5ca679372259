//! Starting and stopping the reactor threads.

use crate::engine::Engine;
use crate::engine::uring::Uring;
use crate::error::{StartError, explain_ring, too_old};
use crate::options::Options;
use crate::reactor::{Core, Reactor};
use crate::shared::{CoreHandle, Shared};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, mpsc};
use std::thread::JoinHandle;

/// The reactor threads. Dropping it stops them too.
pub struct Runtime {
    cores: Vec<CoreHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Runtime {
    /// Starts one reactor per core of `o.cores` and returns when all of them run.
    pub fn start(o: Options) -> Result<Runtime, StartError> {
        let mut seen = std::collections::HashSet::new();
        if o.cores.is_empty() {
            return Err(StartError::BadCores("it is empty".into()));
        }
        if let Some(c) = o.cores.iter().find(|&&c| !seen.insert(c)) {
            return Err(StartError::BadCores(format!("CPU {c} is named twice")));
        }
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        if too_old(&release) {
            return Err(StartError::KernelTooOld(release));
        }
        let allowed = allowed_cpus();
        if o.pin
            && let Some(&cpu) = o.cores.iter().find(|c| !allowed.contains(c))
        {
            return Err(StartError::CpuNotAllowed { cpu, allowed });
        }
        if o.raise_nofile {
            raise_nofile();
        }
        crate::clock::tick_rate();

        let cores: Vec<CoreHandle> = o
            .cores
            .iter()
            .enumerate()
            .map(|(i, &cpu)| Shared::new(i, cpu, o.inbox, false).map(|s| CoreHandle(Arc::new(s))))
            .collect::<io::Result<_>>()
            .map_err(|e| StartError::Resource("an eventfd", e))?;
        let spare: Vec<usize> = allowed.iter().filter(|c| !o.cores.contains(c)).map(|&c| c as usize).collect();
        let (report, reports) = mpsc::channel();
        let start = Arc::new(Barrier::new(cores.len() + 1));
        let end = Arc::new(Barrier::new(cores.len()));
        let mut runtime = Runtime { cores: cores.clone(), threads: Vec::new() };
        let mut failed = None;
        for core in &cores {
            let (o, core, peers, spare) = (o.clone(), core.clone(), cores.clone(), spare.clone());
            let (report, start, end) = (report.clone(), start.clone(), end.clone());
            let name = format!("{}-{}", o.name, core.index());
            let body = move || thread(&o, core, peers, &spare, report, &start, &end);
            match std::thread::Builder::new().name(name).spawn(body) {
                Ok(t) => runtime.threads.push(t),
                Err(e) => failed = Some(StartError::Thread(e)),
            }
        }
        if let Some(e) = failed {
            // Those that started wait at the barrier for ever; where threads run out nothing works anyway.
            runtime.threads.clear();
            runtime.cores.clear();
            return Err(e);
        }
        for _ in &cores {
            match reports.recv() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => failed = Some(e),
                Err(_) => failed = Some(StartError::Thread(io::ErrorKind::BrokenPipe.into())),
            }
        }
        match failed {
            None => {
                start.wait();
                Ok(runtime)
            }
            Some(e) => {
                for c in &cores {
                    c.0.closed.store(true, Ordering::SeqCst);
                }
                start.wait();
                runtime.join();
                Err(e)
            }
        }
    }

    /// The reactors, by index.
    pub fn cores(&self) -> &[CoreHandle] {
        &self.cores
    }

    /// Stops in order: connections are closed, tasks dropped, operations cancelled and reaped; then the threads end.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        for c in &self.cores {
            c.send(|r| r.request_stop());
        }
        for t in self.threads.drain(..) {
            // A reactor thread that panics aborts the process, so there is no error to see here.
            let _ = t.join();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.join();
    }
}

fn thread(
    o: &Options,
    core: CoreHandle,
    peers: Vec<CoreHandle>,
    spare: &[usize],
    report: mpsc::Sender<Result<(), StartError>>,
    start: &Barrier,
    end: &Barrier,
) {
    let made = setup(o, &core, peers, spare);
    let (reactor, result) = match made {
        Ok(r) => (Some(r), Ok(())),
        Err(e) => (None, Err(e)),
    };
    let _ = report.send(result);
    start.wait();
    let Some(reactor) = reactor else { return };
    if core.0.closed.load(Ordering::SeqCst) {
        return;
    }
    reactor.enter_thread();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        reactor.run();
        reactor.quiesce();
    }));
    if let Err(p) = ran {
        // Unwinding further would free memory that the kernel still writes to.
        let text = p.downcast_ref::<&str>().copied().or(p.downcast_ref::<String>().map(String::as_str));
        let line = format!("reactor {} panicked: {}\n", core.index(), text.unwrap_or("(no message)"));
        let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
        std::process::abort();
    }
    // A peer that is still stopping may post to this ring: close it only when all have stopped.
    end.wait();
    core.0.ring_fd.store(-1, Ordering::Release);
    Reactor::leave_thread();
    drop(reactor);
}

fn setup(o: &Options, core: &CoreHandle, peers: Vec<CoreHandle>, spare: &[usize]) -> Result<Reactor, StartError> {
    if o.pin {
        let mut set = CpuSet::new();
        set.set(core.cpu() as usize);
        if let Err(e) = sched_setaffinity(None, &set) {
            tracing::warn!("reactor {} is not pinned to CPU {}: {e}", core.index(), core.cpu());
        }
    }
    core.0.tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    let engine = Uring::within_limits(&o.ring).map_err(|e| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        explain_ring(e, &release, disabled.as_deref())
    })?;
    engine.limit_workers(o.workers, spare);
    core.0.ring_fd.store(engine.fd(), Ordering::Release);
    let engine = Engine::Uring(Box::new(engine));
    Core::build(o, core.0.clone(), peers, engine).map_err(|e| StartError::Resource("address space for DMA memory", e))
}

fn allowed_cpus() -> Vec<u32> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&c| set.is_set(c)).map(|c| c as u32).collect(),
        Err(_) => (0..CpuSet::MAX_CPU as u32).collect(),
    }
}

fn raise_nofile() {
    let l = getrlimit(Resource::Nofile);
    if l.current != l.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: l.maximum, maximum: l.maximum });
    }
}
