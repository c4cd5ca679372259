//! The command line: the option letters of `spdk_nvme_perf`, and what is new here.
// These comments are help texts, where brackets say what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::trid::TransportId;
use crate::units::{parse_cores, parse_size, parse_size32};

/// Load generator and latency tool for NVMe/TCP targets and local bdev stacks.
#[derive(Parser, Debug)]
#[command(name = "longshore-perf", version, disable_version_flag = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Print version
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// What to do instead of generating load.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Raw-socket loop of the same message sizes, connections and depth: the bar that a target on this machine is held to
    Ceiling(CeilingArgs),
    /// Print the discovery log of a target
    Discover(TargetArgs),
    /// Print what a controller and its namespaces say of themselves
    Identify(TargetArgs),
    /// Serving side of `ceiling`; started by it
    #[command(hide = true)]
    CeilingPeer(PeerArgs),
}

/// Whom to ask, for `discover` and `identify`.
#[derive(Args, Debug)]
pub(crate) struct TargetArgs {
    /// Transport ID: 'trtype:TCP adrfam:IPv4 traddr:ADDR trsvcid:PORT [subnqn:NQN] [hostnqn:NQN]'
    #[arg(short = 'r', long, value_name = "TRID")]
    pub(crate) transport: TransportId,
    /// Header digests
    #[arg(short = 'H', long)]
    pub(crate) enable_tcp_hdgst: bool,
    /// Data digests
    #[arg(short = 'I', long)]
    pub(crate) enable_tcp_ddgst: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is done with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Sequential reads and writes
    Rw,
    /// Random reads and writes
    Randrw,
    /// Random writes, each read back and compared
    Verify,
}

impl Workload {
    /// True if offsets are drawn at random.
    pub(crate) fn random(self) -> bool {
        matches!(self, Workload::Randread | Workload::Randwrite | Workload::Randrw | Workload::Verify)
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Workload::Read => "read",
            Workload::Write => "write",
            Workload::Randread => "randread",
            Workload::Randwrite => "randwrite",
            Workload::Rw => "rw",
            Workload::Randrw => "randrw",
            Workload::Verify => "verify",
        }
    }
}

/// What is done to a device before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prefill {
    /// Written and flushed
    Write,
    /// Written, flushed and unmapped
    Unmap,
}

/// A run of load.
#[derive(Args, Debug, Clone)]
pub(crate) struct RunArgs {
    /// Transport ID of a target: 'trtype:TCP adrfam:IPv4 traddr:ADDR trsvcid:PORT [subnqn:NQN] [ns:NSID] [hostnqn:NQN]'.
    /// Without subnqn, every subsystem of the discovery log. May be given several times
    #[arg(short = 'r', long, value_name = "TRID", help_heading = "What to load")]
    pub(crate) transport: Vec<TransportId>,
    /// Local bdev: a name from --config, or null[:SIZE[:BLOCK]], malloc:SIZE[:BLOCK],
    /// file:PATH
    #[arg(long, value_name = "NAME", conflicts_with = "transport", help_heading = "What to load")]
    pub(crate) bdev: Option<String>,
    /// JSON configuration (as `save_config` writes it) that makes the bdevs of --bdev
    #[arg(long, value_name = "FILE", requires = "bdev", help_heading = "What to load")]
    pub(crate) config: Option<PathBuf>,

