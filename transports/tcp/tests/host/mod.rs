//! A scripted NVMe/TCP host for the tests: it encodes and decodes PDUs with code of its own, byte by byte from the figures of
//! the NVMe/TCP Transport Specification, so that a mistake in the crate's codec cannot hide itself; and it can misbehave.
#![allow(dead_code, unreachable_pub)]

use longshore_nvme::wire::{Cqe, SglDescriptor, Sqe, Status};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

pub const ICREQ: u8 = 0x00;
pub const ICRESP: u8 = 0x01;
pub const H2C_TERM: u8 = 0x02;
pub const C2H_TERM: u8 = 0x03;
pub const CMD: u8 = 0x04;
pub const RESP: u8 = 0x05;
pub const H2C_DATA: u8 = 0x06;
pub const C2H_DATA: u8 = 0x07;
pub const R2T: u8 = 0x09;

pub const F_HDGST: u8 = 1;
pub const F_DDGST: u8 = 2;
pub const F_LAST: u8 = 4;
pub const F_SUCCESS: u8 = 8;

/// CATTR bit 2: disable SQ flow control.
pub const NO_FLOW_CONTROL: u8 = 4;

pub const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:3b0a0f2c-6a4b-4e55-9d5f-0c9c5a6f1e01";

const HOSTID: [u8; 16] = [0x3b, 0x0a, 0x0f, 0x2c, 0x6a, 0x4b, 0x4e, 0x55, 0x9d, 0x5f, 12, 0x9c, 0x5a, 0x6f, 0x1e, 1];

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What the host asks for in ICReq.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ic {
    pub hdgst: bool,
    pub ddgst: bool,
    /// HPDA: alignment of data in C2HData, in dwords less one.
    pub hpda: u8,
    pub maxr2t: u32,
}

impl Ic {
    pub fn digests() -> Ic {
        Ic { hdgst: true, ddgst: true, ..Ic::default() }
    }

    /// The 128 bytes of ICReq.
    pub fn bytes(&self) -> [u8; 128] {
        let mut b = [0u8; 128];
        b[0] = ICREQ;
        b[2] = 128;
        b[4..8].copy_from_slice(&128u32.to_le_bytes());
        b[10] = self.hpda;
        b[11] = self.hdgst as u8 | (self.ddgst as u8) << 1;
        b[12..16].copy_from_slice(&self.maxr2t.to_le_bytes());
        b
    }
}

/// A PDU as received: the header without the eight common bytes, and the data.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub kind: u8,
    pub flags: u8,
    pub pdo: u8,
    pub psh: Vec<u8>,
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn u16(&self, header_offset: usize) -> u16 {
        u16::from_le_bytes(self.psh[header_offset - 8..][..2].try_into().unwrap())
    }

    pub fn u32(&self, header_offset: usize) -> u32 {
        u32::from_le_bytes(self.psh[header_offset - 8..][..4].try_into().unwrap())
    }

    pub fn cqe(&self) -> Cqe {
        assert_eq!(self.kind, RESP, "a CapsuleResp was expected: {self:?}");
        Cqe::read_from_bytes(&self.psh[..16]).unwrap()
    }

    /// FES and FEI of a C2HTermReq.
    pub fn fatal(&self) -> (u16, u32) {
        assert_eq!(self.kind, C2H_TERM, "a C2HTermReq was expected: {self:?}");
        (self.u16(8), self.u32(10))
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub status: Status,
    pub dw0: u32,
    pub sqhd: u16,
    pub data: Vec<u8>,
    /// The response was the SUCCESS flag of the last C2HData.
    pub implied: bool,
}

pub struct Host {
    pub s: TcpStream,
    pub ic: Ic,
    /// From ICResp.
    pub cpda: u8,
    pub maxh2cdata: u32,
    pub hdgst: bool,
    pub ddgst: bool,
    pub cntlid: u16,
    /// HOSTID that Connect gives.
    pub hostid: [u8; 16],
    next_cid: u16,
}

impl Host {
    /// A connection on which nothing was sent yet.
    pub fn raw(addr: SocketAddr) -> Host {
        let s = TcpStream::connect_timeout(&addr, Duration::from_secs(10)).expect("connect");
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        s.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        s.set_nodelay(true).unwrap();
        let (ic, hostid) = (Ic::default(), HOSTID);
        Host { s, ic, cpda: 0, maxh2cdata: 0, hdgst: false, ddgst: false, cntlid: 0xffff, hostid, next_cid: 0 }
    }

