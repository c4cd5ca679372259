//! `ceiling`: what two processes on this machine can exchange over loopback when nobody does any storage work.
//!
//! The requesting side runs here, the serving side in a process of its own, each on its CPU, with the message sizes of
//! NVMe/TCP: 72 bytes of command, 24 bytes of header before each payload, 24 bytes of response. Payload is received into a
//! buffer per outstanding request, as an initiator does.

mod conn;
mod epoll;
mod message;
mod uring;

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{CeilingArgs, CeilingShape, Engine, PeerArgs, Workload};
use crate::cpu::{self, CpuTime};
use crate::units;
use conn::{Client, Conn, Region, Role, Server};

/// How long an idle side spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Load before the measurement.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long the sides wait for each other at start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// True if payload flows to the requesting side.
fn reads(shape: &CeilingShape) -> bool {
    matches!(shape.workload, Workload::Read | Workload::Randread)
}

/// Requests outstanding on connection `i`.
fn depth_of(shape: &CeilingShape, i: u32) -> usize {
    (shape.io_depth / shape.num_qpairs + u32::from(i < shape.io_depth % shape.num_qpairs)) as usize
}

fn check(shape: &CeilingShape) -> Result<(), String> {
    if matches!(shape.workload, Workload::Rw | Workload::Randrw | Workload::Verify) {
        return Err(format!("-w {}: the raw-socket loop goes one way: use read or write", shape.workload.name()));
    }
    if shape.num_qpairs > shape.io_depth {
        return Err(format!("-P {} connections need at least as many requests outstanding (-q)", shape.num_qpairs));
    }
    let memory = u64::from(shape.io_depth) * (u64::from(shape.io_size) + 72);
    if memory > 4 << 30 {
        return Err(format!("-q times -o is {} of buffers: at most 4 GiB", units::size(memory)));
    }
    Ok(())
}

/// What one engine reached.
struct Measured {
    engine: Engine,
    requests: u64,
    seconds: f64,
    client: CpuTime,
    server: CpuTime,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// Runs the loop and prints what it reached.
pub(crate) fn run(args: &CeilingArgs) -> Result<(), String> {
    check(&args.shape)?;
    let cpus = match &args.core_mask {
        Some(c) => c.0.clone(),
        None => cpu::allowed().into_iter().take(2).collect(),
    };
    let (client_cpu, server_cpu) = match cpus[..] {
        [a] => (a, a),
        [a, b] => (a, b),
        _ => return Err(format!("-c names {} CPUs: give one for each of the two sides", cpus.len())),
    };
    let engines: &[Engine] = match args.engine {
        Engine::Best => &[Engine::Epoll, Engine::Uring],
        Engine::Epoll => &[Engine::Epoll],
        Engine::Uring => &[Engine::Uring],
    };
    cpu::pin(client_cpu)?;
    let mut results = Vec::new();
    for &engine in engines {
        match measure(args, engine, server_cpu) {
            Ok(m) => results.push(m),
            // One engine is enough for an answer: kernels and containers without io_uring exist.
            Err(e) if args.engine == Engine::Best => {
                eprintln!("longshore-perf: engine {} left out: {e}", engine.name());
            }
            Err(e) => return Err(e),
        }
    }
    let best =
        results.iter().max_by(|a, b| a.per_second().total_cmp(&b.per_second())).ok_or("neither engine could run")?;
    if args.json {
        println!("{:#}", to_json(args, &results, best, [client_cpu, server_cpu]));
    } else {
        print(args, &results, best, [client_cpu, server_cpu]);
    }
    Ok(())
}

/// Ends the serving process if it did not end by itself when its connections closed.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(args: &CeilingArgs, engine: Engine, server_cpu: u32) -> Result<Measured, String> {
    let shape = &args.shape;
    let mut peer = start_peer(shape, engine, server_cpu)?;
    let mut line = String::new();
    let out = peer.0.stdout.take().ok_or("the serving side has no output")?;
    BufReader::new(out).read_line(&mut line).map_err(|e| format!("no answer of the serving side: {e}"))?;
    let port: u16 = line.trim().parse().map_err(|_| "the serving side could not start".to_owned())?;

