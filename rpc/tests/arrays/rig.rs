//! Files, a daemon's methods on devices on them, and its log.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use longshore_bdev::{IoFlags, Registry, Status};
use longshore_reactor::{Options, Reactor, Runtime};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};

/// Bytes of a disk.
pub(crate) const DISK: u64 = 16 << 20;
/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files that members are on.
pub(crate) struct Disks(PathBuf);

impl Disks {
    pub(crate) fn new(name: &str, n: usize) -> Disks {
        let dir = std::env::temp_dir().join(format!("longshore-arrays-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..n {
            std::fs::File::create(dir.join(format!("disk{i}"))).unwrap().set_len(DISK).unwrap();
        }
        Disks(dir)
    }

    pub(crate) fn path(&self, i: usize) -> String {
        self.0.join(format!("disk{i}")).display().to_string()
    }

    /// Changes what is on a disk while nobody uses it.
    pub(crate) fn edit(&self, i: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(i)).unwrap();
        change(&mut bytes);
        std::fs::write(self.path(i), bytes).unwrap();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The methods of a daemon.
pub(crate) struct Rig {
    pub(crate) app: Arc<App>,
    runtime: Option<Runtime>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        listen();
        let runtime = Runtime::start(Options { pin: false, ..Options::default() }).expect("a reactor");
        let app = App::new(Parts { cores: runtime.cores().to_vec(), bdevs: Registry::new(), ..Parts::default() });
        Rig { app, runtime: Some(runtime) }
    }

    /// With a device per disk. Absent members are waited for one second.
    pub(crate) fn on(disks: &Disks, n: usize) -> Rig {
        let rig = Rig::new();
        block_on(rig.app.init()).unwrap();
        rig.call("bdev_ec_set_options", json!({"assemble_timeout_sec": 1})).unwrap();
        for i in 0..n {
            rig.attach(disks, i);
        }
        rig
    }

    /// The device of a disk comes.
    pub(crate) fn attach(&self, disks: &Disks, i: usize) {
        let file = json!({"name": format!("d{i}"), "filename": disks.path(i), "block_size": 512});
        self.call("bdev_uring_create", file).unwrap();
    }

    /// The result, or the error's code and text.
    pub(crate) fn call(&self, method: &str, params: Value) -> Result<Value, (i32, String)> {
        let params = (!params.is_null()).then(|| Json::from_value(&params));
        block_on(self.app.call(method, params.as_ref())).map_err(|e| (e.code, e.to_string()))
    }

    /// Ends when arrays were found on the devices that there are.
    pub(crate) fn settle(&self) {
        self.call("bdev_wait_for_examine", Value::Null).unwrap();
    }

    pub(crate) fn array(&self) -> Value {
        self.call("bdev_ec_get_bdevs", json!({"name": "Ec0"})).unwrap()[0].clone()
    }

    /// The array, once it is as `until` says.
    pub(crate) fn array_when(&self, until: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let a = self.array();
            if until(&a) {
                return a;
            }
            assert!(start.elapsed() < PATIENCE, "{a:#}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The array, once all members are in sync.
    pub(crate) fn whole(&self) -> Value {
        self.array_when(|a| states(a).iter().all(|s| *s == "normal") && a["replace_in_progress"] == json!(false))
    }

    /// Kinds of what happened to the array so far.
    pub(crate) fn events(&self) -> Vec<String> {
        let all = self.call("notify_get_notifications", json!({"max": 1000})).unwrap();
        let of = all.as_array().unwrap().iter().filter(|n| n["ctx"] == "Ec0");
        of.map(|n| n["type"].as_str().unwrap().to_owned()).collect()
    }

    /// Does `f` on the array, on its core.
    pub(crate) fn io<T: Send + 'static, F>(&self, f: F) -> T
    where
        F: AsyncFnOnce(Reactor, longshore_bdev::Channel) -> T + Send + 'static,
    {
        let bdevs = self.app.bdevs.clone();
        let task = self.app.cores[0].spawn(move |r: Reactor| async move {
            let desc = bdevs.open("Ec0", true, Box::new(|_| {})).unwrap();
            let channel = desc.channel().unwrap();
            f(r, channel).await
        });
        block_on(task).unwrap()
    }

    /// Writes `bytes` of `byte` at block 0, durably.
    pub(crate) fn write(&self, bytes: usize, byte: u8) -> Status {
        self.io(async move |r, channel| {
            let mut buf = r.dma().alloc(bytes).unwrap();
            buf.get_mut().unwrap().fill(byte);
            channel.write(0, (bytes / 512) as u32, buf, IoFlags::FUA).await.0
        })
    }

    /// Reads `bytes` at block 0: the one byte that they all are.
    pub(crate) fn read(&self, bytes: usize) -> Result<u8, Status> {
        self.io(async move |r, channel| {
            let (status, data) = channel.read(0, (bytes / 512) as u32, r.dma().alloc(bytes).unwrap()).await;
            let data = data.filter(|_| status.is_ok()).ok_or(status)?;
            let first = data.as_slice()[0];
            assert!(data.as_slice()[..bytes].iter().all(|&b| b == first), "a mixture");
            Ok(first)
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        block_on(self.app.shutdown());
        self.runtime.take().unwrap().stop();
    }
}

/// Parameters of 2+1 on d0, d1 and d2.
pub(crate) fn create() -> Value {
    json!({"name": "Ec0", "data_chunk_count": 2, "parity_chunk_count": 1, "strip_size_kb": 64, "base_bdevs": ["d0", "d1", "d2"]})
}

pub(crate) fn states(array: &Value) -> Vec<&str> {
    array["base_bdevs"].as_array().unwrap().iter().map(|b| b["state"].as_str().unwrap()).collect()
}

/// What the log got so far, of all tests of this process.
static LOG: OnceLock<Mutex<Vec<u8>>> = OnceLock::new();

struct Tee;

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.get_or_init(Mutex::default).lock().unwrap().extend_from_slice(bytes);
        // Shown with a test that fails.
        print!("{}", String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn listen() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Tee).init());
}

/// Whether the log has a line with all of `parts`; tests tell their lines by names of their own.
pub(crate) fn said(parts: &[&str]) -> bool {
    let log = LOG.get_or_init(Mutex::default).lock().unwrap();
    let text = String::from_utf8_lossy(&log);
    text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}
