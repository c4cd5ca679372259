//! `framework_*`, `rpc_get_methods`, `spdk_*`: the daemon as a whole.

use std::sync::Arc;

use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;

use crate::app::{App, Local};
use crate::config::{self, Entry};
use crate::error::{INTERNAL_ERROR, INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::{choices, params};

/// The release of SPDK whose calls are served.
const SPDK: (u32, u32, u32) = (26, 9, 0);

/// That release, as text.
pub(crate) fn spdk_release() -> String {
    let (major, minor, patch) = SPDK;
    format!("{major}.{minor}.{patch}")
}

params! {
    struct GetMethods {
        /// Only what may be called in the present state.
        current: bool = false,
        /// Old names too. (There are none.)
        include_aliases: bool = false,
    }
}

choices! {
    /// Signals.
    enum SignalName {
        Int = "SIGINT" | "INT", Term = "SIGTERM" | "TERM", Quit = "SIGQUIT" | "QUIT", Hup = "SIGHUP" | "HUP", Kill = "SIGKILL" | "KILL", Usr1 = "SIGUSR1" | "USR1",
    }
}

params! {
    struct Kill {
        /// Signal that the daemon sends to itself.
        sig_name: SignalName,
    }
}

params! {
    struct GetConfig {
        /// Subsystem.
        name: String,
        /// Keep calls that belong together in arrays of their own.
        with_batches: bool = false,
    }
}

params! {
    struct SetScheduler {
        /// Name; only `static` is built.
        name: String,
        /// Period, us.
        period: Option<u64>,
        /// Load limit, %.
        load_limit: Option<u8>,
        /// Core limit, %.
        core_limit: Option<u8>,
        /// Load from which a core counts as busy, %.
        core_busy: Option<u8>,
        /// Mapping of threads to cores.
        mappings: Option<String>,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("rpc_get_methods", When::Any, get_methods)
            .doc("Names of the methods.")
            .refusal(Refusal::PARAMS)
            .result("array of names")
            .example(json!({"current": true}), json!(["rpc_get_methods", "spdk_get_version"])),
    );
    registry.add(
        Method::bare("spdk_get_version", When::Any, "spdk_get_version method requires no parameters", version)
            .doc("Version of the daemon. `fields` is the release of SPDK whose calls are served.")
            .result("{version, fields{major, minor, patch, suffix}}"),
    );
    registry.add(
        Method::new("spdk_kill_instance", When::Runtime, |_, p: Kill| async move {
            let signal = match p.sig_name {
                SignalName::Int => Signal::INT,
                SignalName::Term => Signal::TERM,
                SignalName::Quit => Signal::QUIT,
                SignalName::Hup => Signal::HUP,
                SignalName::Kill => Signal::KILL,
                SignalName::Usr1 => Signal::USR1,
            };
            kill_process(getpid(), signal).map_err(|e| RpcError::errno(e.raw_os_error()))?;
            Ok(json!(true))
        })
        .doc("Sends a signal to the daemon: SIGINT and SIGTERM end it in good order.")
        .refusal(Refusal::PARAMS)
        .example(json!({"sig_name": "SIGTERM"}), json!(true)),
    );
    registry.add(
        Method::bare(
            "framework_start_init",
            When::Startup,
            "framework_start_init requires no parameters",
            |app| async move {
                match app.init().await {
                    Ok(()) => Ok(json!(true)),
                    Err(why) => Err(RpcError::new(INTERNAL_ERROR, "framework_initialization failed").because(why)),
                }
            },
        )
        .doc("Ends the state in which options may be set (`--wait-for-rpc`) and starts everything.")
        .error(INTERNAL_ERROR, "framework_initialization failed"),
    );
    registry.add(
        Method::bare(
            "framework_wait_init",
            When::Any,
            "framework_wait_init requires no parameters",
            |app| async move {
                app.wait_ready().await;
                Ok(json!(true))
            },
        )
        .doc("Answers when initialisation is over."),
    );
    registry.add(
        Method::bare(
            "framework_get_subsystems",
            When::Runtime,
            "'framework_get_subsystems' requires no arguments",
            |app| async move {
                let list = app.subsystems.iter().map(|s| json!({"subsystem": s.name, "depends_on": s.depends_on}));
                Ok(list.collect())
            },
        )
        .doc("Parts of the daemon that have a configuration, each after those that it depends on.")
        .result("array of {subsystem, depends_on[]}"),
    );
    registry.add(
        Method::new("framework_get_config", When::Runtime, get_config)
            .doc("The calls that bring a subsystem into its present state.")
            .refusal(Refusal::ARGUMENTS)
            .result("array of {method, params}, or with_batches of arrays of them too")
            .error(INVALID_PARAMS, "Subsystem 'nope' not found")
            .example(
                json!({"name": "scheduler"}),
                json!([{"method": "framework_set_scheduler", "params": {"name": "static"}}]),
            ),
    );
    registry.add(
        Method::new("framework_set_scheduler", When::Any, |_, p: SetScheduler| async move {
            if p.name == "static" {
                return Ok(json!(true));
            }
            Err(RpcError::new(INTERNAL_ERROR, "Invalid argument").because(format!("scheduler '{}' is not built; there is 'static'", p.name)))
        })
        .doc("Chooses how work is placed on cores. Placement here is decided when a connection comes; only `static` exists.")
        .refusal(Refusal::PARAMS)
        .error(INTERNAL_ERROR, "Invalid argument")
        .example(json!({"name": "static"}), json!(true)),
    );
    registry.add(
        Method::bare("framework_get_scheduler", When::Any, "'rpc_get_scheduler' requires no arguments", |_| async {
            Ok(json!({"scheduler_name": "static", "scheduler_period": 0, "isolated_core_mask": "0", "scheduling_core": 0}))
        })
        .doc("The scheduler in use.")
        .result("{scheduler_name, scheduler_period, isolated_core_mask, scheduling_core}"),
    );
}

async fn get_methods(app: Arc<App>, p: GetMethods) -> Reply {
    let listed = app.registry.iter().filter(|method| {
        if p.current { app.callable(method.name(), method.when()) } else { app.allowed(method.name()) }
    });
    Ok(listed.map(|method| method.name()).collect())
}

async fn version(_: Arc<App>) -> Reply {
    let (major, minor, patch) = SPDK;
    let own = env!("CARGO_PKG_VERSION").rsplit_once('.').map_or("", |(version, _)| version);
    Ok(json!({
        "version": format!("Longshore {own} (SPDK v{major}.{minor:02} RPC)"),
        "fields": {"major": major, "minor": minor, "patch": patch, "suffix": ""},
    }))
}

async fn get_config(app: Arc<App>, p: GetConfig) -> Reply {
    match app.subsystems.iter().find(|subsystem| subsystem.name == p.name) {
        Some(subsystem) => Ok(config::dump_subsystem(&app, subsystem, p.with_batches).await),
        None => Err(RpcError::new(INVALID_PARAMS, format!("Subsystem '{}' not found", p.name))),
    }
}

pub(super) fn dump_scheduler(_: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async { vec![Entry::new("framework_set_scheduler", json!({"name": "static"}))] })
}
