//! What a client sends to an HTTP port.
//!
//! The requests, and the refusal that ends them, must be the same whether the stream comes whole or in pieces; a body is as long as its
//! head said; wrong credentials of any shape are refused.
//!
//! Input: byte 0 seed of the cuts; then the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_rpc::http::Credentials;
use longshore_rpc::http::parse::{Decoder, Event, MAX_BODY, MAX_HEAD};

/// All events of a stream that comes in pieces of `step` bytes, until a body that is too large to be taken.
fn events(stream: &[u8], step: usize) -> Vec<Event> {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    for piece in stream.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            rest = &rest[decoder.push(rest)..];
            while let Some(event) = decoder.next_event() {
                let refused = matches!(&event, Event::Head(head) if head.length.is_some_and(|n| n > MAX_BODY));
                out.push(event);
                if refused {
                    return out;
                }
            }
            assert!(decoder.room() > 0, "the decoder is stuck");
        }
    }
    out
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, stream)) = input.split_first() else { return };
    let whole = events(stream, stream.len().max(1));
    assert_eq!(whole, events(stream, usize::from(cut) + 1), "pieces make a difference");
    let credentials = Credentials::parse("fuzz:\u{1F512} a long enough password").unwrap();
    let mut length = None;
    for event in whole {
        match event {
            Event::Head(head) => {
                assert!(length.is_none(), "a head follows a head");
                assert!(head.path.len() <= MAX_HEAD);
                if let Some(field) = &head.authorization {
                    assert!(!credentials.accept(field));
                }
                length = Some(head.length.unwrap_or(0));
            }
            Event::Body(body) => assert_eq!(Some(body.len()), length.take()),
            Event::Refused(refusal) => assert!((400..600).contains(&refusal.status)),
        }
    }
});
