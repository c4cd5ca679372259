//! What the methods work on: the state machine, the stored options and the handles to everything below.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use longshore_accel::Accel;
use longshore_bdev::ec::arrays::Arrays;
use longshore_bdev::nvme::Controllers;
use longshore_bdev::{CoreOptions, CoreState, Registry as Bdevs};
use longshore_nvmf::Target;
use longshore_reactor::CoreHandle;
use longshore_tcp::TcpTransport;
use serde_json::Value;

use crate::config::{self, Subsystem};
use crate::error::{INTERNAL_ERROR, INVALID_STATE, METHOD_NOT_FOUND, Reply, RpcError};
use crate::exec::Gate;
use crate::http::Pages;
use crate::json::Json;
use crate::jsonrpc::Request;
use crate::logging::Log;
use crate::method::{Registry, When};
use crate::methods;
use crate::methods::bdev_nvme::Attached;
use crate::methods::bdev_stat::EnableHistogram;
use crate::methods::options::{BdevOptions, Options};
use crate::metrics::{self, Scraper};
use crate::recipes::Recipes;
use crate::server::Dispatch;

/// Requests in a core's pool at least: fewer would starve its own splits.
const LEAST_REQUESTS: u32 = 512;

/// A boxed future of the RPC thread.
pub type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// What runs when initialisation begins; it may use the options set by then.
pub type InitHook = Box<dyn Fn(Arc<App>) -> Local<Result<(), String>> + Send + Sync>;

/// Where the daemon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Options may be set; nothing runs yet.
    Startup,
    /// Initialisation is under way.
    Starting,
    /// Everything runs.
    Runtime,
}

/// What whoever starts the server brings.
#[derive(Default)]
pub struct Parts {
    /// The reactors.
    pub cores: Vec<CoreHandle>,
    /// The block devices.
    pub bdevs: Arc<Bdevs>,
    /// Engines for what is computed, and the keys.
    pub accel: Arc<Accel>,
    /// Runs when initialisation begins, with the options set by then.
    pub on_init: Option<InitHook>,
    /// Log levels of the process.
    pub log: Log,
    /// Methods that may be called; none: all.
    pub allowed: Option<HashSet<String>>,
    /// File to which the configuration is saved after each change.
    pub save_to: Option<PathBuf>,
}

/// The context of every method.
pub struct App {
    /// All methods.
    pub registry: Registry,
    /// All subsystems, those without dependencies first.
    pub subsystems: Vec<Subsystem>,
    /// Options that are stored here and dumped as they were set.
    pub options: Options,
    /// The reactors.
    pub cores: Vec<CoreHandle>,
    /// The block devices.
    pub bdevs: Arc<Bdevs>,
    /// Engines for what is computed, and the keys.
    pub accel: Arc<Accel>,
    /// How they were made.
    pub recipes: Recipes,
    /// Remote controllers that are attached.
    pub controllers: Arc<Controllers>,
    pub(crate) attached: Attached,
    /// Erasure-coded arrays.
    pub(crate) arrays: Arc<Arrays>,
    /// Those that were made by calls, as they were asked for.
    pub(crate) arrays_made: Mutex<BTreeMap<String, Value>>,
    /// Devices made without a name so far.
    pub(crate) unnamed: AtomicU64,
    target: OnceLock<Arc<Target>>,
    /// Latency histograms that are on, by device, as they were asked for.
    pub(crate) histograms: Mutex<BTreeMap<String, EnableHistogram>>,
    /// Log levels.
    pub log: Log,
    /// Answers over HTTP, by status.
    pub(crate) answers: Mutex<BTreeMap<u16, u64>>,
    phase: Mutex<Phase>,
    ready: Gate,
    on_init: Option<InitHook>,
    allowed: Option<HashSet<String>>,
    save_to: Mutex<Option<PathBuf>>,
}

impl App {
    /// The context, before initialisation.
    pub fn new(parts: Parts) -> Arc<App> {
        Arc::new(App {
            registry: methods::all(),
            subsystems: methods::subsystems(),
            options: Options::default(),
            histograms: Mutex::default(),
            recipes: Recipes::default(),
            controllers: Controllers::new(parts.bdevs.clone(), parts.cores.clone()),
            attached: Attached::default(),
            arrays: Arrays::install(&parts.bdevs, parts.cores.clone(), parts.accel.clone()),
            arrays_made: Mutex::default(),
            unnamed: AtomicU64::new(0),
            target: OnceLock::new(),
            cores: parts.cores,
            bdevs: parts.bdevs,
            accel: parts.accel,
            log: parts.log,
            answers: Mutex::default(),
            phase: Mutex::new(Phase::Startup),
            ready: Gate::default(),
            on_init: parts.on_init,
            allowed: parts.allowed,
            save_to: Mutex::new(parts.save_to),
        })
    }

    /// Locks a block; a panic elsewhere does not spread.
    pub fn lock<T>(block: &Mutex<T>) -> MutexGuard<'_, T> {
        block.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the daemon stands.
    pub fn phase(&self) -> Phase {
        *App::lock(&self.phase)
    }

    /// Initialises: what `framework_start_init` does.
    pub async fn init(self: &Arc<App>) -> Result<(), String> {
        {
            let mut phase = App::lock(&self.phase);
            if *phase != Phase::Startup {
                return Err("initialisation has begun already".into());
            }
            *phase = Phase::Starting;
        }
        if let Err(why) = self.start().await {
            *App::lock(&self.phase) = Phase::Startup;
            return Err(why);
        }
        *App::lock(&self.phase) = Phase::Runtime;
        self.ready.open();
        Ok(())
    }

