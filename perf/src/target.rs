//! NVMe/TCP targets as the command line names them: found, connected, loaded, described, or left idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_nvme::host::{Controller, ControllerState, HostOptions, Namespace, TransportId as HostId};
use longshore_nvme::wire::discovery::{adrfam, subtype, trtype};
use longshore_reactor::{CoreHandle, Options, PollMode, Runtime, oneshot};
use longshore_rpc::exec::block_on;
use serde_json::{Value, json};

use crate::cli::{RunArgs, TargetArgs};
use crate::cpu::{self, CpuTime};
use crate::describe;
use crate::load::{self, Outcome};
use crate::remote::RemoteNamespace;
use crate::trid::TransportId;
use crate::units;

fn host_options(id: &TransportId, hdgst: bool, ddgst: bool) -> HostOptions {
    HostOptions { hostnqn: id.hostnqn.clone().unwrap_or_default(), hdgst, ddgst, ..HostOptions::default() }
}

fn run_options(a: &RunArgs, id: &TransportId) -> HostOptions {
    let per_queue = a.io_depth.div_ceil(a.num_qpairs);
    let entries = a.io_queue_size.map_or(per_queue, |n| n - 1);
    let queues = a.core_mask.0.len() as u32 * a.num_qpairs + a.num_unused_qpairs;
    HostOptions {
        keep_alive: Duration::from_millis(a.keepalive.into()),
        io_depth: entries.clamp(1, u16::MAX.into()) as u16,
        io_queues: queues.clamp(127, u16::MAX.into()) as u16,
        ..host_options(id, a.enable_tcp_hdgst, a.enable_tcp_ddgst)
    }
}

fn connect(core: &CoreHandle, id: HostId, o: HostOptions) -> Result<Arc<Controller>, String> {
    let what = id.to_string();
    block_on(Controller::connect(core, id, o)).map_err(|e| format!("{what}: {e}"))
}

/// The subsystems that a transport ID stands for: itself, or those of the discovery log.
fn subsystems(core: &CoreHandle, id: &TransportId, o: &HostOptions) -> Result<Vec<HostId>, String> {
    let addr = id.resolve()?;
    if !id.is_discovery() {
        return Ok(vec![HostId::tcp(addr, id.subnqn.clone())]);
    }
    let discovery = connect(core, HostId::discovery(addr), o.clone())?;
    let log = block_on(discovery.discovery_log()).map_err(|e| format!("{}: {e}", discovery.transport_id()));
    block_on(discovery.disconnect(true));
    let mut found = Vec::new();
    for e in log?.entries {
        if e.trtype != trtype::TCP || e.subtype != subtype::NVM {
            continue;
        }
        let other = TransportId {
            traddr: e.traddr().to_owned(),
            trsvcid: e.trsvcid().parse().map_err(|_| format!("the discovery log has a port '{}'", e.trsvcid()))?,
            ipv6: Some(e.adrfam == adrfam::IPV6),
            ..id.clone()
        };
        found.push(HostId::tcp(other.resolve()?, e.subnqn.get().unwrap_or_default()));
    }
    if found.is_empty() {
        Err(format!("the discovery service at {addr} lists no subsystem that can be reached over TCP"))
    } else {
        Ok(found)
    }
}

/// Connected controllers; they are shut down in order when the run is over.
struct Controllers(Vec<Arc<Controller>>);

impl Drop for Controllers {
    fn drop(&mut self) {
        for c in &self.0 {
            // A lost one has nobody left to notify.
            block_on(c.disconnect(c.state() == ControllerState::Ready));
        }
    }
}

/// Runs load on, or verifies, what the transport IDs name.
pub(crate) fn run(a: &RunArgs) -> Result<Outcome, String> {
    if a.idle.is_some() {
        return idle(a);
    }
    // How many namespaces there are is not known yet: memory is reserved, not taken, for a good number.
    let runtime = load::runtime(a, 16)?;
    let outcome = connect_and_load(a, &runtime);
    runtime.stop();
    outcome
}

