//! Every malformed PDU ends the connection with the status and the field that the specification asks for.

mod pdu;

use longshore_nvme::tcp_pdu::header::field;
use longshore_nvme::tcp_pdu::*;
use longshore_nvme::wire::{Cqe, Sqe};
use pdu::*;

/// One PDU as the encoder of `sender` writes it, without data.
fn header(sender: Role, params: &Params, write: impl Fn(&Encoder, &mut [u8]) -> usize) -> Vec<u8> {
    let mut h = [0; 200];
    let n = write(&Encoder::new(sender, params), &mut h);
    h[..n].to_vec()
}

fn command(params: &Params, data_len: u32) -> Vec<u8> {
    header(Role::Host, params, |e, h| e.capsule_cmd(&Sqe::new(2, 9, 1), data_len, h))
}

fn h2c(params: &Params) -> Vec<u8> {
    let d = Data { cccid: 3, ttag: 4, offset: 8, length: 64, last: true, success: false };
    header(Role::Host, params, |e, h| e.h2c_data(&d, h))
}

fn c2h(params: &Params) -> Vec<u8> {
    let d = Data { cccid: 3, ttag: 0, offset: 8, length: 64, last: true, success: true };
    header(Role::Target, params, |e, h| e.c2h_data(&d, h))
}

fn r2t(params: &Params) -> Vec<u8> {
    header(Role::Target, params, |e, h| e.r2t(&R2t { cccid: 3, ttag: 4, offset: 8, length: 64 }, h))
}

fn response(params: &Params) -> Vec<u8> {
    header(Role::Target, params, |e, h| e.capsule_resp(&Cqe::default(), h))
}

/// The error that the receiver of `sender` finds in `pdu`, in one slice and byte by byte, and the termination request.
fn reject(sender: Role, params: &Params, pdu: &[u8], established: bool) -> (FatalError, Option<Vec<u8>>) {
    let role = peer(sender);
    let mut errors = Vec::new();
    for step in [pdu.len(), 1] {
        let mut d = Decoder::new(role, 4096);
        if established {
            d.establish(params);
        }
        let error = pdu.chunks(step).find_map(|piece| {
            let mut input = piece;
            loop {
                match d.decode(&mut input) {
                    Ok(None) => return None,
                    Ok(Some(_)) => {}
                    Err(e) => return Some(e),
                }
            }
        });
        let error = error.unwrap_or_else(|| panic!("accepted: {pdu:02x?}"));
        assert_eq!(d.decode(&mut &pdu[..]), Err(error), "the error stays");
        let mut out = [0; TERM_REQ_MAX];
        errors.push((error, d.term_req(&error, &mut out).map(<[u8]>::to_vec)));
    }
    assert_eq!(errors[0].0, errors[1].0, "the same error however the PDU is cut");
    errors.swap_remove(0)
}

#[track_caller]
fn expect(sender: Role, params: &Params, pdu: &[u8], fes: Fes, fei: u32, what: &str) {
    let (e, _) = reject(sender, params, pdu, true);
    assert_eq!((e.fes, e.fei, e.what), (fes, fei, what));
}

fn with(mut pdu: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    pdu[at..at + bytes.len()].copy_from_slice(bytes);
    pdu
}

/// Writes a new header digest after fields of a header were changed.
fn digested(mut pdu: Vec<u8>, hlen: usize) -> Vec<u8> {
    let crc = crc32c(&pdu[..hlen]).to_le_bytes();
    pdu[hlen..hlen + 4].copy_from_slice(&crc);
    pdu
}

const INVALID: Fes = Fes::InvalidHeaderField;

#[test]
fn pdu_type_that_is_unknown_or_of_the_other_direction() {
    for t in 0..=255u8 {
        let to_target = matches!(t, 0 | 2 | 4 | 6);
        let to_host = matches!(t, 1 | 3 | 5 | 7 | 9);
        for (sender, known) in [(Role::Host, to_target), (Role::Target, to_host)] {
            if !known {
                expect(sender, &PLAIN, &[t, 0, 24, 0, 24, 0, 0, 0], INVALID, field::TYPE, "PDU-Type");
            }
        }
    }
}

