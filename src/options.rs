//! Command line of the daemon: `spdk_tgt`'s options, and what the embedded default adds.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// A userspace storage data plane: block devices over NVMe/TCP, driven by SPDK's JSON-RPC.
///
/// Without options it serves a file of its own on 127.0.0.1:4420 and keeps its configuration in a state directory (the
/// embedded default). With any option of spdk_tgt it starts empty and waits for RPC, as spdk_tgt does.
#[derive(Parser, Debug, Clone)]
#[command(name = "longshore", version, disable_version_flag = true)]
pub(crate) struct Options {
    /// JSON configuration to apply at start; the port opens after the whole file is applied
    #[arg(short = 'c', long = "config", visible_alias = "json", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Go on when an entry of the configuration fails
    #[arg(long)]
    pub(crate) json_ignore_init_errors: bool,

    /// Path of the RPC socket
    #[arg(short = 'r', long = "rpc-socket", value_name = "PATH", default_value = "/var/tmp/spdk.sock")]
    pub(crate) rpc_socket: PathBuf,

    /// Start no RPC server
    #[arg(long)]
    pub(crate) no_rpc_server: bool,

    /// Serve JSON-RPC over HTTP POST here too, and /metrics; a port alone is one of 127.0.0.1
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_http_address)]
    pub(crate) rpc_http: Option<std::net::SocketAddr>,

    /// File of mode 0600 with USER:PASSWORD for --rpc-http (else the environment's LONGSHORE_RPC_HTTP_AUTH); needed unless that is
    /// a loopback address
    #[arg(long, value_name = "FILE", requires = "rpc_http")]
    pub(crate) rpc_http_auth: Option<PathBuf>,

    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics, to anybody; a port alone is one of 127.0.0.1
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_http_address)]
    pub(crate) metrics: Option<std::net::SocketAddr>,

    /// Only these RPC methods may be called
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) rpcs_allowed: Option<Vec<String>>,

    /// Stay in the start-up state until framework_start_init is called
    #[arg(long, visible_alias = "delay-subsystem-init")]
    pub(crate) wait_for_rpc: bool,

    /// Cores to run on: a hexadecimal mask (0x3) or a list ([0,2-3])
    #[arg(short = 'm', long = "cpumask", value_name = "MASK")]
    pub(crate) cpumask: Option<String>,

    /// Cores to run on, as a list (0,2-3)
    #[arg(long, value_name = "LIST", conflicts_with = "cpumask")]
    pub(crate) lcores: Option<String>,

    /// Cores of their own for computations that would keep one of -m's for long, as parity of large stripes: a mask or a list as for
    /// -m, and none of its cores. They sleep while there is nothing to compute. Without it, the cores of -m compute everything
    #[arg(long, value_name = "MASK")]
    pub(crate) accel_mask: Option<String>,

    /// Memory for I/O buffers of all cores together, in MiB
    #[arg(short = 's', long = "mem-size", value_name = "MIB")]
    pub(crate) mem_size: Option<u64>,

    /// Use no huge pages
    #[arg(long)]
    pub(crate) no_huge: bool,

    /// Enable debug messages of a component
    #[arg(short = 'L', long = "logflag", value_name = "FLAG")]
    pub(crate) logflag: Vec<String>,

    /// Print warnings and errors only
    #[arg(long)]
    pub(crate) silence_noticelog: bool,

    /// How cores wait for work: adaptive (spin shortly, then sleep) or busy (spin always)
    #[arg(long, value_name = "MODE", default_value = "adaptive")]
    pub(crate) poll_mode: PollArg,

    /// Microseconds that an adaptive core spins after its last work before it sleeps
    #[arg(long, value_name = "US", default_value_t = 50)]
    pub(crate) spin_us: u64,

    /// Milliseconds that an adaptive core stays awake after its last I/O command, unless somebody else wants the CPU. Saves the
    /// first command after a pause the wake-up of the CPU, 50 us and more on a virtual machine; costs an idle CPU's power while
    /// commands come more often than that. 0: it sleeps after --spin-us
    #[arg(long, value_name = "MS", default_value_t = 200)]
    pub(crate) linger_ms: u64,

    /// Sleep when idle: as --linger-ms 0
    #[arg(long)]
    pub(crate) interrupt_mode: bool,

    /// Serve the embedded default although other options are given
    #[arg(long)]
    pub(crate) embedded: bool,

    /// Where the embedded default keeps its file and configuration
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Size of the embedded default's file, as 512M or 10G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub(crate) size: u64,

    /// Address that the embedded default listens on
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4420")]
    pub(crate) listen: std::net::SocketAddr,

    /// Print the version and exit
    #[arg(short = 'v', long, visible_short_alias = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,

    #[command(flatten)]
    pub(crate) ignored: Ignored,
}

