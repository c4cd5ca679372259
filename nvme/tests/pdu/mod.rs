//! What the PDU tests have in common: a seeded generator, an event log, and builders of PDU streams.

#![allow(dead_code, unreachable_pub, missing_docs)]

use longshore_nvme::tcp_pdu::*;
use longshore_nvme::wire::{Cqe, Sqe, Status};

/// xorshift64*: small, seeded, the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn flag(&mut self) -> bool {
        self.next() >> 63 != 0
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// An event without borrowed data; pieces of payload are joined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ev {
    Header(Pdu),
    Data(Vec<u8>),
    End(bool),
    Failed(FatalError),
}

/// Decodes `input` as one slice and appends what comes out; `established` is applied after ICReq or ICResp.
pub fn feed(d: &mut Decoder, params: &Params, mut input: &[u8], out: &mut Vec<Ev>) {
    if matches!(out.last(), Some(Ev::Failed(_))) {
        return;
    }
    loop {
        match d.decode(&mut input) {
            Ok(None) => return assert!(input.is_empty(), "None, but {} bytes are left", input.len()),
            Ok(Some(Event::Header(pdu))) => {
                if matches!(pdu, Pdu::IcReq(_) | Pdu::IcResp(_)) {
                    d.establish(params);
                }
                out.push(Ev::Header(pdu));
            }
            Ok(Some(Event::Payload { bytes, offset })) => {
                assert!(!bytes.is_empty());
                match out.last_mut() {
                    Some(Ev::Data(v)) => {
                        assert_eq!(v.len(), offset as usize);
                        v.extend_from_slice(bytes);
                    }
                    _ => {
                        assert_eq!(offset, 0);
                        out.push(Ev::Data(bytes.to_vec()));
                    }
                }
            }
            Ok(Some(Event::End { ddgst_ok })) => out.push(Ev::End(ddgst_ok)),
            Err(e) => return out.push(Ev::Failed(e)),
        }
    }
}

/// A new decoder's events for the whole stream.
pub fn decode_all(role: Role, params: &Params, stream: &[u8]) -> Vec<Ev> {
    let mut out = Vec::new();
    feed(&mut Decoder::new(role, ADMIN_IN_CAPSULE), params, stream, &mut out);
    out
}

pub const PLAIN: Params = Params { hdgst: false, ddgst: false, hpda: 0, cpda: 0, maxr2t: 0, maxh2cdata: 131_072 };
pub const DIGESTS: Params = Params { hdgst: true, ddgst: true, ..PLAIN };

/// All combinations of digests with some alignments.
pub fn all_params() -> impl Iterator<Item = Params> {
    [0u8, 1, 3, 15, 17, 31].into_iter().flat_map(|pda| {
        (0..4).map(move |d| Params { hdgst: d & 1 != 0, ddgst: d & 2 != 0, hpda: pda, cpda: pda, ..PLAIN })
    })
}

pub fn ic_req(params: &Params) -> [u8; 128] {
    encode_ic_req(&IcReq { hpda: params.hpda, hdgst: params.hdgst, ddgst: params.ddgst, maxr2t: params.maxr2t })
}

pub fn ic_resp(params: &Params) -> [u8; 128] {
    encode_ic_resp(&IcResp {
        cpda: params.cpda,
        hdgst: params.hdgst,
        ddgst: params.ddgst,
        maxh2cdata: params.maxh2cdata,
    })
}

/// Appends PDUs to a byte stream, and the events they must give to a log.
pub struct Stream {
    pub bytes: Vec<u8>,
    pub expect: Vec<Ev>,
    enc: Encoder,
}

