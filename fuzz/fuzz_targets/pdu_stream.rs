//! A byte stream from a stranger, to a target or to a host, with and without digests.
//!
//! The decoder must not panic, and must give the same PDUs, data and error whether the stream comes as one slice, in
//! arbitrary pieces, or with part of the data received directly; and what it accepted, encoded again, is accepted again.
//!
//! Input: byte 0 role, digests, repair and handshake; byte 1 alignment; bytes 2-3 seed of the cuts; then the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_nvme::tcp_pdu::*;

/// What came out, with pieces of data joined.
#[derive(PartialEq, Debug)]
enum Seen {
    Header(Pdu),
    Data(Vec<u8>),
    End(bool),
    Failed(FatalError),
}

struct Receiver {
    decoder: Decoder,
    params: Params,
    /// Data of the current PDU that is still to come.
    left: u32,
    seen: Vec<Seen>,
}

impl Receiver {
    fn new(role: Role, params: Params, established: bool) -> Self {
        let mut decoder = Decoder::new(role, ADMIN_IN_CAPSULE);
        if established {
            decoder.establish(&params);
        }
        Receiver { decoder, params, left: 0, seen: Vec::new() }
    }

    fn failed(&self) -> bool {
        matches!(self.seen.last(), Some(Seen::Failed(_)))
    }

    fn data(&mut self, bytes: &[u8]) {
        self.left -= bytes.len() as u32;
        match self.seen.last_mut() {
            Some(Seen::Data(v)) => v.extend_from_slice(bytes),
            _ => self.seen.push(Seen::Data(bytes.to_vec())),
        }
    }

    fn feed(&mut self, mut input: &[u8]) {
        loop {
            match self.decoder.decode(&mut input) {
                Ok(None) => return assert!(input.is_empty()),
                Ok(Some(Event::Header(pdu))) => {
                    assert_eq!(self.left, 0, "a header before the data ended");
                    match pdu {
                        Pdu::IcReq(req) => {
                            let offer = IcResp { cpda: self.params.cpda, hdgst: true, ddgst: true, maxh2cdata: 8192 };
                            self.decoder.establish(&Params::accept(&req, &offer).0);
                        }
                        Pdu::IcResp(_) => self.decoder.establish(&self.params),
                        _ => {}
                    }
                    self.left = pdu.data_len();
                    self.seen.push(Seen::Header(pdu));
                }
                Ok(Some(Event::Payload { bytes, offset })) => {
                    assert!(!bytes.is_empty());
                    let before = match self.seen.last() {
                        Some(Seen::Data(v)) => v.len(),
                        _ => 0,
                    };
                    assert_eq!(offset as usize, before);
                    self.data(bytes);
                }
                Ok(Some(Event::End { ddgst_ok })) => {
                    assert_eq!(self.left, 0, "the end before the data ended");
                    self.seen.push(Seen::End(ddgst_ok));
                }
                Err(e) => {
                    let mut out = [0; TERM_REQ_MAX];
                    if let Some(term) = self.decoder.term_req(&e, &mut out) {
                        assert!(term.len() >= 24 && !e.silent);
                    }
                    return self.seen.push(Seen::Failed(e));
                }
            }
        }
    }
}

/// Makes the digests of what looks like PDUs right, so that the fuzzer gets past them.
fn repair(stream: &mut [u8], params: &Params) {
    let mut rest = stream;
    while rest.len() >= 8 {
        let hlen = match rest[0] {
            4 => 72,
            5 | 6 | 7 | 9 => 24,
            0 | 1 => {
                rest = rest.split_at_mut(128.min(rest.len())).1;
                continue;
            }
            _ => return,
        };
        let plen = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let pdo = usize::from(rest[3]);
        if plen < hlen + 4 || plen > rest.len() {
            return;
        }
        let (pdu, after) = rest.split_at_mut(plen);
        if params.hdgst {
            let crc = crc32c(&pdu[..hlen]).to_le_bytes();
            pdu[hlen..hlen + 4].copy_from_slice(&crc);
        }
        if params.ddgst && pdo >= hlen && pdo + 4 < plen {
            let crc = crc32c(&pdu[pdo..plen - 4]).to_le_bytes();
            pdu[plen - 4..].copy_from_slice(&crc);
        }
        rest = after;
    }
}

