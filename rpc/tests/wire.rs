//! The wire protocol over a real socket, with methods made for the purpose.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use longshore_rpc::error::{METHOD_NOT_FOUND, Reply, RpcError};
use longshore_rpc::exec::Gate;
use longshore_rpc::jsonrpc::Request;
use longshore_rpc::server::{Dispatch, MAX_CONNECTIONS, Server};
use serde_json::{Value, json};

struct Toy {
    gate: Gate,
}

impl Dispatch for Toy {
    fn run(&self, request: Request) -> Pin<Box<dyn Future<Output = Reply>>> {
        let gate = self.gate.clone();
        Box::pin(async move {
            match request.method.as_str() {
                "echo" => Ok(request.params.map_or(Value::Null, |p| p.to_value())),
                "big" => Ok(Value::from("x".repeat(4 << 20))),
                "wait" | "change" => {
                    gate.wait().await;
                    Ok(Value::from(request.method))
                }
                "open" => {
                    gate.open();
                    Ok(json!(true))
                }
                _ => Err(RpcError::new(METHOD_NOT_FOUND, "Method not found")),
            }
        })
    }

    fn mutates(&self, method: &str) -> bool {
        method == "change"
    }
}

struct Rig {
    server: Option<Server>,
    dir: PathBuf,
}

impl Rig {
    fn new(name: &str) -> Rig {
        let dir = std::env::temp_dir().join(format!("longshore-wire-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let server = Server::start(&dir.join("s"), |_| Rc::new(Toy { gate: Gate::default() })).unwrap();
        Rig { server: Some(server), dir }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.join("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends, shuts the sending side, and returns all that comes back.
    fn exchange(&self, sent: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(sent.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        got
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.take().unwrap().stop();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn code(value: &Value) -> i64 {
    value["error"]["code"].as_i64().unwrap()
}

#[test]
fn a_half_closed_client_gets_its_answers() {
    let rig = Rig::new("half");
    let got = rig.exchange(
        r#"{"jsonrpc":"2.0","id":1,"method":"wait"}{"id":"b","method":"echo","params":[1]}{"id":3,"method":"open"}"#,
    );
    let got = lines(&got);
    let ids: Vec<&Value> = got.iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!("b"), &json!(3), &json!(1)], "answers come in the order of completion");
    assert_eq!(got[0], json!({"jsonrpc": "2.0", "id": "b", "result": [1]}));
}

#[test]
fn a_request_after_a_change_sees_it() {
    let rig = Rig::new("order");
    let mut other = rig.connect();
    let mut stream = rig.connect();
    stream.write_all(br#"{"id":1,"method":"change"}{"id":2,"method":"echo"}"#).unwrap();
    other.write_all(br#"{"id":9,"method":"open"}"#).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(lines(&got).iter().map(|a| a["id"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn notifications_are_silent_unless_they_fail() {
    let rig = Rig::new("notify");
    assert_eq!(rig.exchange(r#"{"method":"echo"}{"method":"echo","id":null}"#), "");
    let got = lines(&rig.exchange(r#"{"method":"nope"}"#));
    assert_eq!(got, [json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32601, "message": "Method not found"}})]);
}

#[test]
fn a_batch_is_answered_by_one_array() {
    let rig = Rig::new("batch");
    let got = rig.exchange(r#"[{"id":1,"method":"wait"},{"method":"echo"},5,{"id":2,"method":"open"},[]]"#);
    assert_eq!(got.lines().count(), 1);
    let got: Value = serde_json::from_str(&got).unwrap();
    let got = got.as_array().unwrap();
    assert_eq!(got.len(), 4, "the silent notification has no element");
    assert_eq!((code(&got[0]), code(&got[1])), (-32600, -32600));
    assert_eq!((&got[2]["id"], &got[3]["id"]), (&json!(2), &json!(1)));
    assert_eq!(rig.exchange(r#"[{"method":"echo"}]"#), "");
    let empty = lines(&rig.exchange("[]"));
    assert_eq!((empty.len(), code(&empty[0])), (1, -32600));
}

#[test]
fn rubbish_ends_the_connection_after_an_answer() {
    let rig = Rig::new("rubbish");
    let mut stream = rig.connect();
    stream.write_all(br#"{"id":1,"method":"echo"}{nonsense"#).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    let got = lines(&got);
    let mut codes: Vec<_> = got.iter().map(|a| (a["id"].clone(), a["error"]["code"].as_i64())).collect();
    codes.sort_by_key(|(_, code)| *code);
    assert_eq!(codes, [(json!(1), None), (Value::Null, Some(-32700))].map(|(i, c)| (i, c)).to_vec());
    assert_eq!(code(&lines(&rig.exchange("17"))[0]), -32600);
}

#[test]
fn ten_megabytes_and_deep_nesting_are_refused_with_an_answer() {
    let rig = Rig::new("large");
    for rubbish in
        [vec![b'['; 10 << 20], [br#"{"method":"echo","params":[""#.as_slice(), &vec![b'x'; 10 << 20]].concat()]
    {
        let mut stream = rig.connect();
        // The server stops reading in the middle; it must neither hang nor grow.
        let _ = stream.write_all(&rubbish);
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert_eq!(code(&serde_json::from_str(&answer).unwrap()), -32700);
    }
    assert_eq!(lines(&rig.exchange(r#"{"id":1,"method":"echo"}"#))[0]["id"], 1, "others are served on");
}

#[test]
fn a_slow_reader_gets_a_large_answer_whole() {
    let rig = Rig::new("slow");
    let mut stream = rig.connect();
    stream.write_all(br#"{"id":1,"method":"big"}{"id":2,"method":"big"}{"id":3,"method":"echo"}"#).unwrap();
    let mut reader = BufReader::new(stream);
    for id in 1..=3 {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["id"], id);
    }
}

#[test]
fn the_65th_connection_waits_for_a_place() {
    let rig = Rig::new("places");
    let mut held: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| rig.connect()).collect();
    let ask = |stream: &mut UnixStream| stream.write_all(br#"{"id":1,"method":"echo"}"#).unwrap();
    for stream in &mut held {
        ask(stream);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
    }
    let mut late = rig.connect();
    ask(&mut late);
    late.set_nonblocking(true).unwrap();
    // Another connection's answer proves that the server has turned since.
    ask(&mut held[0]);
    BufReader::new(&held[0]).read_line(&mut String::new()).unwrap();
    assert_eq!(late.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    late.set_nonblocking(false).unwrap();
    drop(held.pop());
    let mut line = String::new();
    BufReader::new(late).read_line(&mut line).unwrap();
    assert!(line.contains("\"result\""));
}

#[test]
fn one_byte_at_a_time_is_enough() {
    let rig = Rig::new("bytes");
    let mut stream = rig.connect();
    for byte in br#" {"id":1,"method":"echo","params":{"a":"\u00e9"}} "# {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["result"]["a"], "é");
}