fn connect_and_load(a: &RunArgs, runtime: &Runtime) -> Result<Outcome, String> {
    let cores = runtime.cores();
    let mut controllers = Controllers(Vec::new());
    let mut devices = Vec::new();
    let mut targets = Vec::new();
    for id in &a.transport {
        let o = run_options(a, id);
        for at in subsystems(&cores[0], id, &o)? {
            let c = connect(&cores[controllers.0.len() % cores.len()], at, o.clone())?;
            controllers.0.push(c.clone());
            check_limits(a, &c)?;
            let of = |e| format!("{}: {e}", c.transport_id());
            let nsids = match id.nsid {
                Some(n) => vec![n],
                None => block_on(c.active_namespaces()).map_err(of)?,
            };
            for nsid in nsids {
                let ns = block_on(c.namespace(nsid)).map_err(|e| format!("{} ns {nsid}: {e}", c.transport_id()))?;
                devices.push(Arc::new(RemoteNamespace::new(&c, &ns, a.num_qpairs, a.io_depth)?));
                let t = c.transport_id();
                targets.push(json!({ "traddr": t.traddr().to_string(), "trsvcid": t.addr.port(), "subnqn": t.subnqn, "nsid": nsid }));
            }
        }
    }
    if devices.is_empty() {
        return Err("the target has no namespace that this host may use".into());
    }
    let unused = Unused::connect(a, &controllers.0, &cores[0])?;
    let outcome = load::on_devices(a, runtime, &devices, Value::Array(targets));
    drop(unused);
    outcome
}

fn check_limits(a: &RunArgs, c: &Controller) -> Result<(), String> {
    let Some(info) = c.info() else { return Ok(()) };
    let per_queue = a.io_depth.div_ceil(a.num_qpairs);
    if u32::from(info.io_depth) < per_queue {
        eprintln!(
            "longshore-perf: {} takes {} requests per queue pair: of {per_queue} the others wait here, and their latency counts; \
             use more -P or a smaller -q",
            c.transport_id(),
            info.io_depth,
        );
    }
    match info.max_transfer {
        n if n != 0 && u64::from(a.io_size) > n => {
            Err(format!("-o {}: {} takes at most {} per request", a.io_size, c.transport_id(), units::size(n)))
        }
        _ => Ok(()),
    }
}

/// Queue pairs that are connected and not used (-U).
struct Unused {
    _end: oneshot::Sender<()>,
}

impl Unused {
    fn connect(a: &RunArgs, controllers: &[Arc<Controller>], core: &CoreHandle) -> Result<Option<Unused>, String> {
        if a.num_unused_qpairs == 0 {
            return Ok(None);
        }
        let (end, ended) = oneshot::channel::<()>();
        let (made, wait) = oneshot::channel();
        let (all, n) = (controllers.to_vec(), a.num_unused_qpairs);
        drop(core.spawn(move |r| async move {
            let mut queues = Vec::new();
            for c in all {
                for _ in 0..n {
                    match c.io_queue(&r, None).await {
                        Ok(q) => queues.push(q),
                        Err(e) => {
                            let _ = made.send(Err(format!("-U {n}: {}: {e}", c.transport_id())));
                            return;
                        }
                    }
                }
            }
            let _ = made.send(Ok(()));
            let _ = ended.await;
        }));
        wait.wait().map_err(|_| "a reactor stopped".to_owned())??;
        Ok(Some(Unused { _end: end }))
    }
}

/// `--idle`: connects controllers and sends nothing but keep-alives.
fn idle(a: &RunArgs) -> Result<Outcome, String> {
    let n = a.idle.unwrap_or(0) as usize;
    let options = Options {
        cores: a.core_mask.0.clone(),
        // Idle controllers are about what idleness costs.
        poll: PollMode::default(),
        name: "perf".into(),
        ..Options::default()
    };
    let runtime = Runtime::start(options).map_err(|e| e.to_string())?;
    let outcome = idle_on(a, n, &runtime);
    runtime.stop();
    outcome
}