#[test]
fn pdu_before_and_initialisation_after_the_handshake() {
    for (sender, pdu) in [(Role::Host, command(&PLAIN, 0)), (Role::Target, response(&PLAIN))] {
        let (e, _) = reject(sender, &PLAIN, &pdu, false);
        assert_eq!((e.fes, e.fei), (Fes::SequenceError, 0));
    }
    expect(Role::Host, &PLAIN, &ic_req(&PLAIN), Fes::SequenceError, 0, "PDU-Type");
    expect(Role::Target, &PLAIN, &ic_resp(&PLAIN), Fes::SequenceError, 0, "PDU-Type");
}

#[test]
fn pdu_between_request_and_response() {
    let mut d = Decoder::new(Role::Target, 0);
    let stream = [&ic_req(&PLAIN)[..], &command(&PLAIN, 0)].concat();
    let mut input = &stream[..];
    assert!(matches!(d.decode(&mut input), Ok(Some(Event::Header(Pdu::IcReq(_))))));
    assert_eq!(d.decode(&mut input).unwrap_err().fes, Fes::SequenceError);
}

#[test]
fn ic_req_fields() {
    let bad = |at: usize, bytes: &[u8]| {
        let (e, _) = reject(Role::Host, &PLAIN, &with(ic_req(&PLAIN).to_vec(), at, bytes), false);
        (e.fes, e.fei, e.what)
    };
    assert_eq!(bad(2, &[127]), (INVALID, field::HLEN, "HLEN"));
    assert_eq!(bad(4, &[129]), (INVALID, field::PLEN, "PLEN"));
    assert_eq!(bad(4, &[128, 0, 0, 1]), (INVALID, field::PLEN, "PLEN"));
    assert_eq!(bad(8, &[1]), (Fes::UnsupportedParameter, field::PFV, "PFV"));
    assert_eq!(bad(10, &[32]), (INVALID, field::PDA, "HPDA"));
}

#[test]
fn ic_resp_fields() {
    let bad = |at: usize, bytes: &[u8]| {
        let (e, _) = reject(Role::Target, &PLAIN, &with(ic_resp(&PLAIN).to_vec(), at, bytes), false);
        (e.fes, e.fei, e.what)
    };
    assert_eq!(bad(8, &[0, 1]), (Fes::UnsupportedParameter, field::PFV, "PFV"));
    assert_eq!(bad(10, &[255]), (INVALID, field::PDA, "CPDA"));
    assert_eq!(bad(12, &4092u32.to_le_bytes()), (INVALID, field::MAXH2CDATA, "MAXH2CDATA"));
    assert_eq!(bad(12, &4098u32.to_le_bytes()), (INVALID, field::MAXH2CDATA, "MAXH2CDATA"));
}

#[test]
fn reserved_fields_are_not_looked_at() {
    let mut pdu = ic_req(&PLAIN);
    pdu[1] = 0xff;
    pdu[3] = 0xff;
    pdu[16..].fill(0xff);
    assert!(matches!(decode_all(Role::Target, &PLAIN, &pdu)[..], [Ev::Header(Pdu::IcReq(_))]));
    // PDO where there is no data.
    let mut d = Decoder::new(Role::Target, 0);
    d.establish(&PLAIN);
    let pdu = with(command(&PLAIN, 0), 3, &[200]);
    assert!(matches!(d.decode(&mut &pdu[..]), Ok(Some(Event::Header(Pdu::CapsuleCmd(_))))));
}

