//! `accel_*`: what computes, and which engine does what.

use std::sync::Arc;

use longshore_accel::cores::CoreStats;
use longshore_accel::{Capability, Operation};
use serde_json::{Map, Value, json};

use crate::app::{App, Local};
use crate::config::Entry;
use crate::error::{INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::{accel_keys, options};
use crate::params;

params! {
    struct Assign {
        /// Operation.
        opname: String,
        /// Module that does it from the start on.
        module: String,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::options("accel_set_options", When::Startup, |app| &app.options.accel)
            .doc("Sizes in the acceleration framework. Stored and dumped.")
            .refusal(Refusal::PARSE_OBJECT),
    );
    registry.add(
        Method::new("accel_assign_opc", When::Startup, assign)
            .refusal(Refusal::PARSE_OBJECT)
            .changes()
            .doc(
                "Assigns an operation to a module. Without it, each belongs to the last module that has a device for it, and where none has, to \
                 the first that does it. Arrays and encrypting devices follow it from the start on. Modules: `software`, and `isal` (ISA-L's \
                 erasure code) in builds with the feature `isal`.",
            )
            .error(INVALID_PARAMS, "error assigning opcode: `data` says why")
            .example(json!({"opname": "crc32c", "module": "software"}), json!(true)),
    );
    registry.add(
        Method::bare(
            "accel_get_opc_assignments",
            When::Runtime,
            "accel_get_opc_assignments requires no parameters",
            |app| async move {
                let assigned = Operation::ALL.iter().filter_map(|op| Some((op, app.accel.engine(*op)?)));
                Ok(assigned.map(|(op, engine)| (op.name().to_string(), json!(engine.name()))).collect())
            },
        )
        .doc("The module that each operation is assigned to. What no module does is left out.")
        .result("object: operation to module"),
    );
    registry.add(
        Method::bare(
            "accel_get_module_info",
            When::Runtime,
            "accel_get_module_info requires no parameters",
            |app| async move {
                let engines = app.accel.engines().iter();
                let shown = engines.map(|engine| {
                    let all = engine.capabilities();
                    let names: Vec<_> = all.iter().map(|c| c.operation.name()).collect();
                    json!({"module": engine.name(), "supported ops": names})
                });
                Ok(shown.collect())
            },
        )
        .doc("The modules and what they can do.")
        .result("array of {module, supported ops[]}"),
    );
    registry.add(
        Method::bare(
            "accel_get_capabilities",
            When::Runtime,
            "accel_get_capabilities requires no parameters",
            |app| async move {
                let engines = app.accel.engines().iter();
                let shown = engines.map(|engine| {
                    let operations: Vec<_> = engine.capabilities().iter().map(capability).collect();
                    json!({"module": engine.name(), "operations": operations})
                });
                Ok(shown.collect())
            },
        )
        .doc(
            "What each module does, with which algorithms and limits, and whether a device does it. What is not listed, the module cannot do: \
             one that decompresses but does not compress lists the former only.",
        )
        .result("array of {module, operations[]: {operation, algorithms[], limits{}, hardware, implementation}}"),
    );
    registry.add(
        Method::bare("accel_get_stats", When::Runtime, "accel_get_stats requires no parameters", |app| async move {
            Ok(stats(&app))
        })
        .doc(
            "What the modules did, of each operation that was done: for arrays `ec_encode`, `ec_update`, `ec_decode`, `xor`, and `crc32c` of what is logged; \
             for encrypting devices `encrypt` and `decrypt`. `executed` counts calls, `num_bytes` what they read; of these, `offloaded` and `offloaded_num_bytes` \
             count what the cores of `--accel-mask` did, `queue_full` what was done where it was wanted because these had too much to do. `cores` has what \
             each of them did, `busy_us` microseconds long in all. There are no sequences: those counters are 0.",
        )
        .result(
            "{sequence_executed, sequence_failed, sequence_outstanding, task_outstanding, \
             operations[]: {opcode, module_name, executed, failed, num_bytes, offloaded, offloaded_num_bytes, queue_full}, \
             cores[]: {lcore, tid, jobs, num_bytes, busy_us, queued}, retry_*}",
        ),
    );
}

async fn assign(app: Arc<App>, p: Assign) -> Reply {
    let refused = |why: String| RpcError::new(INVALID_PARAMS, "error assigning opcode").because(why);
    let op = Operation::by_name(&p.opname).ok_or_else(|| refused(format!("there is no operation '{}'", p.opname)))?;
    app.accel.assign(op, &p.module).map_err(|e| refused(e.to_string()))?;
    Ok(json!(true))
}

fn capability(c: &Capability) -> Value {
    let limits: Map<String, Value> = c.limits.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    json!({
        "operation": c.operation.name(), "algorithms": c.algorithms, "limits": limits, "hardware": c.hardware,
        "implementation": c.implementation,
    })
}

fn stats(app: &App) -> Value {
    let keys = ["sequence_executed", "sequence_failed", "sequence_outstanding", "task_outstanding"];
    let mut out: Map<String, Value> = keys.iter().map(|key| (key.to_string(), json!(0))).collect();
    let all = app.accel.stats();
    let done = Operation::ALL.iter().zip(&all).filter(|(_, s)| s.executed + s.failed > 0);
    let shown = done.filter_map(|(op, s)| {
        let module = app.accel.engine(*op)?.name();
        Some(json!({
            "opcode": op.name(), "module_name": module, "executed": s.executed, "failed": s.failed, "num_bytes": s.bytes,
            "offloaded": s.offloaded, "offloaded_num_bytes": s.offloaded_bytes, "queue_full": s.queue_full,
        }))
    });
    out.insert("operations".into(), shown.collect());
    let cores = app.accel.cores().map_or_else(Vec::new, |cores| cores.stats());
    let core = |c: &CoreStats| {
        json!({
            "lcore": c.cpu, "tid": c.tid, "jobs": c.jobs, "num_bytes": c.bytes, "busy_us": c.busy_ns / 1000, "queued": c.queued,
        })
    };
    out.insert("cores".into(), cores.iter().map(core).collect());
    let retries = ["retry_task", "retry_sequence", "retry_iobuf", "retry_bufdesc"];
    out.extend(retries.iter().map(|key| (key.to_string(), json!(0))));
    Value::Object(out)
}

/// The calls that bring it into its present state. Keys that came without a file are not among them.
pub(super) fn dump(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move {
        let mut out = vec![options::accel(&app)];
        let assigned = app.accel.assigned();
        let assign = |(op, module): &(Operation, &str)| {
            Entry::new("accel_assign_opc", json!({"opname": op.name(), "module": module}))
        };
        out.extend(assigned.iter().map(assign));
        out.extend(accel_keys::dump(&app));
        out
    })
}
