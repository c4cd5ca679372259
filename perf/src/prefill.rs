//! What a device holds before the load begins.

use std::rc::Rc;
use std::sync::Arc;

use longshore_bdev::{BdevDesc, IoFlags};
use longshore_nvme::wire::Status;
use longshore_reactor::{CoreHandle, Reactor};

use crate::cli::Prefill;
use crate::load::Extent;
use crate::random::Random;

/// Bytes of a request.
const UNIT: u64 = 1 << 20;

/// Tasks that write side by side.
const WRITERS: u64 = 8;

/// Writes each block of `extent` once and flushes, on `core`; unmaps it all again if that is asked for.
///
/// # Errors
/// A request failed, or there is no memory.
pub(crate) fn run(how: Prefill, desc: &Arc<BdevDesc>, extent: &Extent, core: &CoreHandle) -> Result<(), String> {
    let desc = desc.clone();
    let (first, blocks, size) = (extent.first_lba, extent.units * u64::from(extent.unit_blocks), extent.block_size);
    let done = core.spawn(move |r| async move {
        let next = Rc::new(std::cell::Cell::new(0));
        let writers: Vec<_> =
            (0..WRITERS).map(|_| r.spawn(writer(r.clone(), desc.clone(), first, blocks, size, next.clone()))).collect();
        for w in writers {
            w.await.map_err(|_| "a reactor stopped".to_owned())??;
        }
        let channel = desc.channel().map_err(|e| e.to_string())?;
        told("flush", channel.flush().await.0)?;
        if how == Prefill::Unmap {
            let per = UNIT * 64 / u64::from(size);
            for at in (0..blocks).step_by(per as usize) {
                told("unmap", channel.unmap(first + at, per.min(blocks - at) as u32).await.0)?;
            }
        }
        Ok(())
    });
    done.wait().map_err(|_| "a reactor stopped".to_owned())?
}

fn told(what: &str, status: Status) -> Result<(), String> {
    if status.is_ok() { Ok(()) } else { Err(format!("--prefill: a {what} failed: {status}")) }
}

/// Takes the next blocks that nobody has written, until there are none.
async fn writer(
    r: Reactor,
    desc: Arc<BdevDesc>,
    first: u64,
    blocks: u64,
    size: u32,
    next: Rc<std::cell::Cell<u64>>,
) -> Result<(), String> {
    let channel = desc.channel().map_err(|e| e.to_string())?;
    let mut buf = r.dma().alloc(UNIT as usize).ok_or("out of memory for --prefill")?;
    let mut random = Random::new(1);
    if let Some(bytes) = buf.get_mut() {
        bytes.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&random.next().to_le_bytes()));
    }
    let per = UNIT / u64::from(size);
    loop {
        let at = next.get();
        if at >= blocks {
            return Ok(());
        }
        let n = per.min(blocks - at);
        next.set(at + n);
        let part = buf.slice(0, n as usize * size as usize);
        told("write", channel.write(first + at, n as u32, part, IoFlags::NONE).await.0)?;
    }
}
