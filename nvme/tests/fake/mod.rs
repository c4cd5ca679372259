//! A controller that behaves until the first I/O command and then does what a test tells it to. One thread per connection, on
//! loopback.
#![allow(unreachable_pub)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore_nvme::tcp_pdu::{
    CAPSULE_RESP_MAX, DATA_HEADER_MAX, Data, Decoder, Encoder, Event, IcResp, Params, Pdu, R2T_MAX, R2t, Role, crc32c,
    encode_ic_resp,
};
use longshore_nvme::wire::fabrics::{PropertyGetCmd, PropertySetCmd};
use longshore_nvme::wire::feature::fid;
use longshore_nvme::wire::opcode::{admin, fabrics};
use longshore_nvme::wire::register::{Cap, Cc, Csts, offset, shst};
use longshore_nvme::wire::{Cqe, IdentifyController, Sqe, Status};
use zerocopy::{FromZeros, IntoBytes};

/// What the controller does with an I/O command, and with data that it asked for.
pub type Script = Arc<dyn Fn(&mut Link, &Sqe) + Send + Sync>;

pub struct Fake {
    pub addr: SocketAddr,
    /// Termination requests received.
    pub terminated: Arc<AtomicU32>,
    pub keep_alives: Arc<AtomicU32>,
    /// Keep-alive timeout that it says it granted, in milliseconds.
    pub granted: Arc<AtomicU32>,
    /// Connects ("connect QID") and changes of CC.EN ("enable", "disable") in order.
    pub seen: Seen,
}

pub type Seen = Arc<Mutex<Vec<String>>>;

/// One connection.
pub struct Link {
    stream: TcpStream,
    pub encoder: Encoder,
    pub ddgst: bool,
    /// CC.EN, of the controller.
    enabled: Arc<AtomicBool>,
    granted: Arc<AtomicU32>,
    /// How often CSTS.RDY is still found set.
    falling: u32,
    seen: Seen,
    /// Data received since the last command, in H2CData or in the capsule.
    pub data: Vec<u8>,
}

impl Link {
    pub fn raw(&mut self, bytes: &[u8]) {
        // The host may be gone already, which is what some tests want.
        let _ = self.stream.write_all(bytes);
    }

    pub fn respond(&mut self, cid: u16, status: Status) {
        self.cqe(&Cqe::new(cid, status));
    }

    pub fn cqe(&mut self, cqe: &Cqe) {
        let mut out = [0; CAPSULE_RESP_MAX];
        let n = self.encoder.capsule_resp(cqe, &mut out);
        self.raw(&out[..n]);
    }

    /// C2HData with a right digest, if digests are on.
    pub fn c2h(&mut self, cid: u16, offset: u32, data: &[u8], last: bool, success: bool) {
        let digest = crc32c(data).to_le_bytes();
        self.c2h_with(cid, offset, data, last, success, digest);
    }

    pub fn c2h_with(&mut self, cid: u16, offset: u32, data: &[u8], last: bool, success: bool, digest: [u8; 4]) {
        let mut out = [0; DATA_HEADER_MAX];
        let d = Data { cccid: cid, ttag: 0, offset, length: data.len() as u32, last, success };
        let n = self.encoder.c2h_data(&d, &mut out);
        self.raw(&out[..n]);
        self.raw(data);
        if self.ddgst {
            self.raw(&digest);
        }
    }

    pub fn r2t(&mut self, cid: u16, ttag: u16, offset: u32, length: u32) {
        let mut out = [0; R2T_MAX];
        let n = self.encoder.r2t(&R2t { cccid: cid, ttag, offset, length }, &mut out);
        self.raw(&out[..n]);
    }