    let done = Rc::new(Cell::new(0));
    let region = Region::new(shape, !reads(shape));
    let mut conns = Vec::new();
    for i in 0..shape.num_qpairs {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).map_err(|e| format!("connect to the serving side: {e}"))?;
        prepare(&stream, shape)?;
        let depth = depth_of(shape, i);
        let role = Client::new(shape, depth, u64::from(i) + 1, done.clone());
        conns.push(Conn::new(stream, depth, shape, reads(shape), region.clone(), role));
    }

    let pid = peer.0.id();
    let sample = || (Instant::now(), done.get(), CpuTime::of_process(std::process::id()), CpuTime::of_process(pid));
    let length = Duration::from_secs_f64(args.time.max(0.01));
    let started = Instant::now();
    let (mut first, mut last) = (None, None);
    let mut stalled = (started, 0);
    let mut turn = 0u32;
    let go_on = || {
        // Reading the clock each turn would count at depth 1.
        turn = turn.wrapping_add(1);
        if !turn.is_multiple_of(8) && shape.io_depth < 8 {
            return true;
        }
        let now = Instant::now();
        if stalled.1 != done.get() {
            stalled = (now, done.get());
        } else if now - stalled.0 > START_TIMEOUT {
            return false;
        }
        if first.is_none() && now - started >= WARM_UP {
            first = Some(sample());
        }
        if first.is_some_and(|(t, ..)| now - t >= length) {
            last = Some(sample());
            return false;
        }
        true
    };
    run_engine(engine, &mut conns, go_on).map_err(|e| format!("engine {}: {e}", engine.name()))?;
    drop(conns);
    let (Some(a), Some(b)) = (first, last) else {
        return Err(format!("engine {}: the two sides stopped hearing of each other", engine.name()));
    };
    Ok(Measured {
        engine,
        requests: b.1 - a.1,
        seconds: (b.0 - a.0).as_secs_f64(),
        client: b.2 - a.2,
        server: b.3 - a.3,
    })
}

/// Sets a connection up as NVMe/TCP's ends do.
fn prepare(stream: &TcpStream, shape: &CeilingShape) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| format!("TCP_NODELAY: {e}"))?;
    match shape.receive_room {
        0 => Ok(()),
        n => longshore_reactor::net::widen_receive_buffer(stream, n).map_err(|e| format!("--receive-room {n}: {e}")),
    }
}

fn start_peer(shape: &CeilingShape, engine: Engine, cpu: u32) -> Result<Peer, String> {
    let exe =
        std::env::current_exe().map_err(|e| format!("cannot find this program to start its serving side: {e}"))?;
    let value = |flag: &str, v: &dyn std::fmt::Display| format!("--{flag}={v}");
    std::process::Command::new(exe)
        .arg("ceiling-peer")
        .args([
            value("io-depth", &shape.io_depth),
            value("io-size", &shape.io_size),
            value("num-qpairs", &shape.num_qpairs),
            value("io-pattern", &shape.workload.name()),
            value("payload", &shape.payload),
            value("in-capsule", &shape.in_capsule),
            value("receive-room", &shape.receive_room),
            value("engine", &engine.name()),
            value("cpu", &cpu),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Peer)
        .map_err(|e| format!("cannot start the serving side: {e}"))
}

/// The serving side: says its port, answers until every connection closed.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), String> {
    let shape = &args.shape;
    check(shape)?;
    if let Some(c) = args.cpu {
        cpu::pin(c)?;
    }
    let region = Region::new(shape, reads(shape));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("listen on 127.0.0.1: {e}"))?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    let mut out = std::io::stdout();
    writeln!(out, "{port}").and_then(|()| out.flush()).map_err(|e| e.to_string())?;

    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + START_TIMEOUT;
    let mut conns = Vec::new();
    while conns.len() < shape.num_qpairs as usize {
        match listener.accept() {
            Ok((stream, _)) => {
                prepare(&stream, shape)?;
                stream.set_nonblocking(false).map_err(|e| e.to_string())?;
                let depth = depth_of(shape, conns.len() as u32);
                conns.push(Conn::new(stream, depth, shape, !reads(shape), region.clone(), Server::new(shape)));
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(format!("accept: {e}")),
        }
    }
    run_engine(args.engine, &mut conns, || true).map_err(|e| format!("engine {}: {e}", args.engine.name()))
}

fn run_engine<R: Role>(engine: Engine, conns: &mut [Conn<R>], go_on: impl FnMut() -> bool) -> std::io::Result<()> {
    match engine {
        Engine::Epoll => epoll::run(conns, go_on),
        Engine::Uring | Engine::Best => uring::run(conns, go_on),
    }
}

fn mib_per_second(args: &CeilingArgs, m: &Measured) -> f64 {
    m.per_second() * f64::from(args.shape.io_size) / f64::from(1 << 20)
}

