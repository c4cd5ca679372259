//! A daemon that serves one subsystem over NVMe/TCP, and `longshore-perf` to use it with.

#[allow(dead_code)] // not every test has a use for it
pub(crate) mod raw;
#[allow(dead_code)] // as above
pub(crate) mod verified;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// The subsystem.
pub(crate) const NQN: &str = "nqn.2024-01.io.longshore:served";

/// Where a test's daemon lives. Dropping it removes the directory.
pub(crate) struct Place {
    /// Configuration, sockets and files.
    pub(crate) dir: PathBuf,
    /// The subsystem as `-r` wants it.
    pub(crate) trid: String,
    perf: PathBuf,
    /// The CPU of daemon and load.
    pub(crate) cpu: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A daemon that runs. Dropping it kills it with SIGKILL.
pub(crate) struct Daemon(Child, String);

impl Daemon {
    /// Its process.
    #[allow(dead_code)] // not every test has a use for it
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The address of the metrics that it said it serves.
    #[allow(dead_code)]
    pub(crate) fn metrics(&self) -> &str {
        self.1.split("metrics on http://").nth(1).and_then(|rest| rest.split('/').next()).expect("metrics are served")
    }
}

#[allow(dead_code)] // as above
impl Daemon {
    /// Waits until it serves; an error is what it said instead.
    pub(crate) fn ready(&mut self) -> Result<(), String> {
        let out = self.0.stdout.take().expect("piped, and asked once");
        BufReader::new(out).read_line(&mut self.1).expect("the daemon says that it is ready");
        if self.1.contains("ready") { Ok(()) } else { Err(self.1.clone()) }
    }

    /// Ends it as an operator does, and waits for that.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.0.wait().expect("it ends")
    }

    /// A member of `/proc/PID/status` in KiB.
    pub(crate) fn status_kib(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("/proc of the daemon");
        let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_else(|| panic!("no {key}"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("it runs");
    }

    /// CPU time used so far, user and kernel, of all its threads.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time(self.0.id())
    }
}

/// CPU time that a process has used so far, user and kernel, with that of the children it has waited for.
#[allow(dead_code)] // as above
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("/proc of the process");
    // Behind the name, which ends with the last parenthesis: state is field 3; utime, stime and those of children 14 to 17, in
    // ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = |i: usize| fields[i - 3].parse::<u64>().expect("a number");
    Duration::from_millis((14..=17).map(ticks).sum::<u64>() * 10)
}

/// CPU time that was used by whatever runs on this machine.
#[allow(dead_code)] // as above
pub(crate) fn machine_busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = stat.lines().next().expect("all CPUs");
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|n| n.parse().expect("a number")).collect();
    // user, nice, system; irq, softirq, steal
    Duration::from_millis([0, 1, 2, 5, 6, 7].iter().map(|&i| ticks[i] * 10).sum())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says on stderr, past the capture of output, that a test cannot prove what its name says here, and why.
#[allow(dead_code)] // as above
pub(crate) fn void(what: &str, why: &str) {
    let _ = std::io::stderr().write_all(format!("VOID: {what}: {why}\n").as_bytes());
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).expect("allowed CPUs");
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse::<u32>().expect("a CPU")..=last.parse::<u32>().expect("a CPU")
    });
    ranges.flatten().map(|cpu| cpu.to_string()).collect()
}

/// `longshore-perf`, which lies beside the daemon: `cargo test --workspace` builds both. Built here if it never was.
fn perf() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_longshore")).with_file_name("longshore-perf");
    if !path.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "-q", "-p", "longshore-perf"]).status();
        assert!(
            built.expect("cargo runs").success() && path.exists(),
            "longshore-perf cannot be built beside the daemon"
        );
    }
    path
}

impl Place {
    /// A place for a daemon with the bdevs that `bdevs` makes (entries of a configuration; `DIR` stands for the directory),
    /// each of `names` a namespace.
    pub(crate) fn new(test: &str, bdevs: &str, names: &[&str]) -> Place {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let trid = format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{NQN}");
        let place = Place { dir, trid, perf: perf(), cpu: cpus().swap_remove(0) };
        place.configure(bdevs, names);
        place
    }

