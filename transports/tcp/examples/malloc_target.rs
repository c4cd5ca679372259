//! Serves a device in memory over NVMe/TCP until its standard input ends.
//!
//!     cargo run --release -p longshore-tcp --example malloc_target -- 127.0.0.1:4420 256
//!     nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2016-06.io.longshore:malloc
//!
//! Arguments: address, MiB, and optionally the number of cores.

use std::error::Error;
use std::io::Read;

use longshore_bdev::{Geometry, Registry, malloc::Malloc};
use longshore_nvme::wire::AnaState;
use longshore_nvmf::{Address, NamespaceOptions, SubsystemOptions, Target, TrType, TransportOptions};
use longshore_reactor::{Options, Runtime};
use longshore_tcp::{TcpOptions, TcpTransport};

const NQN: &str = "nqn.2016-06.io.longshore:malloc";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address: std::net::SocketAddr = args.next().unwrap_or("127.0.0.1:4420".into()).parse()?;
    let mib: u64 = args.next().unwrap_or("256".into()).parse()?;
    let cores: u32 = args.next().unwrap_or("1".into()).parse()?;

    let runtime = Runtime::start(Options { cores: (0..cores).collect(), ..Options::default() })?;
    let bdevs = Registry::new();
    bdevs.register("Malloc0", None, Malloc::new(Geometry::plain(512, mib << 11))?)?;

    // The control plane is async: here it runs as a task of the first core.
    let all = runtime.cores().to_vec();
    let target = runtime.cores()[0]
        .spawn(move |_| async move {
            let target = Target::start(all, bdevs).await?;
            target.register_transport(TcpTransport::new(TcpOptions::default()));
            target.create_transport(TransportOptions::new(TrType::Tcp)).await?;
            let subsystem = SubsystemOptions { allow_any_host: true, ..SubsystemOptions::new(NQN) };
            target.create_subsystem(subsystem).await?;
            let namespace = NamespaceOptions { bdev_name: "Malloc0".into(), ..NamespaceOptions::default() };
            target.add_namespace(NQN, namespace).await?;
            target.add_listener(NQN, Address::tcp(address), AnaState::Optimized).await?;
            Ok::<_, longshore_nvmf::TargetError>(target)
        })
        .wait()??;
    println!("{mib} MiB at {address}, subsystem {NQN}; end of input ends it");

    std::io::stdin().read_to_end(&mut Vec::new())?;
    runtime.cores()[0].spawn(move |_| async move { target.shutdown().await }).wait()?;
    runtime.stop();
    Ok(())
}
