//! HTTP over real sockets, with methods made for the purpose.

use std::cell::Cell;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use longshore_rpc::error::{METHOD_NOT_FOUND, Reply, RpcError};
use longshore_rpc::exec::Gate;
use longshore_rpc::http::{Credentials, Listener, Pages, Serve};
use longshore_rpc::jsonrpc::Request;
use longshore_rpc::server::{Dispatch, Endpoints, Server};
use serde_json::{Value, json};

/// `u:p`
const RIGHT: &str = "Authorization: Basic dTpw\r\n";
/// `u:x`
const WRONG: &str = "Authorization: Basic dTp4\r\n";

#[derive(Default)]
struct Toy {
    gate: Gate,
    waiting: Rc<Cell<u64>>,
}

impl Dispatch for Toy {
    fn run(&self, request: Request) -> Pin<Box<dyn Future<Output = Reply>>> {
        let (gate, waiting) = (self.gate.clone(), self.waiting.clone());
        Box::pin(async move {
            match request.method.as_str() {
                "echo" => Ok(request.params.map_or(Value::Null, |p| p.to_value())),
                "big" => Ok(Value::from("x".repeat(4 << 20))),
                "huge" => Ok(Value::from("x".repeat(17 << 20))),
                "wait" => {
                    waiting.set(waiting.get() + 1);
                    gate.wait().await;
                    Ok(json!(true))
                }
                "waiting" => Ok(json!(waiting.get())),
                "open" => {
                    gate.open();
                    Ok(json!(true))
                }
                _ => Err(RpcError::new(METHOD_NOT_FOUND, "Method not found")),
            }
        })
    }

    fn mutates(&self, _: &str) -> bool {
        false
    }

    fn metrics(&self) -> Pin<Box<dyn Future<Output = Option<Pages>>>> {
        Box::pin(async { Some(Box::new((0..1000).map(|n| format!("page {n} {}\n", "y".repeat(20_000)))) as Pages) })
    }
}

struct Rig {
    server: Option<Server>,
    open: SocketAddr,
    locked: SocketAddr,
    metrics: SocketAddr,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.head))
    }
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /any HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn read(from: &mut impl BufRead) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(from.read_line(&mut head).unwrap(), 0, "the connection ended in {head:?}");
    }
    let status = head[9..12].parse().unwrap();
    let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
    let mut body = Vec::new();
    if field("Transfer-Encoding:").as_deref() == Some("chunked") {
        loop {
            let mut size = String::new();
            from.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let start = body.len();
            body.resize(start + size, 0);
            from.read_exact(&mut body[start..]).unwrap();
            let mut end = [0; 2];
            from.read_exact(&mut end).unwrap();
            assert_eq!(&end, b"\r\n");
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = field("Content-Length:") {
        body.resize(length.parse().unwrap(), 0);
        from.read_exact(&mut body).unwrap();
    } else if status != 204 && status != 100 {
        from.read_to_end(&mut body).unwrap();
    }
    Answer { status, head, body }
}

impl Rig {
    fn new() -> Rig {
        let any = || "127.0.0.1:0".parse().unwrap();
        let http = vec![
            Listener::bind(any(), Serve::Rpc(None)).unwrap(),
            Listener::bind(any(), Serve::Rpc(Some(Credentials::parse("u:p").unwrap()))).unwrap(),
            Listener::bind(any(), Serve::Metrics).unwrap(),
        ];
        let [open, locked, metrics] = [0, 1, 2].map(|i| http[i].address().unwrap());
        let server = Server::start_on(Endpoints { socket: None, http }, |_| Rc::<Toy>::default()).unwrap();
        Rig { server: Some(server), open, locked, metrics }
    }

    fn connect(&self, to: SocketAddr) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        BufReader::new(stream)
    }

    fn ask(&self, to: SocketAddr, text: &str) -> Answer {
        let mut stream = self.connect(to);
        stream.get_mut().write_all(text.as_bytes()).unwrap();
        read(&mut stream)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.take().unwrap().stop();
    }
}

