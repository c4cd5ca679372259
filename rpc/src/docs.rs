//! `docs/rpc.md`, printed from the declarations.

use std::fmt::Write;

use crate::decode::Field;
use crate::method::{Registry, When};

const HEAD: &str = "\
# JSON-RPC

Printed from the declarations in `rpc/src/methods/`; do not edit. After a change there: `UPDATE_DOCS=1 cargo test -p longshore-rpc --test docs`.

The daemon listens on a unix socket (`-r PATH`, by default `/var/tmp/spdk.sock`). Requests are JSON-RPC 2.0 objects, one after the other
without any framing; each answer is one line. Limits: 256 KiB and 8192 values per request, 64 levels, 128 characters of `id`, 64
connections. A request without `id` is answered only if it fails. Several requests in an array are answered by one array. After text that
is not JSON the connection is closed. Requests that follow a change on the same connection wait for its end; all others run concurrently and are
answered as they end. `--rpc-http` serves the same by HTTP POST: see [operations](operations.md#rpc-over-http).

Parameters are decoded strictly: an unknown or repeated key, a wrong type or a number out of range is an error. What exactly was wrong stands in
`error.data`; `code` and `message` are those that SPDK's clients know. Every method may also answer -32601 (no such method) and -1 (not in
this state).
";

/// The whole document.
pub fn markdown(registry: &Registry) -> String {
    let mut methods: Vec<_> = registry.iter().collect();
    methods.sort_by_key(|method| method.name());
    let mut out = HEAD.to_string();
    for method in methods {
        let doc = method.documentation();
        let when = match method.when() {
            When::Startup => "before initialisation",
            When::Runtime => "after initialisation",
            When::Any => "always",
        };
        let saved = if method.mutates() { " · changes the configuration" } else { "" };
        let _ = write!(out, "\n## {}\n\n{}\n\nCallable: {when}{saved}\n", method.name(), doc.doc());
        if !doc.fields.is_empty() {
            let relaxed = if doc.relaxed() { " (unknown keys are passed over)" } else { "" };
            let _ = write!(out, "\n| parameter{relaxed} | type | default | meaning |\n|---|---|---|---|\n");
            fields(&mut out, "", &doc.fields);
        }
        let _ = write!(out, "\nResult: {}\n", doc.result());
        let errors: Vec<String> = doc.errors().iter().map(|(code, meaning)| format!("{code} `{meaning}`")).collect();
        let _ = write!(out, "\nErrors: {}\n", errors.join(", "));
        if let Some((params, result)) = doc.example() {
            let _ = write!(
                out,
                "\n```json\n{{\"method\": \"{}\", \"params\": {params}}}\n{{\"result\": {result}}}\n```\n",
                method.name()
            );
        }
    }
    out
}

fn fields(out: &mut String, prefix: &str, list: &[Field]) {
    for field in list {
        let default = match (&field.default, field.required) {
            (Some(value), _) => format!("`{value}`"),
            (None, true) => "required".into(),
            (None, false) => String::new(),
        };
        let _ = writeln!(out, "| `{prefix}{}` | {} | {default} | {} |", field.name, field.type_name, field.doc.trim());
        fields(out, &format!("{prefix}{}.", field.name), &field.members);
    }
}