/// Options of spdk_tgt that have nothing to act on here. Accepted, so that existing start scripts work.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Accepted from spdk_tgt, without effect")]
pub(crate) struct Ignored {
    /// Shared memory id
    #[arg(short = 'i', long = "shm-id", value_name = "ID", allow_hyphen_values = true)]
    shm_id: Option<String>,
    /// Trace point groups
    #[arg(short = 'e', long = "tpoint-group", value_name = "MASK")]
    tpoint_group: Option<String>,
    /// Entries of the trace buffer
    #[arg(long, value_name = "N")]
    num_trace_entries: Option<String>,
    /// Leave PCI devices alone
    #[arg(short = 'u', long = "no-pci")]
    no_pci: bool,
    /// Main core
    #[arg(short = 'p', long = "main-core", value_name = "CORE")]
    main_core: Option<String>,
    /// Limit the size of core dumps
    #[arg(short = 'd', long)]
    limit_coredump: bool,
    /// One file for all huge pages
    #[arg(short = 'g', long)]
    single_file_segments: bool,
    /// Memory channels
    #[arg(short = 'n', long, value_name = "N")]
    mem_channels: Option<String>,
    /// Unlink huge page files
    #[arg(short = 'R', long)]
    huge_unlink: bool,
    /// Directory of huge pages
    #[arg(long, value_name = "DIR")]
    huge_dir: Option<String>,
    /// PCI devices to use
    #[arg(short = 'A', long, value_name = "BDF")]
    pci_allowed: Vec<String>,
    /// PCI devices to leave alone
    #[arg(short = 'B', long, value_name = "BDF")]
    pci_blocked: Vec<String>,
    /// Options for DPDK
    #[arg(long, value_name = "OPTS")]
    env_context: Option<String>,
    /// IOVA mode
    #[arg(long, value_name = "MODE")]
    iova_mode: Option<String>,
    /// Base virtual address
    #[arg(long, value_name = "ADDR")]
    base_virtaddr: Option<String>,
    /// Longest delay of a core
    #[arg(long, value_name = "US")]
    max_delay: Option<String>,
    /// Size of the message pool
    #[arg(long, value_name = "N")]
    msg_mempool_size: Option<String>,
    /// Token of a VFIO virtual function
    #[arg(long, value_name = "UUID")]
    vfio_vf_token: Option<String>,
    /// Do not lock the cores of the mask
    #[arg(long)]
    disable_cpumask_locks: bool,
    /// Enforce NUMA placement
    #[arg(long)]
    enforce_numa: bool,
}

impl Ignored {
    /// Names of those that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let some = |o: &Option<String>| o.is_some();
        [
            ("--shm-id", some(&self.shm_id)),
            ("--tpoint-group", some(&self.tpoint_group)),
            ("--num-trace-entries", some(&self.num_trace_entries)),
            ("--no-pci", self.no_pci),
            ("--main-core", some(&self.main_core)),
            ("--limit-coredump", self.limit_coredump),
            ("--single-file-segments", self.single_file_segments),
            ("--mem-channels", some(&self.mem_channels)),
            ("--huge-unlink", self.huge_unlink),
            ("--huge-dir", some(&self.huge_dir)),
            ("--pci-allowed", !self.pci_allowed.is_empty()),
            ("--pci-blocked", !self.pci_blocked.is_empty()),
            ("--env-context", some(&self.env_context)),
            ("--iova-mode", some(&self.iova_mode)),
            ("--base-virtaddr", some(&self.base_virtaddr)),
            ("--max-delay", some(&self.max_delay)),
            ("--msg-mempool-size", some(&self.msg_mempool_size)),
            ("--vfio-vf-token", some(&self.vfio_vf_token)),
            ("--disable-cpumask-locks", self.disable_cpumask_locks),
            ("--enforce-numa", self.enforce_numa),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }
}

