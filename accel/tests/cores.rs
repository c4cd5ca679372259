//! Accel cores: what they compute is the same, what waits is bounded, and nobody's memory is used after its time.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use longshore_accel::cores::{CoresOptions, QUEUE};
use longshore_accel::erasure::MatrixKind;
use longshore_accel::{Accel, Capability, Channel, Cores, Engine, Job, JobOwner, Offload, Operation};
use longshore_reactor::{Options, Reactor, Runtime};

/// Memory of one job, and what waits for it.
struct Owner {
    memory: RefCell<Vec<Vec<u8>>>,
    back: RefCell<Option<Box<Job>>>,
    waker: RefCell<Option<Waker>>,
    /// Told when it goes.
    gone: Option<Arc<AtomicBool>>,
}

impl Owner {
    fn new(memory: Vec<Vec<u8>>) -> Rc<Owner> {
        Rc::new(Owner { memory: RefCell::new(memory), back: RefCell::default(), waker: RefCell::default(), gone: None })
    }

    /// Lists of pieces of the memory, cut at odd places.
    fn lists(&self, job: &mut Job, chunks: impl Iterator<Item = usize>) {
        for (i, chunk) in chunks.enumerate() {
            let mut memory = self.memory.borrow_mut();
            let bytes = &mut memory[chunk];
            let cut = (bytes.len() / 3 + i * 7).min(bytes.len());
            let (a, b) = bytes.split_at_mut(cut);
            let pieces = [(a.as_mut_ptr(), a.len()), (b.as_mut_ptr(), b.len())];
            job_list(job, pieces);
        }
    }

