//! Local bdevs as what load is made on.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use longshore_accel::Accel;
use longshore_accel::cores::{self, CoresOptions};
use longshore_bdev::malloc::Malloc;
use longshore_bdev::null::Null;
use longshore_bdev::uring;
use longshore_bdev::{BdevDesc, Channel, Geometry, IoFlags, IoRef, IoVec, Op, Registry, Submitter};
use longshore_reactor::{CoreHandle, DmaBuf, Reactor};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::config::Config;
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};

use crate::cli::Cores;
use crate::device::Device;
use crate::lane::{Kind, Lane, Port, Work};
use crate::units::parse_size;

/// Size of a null device when none is given: it has no medium, only a number of blocks.
const NULL_SIZE: u64 = 1 << 40;

/// Subsystems of a configuration that are applied: a load generator opens no ports.
const APPLIED: [&str; 4] = ["accel", "bdev", "iobuf", "sock"];

/// A bdev that can be opened on every core.
pub(crate) struct LocalBdev {
    desc: Arc<BdevDesc>,
    /// What made it, if a configuration did: it ends what it started.
    app: Option<Arc<App>>,
}

impl LocalBdev {
    /// Makes a device of a kind that needs no configuration: `null[:SIZE[:BLOCK]]`, `malloc:SIZE[:BLOCK]` or `file:PATH`.
    ///
    /// # Errors
    /// The text is of no such kind, or the device cannot be made.
    pub(crate) fn built_in(spec: &str) -> Result<LocalBdev, String> {
        let registry = Registry::new();
        if let Some(path) = spec.strip_prefix("file:") {
            uring::create(&registry, uring::Options::new(spec, path, uring::Family::Uring))
                .map_err(|e| e.to_string())?;
            return LocalBdev::open(&registry, spec);
        }
        let mut parts = spec.split(':');
        let kind = parts.next().unwrap_or_default();
        let size = parts.next().map(parse_size).transpose()?;
        let block = parts.next().map_or(Ok(512), parse_size)?;
        if parts.next().is_some() {
            return Err(format!("'{spec}' has too many parts: use KIND:SIZE:BLOCK"));
        }
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(format!("a block of {block} bytes is not possible: use a power of two from 512 to 64K"));
        }
        let size = match (kind, size) {
            ("null", s) => s.unwrap_or(NULL_SIZE),
            ("malloc", Some(s)) => s,
            ("malloc", None) => return Err("'malloc' needs a size: malloc:64M".into()),
            _ => {
                return Err(format!(
                    "'{kind}' is no kind of device that can be made without --config: use null[:SIZE[:BLOCK]], malloc:SIZE[:BLOCK] or file:PATH"
                ));
            }
        };
        if size < block {
            return Err(format!("'{spec}' is smaller than one block"));
        }
        let geometry = Geometry::plain(block as u32, size / block);
        let made = match kind {
            "null" => registry.register(spec, None, Null::new(geometry)),
            _ => Malloc::new(geometry).and_then(|m| registry.register(spec, None, m)),
        };
        made.map_err(|e| e.to_string())?;
        LocalBdev::open(&registry, spec)
    }

    /// Makes the devices of a configuration and opens one of them. What takes long to compute for them is computed on `accel`.
    ///
    /// # Errors
    /// An accel core cannot be started; the configuration cannot be applied, or makes no device of this name, or it is claimed.
    pub(crate) fn configured(
        config: &Path,
        name: &str,
        cores: &[CoreHandle],
        accel: Option<&Cores>,
    ) -> Result<LocalBdev, String> {
        let fail = |e: &dyn std::fmt::Display| format!("configuration {}: {e}", config.display());
        let mut calls = Config::read(config).map_err(|e| fail(&e))?;
        calls.retain(|subsystem| APPLIED.contains(&subsystem));
        let bdevs = Registry::new();
        let accel = Arc::new(accel_on(accel)?);
        let app = App::new(Parts { cores: cores.to_vec(), bdevs: bdevs.clone(), accel, ..Parts::default() });
        block_on(calls.apply(&app, false)).map_err(|e| fail(&e))?;
        let bdev = LocalBdev::open(&bdevs, name).map_err(|e| {
            let names: Vec<_> = bdevs.list().iter().map(|b| b.name().to_owned()).collect();
            fail(&format!("{e}; it makes {}", if names.is_empty() { "none".into() } else { names.join(", ") }))
        });
        match bdev {
            Ok(b) => Ok(LocalBdev { app: Some(app), ..b }),
            Err(e) => {
                block_on(app.shutdown());
                Err(e)
            }
        }
    }

    fn open(registry: &Arc<Registry>, name: &str) -> Result<LocalBdev, String> {
        let desc = registry.open(name, true, Box::new(|_| {})).map_err(|e| e.to_string())?;
        Ok(LocalBdev { desc: Arc::new(desc), app: None })
    }

    /// Its handle.
    pub(crate) fn desc(&self) -> &Arc<BdevDesc> {
        &self.desc
    }

    /// Closes the device and ends what was started for it. No channel may be open any more.
    pub(crate) fn close(self) {
        drop(self.desc);
        if let Some(app) = self.app {
            block_on(app.shutdown());
        }
    }
}

