//! A host and a target made of nothing but the codec move data over a lossless, arbitrarily cutting wire.

mod pdu;

use longshore_nvme::tcp_pdu::*;
use longshore_nvme::wire::{Cqe, SglDescriptor, SglKind, Sqe, Status, opcode::io};
use pdu::{Rng, all_params};
use std::collections::HashMap;

const BLOCK: usize = 512;
const BLOCKS: usize = 256;
const IN_CAPSULE: u32 = 4096;
/// What the target asks for in one R2T, and the host sends in one PDU: small, so that commands take several.
const R2T_BYTES: u32 = 8192;
const MAXH2CDATA: u32 = 4096;

/// Sends PDUs into a queue of bytes.
struct Tx {
    enc: Option<Encoder>,
    wire: Vec<u8>,
}

impl Tx {
    fn enc(&self) -> Encoder {
        self.enc.expect("the handshake comes first")
    }

    fn put(&mut self, header: &[u8], data: &[u8]) {
        self.wire.extend_from_slice(header);
        self.wire.extend_from_slice(data);
        if !data.is_empty() && self.enc().data_digest() {
            self.wire.extend_from_slice(&crc32c(data).to_le_bytes());
        }
    }
}

struct Target {
    rx: Decoder,
    tx: Tx,
    offer: IcResp,
    disk: Vec<u8>,
    /// Writes waiting for data by transfer tag: entry, data, how much was asked for.
    writes: HashMap<u16, (Sqe, Vec<u8>, u32)>,
    current: Option<(u16, usize)>,
    maxr2t: u32,
}

impl Target {
    fn receive(&mut self, mut input: &[u8]) {
        while let Some(event) = self.rx.decode(&mut input).expect("the host sends no wrong PDU") {
            match event {
                Event::Header(Pdu::IcReq(req)) => {
                    let (params, resp) = Params::accept(&req, &self.offer);
                    self.rx.establish(&params);
                    self.rx.set_max_in_capsule(IN_CAPSULE);
                    self.tx.wire.extend_from_slice(&encode_ic_resp(&resp));
                    self.tx.enc = Some(Encoder::new(Role::Target, &params));
                    self.maxr2t = params.maxr2t;
                }
                Event::Header(Pdu::CapsuleCmd(c)) => self.command(c),
                Event::Header(Pdu::H2cData(d)) => {
                    let (sqe, buf, asked) = &self.writes[&d.ttag];
                    assert_eq!(d.cccid, sqe.cid.get());
                    assert!(d.offset + d.length <= *asked && *asked as usize <= buf.len());
                    self.current = Some((d.ttag, d.offset as usize));
                }
                Event::Payload { bytes, offset } => {
                    let (ttag, base) = self.current.expect("data belongs to a command");
                    let at = base + offset as usize;
                    self.writes.get_mut(&ttag).unwrap().1[at..at + bytes.len()].copy_from_slice(bytes);
                    self.current = Some((ttag, base));
                }
                Event::End { ddgst_ok } => {
                    assert!(ddgst_ok);
                    let (ttag, _) = self.current.take().unwrap();
                    self.advance(ttag);
                }
                Event::Header(pdu) => panic!("not for a target: {pdu:?}"),
            }
        }
    }

    fn command(&mut self, c: CapsuleCmd) {
        let (cid, len) = (c.sqe.cid.get(), c.sqe.nblocks() as usize * BLOCK);
        if c.sqe.opcode == io::READ {
            let at = c.sqe.slba() as usize * BLOCK;
            let data = self.disk[at..at + len].to_vec();
            let half = len / 2 / 4 * 4;
            let mut h = [0; DATA_HEADER_MAX];
            for (offset, part, last) in [(0, &data[..half], false), (half, &data[half..], true)] {
                let d = Data {
                    cccid: cid,
                    ttag: 0,
                    offset: offset as u32,
                    length: part.len() as u32,
                    last,
                    success: last && cid % 2 == 0,
                };
                let n = self.tx.enc().c2h_data(&d, &mut h);
                self.tx.put(&h[..n], part);
            }
            if cid % 2 != 0 {
                self.respond(cid);
            }
            return;
        }
        let ttag = cid ^ 0xa5a5;
        match c.sqe.dptr.kind() {
            SglKind::InCapsule => {
                assert_eq!(c.data_len as usize, len);
                self.writes.insert(ttag, (c.sqe, vec![0; len], len as u32));
                self.current = Some((ttag, 0));
            }
            SglKind::Transport => {
                self.writes.insert(ttag, (c.sqe, vec![0; len], 0));
                self.ask(ttag);
            }
            kind => panic!("{kind:?}"),
        }
    }