    async fn ended(&self) -> Box<Job> {
        poll_fn(|cx| {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            self.back.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[allow(unsafe_code)]
fn job_list(job: &mut Job, pieces: [(*mut u8, usize); 2]) {
    // SAFETY: the tests' memory lies in vectors of `Owner`, which are not touched before the job is back and has been cleared; one that never comes
    // back is leaked with its owner. No two lists of a step are of one vector.
    unsafe { job.list(pieces.into_iter()) }
}

impl JobOwner for Owner {
    fn job_done(self: Rc<Self>, job: Box<Job>) {
        *self.back.borrow_mut() = Some(job);
        self.waker.borrow_mut().take().into_iter().for_each(Waker::wake);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.gone.iter().for_each(|g| g.store(true, SeqCst));
    }
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + (i >> 8) * 7 + seed * 101) as u8).collect()
}

/// Runs `f` on core 0, with accel cores 0 and 1: two threads there, of which each runs when it has work.
fn run<F: Future<Output = ()> + 'static>(
    cpus: Vec<u32>,
    options: CoresOptions,
    f: impl FnOnce(Reactor, Accel) -> F + Send + 'static,
) {
    let cores = Cores::start(cpus, options).unwrap();
    let runtime = Runtime::start(Options { pin: false, ..Options::default() }).unwrap();
    let done = runtime.cores()[0].spawn(move |r| async move { f(r.clone(), Accel::default().with_cores(cores)).await });
    done.wait_timeout(Duration::from_secs(60)).expect("it ends in time").unwrap();
    runtime.stop();
}

/// A job held at a gate that opens once for each message.
fn gate() -> (Sender<()>, CoresOptions, Arc<AtomicUsize>) {
    let (open, opened): (_, Receiver<()>) = channel();
    let (opened, reached) = (Mutex::new(opened), Arc::new(AtomicUsize::new(0)));
    let here = reached.clone();
    let before = move || {
        here.fetch_add(1, SeqCst);
        let _ = opened.lock().unwrap().recv();
        Duration::ZERO
    };
    (open, CoresOptions { least: 0, before: Some(Arc::new(before)) }, reached)
}

fn submit(offload: &Offload, job: Box<Job>, owner: &Rc<Owner>) -> Result<(), Box<Job>> {
    offload.submit(job, owner.clone())
}

#[test]
fn every_operation_gives_the_same_on_an_accel_core() {
    run(vec![0, 1], CoresOptions::default(), |_, accel| async move {
        let (engines, offload) = (accel.channel(), accel.offload().unwrap());
        let coder = engines.coder(MatrixKind::Cauchy, 5, 3).unwrap();
        let rebuilder = coder.decoder(&[1, 6], &[0, 2, 3, 4, 5, 7]).unwrap();
        let mut job = engines.job();
        for len in [1, 64, 4096, 100_003] {
            let memory: Vec<_> = (0..8).map(|i| bytes(i, len)).collect();
            // Data 0 takes on data 4, parity follows; then parity of all anew, of it what was lost, and checksums.
            let mut here = memory.clone();
            let delta = here[4].clone();
            engines.xor([&mut here[0][..]], [&delta[..]]);
            let (data, parity) = here.split_at_mut(5);
            let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
            coder.update(2, &data[0], &mut out);
            let updated: Vec<u8> = parity.concat();
            let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
            let src: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
            coder.encode(&src, &mut out);

            let owner = Owner::new(memory);
            owner.lists(&mut job, [4, 0].into_iter());
            job.xor(len);
            owner.lists(&mut job, [0, 5, 6, 7].into_iter());
            job.update(&coder, 2, len);
            [5, 6, 7].into_iter().for_each(|i| {
                owner.lists(&mut job, [i].into_iter());
                job.crc32c(i, len);
            });
            assert_eq!(job.bytes(), 5 * len as u64);
            assert!(submit(&offload, job, &owner).is_ok());
            job = owner.ended().await;
            let crcs: Vec<u32> = (5..8).map(|i| job.crc(i)).collect();
            job.clear();
            assert_eq!(owner.memory.borrow()[5..].concat(), updated, "{len} bytes");
            let one = |p: &[u8]| engines.crc32c(0, [p]);
            assert_eq!(crcs, updated.chunks(len).map(one).collect::<Vec<_>>());

            owner.lists(&mut job, 0..8);
            job.encode(&coder, len);
            assert!(submit(&offload, job, &owner).is_ok());
            job = owner.ended().await;
            job.clear();
            assert_eq!(owner.memory.borrow()[..], here[..], "{len} bytes");

            owner.memory.borrow_mut()[1].fill(0xee);
            owner.memory.borrow_mut()[6].fill(0xee);
            let sources = rebuilder.sources().to_vec();
            owner.lists(&mut job, sources.into_iter().chain([1, 6]));
            job.decode(&rebuilder, len);
            assert!(submit(&offload, job, &owner).is_ok());
            job = owner.ended().await;
            job.clear();
            assert_eq!(owner.memory.borrow()[..], here[..], "{len} bytes");
        }
        let stats = accel.stats();
        let of = |op: Operation| (stats[op as usize].offloaded, stats[op as usize].queue_full);
        assert_eq!([of(Operation::EcEncode), of(Operation::EcUpdate), of(Operation::EcDecode)], [(4, 0); 3]);
        assert_eq!((of(Operation::Xor), of(Operation::Crc32c)), ((4, 0), (12, 0)));
        let cores = accel.cores().unwrap().stats();
        assert_eq!(cores.iter().map(|c| (c.jobs, c.queued)).collect::<Vec<_>>(), [(6, 0); 2], "one after the other");
    });
}

fn xor_job(engines: &Channel, owner: &Owner) -> Box<Job> {
    let mut job = engines.job();
    owner.lists(&mut job, [0, 1].into_iter());
    job.xor(4096);
    job
}

fn two() -> Vec<Vec<u8>> {
    vec![bytes(1, 4096), bytes(2, 4096)]
}

#[test]
fn a_reactor_goes_on_while_its_job_is_under_way() {
    let (open, options, reached) = gate();
    run(vec![1], options, move |r, accel| async move {
        let (engines, offload) = (accel.channel(), accel.offload().unwrap());
        let owner = Owner::new(two());
        assert!(submit(&offload, xor_job(&engines, &owner), &owner).is_ok());
        while reached.load(SeqCst) == 0 {
            r.yield_now().await;
        }
        let turns = r.handle().stats().turns;
        for _ in 0..1000 {
            r.yield_now().await;
        }
        assert!(r.handle().stats().turns >= turns + 1000 && owner.back.borrow().is_none());
        assert_eq!(accel.stats()[Operation::Xor as usize].executed, 0);
        open.send(()).unwrap();
        owner.ended().await.clear();
        assert_ne!(owner.memory.borrow()[1], bytes(2, 4096));
        assert_eq!(accel.stats()[Operation::Xor as usize].offloaded_bytes, 4096);
    });
}

#[test]
fn who_finds_the_queue_full_gets_the_job_back_and_it_is_counted() {
    let (open, options, _) = gate();
    run(vec![1], options, move |_, accel| async move {
        let (engines, offload) = (accel.channel(), accel.offload().unwrap());
        let another = accel.offload().unwrap();
        let owners: Vec<_> = (0..QUEUE + 2).map(|_| Owner::new(two())).collect();
        let full: Vec<_> = owners
            .iter()
            .enumerate()
            .filter_map(|(i, o)| {
                // One of the two that are too many comes by another way to the same core.
                let by = if i == QUEUE { &another } else { &offload };
                submit(by, xor_job(&engines, o), o).err()
            })
            .collect();
        assert_eq!(full.len(), 2);
        for mut job in full {
            job.run();
            offload.count(&job);
        }
        owners.iter().for_each(|_| open.send(()).unwrap());
        for owner in &owners[..QUEUE] {
            owner.ended().await.clear();
        }
        let xor = accel.stats()[Operation::Xor as usize];
        assert_eq!((xor.executed, xor.offloaded, xor.queue_full), (QUEUE as u64 + 2, QUEUE as u64, 2));
        let first = owners[0].memory.borrow().clone();
        assert!(owners.iter().all(|o| *o.memory.borrow() == first), "those done here are the same");
        assert_eq!(accel.cores().unwrap().stats()[0].queued, 0);
    });
}

#[test]
fn jobs_end_though_the_way_that_they_came_is_dropped() {
    let (open, options, _) = gate();
    run(vec![1], options, move |_, accel| async move {
        let (engines, offload) = (accel.channel(), accel.offload().unwrap());
        let owners = [Owner::new(two()), Owner::new(two())];
        owners.iter().for_each(|o| assert!(submit(&offload, xor_job(&engines, o), o).is_ok()));
        drop((offload, engines));
        (0..2).for_each(|_| open.send(()).unwrap());
        for owner in owners {
            owner.ended().await.clear();
        }
        assert_eq!(accel.stats()[Operation::Xor as usize].offloaded, 2);
    });
}

#[test]
fn a_reactor_that_stops_lets_no_job_begin_any_more_and_leaks_their_memory() {
    let (open, options, reached) = gate();
    let cores = Cores::start(vec![1], options).unwrap();
    let runtime = Runtime::start(Options { pin: false, ..Options::default() }).unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let told = gone.clone();
    let mine = cores.clone();
    let submitted = runtime.cores()[0].call(move |_| {
        let accel = Accel::default().with_cores(mine);
        let (engines, offload) = (accel.channel(), accel.offload().unwrap());
        for _ in 0..3 {
            let mut owner = Owner::new(two());
            Rc::get_mut(&mut owner).unwrap().gone = Some(told.clone());
            let job = xor_job(&engines, &owner);
            assert!(offload.submit(job, owner).is_ok());
        }
    });
    submitted.wait().unwrap();
    while reached.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    runtime.stop();
    assert_eq!(cores.stats()[0].queued, 0, "they count no more");
    drop(open);
    // Held at its gate the first had not begun: now none may. Another reactor's job comes behind what was there, and is done.
    let runtime = Runtime::start(Options { pin: false, ..Options::default() }).unwrap();
    let mine = cores.clone();
    let done = runtime.cores()[0].spawn(move |_| async move {
        let accel = Accel::default().with_cores(mine);
        let offload = accel.offload().unwrap();
        let owner = Owner::new(two());
        assert!(submit(&offload, xor_job(&accel.channel(), &owner), &owner).is_ok());
        owner.ended().await.clear();
    });
    done.wait().unwrap();
    runtime.stop();
    assert_eq!(cores.stats()[0].jobs, 1);
    assert!(!gone.load(SeqCst), "memory that a job was to use is kept");
}

/// Adds when it is let, and says where it is.
#[derive(Default)]
struct Held {
    began: AtomicBool,
    stopping: AtomicBool,
    ended: AtomicBool,
}

struct HeldEngine(Arc<Held>);

impl Engine for HeldEngine {
    fn name(&self) -> &'static str {
        "held"
    }

