//! Start-up, service and shutdown of the daemon.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use longshore::accel::cores::CoresOptions;
use longshore::accel::{Accel, Cores};
use longshore::bdev;
use longshore::reactor::{self, Runtime};
use longshore::rpc::app::{App, Dispatcher, Parts};
use longshore::rpc::config::Config;
use longshore::rpc::exec::block_on;
use longshore::rpc::http::{Credentials, Listener, Serve};
use longshore::rpc::logging::{Level, Log};
use longshore::rpc::server::{Endpoints, Server};

use crate::embedded::{self, Served};
use crate::identity;
use crate::options::Options;
use crate::signals;
use crate::state::StateDir;

/// How long a drain may take before the process gives up and says so.
const DRAIN: Duration = Duration::from_secs(20);

/// Where credentials for RPC over HTTP may stand, when no file is given.
const AUTH_VARIABLE: &str = "LONGSHORE_RPC_HTTP_AUTH";

/// What is applied at start.
enum Start {
    /// Nothing: initialise and wait for RPC.
    Empty,
    /// Stay before initialisation until RPC asks for it.
    WaitForRpc,
    /// A configuration file.
    File(std::path::PathBuf),
    /// The embedded default, which saves its configuration to its state directory.
    Embedded(StateDir),
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// One line that says what kept it from starting and how to mend it.
pub(crate) fn run(o: &Options, embedded: bool) -> Result<(), String> {
    let log = Log::install();
    if o.silence_noticelog {
        log.set_print_level(Level::Warning);
    }
    for flag in &o.logflag {
        if !log.set_flag(flag, true) {
            return Err(format!("-L {flag}: no such log flag; log_get_flags lists them"));
        }
    }
    let ignored = o.ignored.given();
    if !ignored.is_empty() {
        tracing::info!("accepted without effect: {}", ignored.join(" "));
    }
    // Without a socket, the configuration tells daemons of one machine apart.
    identity::settle(o.config.as_deref().filter(|_| o.no_rpc_server).unwrap_or(&o.rpc_socket));
    let (stop, stopped) = mpsc::channel();
    signals::watch(stop).map_err(|e| format!("cannot install signal handlers: {e}"))?;

    let start = match (&o.config, embedded) {
        (Some(path), _) => Start::File(path.clone()),
        (None, true) => Start::Embedded(StateDir::open(&o.state_dir.clone().unwrap_or_else(StateDir::default_path))?),
        (None, false) if o.wait_for_rpc => Start::WaitForRpc,
        (None, false) => Start::Empty,
    };
    // Read before anything is opened: a broken file is the most likely mistake.
    let config = match &start {
        Start::File(path) => Some(read_config(path)?),
        _ => None,
    };

    let reactors = reactor_options(o)?;
    let accel = accel(&o.accel_cores(&reactors.cores)?)?;
    let runtime = Runtime::start(reactors).map_err(|e| e.to_string())?;
    let bdevs = bdev::Registry::new();
    let parts = Parts {
        cores: runtime.cores().to_vec(),
        bdevs: bdevs.clone(),
        accel: Arc::new(accel),
        log,
        allowed: o.rpcs_allowed.clone().map(|names| names.into_iter().collect()),
        ..Parts::default()
    };
    let app = App::new(parts);
    let endpoints = endpoints(o)?;
    let on = describe(&endpoints);
    let server = start_rpc(endpoints, &app)?;

    let served = match start {
        Start::WaitForRpc => None,
        Start::Empty => block_on(app.init()).map(|()| None)?,
        Start::File(path) => {
            let config = config.expect("read above");
            if let Err(e) = block_on(config.apply(&app, o.json_ignore_init_errors)) {
                return fail(format!("configuration {}: {e}", path.display()), server, app, runtime);
            }
            None
        }
        Start::Embedded(dir) => match embedded::start(&app, dir, o) {
            Ok(served) => Some(served),
            Err(why) => return fail(why, server, app, runtime),
        },
    };
    announce(o, &on, served.as_ref());
    notify_systemd("READY=1");

    // Nothing more to do here: reactors and the RPC thread work.
    let _ = stopped.recv();
    notify_systemd("STOPPING=1");
    tracing::info!("stopping: draining");
    // The state directory stays ours until nothing is in flight any more.
    let drained = drain(server, app, runtime);
    drop(served);
    drained
}

/// What runs already, an array for one, ends in order, because of `why`.
fn fail(why: String, server: Option<Server>, app: Arc<App>, runtime: Runtime) -> Result<(), String> {
    tracing::error!("{why}: stopping");
    match drain(server, app, runtime) {
        Ok(()) => Err(why),
        Err(e) => Err(format!("{why}; {e}")),
    }
}

fn drain(server: Option<Server>, app: Arc<App>, runtime: Runtime) -> Result<(), String> {
    let (done, finished) = mpsc::channel();
    let worker = std::thread::Builder::new().name("drain".into()).spawn(move || {
        drop(server);
        block_on(app.shutdown());
        drop(app);
        runtime.stop();
        let _ = done.send(());
    });
    let worker = worker.map_err(|e| format!("cannot start the drain: {e}"))?;
    match finished.recv_timeout(DRAIN) {
        Ok(()) | Err(RecvTimeoutError::Disconnected) => worker.join().map_err(|_| "the drain panicked".to_owned()),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("requests were still in flight after {} s of draining: ended without them", DRAIN.as_secs()))
        }
    }
}

