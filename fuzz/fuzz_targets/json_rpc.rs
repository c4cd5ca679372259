//! What a client sends on the RPC socket.
//!
//! Framing must give the same values whether the stream comes whole or in pieces; every value must survive printing and parsing; an
//! envelope of any shape, and parameters of any shape for any method, must be refused or decoded, never panic.
//!
//! Input: byte 0 seed of the cuts; then the stream.

#![no_main]

use std::cell::OnceCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use longshore_rpc::app::{App, Parts};
use longshore_rpc::json::{Json, parse};
use longshore_rpc::jsonrpc::{Envelope, Frame, Framer, answer};

thread_local! {
    static APP: OnceCell<Arc<App>> = const { OnceCell::new() };
}

/// All frames of a stream that comes in pieces of `step` bytes.
fn frames(stream: &[u8], step: usize) -> Vec<Frame> {
    let mut framer = Framer::default();
    let mut out = Vec::new();
    for piece in stream.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            rest = &rest[framer.push(rest)..];
            out.extend(std::iter::from_fn(|| framer.next_frame()));
        }
    }
    out.extend(framer.finish());
    out
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, stream)) = input.split_first() else { return };
    let whole = frames(stream, stream.len().max(1));
    assert_eq!(whole, frames(stream, usize::from(cut) + 1), "pieces make a difference");
    for frame in whole {
        let Frame::Value(value) = frame else { continue };
        let printed = value.to_value().to_string();
        assert!(parse(printed.as_bytes()).is_ok(), "{printed}");
        let _ = Json::from_value(&value.to_value());
        let items = match Envelope::read(value) {
            Envelope::Single(item) => vec![item],
            Envelope::Batch(items) => items,
        };
        for request in items.into_iter().flatten() {
            APP.with(|app| {
                let app = app.get_or_init(|| App::new(Parts::default()));
                if let Some(method) = app.registry.get(&request.method) {
                    // Decodes; what it would do is not run.
                    let outcome = method.call(app.clone(), request.params.as_ref()).map(|_| true.into());
                    let text = answer(&request.id, &outcome).unwrap_or_else(|| "null".into());
                    assert!(parse(text.as_bytes()).is_ok(), "{text}");
                }
            });
        }
    }
});