    pub fn close(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Fake {
    pub fn new(script: impl Fn(&mut Link, &Sqe) + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Fake {
            addr: listener.local_addr().unwrap(),
            terminated: Arc::default(),
            keep_alives: Arc::default(),
            granted: Arc::default(),
            seen: Arc::default(),
        };
        let (script, terminated, alive): (Script, _, _) =
            (Arc::new(script), fake.terminated.clone(), fake.keep_alives.clone());
        let (seen, granted) = (fake.seen.clone(), fake.granted.clone());
        let enabled = Arc::new(AtomicBool::new(false));
        std::thread::spawn(move || {
            for s in listener.incoming().flatten() {
                let (script, terminated, alive) = (script.clone(), terminated.clone(), alive.clone());
                let (seen, enabled, granted) = (seen.clone(), enabled.clone(), granted.clone());
                std::thread::spawn(move || serve(s, &script, &terminated, &alive, &seen, &enabled, &granted));
            }
        });
        fake
    }
}

fn identify() -> IdentifyController {
    let mut id = IdentifyController::new_zeroed();
    id.cntlid = 1.into();
    id.cntrltype = 1;
    // 8 KiB in a capsule.
    id.ioccsz = (4 + 8192 / 16).into();
    id.iorcsz = 1.into();
    id.nn = 1.into();
    id
}

fn serve(
    mut stream: TcpStream,
    script: &Script,
    terminated: &AtomicU32,
    alive: &AtomicU32,
    seen: &Seen,
    enabled: &Arc<AtomicBool>,
    granted: &Arc<AtomicU32>,
) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut decoder = Decoder::new(Role::Target, 8192);
    let mut link: Option<Link> = None;
    let mut pending: Option<Sqe> = None;
    let mut qid = 0;
    let mut buf = [0; 65536];
    loop {
        let n = match stream.read(&mut buf) {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let mut input = &buf[..n];
        loop {
            let event = match decoder.decode(&mut input) {
                Ok(Some(e)) => e,
                Ok(None) => break,
                Err(e) => panic!("the host sent what it may not: {e}"),
            };
            match event {
                Event::Header(Pdu::IcReq(req)) => {
                    let offer = IcResp { cpda: 0, hdgst: true, ddgst: true, maxh2cdata: 8192 };
                    let (params, resp) = Params::accept(&req, &offer);
                    decoder.establish(&params);
                    stream.write_all(&encode_ic_resp(&resp)).unwrap();
                    let encoder = Encoder::new(Role::Target, &params);
                    let stream = stream.try_clone().unwrap();
                    link = Some(Link {
                        stream,
                        encoder,
                        ddgst: params.ddgst,
                        enabled: enabled.clone(),
                        granted: granted.clone(),
                        falling: 0,
                        seen: seen.clone(),
                        data: Vec::new(),
                    });
                }
                Event::Header(Pdu::TermReq(_)) => {
                    terminated.fetch_add(1, Ordering::SeqCst);
                }
                Event::Header(Pdu::CapsuleCmd(c)) => {
                    let l = link.as_mut().unwrap();
                    l.data.clear();
                    pending = Some(c.sqe);
                    if c.data_len == 0 {
                        command(l, &c.sqe, &mut qid, script, alive);
                        pending = None;
                    }
                }
                Event::Header(_) => {}
                Event::Payload { bytes, .. } => link.as_mut().unwrap().data.extend_from_slice(bytes),
                Event::End { ddgst_ok } => {
                    assert!(ddgst_ok, "the host's digest is wrong");
                    let l = link.as_mut().unwrap();
                    if let Some(sqe) = pending.take() {
                        command(l, &sqe, &mut qid, script, alive);
                    } else {
                        // Data that the script asked for: it is told by an entry with opcode FFh.
                        script(l, &Sqe { opcode: 0xff, ..Sqe::default() });
                    }
                }
            }
        }
    }
}

fn command(l: &mut Link, sqe: &Sqe, qid: &mut u16, script: &Script, alive: &AtomicU32) {
    let cid = sqe.cid.get();
    if sqe.opcode == admin::FABRICS {
        let mut cqe = Cqe::new(cid, Status::SUCCESS);
        match sqe.fctype() {
            fabrics::CONNECT => {
                *qid = (sqe.cdw10.get() >> 16) as u16;
                cqe.set_result(1);
                l.seen.lock().unwrap().push(format!("connect {qid}"));
            }
            fabrics::PROPERTY_SET if PropertySetCmd::of(sqe).ofst.get() == offset::CC => {
                let enable = Cc(PropertySetCmd::of(sqe).value.get() as u32).en() == 1;
                l.enabled.store(enable, Ordering::SeqCst);
                l.falling = 10;
                l.seen.lock().unwrap().push(if enable { "enable" } else { "disable" }.to_owned());
            }
            fabrics::PROPERTY_GET => match PropertyGetCmd::of(sqe).ofst.get() {
                offset::CAP => cqe.set_result(Cap(0).with_mqes(127).with_css(1).with_to(1).0),
                offset::CSTS => {
                    l.falling = l.falling.saturating_sub(1);
                    let ready = l.enabled.load(Ordering::SeqCst) || l.falling > 0;
                    cqe.set_result(Csts(0).with_rdy(ready.into()).with_shst(shst::COMPLETE).0.into());
                }
                _ => {}
            },
            _ => {}
        }
        return l.cqe(&cqe);
    }
    if *qid != 0 {
        // As Linux' target does.
        if !l.enabled.load(Ordering::SeqCst) {
            return l.respond(cid, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        return script(l, sqe);
    }
    match sqe.opcode {
        admin::IDENTIFY => {
            l.c2h(cid, 0, identify().as_bytes(), true, false);
            l.respond(cid, Status::SUCCESS);
        }
        admin::GET_FEATURES if sqe.cdw10.get() as u8 == fid::KEEP_ALIVE_TIMER => {
            let mut cqe = Cqe::new(cid, Status::SUCCESS);
            cqe.set_result(l.granted.load(Ordering::SeqCst).into());
            l.cqe(&cqe);
        }
        // Never answered.
        admin::ASYNC_EVENT_REQUEST => {}
        admin::KEEP_ALIVE => {
            // The count says how many are answered before it falls silent; 0: all.
            if alive.fetch_sub(1, Ordering::SeqCst) != 1 {
                l.respond(cid, Status::SUCCESS);
            } else {
                alive.store(1, Ordering::SeqCst);
            }
        }
        _ => l.respond(cid, Status::SUCCESS),
    }
}
