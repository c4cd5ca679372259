//! What jobs cost on the core that wants them, and what it costs to have another core do them: the figures behind `LEAST` in `accel/src/cores`.
//!
//! Usage: handover [CPU [ACCEL-CPU]]    (defaults 0 and 1)

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use longshore_accel::cores::CoresOptions;
use longshore_accel::crypto::{Key, KeySpec, TweakMode};
use longshore_accel::erasure::MatrixKind;
use longshore_accel::{Accel, Cores, Job, JobOwner};
use longshore_reactor::{Options, Reactor, Runtime};

/// Waits for one job.
#[derive(Default)]
struct Wait {
    back: RefCell<Option<Box<Job>>>,
    waker: RefCell<Option<Waker>>,
}

impl JobOwner for Wait {
    fn job_done(self: Rc<Self>, job: Box<Job>) {
        *self.back.borrow_mut() = Some(job);
        if let Some(w) = self.waker.borrow_mut().take() {
            w.wake();
        }
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn us(from: Instant) -> f64 {
    from.elapsed().as_secs_f64() * 1e6
}

/// Of an empty job: until `submit` returned, and until it was back.
async fn round_trips(r: &Reactor, accel: &Accel, pause: Duration) -> (f64, f64) {
    let offload = accel.offload().expect("there are accel cores");
    let mut job = accel.channel().job();
    let (mut there, mut all) = (Vec::new(), Vec::new());
    for _ in 0..301 {
        r.sleep(pause).await;
        let wait = Rc::new(Wait::default());
        let start = Instant::now();
        assert!(offload.submit(job, wait.clone()).is_ok());
        there.push(us(start));
        job = poll_fn(|cx| {
            *wait.waker.borrow_mut() = Some(cx.waker().clone());
            wait.back.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        all.push(us(start));
    }
    (median(there), median(all))
}

fn encode(accel: &Accel, k: usize, m: usize, strip: usize) {
    let coder = accel.channel().coder(MatrixKind::Cauchy, k, m).expect("a legal geometry");
    // As many sets as do not fit the caches.
    let sets = (64usize << 20).div_ceil((k + m) * strip).clamp(2, 64);
    let data: Vec<Vec<u8>> = (0..sets * k).map(|i| vec![i as u8; strip]).collect();
    let mut parity = vec![vec![1u8; strip]; sets * m];
    let times = (0..9 * sets).map(|i| {
        let set = i % sets;
        let src: Vec<&[u8]> = data[set * k..][..k].iter().map(|d| &d[..]).collect();
        let mut dst: Vec<&mut [u8]> = parity[set * m..][..m].iter_mut().map(|d| &mut d[..]).collect();
        let start = Instant::now();
        coder.encode(&src, &mut dst);
        us(start)
    });
    let t = median(times.collect());
    let product = (k * strip * m) as f64 / (1 << 20) as f64;
    println!(
        "encode {k:2}+{m} strips of {:4} KiB: {t:8.1} us, {product:6.2} MiB x results, {:.1} us each",
        strip >> 10,
        t / product
    );
}

fn encrypt(accel: &Accel, len: usize) {
    let material: Vec<u8> = (0..64).collect();
    let key =
        Key::new(KeySpec { name: "k".into(), tweak: TweakMode::SimpleLba, material: material.into(), file: None });
    let crypt = accel.channel().crypt(&key.expect("a key"), 4096).expect("a cipher");
    let (plain, mut cipher) = (vec![7u8; len], vec![0u8; len]);
    let times = (0..301).map(|i| {
        let start = Instant::now();
        assert!(crypt.encrypt(i, [&plain[..]], &mut cipher));
        us(start)
    });
    println!("encrypt {:4} KiB: {:8.1} us", len >> 10, median(times.collect()));
}

fn crc(accel: &Accel, len: usize) {
    let engines = accel.channel();
    let all = vec![7u8; 64 << 20];
    let times = (0..301).map(|i| {
        let at = i * len % ((64 << 20) - len);
        let start = Instant::now();
        std::hint::black_box(engines.crc32c(0, [&all[at..at + len]]));
        us(start)
    });
    println!("crc32c {:4} KiB: {:8.1} us", len >> 10, median(times.collect()));
}

fn main() {
    let mut cpus = std::env::args().skip(1).map(|a| a.parse().expect("the number of a CPU"));
    let (cpu, other) = (cpus.next().unwrap_or(0), cpus.next().unwrap_or(1));
    let cores = Cores::start(vec![other], CoresOptions::default()).expect("accel cores");
    let runtime = Runtime::start(Options { cores: vec![cpu], ..Options::default() }).expect("a reactor");
    let done = runtime.cores()[0].spawn(move |r| async move {
        let accel = Accel::default().with_cores(cores);
        for (what, pause) in [("awake", Duration::ZERO), ("asleep", Duration::from_millis(2))] {
            let (there, all) = round_trips(&r, &accel, pause).await;
            println!("an accel core that is {what}: handed over in {there:.1} us, back after {all:.1} us");
        }
        for (k, m, strip) in [
            (4, 2, 64),
            (4, 2, 256),
            (8, 2, 128),
            (8, 2, 1024),
            (16, 4, 64),
            (32, 1, 64),
            (32, 8, 16),
            (32, 8, 64),
            (32, 8, 1024),
        ] {
            encode(&accel, k, m, strip << 10);
        }
        for (k, m, strip) in [(1, 2, 1024), (1, 8, 256), (1, 8, 1024)] {
            encode(&accel, k, m, strip << 10);
        }
        [64, 128, 256].into_iter().for_each(|kib| encrypt(&accel, kib << 10));
        [64, 1024].into_iter().for_each(|kib| crc(&accel, kib << 10));
    });
    done.wait().expect("it ends");
}
