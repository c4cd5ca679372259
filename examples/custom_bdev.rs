//! A block device of your own, exported over NVMe/TCP by a target inside your program.
//!
//!     cargo run --example custom_bdev -- 127.0.0.1:4420
//!
//! The device holds no data: every 8 bytes of a block are its LBA, little-endian, and writes are refused. Connect a host and
//! `od -t u8 /dev/nvme0n1` shows it. End of input ends the program.

use std::any::Any;
use std::error::Error;
use std::io::Read;
use std::sync::Arc;

use longshore::bdev::{
    Bdev, BdevError, BdevNode, Geometry, IoChannel, IoId, IoRef, Op, Registry, Status, SupportedOps,
};
use longshore::nvme::wire::AnaState;
use longshore::nvmf::{Address, NamespaceOptions, SubsystemOptions, Target, TargetError, TrType, TransportOptions};
use longshore::reactor::{Options, Reactor, Runtime};
use longshore::tcp::{TcpOptions, TcpTransport};

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:5b8a3f9c-6d0e-4b52-9a47-0c3f6f1d2e77";
const BLOCK: usize = 4096;

/// The control plane: what the device is.
struct Pattern;

impl Bdev for Pattern {
    fn product_name(&self) -> &'static str {
        "Pattern disk"
    }

    fn geometry(&self) -> Geometry {
        Geometry::plain(BLOCK as u32, 1 << 20)
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read])
    }

    fn read_only(&self) -> bool {
        true
    }

    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(PatternChannel))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The data plane on one core. Here would be your hardware's queue pair.
struct PatternChannel;

impl IoChannel for PatternChannel {
    fn submit(&self, mut io: IoRef) {
        // The core has checked range and operation already.
        let mut offset = io.lba() as usize * BLOCK;
        for piece in io.segments_mut() {
            for byte in piece {
                *byte = ((offset / BLOCK) as u64).to_le_bytes()[offset % 8];
                offset += 1;
            }
        }
        io.complete_later(Status::SUCCESS);
    }

    fn abort(&self, _: IoId) -> bool {
        false // every request has its outcome when `submit` returns
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address: std::net::SocketAddr = std::env::args().nth(1).unwrap_or("127.0.0.1:4420".into()).parse()?;
    let runtime = Runtime::start(Options::default())?;
    let bdevs = Registry::new();
    bdevs.register("pattern0", None, Arc::new(Pattern))?;

    // The control plane is async: here it runs as a task of the first core.
    let cores = runtime.cores().to_vec();
    let target = runtime.cores()[0].spawn(move |_| async move {
        let target = Target::start(cores, bdevs).await?;
        target.register_transport(TcpTransport::new(TcpOptions::default()));
        target.create_transport(TransportOptions::new(TrType::Tcp)).await?;
        target.create_subsystem(SubsystemOptions { allow_any_host: true, ..SubsystemOptions::new(NQN) }).await?;
        let namespace = NamespaceOptions { bdev_name: "pattern0".into(), ..NamespaceOptions::default() };
        target.add_namespace(NQN, namespace).await?;
        target.add_listener(NQN, Address::tcp(address), AnaState::Optimized).await?;
        Ok::<_, TargetError>(target)
    });
    let target = target.wait()??;
    println!("pattern0 at {address}, subsystem {NQN}");

    std::io::stdin().read_to_end(&mut Vec::new())?;
    runtime.cores()[0].spawn(move |_| async move { target.shutdown().await }).wait()?;
    runtime.stop();
    Ok(())
}