/// How cores wait for work.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollArg {
    /// Spin shortly after work, then sleep.
    Adaptive,
    /// Spin always.
    Busy,
}

impl Options {
    /// Reads the command line; `true` beside it if nothing was given or the embedded default was asked for.
    pub(crate) fn from_command_line() -> (Options, bool) {
        let o = Options::parse();
        let bare = std::env::args_os().len() == 1;
        let embedded = o.config.is_none() && !o.wait_for_rpc && (bare || o.embedded || o.state_dir.is_some());
        (o, embedded)
    }

    /// How reactors wait for work.
    pub(crate) fn poll_mode(&self) -> longshore_reactor::PollMode {
        match self.poll_mode {
            PollArg::Busy => longshore_reactor::PollMode::Busy,
            PollArg::Adaptive => longshore_reactor::PollMode::Adaptive {
                spin: Duration::from_micros(self.spin_us),
                linger: Duration::from_millis(if self.interrupt_mode { 0 } else { self.linger_ms }),
            },
        }
    }

    /// The cores asked for, or `None` for the default.
    ///
    /// # Errors
    /// A line that says what is wrong with the mask or list.
    pub(crate) fn cores(&self) -> Result<Option<Vec<u32>>, String> {
        match (&self.cpumask, &self.lcores) {
            (Some(m), _) => parse_cores(m, true).map(Some),
            (None, Some(l)) => parse_cores(l, false).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl Options {
    /// The accel cores asked for; `cores` are those that reactors run on.
    ///
    /// # Errors
    /// A line that says what is wrong with the mask.
    pub(crate) fn accel_cores(&self, cores: &[u32]) -> Result<Vec<u32>, String> {
        let Some(mask) = &self.accel_mask else { return Ok(Vec::new()) };
        let accel = parse_cores(mask, true).map_err(|e| format!("--accel-mask: {e}"))?;
        match accel.iter().find(|cpu| cores.contains(cpu)) {
            Some(cpu) => Err(format!(
                "--accel-mask {mask}: core {cpu} is one of those that serve requests (-m): a core can do one or the other"
            )),
            None => Ok(accel),
        }
    }
}

/// Most cores that a mask can name.
const MAX_CORE: u32 = 1023;

fn parse_cores(text: &str, mask: bool) -> Result<Vec<u32>, String> {
    let bad = |why: &str| {
        Err(format!("core mask '{text}' {why}; give a hexadecimal mask such as 0x3 or a list such as [0,2-3]"))
    };
    let list = match text.strip_prefix('[') {
        Some(rest) => match rest.strip_suffix(']') {
            Some(l) => Some(l),
            None => return bad("has no closing bracket"),
        },
        None if !mask => Some(text),
        None => None,
    };
    let mut cores = std::collections::BTreeSet::new();
    if let Some(list) = list {
        for part in list.split(',') {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            let (Ok(a), Ok(b)) = (a.trim().parse::<u32>(), b.trim().parse::<u32>()) else {
                return bad("is not a list of cores");
            };
            if a > b || b > MAX_CORE {
                return bad("has a range that is empty or too large");
            }
            cores.extend(a..=b);
        }
    } else {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        for (i, c) in digits.chars().rev().enumerate() {
            let Some(d) = c.to_digit(16) else { return bad("is not hexadecimal") };
            for bit in 0..4 {
                if d & (1 << bit) != 0 {
                    cores.insert(i as u32 * 4 + bit);
                }
            }
        }
        if cores.last().is_some_and(|&c| c > MAX_CORE) {
            return bad("names a core that is too large");
        }
    }
    if cores.is_empty() {
        return bad("names no core");
    }
    Ok(cores.into_iter().collect())
}

fn parse_http_address(text: &str) -> Result<std::net::SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok((std::net::Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| format!("'{text}' is not an address such as 127.0.0.1:9009 or [::1]:9009, nor a port"))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(i) => text.split_at(i),
        None => (text, ""),
    };
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("unit '{unit}' is not one of K, M, G, T")),
    };
    let n: u64 = digits.parse().map_err(|_| format!("'{text}' is not a size such as 512M"))?;
    n.checked_mul(1 << shift).filter(|&n| n >= 1 << 20).ok_or_else(|| format!("'{text}' is under 1M or too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lists_name_cores() {
        assert_eq!(parse_cores("0x5", true), Ok(vec![0, 2]));
        assert_eq!(parse_cores("f0", true), Ok(vec![4, 5, 6, 7]));
        assert_eq!(parse_cores("[1,3-4]", true), Ok(vec![1, 3, 4]));
        assert_eq!(parse_cores("0,2", false), Ok(vec![0, 2]));
    }

    #[test]
    fn wrong_masks_say_what_is_wrong() {
        for (text, why) in [
            ("0x0", "names no core"),
            ("xyz", "not hexadecimal"),
            ("[0,1", "no closing bracket"),
            ("[2-1]", "empty or too large"),
            ("[a]", "not a list"),
            ("", "names no core"),
        ] {
            let e = parse_cores(text, true).expect_err(text);
            assert!(e.contains(why), "{e}");
        }
    }

    #[test]
    fn accel_cores_are_others_than_those_that_serve() {
        let of = |mask: &str| Options::try_parse_from(["longshore", "--accel-mask", mask]).expect("parsed");
        assert_eq!(of("0xc").accel_cores(&[0, 1]), Ok(vec![2, 3]));
        assert_eq!(of("[5,7-8]").accel_cores(&[6]), Ok(vec![5, 7, 8]));
        assert_eq!(Options::try_parse_from(["longshore"]).expect("parsed").accel_cores(&[0]), Ok(vec![]));
        let e = of("0x6").accel_cores(&[0, 2]).expect_err("core 2 is both");
        assert!(e.contains("--accel-mask 0x6: core 2 is one of those that serve requests (-m)"), "{e}");
        let e = of("0xg").accel_cores(&[0]).expect_err("no mask");
        assert!(e.contains("--accel-mask: core mask '0xg' is not hexadecimal"), "{e}");
        assert!(of("0").accel_cores(&[0]).is_err_and(|e| e.contains("names no core")));
    }

    #[test]
    fn every_option_of_spdk_tgt_is_accepted() {
        let line = "longshore -r /tmp/s -m 0x1 -c /x.json --wait-for-rpc -s 512 --no-huge -u -i 0 -e 0xFFFF -L nvmf \
                    --interrupt-mode -p 0 -d -g -n 4 -R --huge-dir /h -A 0000:00:01.0 --iova-mode pa --max-delay 1 \
                    --num-trace-entries 1 --msg-mempool-size 1 --silence-noticelog --disable-cpumask-locks";
        let o = Options::try_parse_from(line.split_whitespace()).expect("accepted");
        assert!(o.ignored.given().contains(&"--no-pci"));
        assert_eq!(o.config, Some("/x.json".into()));
        let o = Options::try_parse_from(["longshore", "--json", "/y.json"]).expect("accepted");
        assert_eq!(o.config, Some("/y.json".into()));
    }

    #[test]
    fn a_port_alone_is_one_of_the_loopback_address() {
        assert_eq!(parse_http_address("9009"), Ok("127.0.0.1:9009".parse().expect("an address")));
        assert_eq!(parse_http_address(":9009"), parse_http_address("9009"));
        assert_eq!(parse_http_address("[::1]:9"), Ok("[::1]:9".parse().expect("an address")));
        for wrong in ["", "localhost", "1.2.3.4", "70000", "1.2.3.4:x"] {
            assert!(parse_http_address(wrong).is_err_and(|e| e.contains("not an address")), "{wrong}");
        }
        assert!(Options::try_parse_from(["longshore", "--rpc-http-auth", "/f"]).is_err(), "credentials for nothing");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert!(parse_size("1K").is_err());
        assert!(parse_size("12Q").is_err());
    }
}
