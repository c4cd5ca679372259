//! Real files through the ring.

use longshore_reactor::file::{File, FileOptions};
use longshore_reactor::{DmaOptions, Options, Runtime};
use std::path::PathBuf;

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let dir = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").into());
        Temp(PathBuf::from(dir).join(format!("{name}-{}", std::process::id())))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn data_written_is_read_back_with_and_without_registered_buffers() {
    for (register, direct) in [(true, false), (false, false), (true, true)] {
        let dma = DmaOptions { register, ..DmaOptions::default() };
        let rt = Runtime::start(Options { dma, pin: false, ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
        let t = Temp::new("rw");
        let path = t.0.clone();
        let done = rt.cores()[0].spawn(move |r| async move {
            let file = File::open(&path, &FileOptions { create: true, direct, ..FileOptions::default() }).unwrap();
            file.preallocate(1 << 20).unwrap();
            assert_eq!(file.size().unwrap(), 1 << 20);
            let block = file.block_size().unwrap() as usize;
            assert!(block.is_power_of_two() && !file.is_block_device());
            let n = block.max(4096);
            let mut b = r.dma().alloc(n).unwrap();
            b.get_mut().unwrap().fill(0x5a);
            let (res, b) = file.write_at(&r, b, n as u64, true).await;
            assert_eq!(res.unwrap(), n);
            file.sync(&r).await.unwrap();
            let (res, back) = file.read_at(&r, r.dma().alloc(n).unwrap(), n as u64).await;
            assert_eq!((res.unwrap(), back.as_slice()), (n, b.as_slice()));
            file.punch_hole(&r, n as u64, n as u64).await.unwrap();
            let (res, back) = file.read_at(&r, back, n as u64).await;
            assert!(res.unwrap() == n && back.as_slice().iter().all(|&b| b == 0));
            assert_eq!(file.read_at(&r, back, 2 << 20).await.0.unwrap(), 0, "nothing beyond the end");
            r.dma().stats()
        });
        let stats = done.wait().unwrap();
        // Registered, or the reason why not is told.
        assert_eq!(stats.registered > 0 || stats.register_error.is_some(), register, "{stats:?}");
        rt.stop();
    }
}

#[test]
fn a_dropped_read_is_orphaned_and_its_buffer_comes_back() {
    let rt = Runtime::start(Options { pin: false, ..Options::default() }).unwrap();
    let t = Temp::new("orphan");
    std::fs::write(&t.0, vec![1; 1 << 20]).unwrap();
    let path = t.0.clone();
    let done = rt.cores()[0].spawn(move |r| async move {
        let file = std::rc::Rc::new(File::open(&path, &FileOptions::default()).unwrap());
        for _ in 0..50 {
            let (r2, file) = (r.clone(), file.clone());
            let task = r.spawn(async move { file.read_at(&r2, r2.dma().alloc(1 << 20).unwrap(), 0).await.0 });
            r.yield_now().await;
            task.abort();
        }
        while r.in_flight() > 0 {
            r.sleep(std::time::Duration::from_millis(1)).await;
        }
        r.dma().stats().classes.iter().map(|c| c.in_use).sum::<usize>()
    });
    assert_eq!(done.wait(), Ok(0));
    rt.stop();
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let e = File::open("/dev/null", &FileOptions::default()).unwrap_err();
    assert!(e.to_string().contains("/dev/null"), "{e}");
}
