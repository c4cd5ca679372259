//! Takes a byte stream apart into PDUs, without copying data and without allocating.

use super::digest::{Crc32c, crc32c};
use super::error::{FatalError, TERM_REQ_MAX, encode_term_req};
use super::header::{
    CapsuleCmdHeader, CapsuleRespHeader, CommonHeader, DataHeader, IcHeader, TermReqHeader, field, flags, pdu_type,
};
use super::params::{IcReq, IcResp, MAXH2CDATA_MIN, PDA_MAX, Params};
use super::{CapsuleCmd, Data, Pdu, R2t, Role, TermReq};
use zerocopy::FromBytes;

/// What [`Decoder::decode`] found next in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A PDU whose header is complete and valid. If [`Pdu::data_len`] is 0, the PDU ends here; else its data follows as
    /// `Payload` events (or by [`Decoder::direct_done`]) and one `End`.
    Header(Pdu),
    /// A piece of the PDU's data, a part of the slice given to `decode`.
    Payload {
        /// The piece, never empty.
        bytes: &'a [u8],
        /// Where it belongs, counted from the start of this PDU's data.
        offset: u32,
    },
    /// The PDU's data is complete.
    End {
        /// False if the data does not match its digest: the command has to fail with Transient Transport Error. The stream
        /// goes on. True if data digests are off.
        ddgst_ok: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Collecting a header.
    Header,
    /// Skipping padding.
    Pad,
    /// Handing out data.
    Payload,
    /// Collecting the data digest.
    Digest,
    /// Data complete, no digest: `End` is due.
    End,
    /// A fatal error was reported.
    Failed(FatalError),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// ICReq or ICResp has to come first.
    Connecting,
    /// It came; the caller has not yet called `establish`.
    Negotiating,
    Established,
}

/// The receiving half of an NVMe/TCP connection, for either role.
///
/// Feed it with [`Decoder::decode`] until that returns `None`: it then wants more bytes. After ICReq (target) or ICResp
/// (host) came out, call [`Decoder::establish`] before feeding on.
///
/// To receive data directly into its final place: when `decode` returned `None` and [`Decoder::payload_pending`] is large,
/// receive up to that many bytes elsewhere, pass them to [`Decoder::direct_done`], then call `decode` again with whatever
/// was received after them (an empty slice if nothing was).
///
/// After an error the decoder repeats that error for ever; [`Decoder::term_req`] gives the PDU to send before closing.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    phase: Phase,
    role: Role,
    /// Established target without header digests: a bare command capsule is taken in one step.
    bare_capsules: bool,
    /// Established host without header digests and with the least alignment: a response, or the header of data, is taken in
    /// one step.
    bare_answers: bool,
    hdgst: bool,
    ddgst: bool,
    /// Alignment of received data in bytes, 4 to 128.
    align: u8,
    maxh2cdata: u32,
    max_in_capsule: u32,
    /// Bytes of `hdr` collected for the header being received.
    have: usize,
    /// Length of that header with its digest; valid once `have >= 8`.
    full: usize,
    /// Length of the last complete (or failed) header in `hdr`, without digest.
    hdr_len: usize,
    pad: u32,
    data_offset: u32,
    data_left: u32,
    /// The current PDU has a data digest.
    has_ddgst: bool,
    digest_have: usize,
    digest: [u8; 4],
    hdr: [u8; 132],
    crc: Crc32c,
}

// A connection moves to another core between PDUs, its decoder with it.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Decoder>();
};

const CH: usize = size_of::<CommonHeader>();

/// Bytes 0 to 7 but for PDO (which means nothing without data) of a command capsule without digest and data.
const BARE_CAPSULE_MASK: u64 = 0xffff_ffff_00ff_ffff;
const BARE_RESPONSE: u64 = u64::from_le_bytes([pdu_type::CAPSULE_RESP, 0, 24, 0, 24, 0, 0, 0]);
const BARE_CAPSULE: u64 = u64::from_le_bytes([pdu_type::CAPSULE_CMD, 0, 72, 0, 72, 0, 0, 0]);

impl Decoder {
    /// A decoder for the PDUs that `role` receives on a new connection. `max_in_capsule`: most bytes of in-capsule data that
    /// a command capsule may carry (a target has to take 8,192 on the admin queue; a host does not use it).
    pub fn new(role: Role, max_in_capsule: u32) -> Self {
        Decoder {
            state: State::Header,
            phase: Phase::Connecting,
            role,
            bare_capsules: false,
            bare_answers: false,
            hdgst: false,
            ddgst: false,
            align: 4,
            maxh2cdata: 0,
            max_in_capsule,
            have: 0,
            full: 0,
            hdr_len: 0,
            pad: 0,
            data_offset: 0,
            data_left: 0,
            has_ddgst: false,
            digest_have: 0,
            digest: [0; 4],
            hdr: [0; 132],
            crc: Crc32c::new(),
        }
    }