fn idle_on(a: &RunArgs, n: usize, runtime: &Runtime) -> Result<Outcome, String> {
    let cores = runtime.cores();
    let mut places = Vec::new();
    for id in &a.transport {
        let o = run_options(a, id);
        places.extend(subsystems(&cores[0], id, &o)?.into_iter().map(|at| (at, o.clone())));
    }
    let began = Instant::now();
    // Each core connects its share one by one, the cores at once.
    let shares = cores.iter().enumerate().map(|(i, core)| {
        let mine: Vec<_> = (i..n).step_by(cores.len()).map(|k| places[k % places.len()].clone()).collect();
        let own = core.clone();
        core.spawn(move |_| async move {
            let mut up = Vec::new();
            for (at, o) in mine {
                let what = at.to_string();
                match Controller::connect(&own, at, o).await {
                    Ok(c) => up.push(c),
                    Err(e) => return (up, Some(format!("{what}: {e}"))),
                }
            }
            (up, None)
        })
    });
    let shares: Vec<_> = shares.collect();
    let (mut controllers, mut failure) = (Controllers(Vec::new()), None);
    for s in shares {
        let (up, failed) = s.wait().map_err(|_| "a reactor stopped")?;
        controllers.0.extend(up);
        failure = failure.or(failed);
    }
    if let Some(e) = failure {
        return Err(format!("{} of {n} controllers connected, then {e}", controllers.0.len()));
    }
    let connecting = began.elapsed();
    let (start, cpu_start) = (Instant::now(), CpuTime::of_process(std::process::id()));
    std::thread::sleep(Duration::from_secs_f64(a.time));
    let seconds = start.elapsed().as_secs_f64();
    let used = CpuTime::of_process(std::process::id()) - cpu_start;
    let lost: Vec<_> = controllers.0.iter().filter(|c| c.state() != ControllerState::Ready).collect();
    if a.json {
        let out = json!({
            "schema": "longshore-perf/1",
            "kind": "idle",
            "version": env!("CARGO_PKG_VERSION"),
            "controllers": n,
            "connect_seconds": connecting.as_secs_f64(),
            "seconds": seconds,
            "lost": lost.len(),
            "cpu": { "user": used.user / seconds, "kernel": used.kernel / seconds },
        });
        println!("{out:#}");
    } else {
        println!(
            "{n} controllers connected in {:.2} s, idle for {seconds:.1} s, {} lost",
            connecting.as_secs_f64(),
            lost.len()
        );
        println!(
            "CPU of this side: {:.1} % user, {:.1} % kernel",
            100.0 * used.user / seconds,
            100.0 * used.kernel / seconds
        );
        if let Some(c) = lost.first() {
            println!("first lost: {}", c.why_lost());
        }
    }
    Ok(if lost.is_empty() { Outcome::Good } else { Outcome::Bad })
}

/// A controller to ask, on a reactor of its own.
fn ask<T>(a: &TargetArgs, f: impl FnOnce(&Arc<Controller>) -> Result<T, String>) -> Result<T, String> {
    let cpu = cpu::allowed().first().copied().unwrap_or(0);
    let options = Options { cores: vec![cpu], name: "perf".into(), ..Options::default() };
    let runtime = Runtime::start(options).map_err(|e| e.to_string())?;
    let o = host_options(&a.transport, a.enable_tcp_hdgst, a.enable_tcp_ddgst);
    let at = a.transport.resolve().map(|addr| HostId::tcp(addr, a.transport.subnqn.clone()));
    let outcome = at.and_then(|at| connect(&runtime.cores()[0], at, o)).and_then(|c| {
        let outcome = f(&c).map_err(|e| format!("{}: {e}", c.transport_id()));
        block_on(c.disconnect(c.state() == ControllerState::Ready));
        outcome
    });
    runtime.stop();
    outcome
}

/// `discover`
pub(crate) fn discover(a: &TargetArgs) -> Result<Outcome, String> {
    let log = ask(a, |c| block_on(c.discovery_log()).map_err(|e| e.to_string()))?;
    if a.json {
        println!("{:#}", describe::discovery_json(&log.header, &log.entries));
    } else {
        println!("Discovery log of {}", a.transport.resolve()?);
        describe::discovery_header(&log.header).print(2);
        for (i, e) in log.entries.iter().enumerate() {
            println!("record {i}");
            describe::discovery_entry(e).print(2);
        }
    }
    Ok(Outcome::Good)
}

/// `identify`
pub(crate) fn identify(a: &TargetArgs) -> Result<Outcome, String> {
    let (info, namespaces) = ask(a, |c| {
        let info = c.info().ok_or("the controller is gone")?;
        let mut namespaces: Vec<Namespace> = Vec::new();
        if !info.is_discovery() {
            let nsids = match a.transport.nsid {
                Some(n) => vec![n],
                None => block_on(c.active_namespaces()).map_err(|e| e.to_string())?,
            };
            for nsid in nsids {
                namespaces.push(block_on(c.namespace(nsid)).map_err(|e| format!("namespace {nsid}: {e}"))?);
            }
        }
        Ok((info, namespaces))
    })?;
    let controller = describe::controller(&info.identify);
    let namespaces = namespaces.iter().map(|n| describe::namespace(n.nsid, &n.data, Some(&n.descriptors)));
    if a.json {
        let out = json!({
            "schema": "longshore-perf/1",
            "kind": "identify",
            "version": env!("CARGO_PKG_VERSION"),
            "controller": controller.to_json(),
            "namespaces": namespaces.map(|n| n.to_json()).collect::<Vec<_>>(),
        });
        println!("{out:#}");
    } else {
        println!("Controller at {}", a.transport.resolve()?);
        controller.print(2);
        for n in namespaces {
            println!();
            n.print(2);
        }
    }
    Ok(Outcome::Good)
}
