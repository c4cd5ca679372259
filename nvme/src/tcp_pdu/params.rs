//! What ICReq and ICResp agree on: NVMe/TCP Transport Specification 1.0, sections 3.1 and 3.6.2.2.

use super::error::FatalError;
use super::header::field;

/// Parameters of an Initialize Connection Request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IcReq {
    /// Data alignment that the host asks for (HPDA): (value + 1) * 4 bytes, value 0 to 31.
    pub hpda: u8,
    /// The host asks for header digests.
    pub hdgst: bool,
    /// The host asks for data digests.
    pub ddgst: bool,
    /// Maximum number of outstanding R2Ts per command, zero based (MAXR2T).
    pub maxr2t: u32,
}

/// Parameters of an Initialize Connection Response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcResp {
    /// Data alignment that the controller asks for (CPDA): (value + 1) * 4 bytes, value 0 to 31.
    pub cpda: u8,
    /// Header digests are used.
    pub hdgst: bool,
    /// Data digests are used.
    pub ddgst: bool,
    /// Most data bytes of an H2CData PDU (MAXH2CDATA): a multiple of 4, at least 4,096.
    pub maxh2cdata: u32,
}

/// Highest value of HPDA and CPDA.
pub const PDA_MAX: u8 = 31;

/// Lowest MAXH2CDATA.
pub const MAXH2CDATA_MIN: u32 = 4096;

/// What holds for a connection once ICReq and ICResp were exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    /// PDUs carry header digests.
    pub hdgst: bool,
    /// Data carries digests.
    pub ddgst: bool,
    /// Alignment of data that the controller sends: (value + 1) * 4 bytes.
    pub hpda: u8,
    /// Alignment of data that the host sends: (value + 1) * 4 bytes.
    pub cpda: u8,
    /// Maximum number of outstanding R2Ts per command, zero based.
    pub maxr2t: u32,
    /// Most data bytes of an H2CData PDU.
    pub maxh2cdata: u32,
}

impl Params {
    /// The target's side: `offer` has what the target supports and asks for; digests are used if the host asked for them
    /// and the offer has them. Returns what then holds, and the response to send.
    pub const fn accept(req: &IcReq, offer: &IcResp) -> (Params, IcResp) {
        let resp = IcResp { hdgst: req.hdgst && offer.hdgst, ddgst: req.ddgst && offer.ddgst, ..*offer };
        (Self::of(req, &resp), resp)
    }

    /// The host's side: what holds after this response to its request. A digest that was not asked for is an error.
    pub const fn agreed(req: &IcReq, resp: &IcResp) -> Result<Params, FatalError> {
        if resp.hdgst && !req.hdgst || resp.ddgst && !req.ddgst {
            return Err(FatalError::field(field::DGST, "DGST", resp.hdgst as u32 | (resp.ddgst as u32) << 1));
        }
        Ok(Self::of(req, resp))
    }

    const fn of(req: &IcReq, resp: &IcResp) -> Params {
        Params {
            hdgst: resp.hdgst,
            ddgst: resp.ddgst,
            hpda: req.hpda,
            cpda: resp.cpda,
            maxr2t: req.maxr2t,
            maxh2cdata: resp.maxh2cdata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fes;
    use super::*;

    const OFFER: IcResp = IcResp { cpda: 3, hdgst: true, ddgst: false, maxh2cdata: 131072 };

    #[test]
    fn digests_need_both_sides() {
        let req = IcReq { hpda: 1, hdgst: true, ddgst: true, maxr2t: 7 };
        let (p, resp) = Params::accept(&req, &OFFER);
        assert_eq!((resp.hdgst, resp.ddgst), (true, false));
        assert_eq!(p, Params { hdgst: true, ddgst: false, hpda: 1, cpda: 3, maxr2t: 7, maxh2cdata: 131072 });
        assert_eq!(Params::agreed(&req, &resp), Ok(p));
    }

    #[test]
    fn a_digest_nobody_asked_for_is_refused() {
        let e = Params::agreed(&IcReq::default(), &OFFER).unwrap_err();
        assert_eq!((e.fes, e.fei), (Fes::InvalidHeaderField, 11));
    }
}