    /// Writes the configuration of the next daemon, as `new` does.
    pub(crate) fn configure(&self, bdevs: &str, names: &[&str]) {
        let (dir, port) = (&self.dir, self.port());
        let namespaces: String = names
            .iter()
            .map(|n| {
                format!(
                    r#"{{"method": "nvmf_subsystem_add_ns", "params": {{"nqn": "{NQN}", "namespace": {{"bdev_name": "{n}"}}}}}},"#
                )
            })
            .collect();
        let config = format!(
            r#"{{"subsystems": [
                {{"subsystem": "bdev", "config": [{}]}},
                {{"subsystem": "nvmf", "config": [
                    {{"method": "nvmf_create_transport", "params": {{"trtype": "TCP"}}}},
                    {{"method": "nvmf_create_subsystem", "params": {{"nqn": "{NQN}", "allow_any_host": true}}}},
                    {namespaces}
                    {{"method": "nvmf_subsystem_add_listener", "params": {{"nqn": "{NQN}", "listen_address":
                        {{"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "{port}"}}}}}}]}}]}}"#,
            bdevs.replace("DIR", &dir.display().to_string())
        );
        std::fs::write(dir.join("config.json"), config).expect("the configuration");
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.trid.split_whitespace().find_map(|w| w.strip_prefix("trsvcid:")?.parse().ok()).expect("a port")
    }

    /// Starts the daemon and returns when it serves.
    #[allow(dead_code)] // not every test has a use for it
    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_on(&self.cpu, &[])
    }

    /// As `daemon`, on those CPUs and with more options.
    pub(crate) fn daemon_on(&self, cpus: &str, options: &[&str]) -> Daemon {
        let mut daemon = self.launch(cpus, options, Stdio::inherit());
        daemon.ready().unwrap_or_else(|said| panic!("the daemon said: {said}"));
        daemon
    }

    /// Starts the daemon and does not wait for it. What it logs goes to `log`.
    pub(crate) fn launch(&self, cpus: &str, options: &[&str], log: Stdio) -> Daemon {
        let child = Command::new(env!("CARGO_BIN_EXE_longshore"))
            .arg("-c")
            .arg(self.dir.join("config.json"))
            .arg("-r")
            .arg(self.dir.join("rpc.sock"))
            .args(["-m", &format!("[{cpus}]")])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        Daemon(child, String::new())
    }

    /// `longshore-perf` on the subsystem; `more` is added to the transport ID. It shares a CPU with the daemon, so it sleeps when idle.
    #[allow(dead_code)] // not every test has a use for it
    pub(crate) fn perf(&self, more: &str, options: &str) -> Command {
        let mut c = Command::new(&self.perf);
        c.args(["-r", &format!("{} {more}", self.trid), "-E", "-c", &format!("[{}]", self.cpu)]);
        c.args(options.split_whitespace());
        c
    }

    /// `longshore-perf COMMAND` on the subsystem.
    #[allow(dead_code)] // not every test has a use for it
    pub(crate) fn ask(&self, command: &str, trid: &str) -> Command {
        let mut c = Command::new(&self.perf);
        c.args([command, "--json", "-r", trid]);
        c
    }
}

/// Patience with an answer of a daemon.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls a method of the daemon at `place`, on a connection of its own: its result, or its error. `params` may be null.
#[allow(dead_code)] // not every test has a use for it
pub(crate) fn rpc(place: &Place, method: &str, params: &Value) -> Result<Value, Value> {
    let mut s = UnixStream::connect(place.dir.join("rpc.sock")).expect("the daemon's socket");
    s.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
    if !params.is_null() {
        request["params"] = params.clone();
    }
    s.write_all(request.to_string().as_bytes()).expect("the call is sent");
    let mut answers = serde_json::Deserializer::from_reader(s).into_iter::<Value>();
    let answer = answers.next().unwrap_or_else(|| panic!("{method}: the daemon hung up"));
    let mut answer = answer.unwrap_or_else(|e| panic!("{method} is not answered: {e}"));
    if answer["error"].is_null() { Ok(answer["result"].take()) } else { Err(answer["error"].take()) }
}

/// The poll groups of `nvmf_get_stats`.
#[allow(dead_code)] // as above
pub(crate) fn stats(place: &Place) -> Value {
    rpc(place, "nvmf_get_stats", &Value::Null).expect("statistics")["poll_groups"].take()
}

/// All that a command printed.
#[allow(dead_code)] // not every test has a use for it
pub(crate) fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}