    /// ICReq and ICResp were exchanged: from the next PDU on these parameters hold.
    pub fn establish(&mut self, params: &Params) {
        self.phase = Phase::Established;
        self.hdgst = params.hdgst;
        self.ddgst = params.ddgst;
        let pda = match self.role {
            Role::Target => params.cpda,
            Role::Host => params.hpda,
        };
        self.align = (pda.min(PDA_MAX) + 1) * 4;
        self.maxh2cdata = params.maxh2cdata;
        self.bare_capsules = self.role == Role::Target && !params.hdgst;
        self.bare_answers = self.role == Role::Host && !params.hdgst && self.align == 4;
    }

    /// Changes the limit given to [`Decoder::new`], for instance once Connect told that this is an I/O queue.
    pub fn set_max_in_capsule(&mut self, bytes: u32) {
        self.max_in_capsule = bytes;
    }

    /// The role whose receiving half this is.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Bytes of the current PDU's data that come next in the stream; 0 while a header, padding or a digest comes next.
    #[inline]
    pub fn payload_pending(&self) -> u32 {
        if self.state == State::Payload { self.data_left } else { 0 }
    }

    /// `data` was received directly: it is the next `data.len()` bytes of the current PDU's data.
    ///
    /// # Panics
    ///
    /// If it is longer than [`Decoder::payload_pending`].
    pub fn direct_done(&mut self, data: &[u8]) {
        assert!(
            data.len() as u64 <= u64::from(self.payload_pending()),
            "{} bytes received directly, but only {} of the PDU's data were left",
            data.len(),
            self.payload_pending()
        );
        self.took(data);
    }

    /// The next event in `input`, from which what it covers is cut off. `None`: all of `input` was used up, feed more.
    #[inline]
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FatalError> {
        if self.state == State::Header
            && self.bare_capsules
            && self.have == 0
            && let Some((pdu, rest)) = input.split_first_chunk::<72>()
            && let Ok(h) = CapsuleCmdHeader::ref_from_bytes(pdu)
            && let Some(ch) = pdu.first_chunk::<8>()
            && u64::from_le_bytes(*ch) & BARE_CAPSULE_MASK == BARE_CAPSULE
        {
            self.hdr[..72].copy_from_slice(pdu);
            self.hdr_len = 72;
            *input = rest;
            return Ok(Some(Event::Header(Pdu::CapsuleCmd(CapsuleCmd { sqe: h.sqe, data_len: 0 }))));
        }
        if self.state == State::Header
            && self.bare_answers
            && self.have == 0
            && let Some((pdu, rest)) = input.split_first_chunk::<24>()
            && let Some(pdu) = self.bare_answer(pdu)
        {
            *input = rest;
            return Ok(Some(Event::Header(pdu)));
        }
        self.step(input)
    }