    /// A connection whose ICReq was answered.
    pub fn initialised(addr: SocketAddr, ic: Ic) -> Host {
        let mut h = Host::raw(addr);
        h.ic = ic;
        h.send(&ic.bytes());
        let r = h.pdu();
        assert_eq!((r.kind, r.psh.len()), (ICRESP, 120));
        assert_eq!(r.u16(8), 0, "PFV");
        h.cpda = r.psh[2];
        let dgst = r.psh[3];
        h.maxh2cdata = r.u32(12);
        assert!(h.maxh2cdata >= 4096 && h.maxh2cdata.is_multiple_of(4), "MAXH2CDATA {}", h.maxh2cdata);
        h.hdgst = dgst & 1 != 0;
        h.ddgst = dgst & 2 != 0;
        assert_eq!((h.hdgst, h.ddgst), (ic.hdgst, ic.ddgst), "digests");
        h
    }

    /// An admin queue of `subnqn`, enabled (CC.EN = 1, CSTS.RDY seen).
    pub fn admin(addr: SocketAddr, ic: Ic, subnqn: &str) -> Host {
        Host::admin_of(addr, ic, subnqn, HOSTNQN)
    }

    /// As [`admin`](Host::admin), as the host `hostnqn`.
    pub fn admin_of(addr: SocketAddr, ic: Ic, subnqn: &str, hostnqn: &str) -> Host {
        let mut h = Host::initialised(addr, ic);
        let done = h.connect(0, 31, 0xffff, 0, subnqn, hostnqn);
        assert!(done.status.is_ok(), "Connect: {}", done.status);
        h.cntlid = done.dw0 as u16;
        h.enable();
        h
    }

    /// An I/O queue of the controller that `admin` belongs to.
    pub fn io(addr: SocketAddr, ic: Ic, subnqn: &str, cntlid: u16, qid: u16, sqsize: u16, cattr: u8) -> Host {
        let mut h = Host::initialised(addr, ic);
        let done = h.connect(qid, sqsize, cntlid, cattr, subnqn, HOSTNQN);
        assert!(done.status.is_ok(), "Connect of queue {qid}: {}", done.status);
        h.cntlid = cntlid;
        h
    }

    pub fn enable(&mut self) {
        let cc: u32 = 1 | 6 << 16 | 4 << 20;
        let done = self.property_set(0x14, cc as u64, false);
        assert!(done.status.is_ok(), "Property Set CC: {}", done.status);
        for _ in 0..100 {
            let done = self.property_get(0x1c, false);
            assert!(done.status.is_ok());
            if done.dw0 & 1 == 1 {
                return;
            }
        }
        panic!("CSTS.RDY never set");
    }

