//! `accel_*`: what computes. There is one module, software, until engines are built.

use serde_json::{Value, json};

use crate::method::{Method, Refusal, Registry, When};

/// Operations that clients know.
const OPERATIONS: [&str; 17] = [
    "copy",
    "fill",
    "dualcast",
    "compare",
    "crc32c",
    "copy_crc32c",
    "compress",
    "decompress",
    "encrypt",
    "decrypt",
    "xor",
    "dif_verify",
    "dif_verify_copy",
    "dif_generate",
    "dif_generate_copy",
    "dix_generate",
    "dix_verify",
];

/// Those that are built: the processor does them where they are needed.
const BUILT: [&str; 4] = ["copy", "fill", "compare", "crc32c"];

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::options("accel_set_options", When::Startup, |app| &app.options.accel)
            .doc("Sizes in the acceleration framework. Stored and dumped.")
            .refusal(Refusal::PARSE_OBJECT),
    );
    registry.add(
        Method::bare(
            "accel_get_opc_assignments",
            When::Runtime,
            "accel_get_opc_assignments requires no parameters",
            |_| async { Ok(OPERATIONS.iter().map(|operation| (operation.to_string(), json!("software"))).collect()) },
        )
        .doc("The module that each operation is assigned to; `accel_get_module_info` says which it can do.")
        .result("object: operation to module"),
    );
    registry.add(
        Method::bare(
            "accel_get_module_info",
            When::Runtime,
            "accel_get_module_info requires no parameters",
            |_| async { Ok(json!([{"module": "software", "supported ops": BUILT}])) },
        )
        .doc("The modules and what they can do.")
        .result("array of {module, supported ops[]}"),
    );
    registry.add(
        Method::bare("accel_get_stats", When::Runtime, "accel_get_stats requires no parameters", |_| async {
            let keys = ["sequence_executed", "sequence_failed", "sequence_outstanding", "task_outstanding"];
            let retries = ["retry_task", "retry_sequence", "retry_iobuf", "retry_bufdesc"];
            let zeroes = keys.iter().chain(&retries).map(|key| (key.to_string(), json!(0)));
            let mut stats: serde_json::Map<String, Value> = zeroes.collect();
            stats.insert("operations".into(), json!([]));
            Ok(Value::Object(stats))
        })
        .doc("What the modules did. Nothing goes through them yet.")
        .result("{sequence_executed, sequence_failed, sequence_outstanding, task_outstanding, operations[], retry_*}"),
    );
}