fn read_config(path: &Path) -> Result<Config, String> {
    Config::read(path).map_err(|e| format!("configuration {}: {e}", path.display()))
}

/// What the options say about where requests come in. The HTTP sockets listen from here on.
fn endpoints(o: &Options) -> Result<Endpoints, String> {
    let mut http = Vec::new();
    if let Some(address) = o.rpc_http {
        if o.no_rpc_server {
            return Err("--rpc-http and --no-rpc-server contradict each other; --metrics goes with both".into());
        }
        if o.metrics == o.rpc_http && address.port() != 0 {
            return Err(format!(
                "--rpc-http {address} serves /metrics too: leave --metrics out, or give it another port"
            ));
        }
        let credentials = match (&o.rpc_http_auth, std::env::var(AUTH_VARIABLE)) {
            (Some(file), _) => Some(Credentials::read(file).map_err(|e| e.to_string())?),
            (None, Ok(text)) => Some(Credentials::parse(&text).map_err(|why| format!("{AUTH_VARIABLE}: {why}"))?),
            (None, Err(_)) => None,
        };
        http.push(Listener::bind(address, Serve::Rpc(credentials)).map_err(|e| e.to_string())?);
    }
    if let Some(address) = o.metrics {
        http.push(Listener::bind(address, Serve::Metrics).map_err(|e| e.to_string())?);
    }
    Ok(Endpoints { socket: (!o.no_rpc_server).then(|| o.rpc_socket.clone()), http })
}

/// Where requests come in, for people.
fn describe(endpoints: &Endpoints) -> String {
    let mut out = match &endpoints.socket {
        Some(path) => format!("RPC on {}", path.display()),
        None => "no RPC".to_owned(),
    };
    for listener in &endpoints.http {
        if let Ok(address) = listener.address() {
            out += &match listener.serves() {
                Serve::Rpc(_) => format!(" and http://{address}/"),
                Serve::Metrics => format!(", metrics on http://{address}/metrics"),
            };
        }
    }
    out
}

fn start_rpc(endpoints: Endpoints, app: &Arc<App>) -> Result<Option<Server>, String> {
    if endpoints.socket.is_none() && endpoints.http.is_empty() {
        return Ok(None);
    }
    let app = app.clone();
    // The error names the path and the remedy.
    Server::start_on(endpoints, move |_| Rc::new(Dispatcher::new(app))).map(Some).map_err(|e| e.to_string())
}

fn reactor_options(o: &Options) -> Result<reactor::Options, String> {
    let mut r = reactor::Options { poll: o.poll_mode(), ..reactor::Options::default() };
    r.cores = match o.cores()? {
        Some(cores) => cores,
        None => vec![first_allowed_cpu()],
    };
    if let Some(mib) = o.mem_size {
        let per_core = (mib as usize).saturating_mul(1 << 20) / r.cores.len();
        if per_core < 8 << 20 {
            return Err(format!(
                "-s {mib}: {} cores need at least {} MiB for I/O buffers",
                r.cores.len(),
                r.cores.len() * 8
            ));
        }
        r.dma.max_bytes = per_core;
    }
    if o.no_huge {
        r.dma.huge = false;
    }
    Ok(r)
}

/// What computes, on cores of their own too if there are any.
fn accel(cpus: &[u32]) -> Result<Accel, String> {
    if cpus.is_empty() {
        return Ok(Accel::default());
    }
    let cores = Cores::start(cpus.to_vec(), CoresOptions::default()).map_err(|e| format!("--accel-mask: {e}"))?;
    Ok(Accel::default().with_cores(cores))
}

/// Core 0 as SPDK, or where this process may not use it (containers), the first that it may.
fn first_allowed_cpu() -> u32 {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).find(|&c| set.is_set(c)).unwrap_or(0) as u32,
        Err(_) => 0,
    }
}

fn announce(o: &Options, rpc: &str, served: Option<&Served>) {
    match served {
        Some(s) => print!("{}", s.banner(&o.rpc_socket)),
        None if o.wait_for_rpc => println!("longshore: {rpc}; waiting for framework_start_init"),
        None => println!("longshore: ready, {rpc}"),
    }
}

/// Tells systemd, if it started us with `Type=notify`.
fn notify_systemd(state: &str) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    if let Ok(address) = address {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}
