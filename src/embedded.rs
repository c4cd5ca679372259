//! The embedded default: a file of its own, served on a local address, with an identity that survives restarts.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use longshore::rpc::app::App;
use longshore::rpc::config::Config;
use longshore::rpc::exec::block_on;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::options::Options;
use crate::state::{Backing, StateDir};

/// What is served, for the banner. Holds the state directory.
pub(crate) struct Served {
    dir: StateDir,
    fresh: Option<Backing>,
    subsystems: Vec<Subsystem>,
}

struct Subsystem {
    nqn: String,
    address: Option<(String, String)>,
    bdevs: Vec<String>,
}

/// Applies the saved configuration, or makes the first one. From then on every change is saved.
///
/// # Errors
/// What went wrong, in one line.
pub(crate) fn start(app: &Arc<App>, dir: StateDir, o: &Options) -> Result<Served, String> {
    let path = dir.config();
    let saved = path.exists();
    let fresh = if saved { None } else { Some(dir.create_disk(o.size)?) };
    let config = if saved {
        Config::read(&path).map_err(|e| format!("saved configuration {}: {e}", path.display()))?
    } else {
        let text = first_config(&dir.disk(), o.listen).to_string();
        Config::parse(text.as_bytes()).map_err(|e| e.to_string())?
    };
    block_on(config.apply(app, o.json_ignore_init_errors)).map_err(|e| {
        if saved {
            format!("saved configuration {}: {e}", path.display())
        } else {
            format!("{e} (the embedded default; another address: --listen ADDR:PORT)")
        }
    })?;
    app.save_to(Some(path));
    block_on(app.save()).map_err(|e| e.to_string())?;
    let subsystems = block_on(app.call("nvmf_get_subsystems", None)).map_err(|e| e.to_string())?;
    Ok(Served { dir, fresh, subsystems: read_subsystems(&subsystems) })
}

/// The calls that make the first configuration. What they generate is saved with it, so it never changes again.
fn first_config(disk: &Path, listen: SocketAddr) -> Value {
    let id = Uuid::new_v4();
    // Linux joins subsystems of one NQN into one device: it must be unique in the world, not "default".
    let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{id}");
    let serial = format!("LS{}", &id.simple().to_string()[..18].to_ascii_uppercase());
    let address = json!({
        "trtype": "TCP",
        "adrfam": if listen.is_ipv4() { "IPv4" } else { "IPv6" },
        "traddr": listen.ip().to_string(),
        "trsvcid": listen.port().to_string(),
    });
    json!({"subsystems": [
        {"subsystem": "bdev", "config": [
            {"method": "bdev_uring_create", "params": {"name": "disk0", "filename": disk, "block_size": 4096}},
        ]},
        {"subsystem": "nvmf", "config": [
            {"method": "nvmf_create_transport", "params": {"trtype": "TCP"}},
            {"method": "nvmf_create_subsystem", "params": {
                "nqn": nqn, "allow_any_host": true, "serial_number": serial, "model_number": "Longshore"}},
            {"method": "nvmf_subsystem_add_ns", "params": {"nqn": nqn, "namespace": {"bdev_name": "disk0"}}},
            {"method": "nvmf_subsystem_add_listener", "params": {"nqn": nqn, "listen_address": address}},
        ]},
    ]})
}

fn read_subsystems(answer: &Value) -> Vec<Subsystem> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let of = |v: &Value, key: &str| v[key].as_array().cloned().unwrap_or_default();
    of(&json!({"all": answer}), "all")
        .iter()
        .filter(|s| s["subtype"] == "NVMe")
        .map(|s| Subsystem {
            nqn: text(&s["nqn"]),
            address: of(s, "listen_addresses").first().map(|a| (text(&a["traddr"]), text(&a["trsvcid"]))),
            bdevs: of(s, "namespaces").iter().map(|n| text(&n["bdev_name"])).collect(),
        })
        .collect()
}

impl Served {
    /// What is served and how to use it, in a few lines.
    pub(crate) fn banner(&self, rpc: &Path) -> String {
        let mut out = String::new();
        let disk = self.dir.disk();
        let size = std::fs::metadata(&disk).map_or(0, |m| m.len());
        let _ = writeln!(
            out,
            "longshore serves {} ({} MiB) over NVMe/TCP; configuration in {}",
            disk.display(),
            size >> 20,
            self.dir.config().display()
        );
        if self.fresh == Some(Backing::Sparse) {
            let _ = writeln!(
                out,
                "  The file is sparse: space is short or the file system cannot preallocate. Writes may be slower, or fail when it is full."
            );
        }
        let perf = perf_command(std::env::current_exe().ok().as_deref());
        for s in &self.subsystems {
            let Some((address, port)) = &s.address else { continue };
            let _ = writeln!(out, "  {} on {address}:{port}, namespaces: {}", s.nqn, s.bdevs.join(" "));
            let _ = writeln!(out, "  connect Linux:  nvme connect -t tcp -a {address} -s {port} -n {}", s.nqn);
            let family = if address.contains(':') { "IPv6" } else { "IPv4" };
            let _ = writeln!(
                out,
                "  measure:        {perf} -r 'trtype:TCP adrfam:{family} traddr:{address} trsvcid:{port} subnqn:{}' -q 32 -o 4096 -w randread -t 5",
                s.nqn
            );
        }
        let _ = writeln!(out, "  call RPC:       scripts/rpc.py -s {} bdev_get_bdevs", rpc.display());
        let _ = writeln!(out, "  stop:           Ctrl-C");
        out
    }
}

/// How `longshore-perf` is called: by cargo where this program was built by it and is not installed.
fn perf_command(exe: Option<&Path>) -> &'static str {
    // cargo keeps this folder beside what it builds, wherever its target folder is
    if exe.and_then(Path::parent).is_some_and(|dir| dir.join(".fingerprint").is_dir()) {
        "cargo run --release -p longshore-perf --"
    } else {
        "longshore-perf"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_a_command_that_exists() {
        let built = std::env::current_exe().expect("this program");
        // Tests lie one folder below the programs.
        let beside = built.parent().and_then(Path::parent).expect("two folders").join("longshore");
        assert_eq!(perf_command(Some(&beside)), "cargo run --release -p longshore-perf --");
        assert_eq!(perf_command(Some(Path::new("/usr/bin/longshore"))), "longshore-perf");
    }
}