    /// Requests outstanding per core and namespace, spread evenly over its -P queue pairs
    #[arg(short = 'q', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536), help_heading = "Load")]
    pub(crate) io_depth: u32,
    /// Bytes per request; takes K and M
    #[arg(short = 'o', long, value_name = "SIZE", default_value = "4096", value_parser = parse_size32, help_heading = "Load")]
    pub(crate) io_size: u32,
    /// Bytes per piece of memory of a request, a multiple of 4 (default: one piece)
    #[arg(short = 'O', long, value_name = "SIZE", value_parser = parse_size32, help_heading = "Load")]
    pub(crate) io_unit_size: Option<u32>,
    /// Workload
    #[arg(
        short = 'w',
        long = "io-pattern",
        value_name = "PATTERN",
        value_enum,
        default_value = "randread",
        help_heading = "Load"
    )]
    pub(crate) workload: Workload,
    /// Percentage of reads in rw and randrw [default: 50]
    #[arg(short = 'M', long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "Load")]
    pub(crate) rwmixread: Option<u8>,
    /// Skew random offsets: the k-th place is drawn with a probability proportional to 1 / k^THETA
    #[arg(short = 'F', long, value_name = "THETA", help_heading = "Load")]
    pub(crate) zipf: Option<f64>,
    /// Seconds to measure, after the warm-up
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds, help_heading = "Load")]
    pub(crate) time: f64,
    /// Seconds of load before measuring starts
    #[arg(short = 'a', long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds, help_heading = "Load")]
    pub(crate) warmup_time: f64,
    /// Stop after this many requests per core and namespace
    #[arg(short = 'd', long, value_name = "N", help_heading = "Load")]
    pub(crate) number_ios: Option<u64>,
    /// CPUs that generate load: hexadecimal mask or list in brackets
    #[arg(short = 'c', long, value_name = "MASK", default_value = "0x1", value_parser = cores, help_heading = "Load")]
    pub(crate) core_mask: Cores,
    /// With --config: CPUs that do the long computations of its devices, none of -c's
    #[arg(long, value_name = "MASK", value_parser = cores, requires = "config", help_heading = "Load")]
    pub(crate) accel_mask: Option<Cores>,
    /// Queue pairs per namespace and core
    #[arg(short = 'P', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Load")]
    pub(crate) num_qpairs: u32,
    /// Queue pairs per controller that are connected and not used
    #[arg(short = 'U', long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub(crate) num_unused_qpairs: u32,
    /// Start this many requests per second in all, whether earlier ones ended or not (open loop); latency counts from the
    /// time a request was due
    #[arg(long, value_name = "IOPS", value_parser = rate, help_heading = "Load")]
    pub(crate) rate: Option<f64>,
    /// Connect this many controllers and send nothing but keep-alives
    #[arg(long, value_name = "N", requires = "transport", help_heading = "Load")]
    pub(crate) idle: Option<u32>,
    /// First byte of the device to use
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size, help_heading = "Load")]
    pub(crate) offset: u64,
    /// Bytes of the device to use, from --offset (default: to its end)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Load")]
    pub(crate) span: Option<u64>,
    /// What a local bdev holds before the run: every block of the part to use is written once and flushed, and with `unmap`
    /// unmapped again. Not counted
    #[arg(long, value_name = "HOW", value_enum, requires = "bdev", help_heading = "Load")]
    pub(crate) prefill: Option<Prefill>,
    /// Seed of everything that is drawn at random
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub(crate) seed: u64,
    /// Report every Nth failed request and go on, instead of stopping at the first
    #[arg(short = 'Q', long, value_name = "N", help_heading = "Load")]
    pub(crate) continue_on_error: Option<u64>,

    /// Latency percentiles; twice (-LL): the histogram too
    #[arg(short = 'L', long = "enable-sw-latency-tracking", action = ArgAction::Count, help_heading = "Report")]
    pub(crate) latency: u8,
    /// Print JSON only
    #[arg(long, help_heading = "Report")]
    pub(crate) json: bool,
    /// Write a page for a browser: throughput over time, latency distribution, configuration. Measures latency as -L does
    #[arg(long, value_name = "FILE.html", help_heading = "Report")]
    pub(crate) report: Option<PathBuf>,
    /// No progress line on a terminal
    #[arg(long, help_heading = "Report")]
    pub(crate) quiet: bool,

    /// Percentage of writes with FUA
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "Writes and verification")]
    pub(crate) fua: u8,
    /// Flush after every N writes of a core
    #[arg(long, value_name = "N", help_heading = "Writes and verification")]
    pub(crate) flush_every: Option<u64>,
    /// With -w verify: record every write when it is submitted and when it is acknowledged
    #[arg(long, value_name = "FILE", help_heading = "Writes and verification")]
    pub(crate) verify_journal: Option<PathBuf>,
    /// Check the device against a journal: every acknowledged write is there, every other one is old or new per block
    #[arg(long, value_name = "FILE", conflicts_with = "verify_journal", help_heading = "Writes and verification")]
    pub(crate) verify_check: Option<PathBuf>,

    /// With --verify-check: power was lost, so only writes with FUA or before an acknowledged flush must be there
    #[arg(long, requires = "verify_check", help_heading = "Writes and verification")]
    pub(crate) verify_power_loss: bool,
    /// With --verify-check: if all is well, note in the journal what was found, so that it can be continued by further runs and checks
    #[arg(long, requires = "verify_check", help_heading = "Writes and verification")]
    pub(crate) verify_settle: bool,

    /// Header digests
    #[arg(short = 'H', long, help_heading = "NVMe/TCP")]
    pub(crate) enable_tcp_hdgst: bool,
    /// Data digests
    #[arg(short = 'I', long, help_heading = "NVMe/TCP")]
    pub(crate) enable_tcp_ddgst: bool,
    /// Keep-alive timeout in milliseconds
    #[arg(short = 'k', long, value_name = "MS", default_value_t = 10_000, help_heading = "NVMe/TCP")]
    pub(crate) keepalive: u32,
    /// Entries of an I/O queue (default: what the depth needs)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=65536), help_heading = "NVMe/TCP")]
    pub(crate) io_queue_size: Option<u32>,
    /// Every core sends to every namespace (always so here)
    #[arg(long, hide = true)]
    pub(crate) use_every_core: bool,
    /// Sleep when idle instead of spinning: less CPU, about 20 us more latency at low depth
    #[arg(short = 'E', long, help_heading = "NVMe/TCP")]
    pub(crate) enable_interrupt: bool,

    #[command(flatten)]
    pub(crate) foreign: Foreign,
}

