//! Log levels and flags that can be changed while the process runs.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::choices;

choices! {
    /// Levels as clients name them.
    enum Level {
        Disabled = "DISABLED",
        Error = "ERROR",
        Warning = "WARNING" | "WARN",
        Notice = "NOTICE",
        Info = "INFO",
        Debug = "DEBUG",
    }
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Level::Disabled => LevelFilter::OFF,
            Level::Error => LevelFilter::ERROR,
            Level::Warning => LevelFilter::WARN,
            Level::Notice | Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
        }
    }
}

/// Flags, and the module whose debug messages each of them turns on.
const FLAGS: &[(&str, &str)] = &[
    ("aio", "longshore_bdev::uring"),
    ("app_config", "longshore_rpc::config"),
    ("app_rpc", "longshore_rpc::methods"),
    ("bdev", "longshore_bdev"),
    ("bdev_malloc", "longshore_bdev::malloc"),
    ("bdev_null", "longshore_bdev::null"),
    ("bdev_nvme", "longshore_bdev::nvme"),
    ("nvme", "longshore_nvme"),
    ("nvmf", "longshore_nvmf"),
    ("nvmf_tcp", "longshore_tcp"),
    ("reactor", "longshore_reactor"),
    ("rpc", "longshore_rpc"),
    ("sock", "longshore_reactor::sock"),
    ("uring", "longshore_bdev::uring"),
    ("vbdev_delay", "longshore_bdev::delay"),
    ("vbdev_passthru", "longshore_bdev::passthru"),
];

/// Handle to the levels.
#[derive(Clone, Default)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    reload: Option<reload::Handle<Targets, Registry>>,
}

struct State {
    level: Level,
    print: Level,
    flags: BTreeSet<&'static str>,
}

impl Default for State {
    fn default() -> State {
        State { level: Level::Notice, print: Level::Info, flags: BTreeSet::new() }
    }
}

impl State {
    fn targets(&self) -> Targets {
        let on = FLAGS.iter().filter(|(flag, _)| self.flags.contains(flag));
        on.fold(Targets::new().with_default(self.print.filter()), |targets, (_, module)| {
            targets.with_target(*module, LevelFilter::DEBUG)
        })
    }
}

impl Log {
    /// Makes this process log to standard error, and returns the handle. Once per process; a second call changes nothing visible.
    pub fn install() -> Log {
        let (filter, handle) = reload::Layer::new(State::default().targets());
        let colours = std::io::stderr().is_terminal();
        let output =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colours);
        // Fails only if something else logs already: its choice stands.
        let _ = tracing_subscriber::registry().with(filter).with(output).try_init();
        Log { inner: Arc::new(Inner { state: Mutex::default(), reload: Some(handle) }) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut state);
        if let Some(reload) = &self.inner.reload {
            let _ = reload.reload(state.targets());
        }
        result
    }

    /// Level of what goes to the system log. (Kept for clients; everything goes to standard error, which the service manager collects.)
    pub fn level(&self) -> Level {
        self.with(|state| state.level)
    }

    /// Sets it.
    pub fn set_level(&self, level: Level) {
        self.with(|state| state.level = level);
    }

    /// Level of what goes to standard error.
    pub fn print_level(&self) -> Level {
        self.with(|state| state.print)
    }

    /// Sets it.
    pub fn set_print_level(&self, level: Level) {
        self.with(|state| state.print = level);
    }

    /// Turns a flag on or off; `all` means every one. False if there is no such flag.
    pub fn set_flag(&self, flag: &str, on: bool) -> bool {
        let known: Vec<&'static str> =
            FLAGS.iter().map(|(name, _)| *name).filter(|name| flag == "all" || flag == *name).collect();
        self.with(|state| {
            for name in &known {
                if on {
                    state.flags.insert(name)
                } else {
                    state.flags.remove(name)
                };
            }
        });
        !known.is_empty()
    }

    /// All flags and whether each is on, by name.
    pub fn flags(&self) -> Vec<(&'static str, bool)> {
        self.with(|state| FLAGS.iter().map(|(name, _)| (*name, state.flags.contains(name))).collect())
    }
}