/// Encodes what was accepted again.
fn encode(role: Role, params: &Params, seen: &[Seen]) -> Vec<u8> {
    let sender = if role == Role::Target { Role::Host } else { Role::Target };
    let enc = Encoder::new(sender, params);
    let mut out = Vec::new();
    for s in seen {
        let mut h = [0; CAPSULE_CMD_MAX];
        let n = match s {
            Seen::Header(Pdu::CapsuleCmd(c)) => enc.capsule_cmd(&c.sqe, c.data_len, &mut h),
            Seen::Header(Pdu::CapsuleResp(c)) => enc.capsule_resp(c, &mut h),
            Seen::Header(Pdu::H2cData(d)) => enc.h2c_data(d, &mut h),
            Seen::Header(Pdu::C2hData(d)) => enc.c2h_data(&Data { ttag: 0, ..*d }, &mut h),
            Seen::Header(Pdu::R2t(r)) => enc.r2t(r, &mut h),
            Seen::Data(v) => {
                out.extend_from_slice(v);
                if enc.data_digest() {
                    out.extend_from_slice(&crc32c(v).to_le_bytes());
                }
                0
            }
            _ => 0,
        };
        out.extend_from_slice(&h[..n]);
    }
    out
}

fuzz_target!(|input: &[u8]| {
    let Some((&[config, align, s0, s1], stream)) = input.split_first_chunk::<4>() else { return };
    let role = if config & 1 == 0 { Role::Target } else { Role::Host };
    let established = config & 16 == 0;
    let params = Params {
        hdgst: config & 2 != 0,
        ddgst: config & 4 != 0,
        hpda: align % 32,
        cpda: align % 32,
        maxr2t: 0,
        maxh2cdata: 8192,
    };
    let mut stream = stream.to_vec();
    if config & 8 != 0 {
        repair(&mut stream, &params);
    }

    let mut whole = Receiver::new(role, params, established);
    whole.feed(&stream);

    for direct in [false, true] {
        let mut pieces = Receiver::new(role, params, established);
        let mut seed = u32::from(s0) << 8 | u32::from(s1) | 1 << 16;
        let mut rest = &stream[..];
        while !rest.is_empty() && !pieces.failed() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = ((seed >> 24) as usize % (usize::from(s0) + 1) + 1).min(rest.len());
            let pending = pieces.decoder.payload_pending() as usize;
            if direct && pending != 0 {
                let n = n.min(pending);
                pieces.decoder.direct_done(&rest[..n]);
                pieces.data(&rest[..n]);
                rest = &rest[n..];
                pieces.feed(&[]);
            } else {
                pieces.feed(&rest[..n]);
                rest = &rest[n..];
            }
        }
        assert_eq!(pieces.seen, whole.seen);
    }

    // Without handshake, termination or error in it, and complete: round trip.
    let plain = whole.seen.iter().all(|s| match s {
        Seen::Header(p) => !matches!(p, Pdu::IcReq(_) | Pdu::IcResp(_) | Pdu::TermReq(_)),
        Seen::End(ok) => *ok,
        Seen::Data(_) => true,
        Seen::Failed(_) => false,
    });
    if plain && whole.left == 0 && !matches!(whole.seen.last(), Some(Seen::Data(_))) && established {
        let mut again = Receiver::new(role, params, true);
        again.feed(&encode(role, &params, &whole.seen));
        let reserved_cleared: Vec<Seen> = whole
            .seen
            .into_iter()
            .map(|s| match s {
                Seen::Header(Pdu::C2hData(d)) => Seen::Header(Pdu::C2hData(Data { ttag: 0, ..d })),
                s => s,
            })
            .collect();
        assert_eq!(again.seen, reserved_cleared);
    }
});