    fn capabilities(&self) -> Vec<Capability> {
        let xor = Operation::Xor;
        vec![Capability { operation: xor, algorithms: &[], limits: &[], hardware: false, implementation: "" }]
    }

    fn xor(&self, _: &mut [u8], _: &[u8]) {
        self.0.began.store(true, SeqCst);
        while !self.0.stopping.load(SeqCst) {
            std::thread::yield_now();
        }
        // Time enough for who does not wait.
        (0..20_000).for_each(|_| std::thread::yield_now());
        self.0.ended.store(true, SeqCst);
    }
}

#[test]
fn a_reactor_that_stops_waits_for_the_job_that_runs() {
    let held = Arc::new(Held::default());
    let engine = HeldEngine(held.clone());
    // Kept until the end: whoever drops the last reference waits for the accel cores.
    let cores = Cores::start(vec![1], CoresOptions::default()).unwrap();
    let runtime = Runtime::start(Options { pin: false, ..Options::default() }).unwrap();
    let mine = cores.clone();
    let submitted = runtime.cores()[0].call(move |_| {
        let accel = Accel::new(vec![Arc::new(engine)]);
        accel.assign(Operation::Xor, "held").unwrap();
        let accel = accel.with_cores(mine);
        let (engines, offload) = (accel.channel(), accel.offload().unwrap());
        let owner = Owner::new(two());
        assert!(offload.submit(xor_job(&engines, &owner), owner).is_ok());
    });
    submitted.wait().unwrap();
    while !held.began.load(SeqCst) {
        std::thread::yield_now();
    }
    held.stopping.store(true, SeqCst);
    runtime.stop();
    assert!(held.ended.load(SeqCst));
    drop(cores);
}

#[test]
fn cpus_that_are_not_there_or_named_twice_are_refused() {
    let e = Cores::start(vec![1000], CoresOptions::default()).unwrap_err().to_string();
    assert!(e.contains("CPU 1000 is not among those this process may run on"), "{e}");
    assert!(Cores::start(vec![0, 0], CoresOptions::default()).is_err());
}
