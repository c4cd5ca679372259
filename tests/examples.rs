//! What embedders copy works: a device of one's own behind an embedded target, and a host in async code. And the embedded
//! default serves a host, and is the same after a restart.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn example(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("path of this test");
    let path = me.parent().and_then(|p| p.parent()).expect("target directory").join("examples").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --examples`", path.display());
    path
}

/// An address whose port was free a moment ago.
fn free_address() -> String {
    let l = TcpListener::bind("127.0.0.1:0").expect("a free port");
    l.local_addr().expect("its address").to_string()
}

fn host(address: &str, nqn: &str, args: &[&str]) -> String {
    let out = Command::new(example("host")).args([address, nqn]).args(args).output().expect("the host runs");
    assert!(out.status.success(), "host {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn a_host_reads_a_device_of_the_embedders_own() {
    let address = free_address();
    let mut child = Command::new(example("custom_bdev"))
        .arg(&address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the target starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says what it serves");
    let nqn = line.split_whitespace().last().expect("the NQN ends the line");
    let block = host(&address, nqn, &["read", "513"]);
    assert_eq!(block, format!("block 513: {}\n", "0102000000000000".repeat(4)));
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

struct Daemon {
    child: Child,
    nqn: String,
}

impl Daemon {
    fn start(dir: &Path, address: &str) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_longshore"))
            .args(["--embedded", "--size", "16M", "--listen", address])
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("-r")
            .arg(dir.join("rpc.sock"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let nqn = loop {
            let line = lines.next().expect("a line that names the subsystem").expect("text");
            if let Some((nqn, _)) = line.trim().split_once(" on ") {
                break nqn.to_owned();
            }
        };
        Daemon { child, nqn }
    }

    /// SIGTERM, and the status it ends with.
    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // after a failed assertion
    }
}

#[test]
fn the_embedded_default_keeps_data_and_identity_over_a_restart() {
    let dir = std::env::temp_dir().join(format!("longshore-embedded-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("made");
    let address = free_address();
    let daemon = Daemon::start(&dir, &address);
    let nqn = daemon.nqn.clone();
    assert_eq!(host(&address, &nqn, &["write", "3", "salt"]), format!("block 3: {}\n", "73616c74".repeat(8)));
    daemon.end();
    let saved = std::fs::read_to_string(dir.join("state/config.json")).expect("saved");

    let daemon = Daemon::start(&dir, &address);
    assert_eq!(daemon.nqn, nqn);
    assert_eq!(host(&address, &nqn, &["read", "3"]), format!("block 3: {}\n", "73616c74".repeat(8)));
    assert_eq!(host(&address, &nqn, &["read", "4"]), format!("block 4: {}\n", "00".repeat(32)));
    daemon.end();
    assert_eq!(std::fs::read_to_string(dir.join("state/config.json")).expect("saved"), saved);
    std::fs::remove_dir_all(&dir).expect("removed");
}