    fn ask(&mut self, ttag: u16) {
        let (sqe, buf, asked) = self.writes.get_mut(&ttag).unwrap();
        let length = (buf.len() as u32 - *asked).min(R2T_BYTES);
        let r2t = R2t { cccid: sqe.cid.get(), ttag, offset: *asked, length };
        *asked += length;
        let mut h = [0; R2T_MAX];
        let n = self.tx.enc().r2t(&r2t, &mut h);
        self.tx.put(&h[..n], &[]);
    }

    /// A data PDU of this write is complete: asks for more, or carries the write out.
    fn advance(&mut self, ttag: u16) {
        let (sqe, buf, asked) = &self.writes[&ttag];
        let header = self.rx.last_header();
        if header[0] == 6 && header[1] & 4 == 0 {
            return;
        }
        if (*asked as usize) < buf.len() {
            return self.ask(ttag);
        }
        let (at, cid) = (sqe.slba() as usize * BLOCK, sqe.cid.get());
        let buf = self.writes.remove(&ttag).unwrap().1;
        self.disk[at..at + buf.len()].copy_from_slice(&buf);
        self.respond(cid);
    }

    fn respond(&mut self, cid: u16) {
        let mut h = [0; CAPSULE_RESP_MAX];
        let n = self.tx.enc().capsule_resp(&Cqe::new(cid, Status::SUCCESS), &mut h);
        self.tx.put(&h[..n], &[]);
    }
}

struct Host {
    rx: Decoder,
    tx: Tx,
    req: IcReq,
    params: Option<Params>,
    /// Outstanding commands: data to write, or data read so far.
    commands: HashMap<u16, Vec<u8>>,
    current: Option<(Data, usize)>,
    done: Vec<(u16, Vec<u8>)>,
}

impl Host {
    fn submit(&mut self, write: bool, cid: u16, slba: u64, data: Vec<u8>) {
        let mut sqe = Sqe::new(if write { io::WRITE } else { io::READ }, cid, 1);
        sqe.set_slba(slba);
        sqe.set_nblocks((data.len() / BLOCK) as u32);
        let inline = write && data.len() as u32 <= IN_CAPSULE;
        sqe.dptr = if inline {
            SglDescriptor::in_capsule(0, data.len() as u32)
        } else {
            SglDescriptor::transport(data.len() as u32)
        };
        let body = if inline { &data[..] } else { &[] };
        let mut h = [0; CAPSULE_CMD_MAX];
        let n = self.tx.enc().capsule_cmd(&sqe, body.len() as u32, &mut h);
        self.tx.put(&h[..n], body);
        assert!(self.commands.insert(cid, data).is_none());
    }

    fn receive(&mut self, mut input: &[u8]) {
        while let Some(event) = self.rx.decode(&mut input).expect("the target sends no wrong PDU") {
            match event {
                Event::Header(Pdu::IcResp(resp)) => {
                    let params = Params::agreed(&self.req, &resp).expect("only what was asked for");
                    self.rx.establish(&params);
                    self.tx.enc = Some(Encoder::new(Role::Host, &params));
                    self.params = Some(params);
                }
                Event::Header(Pdu::R2t(r)) => {
                    let data = self.commands[&r.cccid].clone();
                    let end = (r.offset + r.length) as usize;
                    let mut at = r.offset as usize;
                    while at < end {
                        let n = (end - at).min(self.params.unwrap().maxh2cdata as usize);
                        let d = Data {
                            cccid: r.cccid,
                            ttag: r.ttag,
                            offset: at as u32,
                            length: n as u32,
                            last: at + n == end,
                            success: false,
                        };
                        let mut h = [0; DATA_HEADER_MAX];
                        let len = self.tx.enc().h2c_data(&d, &mut h);
                        self.tx.put(&h[..len], &data[at..at + n]);
                        at += n;
                    }
                }
                Event::Header(Pdu::C2hData(d)) => self.current = Some((d, d.offset as usize)),
                Event::Payload { bytes, offset } => {
                    let (d, base) = self.current.unwrap();
                    let at = base + offset as usize;
                    self.commands.get_mut(&d.cccid).unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
                }
                Event::End { ddgst_ok } => {
                    assert!(ddgst_ok);
                    let (d, _) = self.current.take().unwrap();
                    if d.success {
                        self.complete(d.cccid);
                    }
                }
                Event::Header(Pdu::CapsuleResp(cqe)) => {
                    assert!(cqe.status().is_ok());
                    self.complete(cqe.cid.get());
                }
                Event::Header(pdu) => panic!("not for a host: {pdu:?}"),
            }
        }
    }