    /// A response, or the header of data, in which nothing is unusual; anything else is left to `step`.
    #[inline]
    fn bare_answer(&mut self, pdu: &[u8; 24]) -> Option<Pdu> {
        let ch = u64::from_le_bytes(*pdu.first_chunk::<8>()?);
        if ch & BARE_CAPSULE_MASK == BARE_RESPONSE {
            let h = CapsuleRespHeader::ref_from_bytes(pdu).ok()?;
            self.hdr[..24].copy_from_slice(pdu);
            self.hdr_len = 24;
            return Some(Pdu::CapsuleResp(h.cqe));
        }
        let h = DataHeader::ref_from_bytes(pdu).ok()?;
        let (last, success) = (h.ch.flags & flags::LAST != 0, h.ch.flags & flags::SUCCESS != 0);
        let (ddgst, trailer) = if self.ddgst { (flags::DDGST, 4) } else { (0, 0) };
        let (offset, length) = (h.offset.get(), h.length.get());
        let usual = h.ch.pdu_type == pdu_type::C2H_DATA
            && h.ch.hlen == 24
            && h.ch.pdo == 24
            && h.ch.flags & !(flags::LAST | flags::SUCCESS) == ddgst
            && (last || !success)
            && length != 0
            && (offset | length).is_multiple_of(4)
            && offset.checked_add(length).is_some()
            && length.checked_add(24 + trailer) == Some(h.ch.plen.get());
        if !usual {
            return None;
        }
        self.hdr[..24].copy_from_slice(pdu);
        self.hdr_len = 24;
        self.layout(0, length, self.ddgst);
        self.data_offset = 0;
        self.state = State::Payload;
        Some(Pdu::C2hData(Data { cccid: h.cccid.get(), ttag: h.ttag.get(), offset, length, last, success }))
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FatalError> {
        loop {
            match self.state {
                State::Header => return Ok(self.header(input)?.map(Event::Header)),
                State::Pad => {
                    let n = input.len().min(self.pad as usize);
                    *input = &input[n..];
                    self.pad -= n as u32;
                    if self.pad != 0 {
                        return Ok(None);
                    }
                    self.state = State::Payload;
                }
                State::Payload => {
                    let n = input.len().min(self.data_left as usize);
                    if n == 0 {
                        return Ok(None);
                    }
                    let (bytes, rest) = input.split_at(n);
                    *input = rest;
                    let offset = self.data_offset;
                    self.took(bytes);
                    return Ok(Some(Event::Payload { bytes, offset }));
                }
                State::Digest => {
                    let n = input.len().min(4 - self.digest_have);
                    let (bytes, rest) = input.split_at(n);
                    self.digest[self.digest_have..self.digest_have + n].copy_from_slice(bytes);
                    *input = rest;
                    self.digest_have += n;
                    if self.digest_have != 4 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    let ddgst_ok = self.crc.finish() == self.digest;
                    return Ok(Some(Event::End { ddgst_ok }));
                }
                State::End => {
                    self.state = State::Header;
                    return Ok(Some(Event::End { ddgst_ok: true }));
                }
                State::Failed(error) => return Err(error),
            }
        }
    }

    /// Accounts for `bytes` of data, at most `data_left`.
    #[inline]
    fn took(&mut self, bytes: &[u8]) {
        if self.has_ddgst {
            self.crc.update(bytes);
        }
        self.data_offset += bytes.len() as u32;
        self.data_left -= bytes.len() as u32;
        if self.data_left == 0 {
            self.digest_have = 0;
            self.state = if self.has_ddgst { State::Digest } else { State::End };
        }
    }

    /// Copies from `input` into `hdr` until it has `end` bytes; false if `input` ended before.
    #[inline]
    fn collect(&mut self, input: &mut &[u8], end: usize) -> bool {
        let n = input.len().min(end - self.have);
        let (bytes, rest) = input.split_at(n);
        self.hdr[self.have..self.have + n].copy_from_slice(bytes);
        self.have += n;
        *input = rest;
        self.have == end
    }

    fn header(&mut self, input: &mut &[u8]) -> Result<Option<Pdu>, FatalError> {
        if self.have < CH {
            if !self.collect(input, CH) {
                return Ok(None);
            }
            let (ch, _) = CommonHeader::read_from_prefix(&self.hdr[..]).expect("8 bytes of 132");
            match self.check_common(&ch) {
                Ok(full) => self.full = full,
                Err(e) => {
                    // As much of the header as is here, for the termination request.
                    self.collect(input, usize::from(ch.hlen).clamp(CH, 128));
                    self.hdr_len = self.have;
                    return Err(self.fail(e));
                }
            }
        }
        if !self.collect(input, self.full) {
            return Ok(None);
        }
        self.have = 0;
        self.hdr_len = usize::from(self.hdr[2]);
        match self.check_specific() {
            Ok(pdu) => Ok(Some(pdu)),
            Err(e) => Err(self.fail(e)),
        }
    }

    /// Checks the common header, field by field so that the error names the lowest; returns the header's length with digest.
    fn check_common(&mut self, ch: &CommonHeader) -> Result<usize, FatalError> {
        use pdu_type::*;
        let t = ch.pdu_type;
        let bad_type = FatalError::field(field::TYPE, "PDU-Type", t.into());
        // Which flags the type defines, and its header length.
        let (defined, hlen) = match (self.role, t) {
            (Role::Target, IC_REQ) | (Role::Host, IC_RESP) => (0xff, 128),
            (Role::Target, H2C_TERM_REQ) | (Role::Host, C2H_TERM_REQ) => (0xff, 24),
            (Role::Target, CAPSULE_CMD) => (flags::HDGST | flags::DDGST, 72),
            (Role::Target, H2C_DATA) => (flags::HDGST | flags::DDGST | flags::LAST, 24),
            (Role::Host, C2H_DATA) => (flags::HDGST | flags::DDGST | flags::LAST | flags::SUCCESS, 24),
            (Role::Host, CAPSULE_RESP | R2T) => (flags::HDGST, 24),
            _ => return Err(bad_type),
        };
        let plen = ch.plen.get();
        if matches!(t, H2C_TERM_REQ | C2H_TERM_REQ) {
            // Section 3.5: a malformed termination request is not answered.
            if ch.hlen != 24 {
                return Err(FatalError::bad_term_req("HLEN of a termination request", ch.hlen.into()));
            }
            if !(24..=TERM_REQ_MAX as u32).contains(&plen) {
                return Err(FatalError::bad_term_req("PLEN of a termination request", plen));
            }
            self.layout(0, plen - 24, false);
            return Ok(24);
        }
        let connect = matches!(t, IC_REQ | IC_RESP);
        if connect != (self.phase == Phase::Connecting) {
            return Err(FatalError::sequence("PDU-Type", t.into()));
        }
        if connect {
            if ch.hlen != hlen {
                return Err(FatalError::field(field::HLEN, "HLEN", ch.hlen.into()));
            }
            if plen != u32::from(hlen) {
                return Err(FatalError::field(field::PLEN, "PLEN", plen));
            }
            self.layout(0, 0, false);
            return Ok(hlen.into());
        }
        if self.phase != Phase::Established {
            return Err(FatalError::sequence("PDU-Type", t.into()));
        }

        let full = u32::from(hlen) + if self.hdgst { 4 } else { 0 };
        let has_data = matches!(t, H2C_DATA | C2H_DATA) || t == CAPSULE_CMD && plen > full;
        let hdgst_wrong = (ch.flags & flags::HDGST != 0) != self.hdgst;
        // Without data the data digest flag says nothing, but it must not be set where digests are off.
        let ddgst_set = ch.flags & flags::DDGST != 0;
        let ddgst_wrong = if has_data { ddgst_set != self.ddgst } else { ddgst_set && !self.ddgst };
        let success_without_last = ch.flags & (flags::SUCCESS | flags::LAST) == flags::SUCCESS;
        if ch.flags & !defined != 0 || hdgst_wrong || ddgst_wrong || success_without_last {
            return Err(FatalError::field(field::FLAGS, "FLAGS", ch.flags.into()));
        }
        if ch.hlen != hlen {
            return Err(FatalError::field(field::HLEN, "HLEN", ch.hlen.into()));
        }
        let bad_plen = FatalError::field(field::PLEN, "PLEN", plen);
        if !has_data {
            if plen != full {
                return Err(bad_plen);
            }
            self.layout(0, 0, false);
            return Ok(full as usize);
        }
        let pdo = u32::from(ch.pdo);
        if pdo < full || pdo % u32::from(self.align) != 0 {
            return Err(FatalError::field(field::PDO, "PDO", pdo));
        }
        let digest = if self.ddgst { 4 } else { 0 };
        let Some(data_len) = plen.checked_sub(pdo + digest).filter(|&n| n != 0) else {
            return Err(bad_plen);
        };
        if t == CAPSULE_CMD && data_len > self.max_in_capsule {
            return Err(bad_plen);
        }
        self.layout(pdo - full, data_len, self.ddgst);
        Ok(full as usize)
    }

    /// What follows the header being received.
    #[inline]
    fn layout(&mut self, pad: u32, data_len: u32, has_ddgst: bool) {
        self.pad = pad;
        self.data_left = data_len;
        self.has_ddgst = has_ddgst;
    }

    /// Checks the digest and the type specific fields of the complete header and moves on to what follows it.
    fn check_specific(&mut self) -> Result<Pdu, FatalError> {
        use pdu_type::*;
        let (header, digest) = self.hdr[..self.full].split_at(self.hdr_len);
        if let Some(digest) = digest.first_chunk::<4>() {
            let received = u32::from_le_bytes(*digest);
            if crc32c(header) != received {
                return Err(FatalError::header_digest(received));
            }
        }
        let data_len = self.data_left;
        let pdu = match header[0] {
            CAPSULE_CMD => Pdu::CapsuleCmd(CapsuleCmd { sqe: view::<CapsuleCmdHeader>(header).sqe, data_len }),
            CAPSULE_RESP => Pdu::CapsuleResp(view::<CapsuleRespHeader>(header).cqe),
            H2C_DATA => {
                let data = data(header, data_len)?;
                if data.length > self.maxh2cdata {
                    return Err(FatalError::data_limit(data.length));
                }
                Pdu::H2cData(data)
            }
            C2H_DATA => Pdu::C2hData(data(header, data_len)?),
            R2T => Pdu::R2t(r2t(header)?),
            IC_REQ => Pdu::IcReq(ic_req(header)?),
            IC_RESP => Pdu::IcResp(ic_resp(header)?),
            // The types are checked before: a termination request.
            _ => {
                let h = view::<TermReqHeader>(header);
                Pdu::TermReq(TermReq { fes: h.fes.get(), fei: h.fei.get(), data_len })
            }
        };
        if matches!(pdu, Pdu::IcReq(_) | Pdu::IcResp(_)) {
            self.phase = Phase::Negotiating;
        }
        if data_len != 0 {
            self.data_offset = 0;
            self.state = if self.pad != 0 { State::Pad } else { State::Payload };
        }
        Ok(pdu)
    }

    /// Ends the stream with an error found by the caller (an unknown tag, data out of range, ...) in the PDU whose header
    /// came out last. Returns the error, for [`Decoder::term_req`].
    #[cold]
    pub fn fail(&mut self, error: FatalError) -> FatalError {
        self.state = State::Failed(error);
        error
    }

    /// The termination request that reports `error` together with the header of the PDU in which it was found; nothing if the
    /// connection has to be closed without one.
    pub fn term_req<'a>(&self, error: &FatalError, out: &'a mut [u8; TERM_REQ_MAX]) -> Option<&'a [u8]> {
        encode_term_req(self.role, error, self.last_header(), out)
    }

    /// The header of the PDU that came out last or is in error, without digest.
    pub fn last_header(&self) -> &[u8] {
        &self.hdr[..self.hdr_len]
    }
}