#[test]
fn flags_that_are_reserved_or_contradict_the_handshake() {
    let cases = [
        (Role::Host, command(&PLAIN, 0), &[0x01u8, 0x02, 0x04, 0x80][..]),
        (Role::Host, h2c(&PLAIN), &[0x05, 0x06, 0x08, 0x10]),
        (Role::Target, c2h(&PLAIN), &[0x0d, 0x0e, 0x1c]),
        (Role::Target, response(&PLAIN), &[0x01, 0x02, 0x04]),
        (Role::Target, r2t(&PLAIN), &[0x01, 0x02, 0x04]),
    ];
    for (sender, pdu, flags) in cases {
        for &f in flags {
            expect(sender, &PLAIN, &with(pdu.clone(), 1, &[f]), INVALID, field::FLAGS, "FLAGS");
        }
    }
    // Digests agreed on, but missing.
    let p = DIGESTS;
    expect(Role::Host, &p, &command(&PLAIN, 0), INVALID, field::FLAGS, "FLAGS");
    expect(Role::Host, &p, &with(command(&p, 0), 1, &[0]), INVALID, field::FLAGS, "FLAGS");
    expect(Role::Host, &p, &with(command(&p, 16), 1, &[1]), INVALID, field::FLAGS, "FLAGS");
    expect(Role::Host, &p, &with(h2c(&p), 1, &[2]), INVALID, field::FLAGS, "FLAGS");
    expect(Role::Target, &p, &with(response(&p), 1, &[0]), INVALID, field::FLAGS, "FLAGS");
}

#[test]
fn success_without_last() {
    expect(Role::Target, &PLAIN, &with(c2h(&PLAIN), 1, &[0x08]), INVALID, field::FLAGS, "FLAGS");
}

#[test]
fn header_length() {
    for (sender, pdu) in [
        (Role::Host, command(&PLAIN, 0)),
        (Role::Host, h2c(&PLAIN)),
        (Role::Target, c2h(&PLAIN)),
        (Role::Target, response(&PLAIN)),
        (Role::Target, r2t(&PLAIN)),
    ] {
        for hlen in [0, 7, pdu[2] - 1, pdu[2] + 1, 255] {
            expect(sender, &PLAIN, &with(pdu.clone(), 2, &[hlen]), INVALID, field::HLEN, "HLEN");
        }
    }
}

#[test]
fn data_offset_into_the_header_or_misaligned() {
    let aligned = Params { cpda: 3, ..DIGESTS };
    for (params, pdo) in [(PLAIN, 0u8), (PLAIN, 23), (PLAIN, 26), (DIGESTS, 24), (aligned, 28), (aligned, 40)] {
        expect(Role::Host, &params, &with(h2c(&params), 3, &[pdo]), INVALID, field::PDO, "PDO");
    }
    expect(Role::Host, &PLAIN, &with(command(&PLAIN, 64), 3, &[64]), INVALID, field::PDO, "PDO");
    let hpda = Params { hpda: 7, ..PLAIN };
    expect(Role::Target, &hpda, &with(c2h(&hpda), 3, &[24]), INVALID, field::PDO, "PDO");
}

#[test]
fn pdu_length_too_short_too_long_or_at_odds_with_the_data_length() {
    let plen = |pdu: Vec<u8>, n: u32| with(pdu, 4, &n.to_le_bytes());
    for n in [0, 8, 71] {
        expect(Role::Host, &PLAIN, &plen(command(&PLAIN, 0), n), INVALID, field::PLEN, "PLEN");
    }
    // Longer than the header, but PDO is not: nothing but padding.
    expect(Role::Host, &PLAIN, &plen(with(command(&PLAIN, 0), 3, &[76]), 76), INVALID, field::PLEN, "PLEN");
    // More in-capsule data than the queue takes (4,096 here).
    expect(Role::Host, &PLAIN, &command(&PLAIN, 4097), INVALID, field::PLEN, "PLEN");
    expect(Role::Host, &PLAIN, &plen(command(&PLAIN, 64), u32::MAX), INVALID, field::PLEN, "PLEN");
    for n in [0, 23, 24, 87, 89, u32::MAX] {
        expect(Role::Host, &PLAIN, &plen(h2c(&PLAIN), n), INVALID, field::PLEN, "PLEN");
        expect(Role::Target, &PLAIN, &plen(c2h(&PLAIN), n), INVALID, field::PLEN, "PLEN");
    }
    // No room for the data digest.
    expect(Role::Host, &DIGESTS, &plen(h2c(&DIGESTS), 32), INVALID, field::PLEN, "PLEN");
    for pdu in [response(&PLAIN), r2t(&PLAIN)] {
        for n in [23, 25, 28] {
            expect(Role::Target, &PLAIN, &plen(pdu.clone(), n), INVALID, field::PLEN, "PLEN");
        }
    }
}