    async fn start(self: &Arc<App>) -> Result<(), String> {
        self.accel.start();
        self.size_pools().await;
        let target = Target::start(self.cores.clone(), self.bdevs.clone()).await.map_err(|error| error.to_string())?;
        target.register_transport(TcpTransport::new(methods::sock::tcp_options(self)));
        methods::nvmf::configure(self, &target).await.map_err(|error| error.to_string())?;
        let _ = self.target.set(target);
        match &self.on_init {
            Some(on_init) => on_init(self.clone()).await,
            None => Ok(()),
        }
    }

    /// Makes the request pools of the cores as large as was asked for, if it was.
    async fn size_pools(&self) {
        let (size, default) = (App::lock(&self.options.bdev).bdev_io_pool_size, BdevOptions::default_pool_size());
        if size == default || self.cores.is_empty() {
            return;
        }
        let requests = (size / self.cores.len() as u32).max(LEAST_REQUESTS);
        let options = CoreOptions { requests, child_reserve: (requests / 32).max(64) };
        for core in &self.cores {
            let _ = core.call(move |reactor| drop(CoreState::init(reactor, options))).await;
        }
    }

    /// The NVMe-oF target; it is there from the initialisation on.
    pub fn target(&self) -> Result<&Arc<Target>, RpcError> {
        self.target
            .get()
            .ok_or_else(|| RpcError::new(INTERNAL_ERROR, "Internal error").because("the target is not started"))
    }

    /// Closes all connections and gives up every device, layers first. For the end of the process, before the reactors stop.
    pub async fn shutdown(self: &Arc<App>) {
        self.save_to(None);
        // Hosts first: what they have in flight may still need the controllers below.
        if let Some(target) = self.target.get() {
            target.shutdown().await;
        }
        // Arrays before their members: a member that goes first is one that failed. None is to start meanwhile.
        self.arrays.drain(&self.bdevs).await;
        self.controllers.detach_all().await;
        for node in self.bdevs.list().iter().rev() {
            let _ = self.bdevs.unregister_node(node).await;
        }
        for core in &self.cores {
            let _ = core.call(|_| CoreState::shutdown()).await;
        }
    }

    /// Waits until initialisation is over.
    pub async fn wait_ready(&self) {
        self.ready.wait().await;
    }

    /// Whether a method may be called in this phase.
    pub fn callable(&self, name: &str, when: When) -> bool {
        self.allowed(name)
            && match when {
                When::Any => true,
                When::Startup => self.phase() == Phase::Startup,
                When::Runtime => self.phase() == Phase::Runtime,
            }
    }

    /// Whether the start options let this method be called at all.
    pub fn allowed(&self, name: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
    }

    /// Calls a method as a client would.
    pub async fn call(self: &Arc<App>, name: &str, params: Option<&Json>) -> Reply {
        let method = match self.registry.get(name) {
            Some(method) if self.allowed(name) => method,
            _ => return Err(RpcError::new(METHOD_NOT_FOUND, "Method not found")),
        };
        if !self.callable(name, method.when()) {
            return Err(RpcError::new(
                INVALID_STATE,
                match method.when() {
                    When::Startup => {
                        "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter \
                         and then issue this RPC before the framework_start_init RPC."
                    }
                    _ => "Method may only be called after framework is initialized using framework_start_init RPC.",
                },
            ));
        }
        let reply = method.call(self.clone(), params)?.await?;
        if method.mutates() {
            self.save().await?;
        }
        Ok(reply)
    }

    /// Where changes are saved from now on.
    pub fn save_to(&self, path: Option<PathBuf>) {
        *App::lock(&self.save_to) = path;
    }

    /// Saves the configuration, if it is to be saved. The answer to a change waits for it: what was answered survives a crash.
    pub async fn save(self: &Arc<App>) -> Result<(), RpcError> {
        let Some(path) = App::lock(&self.save_to).clone() else { return Ok(()) };
        if self.phase() != Phase::Runtime {
            return Ok(());
        }
        let text = config::dump(self).await;
        config::write_durably(&path, text.as_bytes()).map_err(|error| {
            RpcError::new(INTERNAL_ERROR, format!("Done, but not saved to {}: {error}", path.display()))
                .because("the change is in effect and will be lost at the next start; make room or permissions there and repeat any change")
        })
    }
}

/// Answers the requests of the sockets.
pub struct Dispatcher {
    app: Arc<App>,
    scraper: Rc<RefCell<Scraper>>,
}

impl Dispatcher {
    /// Answers for `app`.
    pub fn new(app: Arc<App>) -> Dispatcher {
        Dispatcher { app, scraper: Rc::default() }
    }
}

impl Dispatch for Dispatcher {
    fn run(&self, request: Request) -> Local<Reply> {
        let app = self.app.clone();
        Box::pin(async move {
            let reply = app.call(&request.method, request.params.as_ref()).await;
            if let Err(error) = &reply {
                tracing::debug!("{}: {error}", request.method);
            }
            reply
        })
    }

    fn mutates(&self, method: &str) -> bool {
        self.app.registry.get(method).is_some_and(|method| method.mutates())
    }

    fn metrics(&self) -> Local<Option<Pages>> {
        let (app, scraper) = (self.app.clone(), self.scraper.clone());
        Box::pin(async move { metrics::scrape(&app, &scraper).await })
    }

    fn answered(&self, status: u16) {
        *App::lock(&self.app.answers).entry(status).or_default() += 1;
    }
}