/// The header whose length was checked by its type.
fn view<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(header: &[u8]) -> &T {
    T::ref_from_bytes(header).expect("HLEN of every PDU type is checked")
}

fn data(header: &[u8], data_len: u32) -> Result<Data, FatalError> {
    let h = view::<DataHeader>(header);
    let (offset, length) = (h.offset.get(), h.length.get());
    if length != data_len {
        // Which of the two is wrong cannot be told: PLEN is the lower.
        return Err(FatalError::field(field::PLEN, "PLEN", h.ch.plen.get()));
    }
    if !offset.is_multiple_of(4) {
        return Err(FatalError::field(field::DATAO, "DATAO", offset));
    }
    if !length.is_multiple_of(4) {
        return Err(FatalError::field(field::DATAL, "DATAL", length));
    }
    if offset.checked_add(length).is_none() {
        return Err(FatalError::out_of_range(offset));
    }
    Ok(Data {
        cccid: h.cccid.get(),
        ttag: h.ttag.get(),
        offset,
        length,
        last: h.ch.flags & flags::LAST != 0,
        success: h.ch.flags & flags::SUCCESS != 0,
    })
}

fn r2t(header: &[u8]) -> Result<R2t, FatalError> {
    let h = view::<DataHeader>(header);
    let (offset, length) = (h.offset.get(), h.length.get());
    if !offset.is_multiple_of(4) {
        return Err(FatalError::field(field::R2TO, "R2TO", offset));
    }
    if !length.is_multiple_of(4) || length == 0 || offset.checked_add(length).is_none() {
        return Err(FatalError::field(field::R2TL, "R2TL", length));
    }
    Ok(R2t { cccid: h.cccid.get(), ttag: h.ttag.get(), offset, length })
}