fn print(args: &CeilingArgs, results: &[Measured], best: &Measured, cpus: [u32; 2]) {
    let s = &args.shape;
    let direction = if reads(s) { "read" } else { "write" };
    println!(
        "Raw sockets over loopback: {direction}, {} payload ({}), {} connection{} x {} outstanding, {:.1} s",
        units::size(u64::from(s.io_size)),
        match s.payload {
            crate::cli::Payload::Hot => "hot".to_owned(),
            crate::cli::Payload::Region(n) => format!("out of {}", units::size(n)),
        },
        s.num_qpairs,
        if s.num_qpairs == 1 { "" } else { "s" },
        match (s.io_depth / s.num_qpairs, s.io_depth % s.num_qpairs) {
            (n, 0) => n.to_string(),
            (n, _) => format!("{n}-{}", n + 1),
        },
        best.seconds,
    );
    println!(
        "{:8} {:>12} {:>10}   {:>23}   {:>23}",
        "engine",
        "k req/s",
        "MiB/s",
        format!("CPU {} asks, usr+sys %", cpus[0]),
        format!("CPU {} serves, usr+sys %", cpus[1])
    );
    for m in results {
        let share = |c: CpuTime| format!("{:.0} + {:.0}", 100.0 * c.user / m.seconds, 100.0 * c.kernel / m.seconds);
        println!(
            "{:8} {:>12.1} {:>10.1}   {:>23}   {:>23}{}",
            m.engine.name(),
            m.per_second() / 1e3,
            mib_per_second(args, m),
            share(m.client),
            share(m.server),
            if results.len() > 1 && std::ptr::eq(m, best) { "   <- ceiling" } else { "" }
        );
    }
}

fn to_json(args: &CeilingArgs, results: &[Measured], best: &Measured, cpus: [u32; 2]) -> Value {
    let s = &args.shape;
    let side = |c: CpuTime, seconds: f64| json!({ "user": c.user / seconds, "kernel": c.kernel / seconds });
    let engine = |m: &Measured| {
        json!({
            "engine": m.engine.name(),
            "requests": m.requests,
            "seconds": m.seconds,
            "iops": m.per_second(),
            "mib_per_s": mib_per_second(args, m),
            "client_cpu": side(m.client, m.seconds),
            "server_cpu": side(m.server, m.seconds),
        })
    };
    json!({
        "schema": "longshore-perf/1",
        "kind": "ceiling",
        "version": env!("CARGO_PKG_VERSION"),
        "job": {
            "direction": if reads(s) { "read" } else { "write" },
            "io_size": s.io_size,
            "io_depth": s.io_depth,
            "connections": s.num_qpairs,
            "payload": s.payload.to_string(),
            "in_capsule": s.in_capsule,
            "receive_room": s.receive_room,
            "client_cpu": cpus[0],
            "server_cpu": cpus[1],
        },
        "engines": results.iter().map(engine).collect::<Vec<_>>(),
        "best": best.engine.name(),
        "iops": best.per_second(),
        "mib_per_s": mib_per_second(args, best),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(engine: Engine, line: &str) -> u64 {
        use clap::Parser;
        let args = ["longshore-perf", "ceiling"].into_iter().chain(line.split_whitespace());
        let Some(crate::cli::Command::Ceiling(args)) = crate::cli::Cli::parse_from(args).command else { panic!() };
        let shape = args.shape;
        check(&shape).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = shape.clone();
        let server = std::thread::spawn(move || {
            let region = Region::new(&served, reads(&served));
            let mut conns: Vec<_> = (0..served.num_qpairs)
                .map(|i| {
                    let s = listener.accept().unwrap().0;
                    Conn::new(s, depth_of(&served, i), &served, !reads(&served), region.clone(), Server::new(&served))
                })
                .collect();
            run_engine(engine, &mut conns, || true).unwrap();
        });
        let done = Rc::new(Cell::new(0));
        let region = Region::new(&shape, !reads(&shape));
        let mut conns: Vec<_> = (0..shape.num_qpairs)
            .map(|i| {
                let s = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let depth = depth_of(&shape, i);
                let role = Client::new(&shape, depth, 1, done.clone());
                Conn::new(s, depth, &shape, reads(&shape), region.clone(), role)
            })
            .collect();
        run_engine(engine, &mut conns, || done.get() < 2000).unwrap();
        assert!(conns.iter().all(|c| engine == Engine::Uring || !c.closed), "a stream did not parse");
        drop(conns);
        server.join().unwrap();
        done.get()
    }

    #[test]
    fn each_engine_carries_each_direction_and_spread_of_connections() {
        for engine in [Engine::Epoll, Engine::Uring] {
            for line in [
                "-q 1",
                "-q 128 -P 3",
                "-q 4 -o 300000 -P 2",
                "-w write -q 16 -P 4",
                "-w write -q 8 -o 128K -P 2 --payload 1M",
                "-q 64 --payload 1M",
            ] {
                assert!(exchange(engine, line) >= 2000, "{engine:?} {line}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        use clap::Parser;
        for line in ["-w randrw", "-q 2 -P 3", "-q 65536 -o 16M"] {
            let args = ["longshore-perf", "ceiling"].into_iter().chain(line.split_whitespace());
            let Some(crate::cli::Command::Ceiling(args)) = crate::cli::Cli::parse_from(args).command else { panic!() };
            assert!(check(&args.shape).is_err(), "{line}");
        }
    }
}