#[test]
fn the_lowest_of_several_wrong_fields_is_named() {
    let mut pdu = h2c(&PLAIN);
    pdu[12] = 1;
    pdu[3] = 1;
    expect(Role::Host, &PLAIN, &pdu, INVALID, field::PDO, "PDO");
    pdu[2] = 1;
    expect(Role::Host, &PLAIN, &pdu, INVALID, field::HLEN, "HLEN");
    pdu[1] = 0xff;
    expect(Role::Host, &PLAIN, &pdu, INVALID, field::FLAGS, "FLAGS");
}

#[test]
fn data_range_not_a_multiple_of_four_or_overflowing() {
    for (sender, pdu) in [(Role::Host, h2c(&PLAIN)), (Role::Target, c2h(&PLAIN))] {
        expect(sender, &PLAIN, &with(pdu.clone(), 12, &[6]), INVALID, field::DATAO, "DATAO");
        let odd = with(with(pdu.clone(), 16, &[62]), 4, &[24 + 62]);
        expect(sender, &PLAIN, &odd, INVALID, field::DATAL, "DATAL");
        let e = reject(sender, &PLAIN, &with(pdu, 12, &0xffff_fffcu32.to_le_bytes()), true).0;
        assert_eq!((e.fes, e.fei), (Fes::DataOutOfRange, 0));
    }
    expect(Role::Target, &PLAIN, &with(r2t(&PLAIN), 12, &[1]), INVALID, field::R2TO, "R2TO");
    expect(Role::Target, &PLAIN, &with(r2t(&PLAIN), 16, &[0]), INVALID, field::R2TL, "R2TL");
    expect(Role::Target, &PLAIN, &with(r2t(&PLAIN), 16, &[3]), INVALID, field::R2TL, "R2TL");
    expect(Role::Target, &PLAIN, &with(r2t(&PLAIN), 12, &0xffff_fff0u32.to_le_bytes()), INVALID, field::R2TL, "R2TL");
}

#[test]
fn h2c_data_longer_than_maxh2cdata() {
    let p = Params { maxh2cdata: 4096, ..PLAIN };
    let d = Data { length: 4100, ..Data::default() };
    let pdu = header(Role::Host, &p, |e, h| e.h2c_data(&d, h));
    let (e, _) = reject(Role::Host, &p, &pdu, true);
    assert_eq!((e.fes, e.fei, e.value), (Fes::LimitExceeded, 0, 4100));
}

#[test]
fn wrong_header_digest_names_the_digest_received() {
    for (sender, pdu, hlen) in [
        (Role::Host, command(&DIGESTS, 0), 72),
        (Role::Host, h2c(&DIGESTS), 24),
        (Role::Target, c2h(&DIGESTS), 24),
        (Role::Target, response(&DIGESTS), 24),
        (Role::Target, r2t(&DIGESTS), 24),
    ] {
        // Each bit that the checks of the common header do not refuse before.
        for bit in 64..(hlen + 4) * 8 {
            let mut bad = pdu.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let received = u32::from_le_bytes(bad[hlen..hlen + 4].try_into().unwrap());
            let (e, _) = reject(sender, &DIGESTS, &bad, true);
            assert_eq!((e.fes, e.fei), (Fes::HeaderDigest, received), "bit {bit}");
        }
    }
    // A wrong field under a right digest is the field's error.
    expect(Role::Host, &DIGESTS, &digested(with(h2c(&DIGESTS), 12, &[2]), 24), INVALID, field::DATAO, "DATAO");
}