fn accel_on(cores: Option<&Cores>) -> Result<Accel, String> {
    let Some(cores) = cores else { return Ok(Accel::default()) };
    let cores = cores::Cores::start(cores.0.clone(), CoresOptions::default());
    Ok(Accel::default().with_cores(cores.map_err(|e| format!("--accel-mask: {e}"))?))
}

impl Device for LocalBdev {
    type Port = LocalPort;
    type Disk = Channel;

    fn name(&self) -> String {
        self.desc.node().name().to_owned()
    }

    fn block_size(&self) -> u32 {
        self.desc.node().geometry().block_size
    }

    fn num_blocks(&self) -> u64 {
        self.desc.node().num_blocks()
    }

    fn counters(&self) -> Value {
        // What `bdev_ec_get_bdevs` says: other devices have no counters of their own.
        let Some(app) = &self.app else { return Value::Null };
        let name = Json::from_value(&json!({ "name": self.name() }));
        match block_on(app.call("bdev_ec_get_bdevs", Some(&name))) {
            Ok(mut arrays) => arrays[0]["stats"].take(),
            Err(_) => Value::Null,
        }
    }

    async fn open_port(&self, r: &Reactor) -> Result<LocalPort, String> {
        let channel = self.open_disk(r).await?;
        Ok(LocalPort { channel, vectors: RefCell::default() })
    }

    async fn open_disk(&self, _: &Reactor) -> Result<Channel, String> {
        self.desc.channel().map_err(|e| e.to_string())
    }
}

/// A bdev on one core, for lanes.
pub(crate) struct LocalPort {
    channel: Channel,
    /// Memory of requests that have several pieces. Requests hold their lane, and with it this, until they end.
    vectors: RefCell<Vec<Vector>>,
}

/// The pieces of one request.
struct Vector {
    iov: Box<[IoVec]>,
    _memory: Vec<DmaBuf>,
}

impl Port for LocalPort {
    type Request = IoRef;

    fn request(&self, mut pieces: Vec<DmaBuf>) -> Option<IoRef> {
        let mut io = self.channel.core().get()?;
        if pieces.len() == 1 {
            io.set_buf(pieces.pop()?);
            return Some(io);
        }
        let iov = pieces.iter().map(|b| IoVec { iov_base: b.as_ptr().cast(), iov_len: b.len() }).collect();
        let vector = Vector { iov, _memory: pieces };
        // SAFETY: the vector and its memory are kept by this port, whose lane every request in flight holds; nobody else
        // has a reference to the memory. The boxed slice does not move when `vectors` grows.
        unsafe { io.set_iov(vector.iov.as_ptr(), vector.iov.len() as u32) };
        self.vectors.borrow_mut().push(vector);
        Some(io)
    }

    #[inline]
    fn submit(lane: &Rc<Lane<Self>>, mut io: IoRef, work: Work, tag: u64) {
        match work.kind {
            // Nobody looks at what a lane reads.
            Kind::Read => io.prepare(Op::Read, IoFlags::KEEP_BUFFER, work.lba, work.blocks),
            Kind::Write => {
                let flags = if work.fua { IoFlags::FUA } else { IoFlags::NONE };
                io.prepare(Op::Write, flags, work.lba, work.blocks);
            }
            Kind::Flush => io.prepare(Op::Flush, IoFlags::NONE, 0, 0),
        }
        io.begin(lane.clone(), tag);
        lane.port.channel.submit(io);
    }

    fn release(&self, io: IoRef) {
        io.release();
    }

    async fn close(&self) {}
}

impl Submitter for Lane<LocalPort> {
    #[inline]
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        let kind = match io.op() {
            Op::Read => Kind::Read,
            Op::Write => Kind::Write,
            _ => Kind::Flush,
        };
        let work = Work { kind, fua: false, lba: io.lba(), blocks: io.nblocks() };
        let status = io.status();
        self.done(io, work, status, tag);
    }
}