/// Options of `spdk_nvme_perf` without a use here. They are taken, so that scripts run, and each is answered.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Foreign {
    #[arg(short = 'b', long, hide = true)]
    allowed_pci_addr: Vec<String>,
    #[arg(short = 'e', long, hide = true)]
    metadata: Option<String>,
    #[arg(short = 'g', long, hide = true)]
    mem_single_seg: bool,
    #[arg(short = 'i', long, hide = true)]
    shmem_grp_id: Option<String>,
    #[arg(short = 'l', long, hide = true)]
    enable_ssd_latency_tracking: bool,
    #[arg(short = 'm', long, hide = true)]
    cpu_usage: bool,
    #[arg(short = 's', long, hide = true)]
    hugemem_size: Option<String>,
    #[arg(short = 'z', long, hide = true)]
    disable_zcopy: Option<String>,
    #[arg(short = 'Z', long, hide = true)]
    enable_zcopy: Option<String>,
    #[arg(short = 'A', long, hide = true, value_parser = parse_size32)]
    buffer_alignment: Option<u32>,
    #[arg(short = 'C', long, hide = true)]
    max_completion_per_poll: Option<u32>,
    #[arg(short = 'D', long, hide = true)]
    disable_sq_cmb: bool,
    #[arg(short = 'G', long, hide = true)]
    enable_debug: bool,
    #[arg(short = 'N', long, hide = true)]
    no_shst_notification: bool,
    #[arg(short = 'R', long, hide = true)]
    enable_uring: bool,
    #[arg(short = 'S', long, hide = true)]
    default_sock_impl: Option<String>,
    #[arg(short = 'T', long, hide = true)]
    logflag: Vec<String>,
    #[arg(short = 'V', long, hide = true)]
    enable_vmd: bool,
    #[arg(long, hide = true)]
    transport_stats: bool,
    #[arg(long, hide = true)]
    iova_mode: Option<String>,
    #[arg(long, hide = true)]
    disable_ktls: bool,
    #[arg(long, hide = true)]
    enable_ktls: bool,
    #[arg(long, hide = true)]
    tls_version: Option<String>,
    #[arg(long, hide = true)]
    psk_path: Option<String>,
    #[arg(long, hide = true)]
    psk_identity: Option<String>,
    #[arg(long, hide = true)]
    zerocopy_threshold: Option<String>,
    #[arg(long, hide = true)]
    zerocopy_threshold_sock_impl: Option<String>,
    #[arg(long, hide = true)]
    transport_tos: Option<String>,
    #[arg(long, hide = true)]
    rdma_srq_size: Option<String>,
    #[arg(long, hide = true)]
    no_huge: bool,
}