impl Stream {
    /// The stream that `sender` sends: it begins with ICReq or ICResp.
    pub fn new(sender: Role, params: &Params) -> Self {
        let (bytes, first) = match sender {
            Role::Host => (
                ic_req(params),
                Pdu::IcReq(IcReq {
                    hpda: params.hpda,
                    hdgst: params.hdgst,
                    ddgst: params.ddgst,
                    maxr2t: params.maxr2t,
                }),
            ),
            Role::Target => (
                ic_resp(params),
                Pdu::IcResp(IcResp {
                    cpda: params.cpda,
                    hdgst: params.hdgst,
                    ddgst: params.ddgst,
                    maxh2cdata: params.maxh2cdata,
                }),
            ),
        };
        Stream { bytes: bytes.to_vec(), expect: vec![Ev::Header(first)], enc: Encoder::new(sender, params) }
    }

    fn put(&mut self, header: &[u8], pdu: Pdu, data: &[u8]) {
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(data);
        self.expect.push(Ev::Header(pdu));
        if !data.is_empty() {
            if self.enc.data_digest() {
                let mut crc = Crc32c::new();
                crc.update(data);
                self.bytes.extend_from_slice(&crc.finish());
            }
            self.expect.push(Ev::Data(data.to_vec()));
            self.expect.push(Ev::End(true));
        }
    }

    pub fn command(&mut self, cid: u16, data: &[u8]) {
        let mut sqe = Sqe::new(1, cid, 7);
        sqe.set_slba(0x1122_3344_5566 + u64::from(cid));
        let mut h = [0xee; CAPSULE_CMD_MAX];
        let n = self.enc.capsule_cmd(&sqe, data.len() as u32, &mut h);
        self.put(&h[..n], Pdu::CapsuleCmd(CapsuleCmd { sqe, data_len: data.len() as u32 }), data);
    }

    pub fn response(&mut self, cid: u16) {
        let cqe = Cqe::new(cid, Status::INTERNAL_ERROR);
        let mut h = [0xee; CAPSULE_RESP_MAX];
        let n = self.enc.capsule_resp(&cqe, &mut h);
        self.put(&h[..n], Pdu::CapsuleResp(cqe), &[]);
    }

    pub fn r2t(&mut self, r2t: R2t) {
        let mut h = [0xee; R2T_MAX];
        let n = self.enc.r2t(&r2t, &mut h);
        self.put(&h[..n], Pdu::R2t(r2t), &[]);
    }

    pub fn h2c(&mut self, data: Data, bytes: &[u8]) {
        let mut h = [0xee; DATA_HEADER_MAX];
        let n = self.enc.h2c_data(&data, &mut h);
        self.put(&h[..n], Pdu::H2cData(data), bytes);
    }

    pub fn c2h(&mut self, data: Data, bytes: &[u8]) {
        let mut h = [0xee; DATA_HEADER_MAX];
        let n = self.enc.c2h_data(&data, &mut h);
        self.put(&h[..n], Pdu::C2hData(data), bytes);
    }

    /// A random PDU of those that the sender may send.
    pub fn random(&mut self, sender: Role, rng: &mut Rng) {
        let cccid = rng.next() as u16;
        let ttag = rng.next() as u16;
        let offset = (rng.below(1 << 20) * 4) as u32;
        let length = (rng.below(200) * 4 + 4) as u32;
        let last = rng.flag();
        match (sender, rng.below(3)) {
            (Role::Host, 0) => self.command(cccid, &[]),
            (Role::Host, 1) => {
                let n = rng.below(300) as usize + 1;
                self.command(cccid, &rng.bytes(n));
            }
            (Role::Host, _) => {
                let bytes = rng.bytes(length as usize);
                self.h2c(Data { cccid, ttag, offset, length, last, success: false }, &bytes);
            }
            (Role::Target, 0) => self.response(cccid),
            (Role::Target, 1) => self.r2t(R2t { cccid, ttag, offset, length }),
            (Role::Target, _) => {
                let bytes = rng.bytes(length as usize);
                let success = last && rng.flag();
                self.c2h(Data { cccid, ttag: 0, offset, length, last, success }, &bytes);
            }
        }
    }
}

/// The role that receives what `sender` sends.
pub fn peer(sender: Role) -> Role {
    match sender {
        Role::Host => Role::Target,
        Role::Target => Role::Host,
    }
}