#[test]
fn termination_request_carries_the_offending_header() {
    let bad = with(ic_req(&PLAIN).to_vec(), 10, &[32]);
    let (_, term) = reject(Role::Host, &PLAIN, &bad, false);
    let term = term.unwrap();
    assert_eq!(term.len(), TERM_REQ_MAX, "24 bytes and the whole 128 of ICReq");
    assert_eq!(term[..24], [3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(term[24..], bad);

    // The digest is not part of the header.
    let bad = with(response(&DIGESTS), 24, &[1, 2, 3, 4]);
    let (_, term) = reject(Role::Target, &DIGESTS, &bad, true);
    let term = term.unwrap();
    assert_eq!(term[..14], [2, 0, 24, 0, 48, 0, 0, 0, 3, 0, 1, 2, 3, 4]);
    assert_eq!(term[24..], bad[..24]);

    // A wrong common header is found before the rest is read, but what is there is sent.
    let bad = with(command(&PLAIN, 0), 4, &[1]);
    let (_, term) = reject(Role::Host, &PLAIN, &bad, true);
    assert_eq!(term.unwrap()[24..], bad);
}

#[test]
fn termination_request_is_read_by_the_other_side_in_every_phase() {
    for (sender, established) in [(Role::Host, true), (Role::Target, true), (Role::Host, false), (Role::Target, false)]
    {
        let mut out = [0; TERM_REQ_MAX];
        let header = [0x5a; 200];
        let error = FatalError::unknown_ttag(77);
        let pdu = encode_term_req(sender, &error, &header, &mut out).unwrap();
        let mut d = Decoder::new(peer(sender), 0);
        if established {
            d.establish(&DIGESTS);
        }
        let mut events = Vec::new();
        feed(&mut d, &DIGESTS, pdu, &mut events);
        let term = TermReq { fes: 1, fei: field::TTAG, data_len: 128 };
        assert_eq!(events, [Ev::Header(Pdu::TermReq(term)), Ev::Data(vec![0x5a; 128]), Ev::End(true)]);
    }
}

#[test]
fn malformed_termination_request_is_not_answered() {
    for (sender, t) in [(Role::Host, 2u8), (Role::Target, 3)] {
        for (hlen, plen) in [(24u8, 23u32), (24, 153), (24, 0), (24, u32::MAX), (23, 24), (25, 30)] {
            let mut pdu = [0; 24];
            pdu[..4].copy_from_slice(&[t, 0, hlen, 0]);
            pdu[4..8].copy_from_slice(&plen.to_le_bytes());
            let (e, term) = reject(sender, &PLAIN, &pdu, true);
            assert!(e.silent && term.is_none(), "hlen {hlen} plen {plen}");
        }
    }
}

#[test]
fn errors_found_by_the_queue_pair_use_the_last_header() {
    let mut d = Decoder::new(Role::Target, 0);
    d.establish(&PLAIN);
    let pdu = h2c(&PLAIN);
    let mut input = &pdu[..];
    let Ok(Some(Event::Header(Pdu::H2cData(data)))) = d.decode(&mut input) else { panic!("no header") };
    let e = d.fail(FatalError::unknown_ttag(data.ttag));
    let mut out = [0; TERM_REQ_MAX];
    let term = d.term_req(&e, &mut out).unwrap();
    assert_eq!(term[8..14], [1, 0, 10, 0, 0, 0]);
    assert_eq!(term[24..], pdu);
    assert_eq!(d.decode(&mut &pdu[..]), Err(e));
}

#[test]
fn the_last_header_is_there_for_a_bare_capsule_too() {
    let mut d = Decoder::new(Role::Target, 0);
    d.establish(&PLAIN);
    let pdu = command(&PLAIN, 0);
    assert!(matches!(d.decode(&mut &pdu[..]), Ok(Some(Event::Header(Pdu::CapsuleCmd(_))))));
    assert_eq!(d.last_header(), pdu);
}

#[test]
fn errors_say_what_and_which_value() {
    assert_eq!(FatalError::unknown_ttag(77).to_string(), "invalid PDU header field: TTAG at offset 10 is 0x4d");
    assert_eq!(FatalError::header_digest(0x1234).to_string(), "header digest error: HDGST 0x1234");
    for n in 0..10 {
        assert_eq!(Fes::from_u16(n).map(|f| f as u16), (1..=6).contains(&n).then_some(n));
    }
}