impl Foreign {
    /// What to tell the user of options that change nothing.
    ///
    /// # Errors
    /// The first option whose absence would change what is measured or protected.
    pub(crate) fn answer(&self) -> Result<Vec<String>, String> {
        let refused = [
            (!self.allowed_pci_addr.is_empty(), "-b: there is no PCIe driver yet; name a target with -r"),
            (self.metadata.is_some(), "-e: protection information is not built yet"),
            (self.buffer_alignment.is_some_and(|a| a > 4096), "-A: buffers are aligned to 4096 bytes, not more"),
            (self.enable_vmd, "-V: there is no PCIe driver yet"),
            (self.tls_version.is_some(), "--tls-version: TLS is not built yet"),
            (
                self.psk_path.is_some() || self.psk_identity.is_some(),
                "--psk-path, --psk-identity: TLS is not built yet",
            ),
            (self.enable_ktls, "--enable-ktls: TLS is not built yet"),
            (self.default_sock_impl.as_deref().is_some_and(|s| s == "ssl"), "-S ssl: TLS is not built yet"),
            (self.transport_tos.is_some(), "--transport-tos: the type of service cannot be set yet"),
        ];
        if let Some((_, why)) = refused.iter().find(|(given, _)| *given) {
            return Err((*why).into());
        }
        let memory = "memory comes from the kernel as needed, no reservation to configure";
        let sockets = "sockets go through the reactor's io_uring, one implementation without zero-copy send";
        let ignored = [
            (self.mem_single_seg, "-g", memory),
            (self.shmem_grp_id.is_some(), "-i", memory),
            (self.hugemem_size.is_some(), "-s", memory),
            (self.no_huge, "--no-huge", "huge pages are used only where there are free ones"),
            (self.iova_mode.is_some(), "--iova-mode", memory),
            (self.enable_ssd_latency_tracking, "-l", "no vendor latency log pages are read; use -L"),
            (self.cpu_usage, "-m", "CPU use is always reported"),
            (self.disable_zcopy.is_some(), "-z", sockets),
            (self.enable_zcopy.is_some(), "-Z", sockets),
            (self.zerocopy_threshold.is_some(), "--zerocopy-threshold", sockets),
            (self.zerocopy_threshold_sock_impl.is_some(), "--zerocopy-threshold-sock-impl", sockets),
            (self.enable_uring, "-R", sockets),
            (self.default_sock_impl.is_some(), "-S", sockets),
            (self.disable_ktls, "--disable-ktls", "there is no TLS to turn off"),
            (self.buffer_alignment.is_some(), "-A", "buffers are always aligned to 4096 bytes"),
            (self.max_completion_per_poll.is_some(), "-C", "the budget of a reactor's turn is fixed"),
            (self.disable_sq_cmb, "-D", "there is no controller memory buffer over TCP"),
            (self.enable_debug, "-G", "set RUST_LOG=debug for debug logging"),
            (!self.logflag.is_empty(), "-T", "set RUST_LOG for debug logging"),
            (self.no_shst_notification, "-N", "controllers are always shut down in order"),
            (self.transport_stats, "--transport-stats", "no transport statistics are kept here; ask the target"),
            (self.rdma_srq_size.is_some(), "--rdma-srq-size", "there is no RDMA transport yet"),
        ];
        Ok(ignored
            .iter()
            .filter(|(given, ..)| *given)
            .map(|(_, option, why)| format!("option {option} has no effect: {why}"))
            .collect())
    }
}

/// Which socket loop `ceiling` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Both, one after the other; the faster one counts
    Best,
    /// epoll, read and writev
    Epoll,
    /// io_uring, one receive and one vectored send per connection
    Uring,
}

impl Engine {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Engine::Best => "best",
            Engine::Epoll => "epoll",
            Engine::Uring => "uring",
        }
    }
}

/// Where the payload of the raw-socket loop is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The same bytes each time.
    Hot,
    /// At random from a region of this many bytes.
    Region(u64),
}

impl std::fmt::Display for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Payload::Hot => f.write_str("hot"),
            Payload::Region(n) => write!(f, "{n}"),
        }
    }
}

/// What both sides of the raw-socket loop have to agree on.
#[derive(Args, Debug, Clone)]
pub(crate) struct CeilingShape {
    /// Requests outstanding in all, spread evenly over the -P connections
    #[arg(short = 'q', long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) io_depth: u32,
    /// Payload bytes per request; takes K and M
    #[arg(short = 'o', long, value_name = "SIZE", default_value = "4096", value_parser = ceiling_size)]
    pub(crate) io_size: u32,
    /// Connections
    #[arg(short = 'P', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) num_qpairs: u32,
    /// Direction: read and randread, write and randwrite mean the same
    #[arg(short = 'w', long = "io-pattern", value_name = "PATTERN", value_enum, default_value = "randread")]
    pub(crate) workload: Workload,
    /// Memory that the sending side draws payload from: 'hot' (one payload) or a size
    #[arg(long, value_name = "hot|SIZE", default_value = "hot", value_parser = payload)]
    pub(crate) payload: Payload,
    /// Writes above this size wait for a ready-to-transfer message first, as over NVMe/TCP
    #[arg(long, value_name = "SIZE", default_value = "8192", value_parser = parse_size)]
    pub(crate) in_capsule: u64,
    /// Bytes that arrived for which both sides ask the kernel for room, as targets and initiators do (0: as the kernel likes)
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = ceiling_room)]
    pub(crate) receive_room: u32,
}