fn ic<'a>(header: &'a [u8], pda: &'static str) -> Result<&'a IcHeader, FatalError> {
    let h = view::<IcHeader>(header);
    if h.pfv.get() != 0 {
        return Err(FatalError::unsupported(field::PFV, "PFV", h.pfv.get().into()));
    }
    if h.pda > PDA_MAX {
        return Err(FatalError::field(field::PDA, pda, h.pda.into()));
    }
    Ok(h)
}

fn ic_req(header: &[u8]) -> Result<IcReq, FatalError> {
    let h = ic(header, "HPDA")?;
    Ok(IcReq { hpda: h.pda, hdgst: h.dgst & 1 != 0, ddgst: h.dgst & 2 != 0, maxr2t: h.max.get() })
}

fn ic_resp(header: &[u8]) -> Result<IcResp, FatalError> {
    let h = ic(header, "CPDA")?;
    let maxh2cdata = h.max.get();
    if maxh2cdata < MAXH2CDATA_MIN || !maxh2cdata.is_multiple_of(4) {
        return Err(FatalError::field(field::MAXH2CDATA, "MAXH2CDATA", maxh2cdata));
    }
    Ok(IcResp { cpda: h.pda, hdgst: h.dgst & 1 != 0, ddgst: h.dgst & 2 != 0, maxh2cdata })
}
