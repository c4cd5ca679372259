//! A host of your own: reads, and if asked writes, a namespace of any NVMe/TCP target from async code.
//!
//!     cargo run --example host -- 127.0.0.1:4420 NQN read LBA
//!     cargo run --example host -- 127.0.0.1:4420 NQN write LBA TEXT
//!
//! `read` prints the first 32 bytes of the block in hexadecimal; `write` fills it with TEXT, flushes, and reads it back.

use std::error::Error;
use std::sync::Arc;

use longshore::nvme::host::{Controller, Data, HostOptions, IoQueue, TransportId};
use longshore::nvme::wire::opcode::io as opcode;
use longshore::nvme::wire::{Sqe, Status};
use longshore::reactor::{DmaBuf, Options, Reactor, Runtime};

type Failure = Box<dyn Error + Send + Sync>;

/// One block of namespace 1, and the queue it is reached by.
struct Disk {
    queue: IoQueue,
    block_size: usize,
}

impl Disk {
    async fn open(reactor: &Reactor, controller: &Arc<Controller>) -> Result<Disk, Failure> {
        let block_size = controller.namespace(1).await?.block_size().ok_or("unknown LBA format")? as usize;
        Ok(Disk { queue: controller.io_queue(reactor, None).await?, block_size })
    }

    /// Runs a command of one block. The buffer belongs to the command until it has ended.
    async fn one_block(&self, opcode: u8, lba: u64, data: Data<'_>) -> Result<(), Failure> {
        let mut sqe = Sqe::new(opcode, 0, 1);
        if opcode != opcode::FLUSH {
            sqe.set_slba(lba);
            sqe.set_nblocks(1);
        }
        let status = self.queue.qpair().run(&sqe, data).await?.status;
        if status.is(Status::SUCCESS) { Ok(()) } else { Err(format!("command {opcode:#x}: {status}").into()) }
    }

    async fn read(&self, reactor: &Reactor, lba: u64) -> Result<DmaBuf, Failure> {
        let buf = reactor.dma().alloc(self.block_size).ok_or("out of memory")?;
        self.one_block(opcode::READ, lba, Data::Read(buf.clone())).await?;
        Ok(buf)
    }

    async fn write(&self, reactor: &Reactor, lba: u64, text: &[u8]) -> Result<(), Failure> {
        let mut buf = reactor.dma().alloc(self.block_size).ok_or("out of memory")?;
        let bytes = buf.get_mut().ok_or("a fresh buffer has one owner")?;
        bytes.iter_mut().zip(text.iter().cycle()).for_each(|(b, t)| *b = *t);
        self.one_block(opcode::WRITE, lba, Data::Write(buf)).await?;
        self.one_block(opcode::FLUSH, 0, Data::None).await
    }
}

async fn run(reactor: Reactor, args: Vec<String>) -> Result<(), Failure> {
    let [address, nqn, what, lba, text @ ..] = &args[..] else {
        return Err("usage: host ADDRESS:PORT NQN read|write LBA [TEXT]".into());
    };
    let id = TransportId::tcp(address.parse()?, nqn.as_str());
    let controller = Controller::connect(&reactor.handle(), id, HostOptions::default()).await?;
    let disk = Disk::open(&reactor, &controller).await?;
    let lba = lba.parse()?;
    if what == "write" {
        let text = text.first().filter(|t| !t.is_empty()).ok_or("nothing to write")?;
        disk.write(&reactor, lba, text.as_bytes()).await?;
    }
    let block = disk.read(&reactor, lba).await?;
    let hex: String = block.as_slice().iter().take(32).map(|b| format!("{b:02x}")).collect();
    println!("block {lba}: {hex}");
    disk.queue.disconnect().await;
    controller.disconnect(true).await;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let args = std::env::args().skip(1).collect();
    let runtime = Runtime::start(Options::default())?;
    let outcome = runtime.cores()[0].spawn(move |reactor| run(reactor, args)).wait()?;
    runtime.stop();
    outcome
}