/// The raw-socket loop.
#[derive(Args, Debug, Clone)]
pub(crate) struct CeilingArgs {
    #[command(flatten)]
    pub(crate) shape: CeilingShape,
    /// Seconds to measure, per engine, after 0.3 s of warm-up
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub(crate) time: f64,
    /// Two CPUs: the requesting side runs on the first, the serving side on the second (default: the first two allowed)
    #[arg(short = 'c', long, value_name = "MASK", value_parser = cores)]
    pub(crate) core_mask: Option<Cores>,
    /// Engine of both sides
    #[arg(long, value_enum, default_value = "best")]
    pub(crate) engine: Engine,
    /// Print JSON only
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the requesting side tells the serving side that it starts.
#[derive(Args, Debug, Clone)]
pub(crate) struct PeerArgs {
    #[command(flatten)]
    pub(crate) shape: CeilingShape,
    /// CPU to run on
    #[arg(long)]
    pub(crate) cpu: Option<u32>,
    /// Engine
    #[arg(long, value_enum)]
    pub(crate) engine: Engine,
}

/// A set of CPUs. A type of its own: clap takes a bare `Vec` for an option that may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cores(pub Vec<u32>);

fn cores(text: &str) -> Result<Cores, String> {
    parse_cores(text).map(Cores)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=1e7).contains(&s) => Ok(s),
        _ => Err(format!("'{text}' is not a number of seconds")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match parse_rate(text) {
        Some(r) if (0.01..=1e9).contains(&r) => Ok(r),
        _ => Err(format!("'{text}' is not a number of requests per second; k and m stand for 1e3 and 1e6")),
    }
}

fn parse_rate(text: &str) -> Option<f64> {
    let (number, factor) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 1e3),
        b'm' => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    Some(number.parse::<f64>().ok()? * factor)
}

fn payload(text: &str) -> Result<Payload, String> {
    match text {
        "hot" => Ok(Payload::Hot),
        _ => match parse_size(text)? {
            n if n <= 1 << 36 => Ok(Payload::Region(n)),
            _ => Err("a payload region above 64 GiB is not useful here".into()),
        },
    }
}

fn ceiling_room(text: &str) -> Result<u32, String> {
    match parse_size32(text)? {
        n if n <= 1 << 30 => Ok(n),
        _ => Err("at most 1G".into()),
    }
}

fn ceiling_size(text: &str) -> Result<u32, String> {
    match parse_size32(text)? {
        n if n <= 16 << 20 => Ok(n),
        _ => Err("at most 16M per request".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<RunArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("longshore-perf").chain(line.split(' '))).map(|c| c.run)
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_line_of_spdk_nvme_perf_is_understood() {
        let a = Cli::try_parse_from([
            "longshore-perf",
            "-q",
            "128",
            "-o",
            "4K",
            "-w",
            "randrw",
            "-M",
            "70",
            "-t",
            "5",
            "-a",
            "1",
            "-c",
            "0x3",
            "-P",
            "2",
            "-LL",
            "-H",
            "-I",
            "-k",
            "15000",
            "-G",
            "-s",
            "512",
            "-i",
            "0",
            "-r",
            "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420",
        ])
        .unwrap()
        .run;
        assert_eq!((a.io_depth, a.io_size, a.rwmixread, a.latency, a.num_qpairs), (128, 4096, Some(70), 2, 2));
        assert_eq!(a.core_mask.0, vec![0, 1]);
        assert!(a.enable_tcp_hdgst && a.enable_tcp_ddgst);
        let notes = a.foreign.answer().unwrap();
        assert_eq!(notes.len(), 3, "{notes:?}");
    }

    #[test]
    fn options_that_would_change_the_result_are_refused_by_name() {
        for (line, part) in [
            ("--bdev null -e PRACT=1", "-e"),
            ("--bdev null --psk-path /k", "psk"),
            ("--bdev null -A 8192", "-A"),
            ("--bdev null -b 0000:00:01.0", "-b"),
        ] {
            let e = run(line).unwrap().foreign.answer().unwrap_err();
            assert!(e.contains(part), "{line}: {e}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            "-q 0",
            "-o 0",
            "-w fast",
            "-t -1",
            "-c 0x0",
            "-M 101",
            "--rate 0",
            "--config x",
            "--bdev a -r trtype:TCP",
            "--bdev a --accel-mask 2",
        ] {
            assert!(run(line).is_err(), "{line} was taken");
        }
        assert_eq!(run("--rate 1.5k").unwrap().rate, Some(1500.0));
    }
}