const ECHO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"echo","params":[7]}"#;

#[test]
fn requests_come_by_post_and_answers_are_those_of_the_socket() {
    let rig = Rig::new();
    let got = rig.ask(rig.open, &post("", ECHO));
    assert_eq!((got.status, got.json()), (200, json!({"jsonrpc": "2.0", "id": 1, "result": [7]})));
    assert!(got.head.contains("Content-Type: application/json\r\n"), "{}", got.head);
    let error = rig.ask(rig.open, &post("", r#"{"id":"a","method":"nope"}"#));
    assert_eq!((error.status, &error.json()["error"]["code"]), (200, &json!(-32601)), "a method's error is an answer");
    let silent = rig.ask(rig.open, &post("", r#"{"method":"echo"}"#));
    assert_eq!((silent.status, silent.body.len()), (204, 0));
    let batch =
        rig.ask(rig.open, &post("", r#"[{"id":1,"method":"echo"},{"method":"echo"},5,{"id":2,"method":"nope"}]"#));
    let batch = batch.json();
    assert_eq!(batch.as_array().unwrap().len(), 3, "{batch}");
    assert_eq!(rig.ask(rig.open, &post("", r#"[{"method":"echo"}]"#)).status, 204);
    for rubbish in ["", "{", "nonsense", "{}{}"] {
        let got = rig.ask(rig.open, &post("", rubbish));
        assert_eq!((got.status, &got.json()["error"]["code"]), (400, &json!(-32700)), "{rubbish}");
    }
    let huge = r#"[{"id":1,"method":"huge"},{"id":2,"method":"huge"}]"#;
    assert_eq!(rig.ask(rig.open, &post("", huge)).status, 500, "answers are bounded");
}

#[test]
fn who_has_not_the_credentials_is_refused() {
    let rig = Rig::new();
    for fields in ["", WRONG, "Authorization: Bearer dTpw\r\n", "Authorization: dTpw\r\n"] {
        let got = rig.ask(rig.locked, &post(fields, ECHO));
        assert_eq!(got.status, 401, "{fields}");
        assert!(got.head.contains("WWW-Authenticate: Basic realm=\"longshore\""), "{}", got.head);
        assert!(got.head.contains("Connection: close"), "{}", got.head);
        assert_eq!(rig.ask(rig.locked, &format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).status, 401);
    }
    assert_eq!(rig.ask(rig.locked, &post(RIGHT, ECHO)).status, 200);
    // Credentials are looked at before the body has come.
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{WRONG}Content-Length: 200000\r\n\r\n");
    assert_eq!(rig.ask(rig.locked, &head).status, 401);
}

#[test]
fn a_web_page_cannot_call_a_daemon_that_asks_for_no_credentials() {
    let rig = Rig::new();
    assert_eq!(rig.ask(rig.open, &post("Origin: http://evil.example\r\n", ECHO)).status, 403);
    assert_eq!(rig.ask(rig.locked, &post(&format!("Origin: http://ui.example\r\n{RIGHT}"), ECHO)).status, 200);
}

#[test]
fn what_is_not_spoken_here_is_refused_with_its_status() {
    let rig = Rig::new();
    for (text, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 262145\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
        ("POST / HTTP/3.0\r\n\r\n", 505),
    ] {
        assert_eq!(rig.ask(rig.open, text).status, status, "{text}");
    }
    assert_eq!(rig.ask(rig.metrics, "GET /other HTTP/1.1\r\nHost: x\r\n\r\n").status, 404);
    assert_eq!(rig.ask(rig.metrics, &post("", ECHO)).status, 405, "no RPC on the address of the metrics");
}

#[test]
fn a_body_over_the_limit_is_refused_and_its_sender_can_read_why() {
    let rig = Rig::new();
    let fits = format!(r#"{{"id":1,"method":"echo","params":["{}"]}}"#, "z".repeat((256 << 10) - 38));
    assert_eq!(fits.len(), 256 << 10);
    assert_eq!(rig.ask(rig.open, &post("", &fits)).status, 200);
    // The whole body is sent: the answer must survive what was not read.
    let got = rig.ask(rig.open, &post("", &format!("{fits} ")));
    assert_eq!(got.status, 413);
    assert!(String::from_utf8_lossy(&got.body).contains("256 KiB"));
}

#[test]
fn a_connection_is_kept_and_pipelined_requests_are_answered_in_order() {
    let rig = Rig::new();
    let mut stream = rig.connect(rig.open);
    let ask = |id: u32| post("", &format!(r#"{{"id":{id},"method":"echo","params":[{id}]}}"#));
    let many: String = (0..200).map(ask).collect();
    stream.get_mut().write_all(many.as_bytes()).unwrap();
    for id in 0..200 {
        assert_eq!(read(&mut stream).json()["result"], json!([id]));
    }
    // One that waits holds up those behind it on its connection, and nobody else.
    let waits = post("", r#"{"id":1,"method":"wait"}"#) + &ask(2);
    stream.get_mut().write_all(waits.as_bytes()).unwrap();
    assert_eq!(rig.ask(rig.open, &post("", r#"{"id":9,"method":"open"}"#)).status, 200);
    assert_eq!((read(&mut stream).json()["id"].clone(), read(&mut stream).json()["id"].clone()), (json!(1), json!(2)));
    // Closed when asked, and for HTTP/1.0 unless asked.
    stream.get_mut().write_all(post("Connection: close\r\n", ECHO).as_bytes()).unwrap();
    assert_eq!(read(&mut stream).status, 200);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let mut old = rig.connect(rig.open);
    let request = |more: &str| format!("POST / HTTP/1.0\r\n{more}Content-Length: {}\r\n\r\n{ECHO}", ECHO.len());
    old.get_mut().write_all(request("Connection: keep-alive\r\n").as_bytes()).unwrap();
    assert!(read(&mut old).head.contains("Connection: keep-alive"));
    old.get_mut().write_all(request("").as_bytes()).unwrap();
    assert_eq!(read(&mut old).status, 200);
    assert_eq!(old.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_client_that_closes_its_side_gets_its_answer() {
    let rig = Rig::new();
    let mut stream = rig.connect(rig.open);
    stream.get_mut().write_all(post("", ECHO).as_bytes()).unwrap();
    stream.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&mut stream).status, 200);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let rig = Rig::new();
    let mut stream = rig.connect(rig.locked);
    let head = |more: &str| {
        format!("POST / HTTP/1.1\r\nHost: x\r\n{more}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", ECHO.len())
    };
    stream.get_mut().write_all(head(RIGHT).as_bytes()).unwrap();
    assert_eq!(read(&mut stream).status, 100);
    stream.get_mut().write_all(ECHO.as_bytes()).unwrap();
    assert_eq!(read(&mut stream).status, 200);
    assert_eq!(rig.ask(rig.locked, &head(WRONG)).status, 401, "at once, without the body");
}

#[test]
fn slow_clients_hold_nobody_up_however_many_they_are() {
    let rig = Rig::new();
    let request = post("", ECHO);
    // A request is given up after 10 s, which is what a busy machine can make of one: such a run says nothing.
    for _ in 0..10 {
        // Every place is taken by one that sends a byte now and then, and 40 more come.
        let start = Instant::now();
        let mut slow: Vec<_> = (0..104).map(|_| rig.connect(rig.open)).collect();
        for byte in request.as_bytes().iter().take(20) {
            for stream in &mut slow {
                // Those that lost their place are closed: that is what makes room.
                let _ = stream.get_mut().write_all(&[*byte]);
            }
            assert_eq!(rig.ask(rig.open, &request).status, 200);
        }
        let last = slow.last_mut().unwrap();
        let sent = last.get_mut().write_all(&request.as_bytes()[20..]);
        if start.elapsed() < Duration::from_secs(9) {
            sent.unwrap();
            assert_eq!(read(last).status, 200, "slowness alone is no fault");
            return;
        }
    }
    panic!("others are held up");
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// As many that ask for metrics, and take nothing of them.
fn stuck(rig: &Rig, at: SocketAddr, count: usize) -> Vec<BufReader<TcpStream>> {
    let one = |_| {
        let mut stream = rig.connect(at);
        stream.get_mut().write_all(SCRAPE.as_bytes()).unwrap();
        stream
    };
    (0..count).map(one).collect()
}

#[test]
fn who_asks_for_metrics_and_does_not_read_them_takes_no_place_from_rpc() {
    let rig = Rig::new();
    // As many as may wait to be let in.
    let _stuck = stuck(&rig, rig.metrics, 100);
    for _ in 0..20 {
        assert_eq!(rig.ask(rig.open, &post("", ECHO)).status, 200);
    }
}

#[test]
fn who_does_not_take_an_answer_makes_room_for_the_next_after_a_second() {
    let rig = Rig::new();
    // Without that, room is made by closing all of them after 30 s, which a busy machine may come to as well.
    for _ in 0..3 {
        let mut stuck = stuck(&rig, rig.open, 64);
        for stream in &mut stuck {
            // Each is being answered.
            stream.get_mut().read_exact(&mut [0]).unwrap();
        }
        let start = Instant::now();
        assert_eq!(rig.ask(rig.open, &post("", ECHO)).status, 200);
        if start.elapsed() < Duration::from_secs(15) {
            return;
        }
    }
    panic!("room is made too late");
}

#[test]
fn who_waits_to_be_let_in_is_when_a_connection_has_its_answer() {
    let rig = Rig::new();
    let mut all: Vec<_> = (0..64).map(|_| rig.connect(rig.open)).collect();
    for stream in &mut all {
        stream.get_mut().write_all(post("", r#"{"id":1,"method":"wait"}"#).as_bytes()).unwrap();
    }
    let waiting = post(RIGHT, r#"{"id":1,"method":"waiting"}"#);
    let start = Instant::now();
    while rig.ask(rig.locked, &waiting).json()["result"] != 64 {
        assert!(start.elapsed() < Duration::from_secs(60), "they are not all served");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut next = rig.connect(rig.open);
    next.get_mut().write_all(post("", ECHO).as_bytes()).unwrap();
    // Answered, so the connection that came before has been looked at.
    assert_eq!(rig.ask(rig.locked, &waiting).json()["result"], 64);
    assert_eq!(rig.ask(rig.locked, &post(RIGHT, r#"{"id":1,"method":"open"}"#)).status, 200);
    // The others stay connected.
    assert_eq!(read(&mut next).status, 200);
    let served = all.iter_mut().map(read).filter(|answer| answer.status == 200).count();
    assert_eq!(served, 64);
}

#[test]
fn a_request_that_never_ends_is_given_up() {
    let rig = Rig::new();
    let mut stream = rig.connect(rig.open);
    let start = Instant::now();
    stream.get_mut().write_all(b"POST / HTTP/1.1\r\n").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed without an answer");
    assert!(start.elapsed() > Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn metrics_come_in_pages_and_a_slow_reader_holds_nobody_up() {
    let rig = Rig::new();
    let mut slow = rig.connect(rig.metrics);
    slow.get_mut().write_all(b"GET /metrics?x HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    for _ in 0..20 {
        assert_eq!(rig.ask(rig.open, &post("", ECHO)).status, 200);
    }
    let got = read(&mut slow);
    assert!(got.head.contains("Content-Type: text/plain; version=0.0.4"), "{}", got.head);
    let lines = got.body.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!((lines, got.body.len() > 20_000_000), (1000, true));
    // The connection goes on; HEAD has no body; HTTP/1.0 knows no chunks.
    slow.get_mut().write_all(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        slow.read_line(&mut head).unwrap();
    }
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let old = rig.ask(rig.metrics, "GET /metrics HTTP/1.0\r\n\r\n");
    assert!(old.body == got.body && !old.head.contains("chunked"));
    assert_eq!(rig.ask(rig.locked, &format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{RIGHT}\r\n")).status, 200);
}