    pub fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.s.write_all(bytes).expect("send");
    }

    /// The bytes of a PDU: header, digest, padding, data, digest.
    pub fn encode(&self, kind: u8, flags: u8, psh: &[u8], data: &[u8]) -> Vec<u8> {
        let hlen = 8 + psh.len();
        let hd = self.hdgst && kind != ICREQ && kind != H2C_TERM;
        let mut b = vec![kind, flags, hlen as u8, 0, 0, 0, 0, 0];
        b.extend_from_slice(psh);
        if hd {
            b[1] |= F_HDGST;
        }
        let mut len = hlen + if hd { 4 } else { 0 };
        if !data.is_empty() {
            let align = (self.cpda as usize + 1) * 4;
            let pdo = if kind == H2C_TERM { hlen } else { len.next_multiple_of(align) };
            b[3] = pdo as u8;
            len = pdo + data.len();
            if self.ddgst && kind != H2C_TERM {
                b[1] |= F_DDGST;
                len += 4;
            }
        }
        b[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        if hd {
            let d = crc32c(&b[..hlen]);
            b.extend_from_slice(&d.to_le_bytes());
        }
        if !data.is_empty() {
            b.resize(b[3] as usize, 0);
            b.extend_from_slice(data);
            if self.ddgst && kind != H2C_TERM {
                b.extend_from_slice(&crc32c(data).to_le_bytes());
            }
        }
        assert_eq!(b.len(), len);
        b
    }

    pub fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        self.encode(CMD, 0, sqe.as_bytes(), data)
    }

    pub fn send_cmd(&mut self, sqe: &Sqe, data: &[u8]) {
        let b = self.capsule(sqe, data);
        self.send(&b);
    }

    pub fn h2c_data(&self, cid: u16, ttag: u16, off: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut psh = [0u8; 16];
        psh[0..2].copy_from_slice(&cid.to_le_bytes());
        psh[2..4].copy_from_slice(&ttag.to_le_bytes());
        psh[4..8].copy_from_slice(&off.to_le_bytes());
        psh[8..12].copy_from_slice(&(data.len() as u32).to_le_bytes());
        self.encode(H2C_DATA, if last { F_LAST } else { 0 }, &psh, data)
    }

    pub fn try_pdu(&mut self) -> io::Result<Pdu> {
        let mut h = [0u8; 8];
        self.s.read_exact(&mut h)?;
        let (kind, flags, hlen, pdo) = (h[0], h[1], h[2] as usize, h[3] as usize);
        let plen = u32::from_le_bytes(h[4..8].try_into().unwrap()) as usize;
        assert!(hlen >= 8 && plen >= hlen && plen < 4 << 20, "header {h:02x?}");
        let mut rest = vec![0u8; plen - 8];
        self.s.read_exact(&mut rest)?;
        let bare = matches!(kind, ICRESP | C2H_TERM);
        assert_eq!(flags & F_HDGST != 0, self.hdgst && !bare, "HDGSTF of PDU {kind:02x}h");
        let psh = rest[..hlen - 8].to_vec();
        if flags & F_HDGST != 0 {
            let mut all = h.to_vec();
            all.extend_from_slice(&psh);
            let want = u32::from_le_bytes(rest[hlen - 8..][..4].try_into().unwrap());
            assert_eq!(crc32c(&all), want, "header digest of PDU {kind:02x}h");
        }
        let mut data = Vec::new();
        if pdo != 0 {
            let mut end = plen - 8;
            if flags & F_DDGST != 0 {
                end -= 4;
            }
            data = rest[pdo - 8..end].to_vec();
            if kind == C2H_DATA {
                assert!(pdo.is_multiple_of((self.ic.hpda as usize + 1) * 4), "PDO {pdo} with HPDA {}", self.ic.hpda);
                assert_eq!(flags & F_DDGST != 0, self.ddgst, "DDGSTF");
            }
            if flags & F_DDGST != 0 {
                assert_eq!(crc32c(&data), u32::from_le_bytes(rest[end..].try_into().unwrap()), "data digest");
            }
        } else if kind == C2H_TERM {
            data = rest[hlen - 8..].to_vec();
        }
        Ok(Pdu { kind, flags, pdo: pdo as u8, psh, data })
    }

    pub fn pdu(&mut self) -> Pdu {
        self.try_pdu().expect("a PDU was expected")
    }

    /// True when the target has closed the connection; panics if it sends anything, or nothing for the read timeout.
    pub fn closed(&mut self) -> bool {
        let mut b = [0u8; 1];
        match self.s.read(&mut b) {
            Ok(0) => true,
            Ok(_) => panic!("the target sent {:02x}h", b[0]),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => true,
            Err(e) => panic!("waiting for the close: {e}"),
        }
    }

    /// Runs one command to its end, with `data` for its R2Ts; C2HData is collected.
    pub fn finish(&mut self, cid: u16, data: &[u8]) -> Done {
        let mut got = Vec::new();
        loop {
            let p = self.pdu();
            match p.kind {
                R2T => {
                    assert_eq!(p.u16(8), cid);
                    self.answer_r2t(&p, data);
                }
                C2H_DATA => {
                    assert_eq!((p.u16(8), p.u32(12) as usize), (cid, got.len()), "C2HData: CCCID and DATAO");
                    assert_eq!(p.u32(16) as usize, p.data.len(), "DATAL");
                    got.extend_from_slice(&p.data);
                    if p.flags & F_SUCCESS != 0 {
                        assert!(p.flags & F_LAST != 0, "SUCCESS without LAST");
                        return Done { status: Status::SUCCESS, dw0: 0, sqhd: 0xffff, data: got, implied: true };
                    }
                }
                RESP => {
                    let c = p.cqe();
                    assert_eq!(c.cid.get(), cid);
                    return Done {
                        status: c.status(),
                        dw0: c.dw0.get(),
                        sqhd: c.sqhd.get(),
                        data: got,
                        implied: false,
                    };
                }
                _ => panic!("unexpected {p:?}"),
            }
        }
    }

    /// Sends the data that an R2T asks for, in H2CData of at most MAXH2CDATA.
    pub fn answer_r2t(&mut self, r2t: &Pdu, data: &[u8]) {
        assert_eq!(r2t.kind, R2T);
        let (cid, ttag, off, len) = (r2t.u16(8), r2t.u16(10), r2t.u32(12) as usize, r2t.u32(16) as usize);
        assert!(len > 0 && off + len <= data.len(), "R2T {off}+{len} of {}", data.len());
        let step = self.maxh2cdata as usize;
        let mut at = off;
        while at < off + len {
            let n = step.min(off + len - at);
            let b = self.h2c_data(cid, ttag, at as u32, &data[at..at + n], at + n == off + len);
            self.send(&b);
            at += n;
        }
    }

    pub fn connect_sqe(&mut self, qid: u16, sqsize: u16, cattr: u8) -> Sqe {
        let mut sqe = Sqe::new(0x7f, self.cid(), 1);
        sqe.dptr = SglDescriptor::in_capsule(0, 1024);
        sqe.cdw10 = ((qid as u32) << 16).into();
        sqe.cdw11 = (sqsize as u32 | (cattr as u32) << 16).into();
        sqe
    }

    pub fn connect_data(cntlid: u16, subnqn: &str, hostnqn: &str) -> Vec<u8> {
        let mut d = vec![0u8; 1024];
        d[0..16].copy_from_slice(&HOSTID);
        d[16..18].copy_from_slice(&cntlid.to_le_bytes());
        d[256..256 + subnqn.len()].copy_from_slice(subnqn.as_bytes());
        d[512..512 + hostnqn.len()].copy_from_slice(hostnqn.as_bytes());
        d
    }

    pub fn connect(&mut self, qid: u16, sqsize: u16, cntlid: u16, cattr: u8, subnqn: &str, hostnqn: &str) -> Done {
        let sqe = self.connect_sqe(qid, sqsize, cattr);
        let mut data = Host::connect_data(cntlid, subnqn, hostnqn);
        data[..16].copy_from_slice(&self.hostid);
        self.send_cmd(&sqe, &data);
        self.finish(sqe.cid.get(), &[])
    }

    /// Set Features, Host Behavior Support: Advanced Command Retry (ACRE) on or off.
    pub fn set_acre(&mut self, on: bool) -> Done {
        let mut sqe = Sqe::new(0x09, self.cid(), 0);
        sqe.cdw10 = 0x16.into();
        sqe.dptr = SglDescriptor::in_capsule(0, 512);
        let mut data = vec![0; 512];
        data[0] = on as u8;
        self.send_cmd(&sqe, &data);
        self.finish(sqe.cid.get(), &[])
    }

    pub fn property_set(&mut self, offset: u32, value: u64, wide: bool) -> Done {
        let mut sqe = Sqe::new(0x7f, self.cid(), 0);
        sqe.cdw10 = (wide as u32).into();
        sqe.cdw11 = offset.into();
        sqe.cdw12 = (value as u32).into();
        sqe.cdw13 = ((value >> 32) as u32).into();
        self.send_cmd(&sqe, &[]);
        self.finish(sqe.cid.get(), &[])
    }

    pub fn property_get(&mut self, offset: u32, wide: bool) -> Done {
        let mut sqe = Sqe::new(0x7f, self.cid(), 4);
        sqe.cdw10 = (wide as u32).into();
        sqe.cdw11 = offset.into();
        self.send_cmd(&sqe, &[]);
        self.finish(sqe.cid.get(), &[])
    }

    /// An I/O command on namespace 1 whose data travels outside the capsule.
    pub fn rw_sqe(&mut self, opcode: u8, slba: u64, nblocks: u32, bytes: u32) -> Sqe {
        let mut sqe = Sqe::new(opcode, self.cid(), 1);
        sqe.set_slba(slba);
        sqe.set_nblocks(nblocks);
        sqe.dptr = SglDescriptor::transport(bytes);
        sqe
    }

    /// Writes `data` at `slba` of namespace 1, which has 512-byte blocks; by R2T.
    pub fn write(&mut self, slba: u64, data: &[u8]) -> Done {
        let sqe = self.rw_sqe(0x01, slba, (data.len() / 512) as u32, data.len() as u32);
        self.send_cmd(&sqe, &[]);
        self.finish(sqe.cid.get(), data)
    }

    /// As [`write`](Host::write), with the data in the capsule.
    pub fn write_in_capsule(&mut self, slba: u64, data: &[u8]) -> Done {
        let mut sqe = self.rw_sqe(0x01, slba, (data.len() / 512) as u32, 0);
        sqe.dptr = SglDescriptor::in_capsule(0, data.len() as u32);
        self.send_cmd(&sqe, data);
        self.finish(sqe.cid.get(), &[])
    }

    pub fn read(&mut self, slba: u64, bytes: usize) -> Done {
        let sqe = self.rw_sqe(0x02, slba, (bytes / 512) as u32, bytes as u32);
        self.send_cmd(&sqe, &[]);
        self.finish(sqe.cid.get(), &[])
    }
}

/// Bytes that differ at every offset and for every seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut v = Vec::with_capacity(len + 8);
    while v.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        v.extend_from_slice(&x.to_le_bytes());
    }
    v.truncate(len);
    v
}