    fn complete(&mut self, cid: u16) {
        let data = self.commands.remove(&cid).expect("completed once");
        self.done.push((cid, data));
    }
}

/// Moves everything that was sent, in pieces of random size, until both sides are silent.
fn run(host: &mut Host, target: &mut Target, rng: &mut Rng) {
    while !host.tx.wire.is_empty() || !target.tx.wire.is_empty() {
        let n = (rng.below(3000) as usize + 1).min(host.tx.wire.len());
        let piece: Vec<u8> = host.tx.wire.drain(..n).collect();
        target.receive(&piece);
        let n = (rng.below(3000) as usize + 1).min(target.tx.wire.len());
        let piece: Vec<u8> = target.tx.wire.drain(..n).collect();
        host.receive(&piece);
    }
}

#[test]
fn what_a_host_writes_it_reads_back() {
    for (seed, wanted) in all_params().enumerate() {
        let mut rng = Rng::new(seed as u64 + 100);
        let req = IcReq { hpda: wanted.hpda, hdgst: wanted.hdgst, ddgst: wanted.ddgst, maxr2t: 0 };
        let mut host = Host {
            rx: Decoder::new(Role::Host, 0),
            tx: Tx { enc: None, wire: encode_ic_req(&req).to_vec() },
            req,
            params: None,
            commands: HashMap::new(),
            current: None,
            done: Vec::new(),
        };
        let mut target = Target {
            rx: Decoder::new(Role::Target, ADMIN_IN_CAPSULE),
            tx: Tx { enc: None, wire: Vec::new() },
            offer: IcResp { cpda: wanted.cpda, hdgst: true, ddgst: true, maxh2cdata: MAXH2CDATA },
            disk: vec![0; BLOCK * BLOCKS],
            writes: HashMap::new(),
            current: None,
            maxr2t: 9,
        };
        run(&mut host, &mut target, &mut rng);
        assert_eq!(host.params.unwrap().hdgst, wanted.hdgst);
        assert_eq!(target.maxr2t, 0);

        let mut mirror = vec![0; BLOCK * BLOCKS];
        let mut cid = 0;
        for _ in 0..6 {
            // Writes of distinct ranges in flight together, then everything is read.
            for slot in 0..4 {
                let blocks = rng.below(64) as usize + 1;
                let data = rng.bytes(blocks * BLOCK);
                let at = slot * 64 * BLOCK;
                mirror[at..at + data.len()].copy_from_slice(&data);
                host.submit(true, cid, slot as u64 * 64, data);
                cid += 1;
            }
            run(&mut host, &mut target, &mut rng);
            assert_eq!((host.commands.len(), host.done.len()), (0, 4));
            host.done.clear();
            let first = cid;
            for slot in 0..4 {
                host.submit(false, cid, slot * 64, vec![0; 64 * BLOCK]);
                cid += 1;
            }
            run(&mut host, &mut target, &mut rng);
            assert_eq!(host.done.len(), 4);
            for (c, data) in host.done.drain(..) {
                let at = usize::from(c - first) * 64 * BLOCK;
                assert!(data == mirror[at..at + data.len()], "params {wanted:?}, command {c}");
            }
        }
    }
}
