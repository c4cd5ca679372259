//! One look at everything. Cores answer by message, and counters of devices are atomics that one core writes: nothing here takes a
//! lock that the I/O path knows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use longshore_bdev::{BdevNode, CoreState, Op, PoolStats, StatSnapshot};
use longshore_nvmf::{Address, GroupStats, QpairInfo, SubsystemView};
use longshore_reactor::{CoreHandle, DmaStats, ReactorStats};

use crate::app::App;

/// Devices looked at before other work of the thread gets its turn.
const PART: usize = 128;

/// One device, without a hold on it: a slow reader must not keep a device from going.
#[derive(Default)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) product: &'static str,
    pub(crate) uuid: String,
    pub(crate) block_size: u64,
    pub(crate) num_blocks: u64,
    /// Bit per operation that it supports.
    pub(crate) supported: u16,
    pub(crate) stats: StatSnapshot,
    /// Where it is sampled.
    pub(crate) queue_depth: Option<u64>,
}

impl Device {
    fn of(node: &BdevNode) -> Device {
        let queue = node.queue_depth();
        Device {
            name: node.name().to_owned(),
            product: node.device().product_name(),
            uuid: node.uuid().to_string(),
            block_size: u64::from(node.geometry().block_size),
            num_blocks: node.num_blocks(),
            supported: Op::ALL.iter().filter(|op| node.supports(**op)).fold(0, |all, op| all | 1 << *op as u16),
            stats: node.stats(),
            queue_depth: (!queue.period.is_zero()).then_some(queue.depth),
        }
    }

    /// True if it supports the operation.
    pub(crate) fn supports(&self, op: Op) -> bool {
        self.supported & 1 << op as u16 != 0
    }

    /// Bytes of the operations of a kind that succeeded.
    pub(crate) fn bytes(&self, op: Op) -> u64 {
        self.stats.op(op).blocks.wrapping_mul(self.block_size)
    }
}

/// One core.
pub(crate) struct Core {
    pub(crate) handle: CoreHandle,
    pub(crate) cpu: String,
    pub(crate) stats: ReactorStats,
    /// What it answered; none if it is gone.
    pub(crate) pools: Option<(PoolStats, DmaStats)>,
    pub(crate) group: Option<GroupStats>,
}

/// One namespace.
pub(crate) struct Namespace {
    pub(crate) nsid: String,
    pub(crate) bdev_name: String,
    pub(crate) anagrpid: String,
    pub(crate) bytes: u64,
}

/// One subsystem of namespaces, with who is connected; without a hold on it either.
pub(crate) struct Subsystem {
    pub(crate) nqn: String,
    pub(crate) serial_number: String,
    pub(crate) model_number: String,
    pub(crate) allow_any_host: bool,
    pub(crate) ana_reporting: bool,
    pub(crate) max_namespaces: u32,
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) listeners: Vec<Address>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) qpairs: Vec<QpairInfo>,
}

impl Subsystem {
    fn of(view: &SubsystemView, qpairs: Vec<QpairInfo>) -> Subsystem {
        let namespaces = view.namespaces.values().map(|n| Namespace {
            nsid: n.nsid.to_string(),
            bdev_name: n.ns.bdev_name.clone(),
            anagrpid: n.anagrpid.to_string(),
            bytes: n.ns.num_blocks().saturating_mul(u64::from(n.ns.data_size())),
        });
        Subsystem {
            nqn: view.nqn().to_owned(),
            serial_number: view.options.serial_number.clone(),
            model_number: view.options.model_number.clone(),
            allow_any_host: view.allow_any_host,
            ana_reporting: view.options.ana_reporting,
            max_namespaces: view.options.max_namespaces,
            hosts: view.hosts.clone(),
            listeners: view.listeners.iter().map(|l| l.address.clone()).collect(),
            namespaces: namespaces.collect(),
            qpairs,
        }
    }

    /// Hosts that are connected, each with the number of its queue pairs.
    pub(crate) fn connected(&self) -> BTreeMap<&str, usize> {
        let mut all = BTreeMap::new();
        self.qpairs.iter().for_each(|q| *all.entry(q.hostnqn.as_str()).or_default() += 1);
        all
    }

    /// Hosts that may connect by name and are not connected.
    pub(crate) fn absent(&self) -> impl Iterator<Item = &str> {
        let connected = self.connected();
        self.hosts.iter().map(String::as_str).filter(move |host| !connected.contains_key(host))
    }
}

/// The process as the kernel counts it.
#[derive(Default)]
pub(crate) struct Process {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident: u64,
    pub(crate) huge: u64,
}

/// Everything at about one time.
pub(crate) struct Snapshot {
    pub(crate) at: Instant,
    pub(crate) seconds: f64,
    pub(crate) hostname: String,
    pub(crate) process: Process,
    pub(crate) devices: Vec<Device>,
    pub(crate) cores: Vec<Core>,
    pub(crate) subsystems: Vec<Subsystem>,
    pub(crate) answers: BTreeMap<u16, u64>,
}

impl Snapshot {
    /// Nothing yet.
    pub(crate) fn empty() -> Snapshot {
        Snapshot {
            at: Instant::now(),
            seconds: 0.0,
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: Process::default(),
            devices: Vec::new(),
            cores: Vec::new(),
            subsystems: Vec::new(),
            answers: BTreeMap::new(),
        }
    }
}

/// Looks at everything.
pub(crate) async fn snapshot(app: &App) -> Snapshot {
    let mut out = Snapshot::empty();
    let asked: Vec<_> = app
        .cores
        .iter()
        .map(|core| core.call(|reactor| (CoreState::current().pool_stats(), reactor.dma().stats())))
        .collect();
    let cores = &mut out.cores;
    for (core, pools) in app.cores.iter().zip(asked) {
        cores.push(Core {
            handle: core.clone(),
            cpu: core.cpu().to_string(),
            stats: core.stats(),
            pools: pools.await.ok(),
            group: None,
        });
    }
    if let Ok(target) = app.target() {
        for group in target.stats().await {
            if let Some(core) = cores.get_mut(group.core) {
                core.group = Some(group);
            }
        }
        let mut of: HashMap<u64, Vec<QpairInfo>> = HashMap::new();
        for (subsystem, mut qpair) in target.all_qpairs().await {
            // A CPU here too, as everywhere in the output.
            qpair.core = cores.get(qpair.core).map_or(qpair.core, |core| core.handle.cpu() as usize);
            of.entry(subsystem).or_default().push(qpair);
        }
        let views = target.subsystems();
        let views = views.iter().filter(|view| !view.discovery);
        out.subsystems.extend(views.map(|view| Subsystem::of(view, of.remove(&view.id).unwrap_or_default())));
    }
    for part in app.bdevs.list().chunks(PART) {
        out.devices.extend(part.iter().map(|node| Device::of(node)));
        others().await;
    }
    out.process = process();
    out.answers.clone_from(&App::lock(&app.answers));
    out.seconds = out.at.elapsed().as_secs_f64();
    out
}

/// Lets other tasks of the thread run.
async fn others() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn process() -> Process {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Process {
        cpu_seconds: time.tv_sec as f64 + time.tv_nsec as f64 / 1e9,
        resident: kib("VmRSS:"),
        huge: kib("HugetlbPages:"),
    }
}
