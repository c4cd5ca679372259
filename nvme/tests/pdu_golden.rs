//! PDUs byte by byte, written down from the figures of the NVMe/TCP Transport Specification, not from the encoder.

use longshore_nvme::tcp_pdu::*;
use longshore_nvme::wire::{Cqe, SglDescriptor, Sqe, Status};

const PLAIN: Params = Params { hdgst: false, ddgst: false, hpda: 0, cpda: 0, maxr2t: 0, maxh2cdata: 131_072 };

/// Bytes from hexadecimal digits; white space is for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn ic_req_figure_20() {
    let pdu = encode_ic_req(&IcReq { hpda: 3, hdgst: true, ddgst: true, maxr2t: 15 });
    let mut expect = hex("00 00 80 00 80000000  0000 03 03 0f000000");
    expect.resize(128, 0);
    assert_eq!(pdu[..], expect);
}

#[test]
fn ic_resp_figure_21() {
    let pdu = encode_ic_resp(&IcResp { cpda: 0, hdgst: true, ddgst: false, maxh2cdata: 131_072 });
    let mut expect = hex("01 00 80 00 80000000  0000 00 01 00000200");
    expect.resize(128, 0);
    assert_eq!(pdu[..], expect);
}

#[test]
fn capsule_cmd_figure_24() {
    let mut sqe = Sqe::new(0x01, 0x1234, 1);
    sqe.dptr = SglDescriptor::in_capsule(0, 512);
    sqe.set_slba(0x10);
    sqe.set_nblocks(1);
    let mut out = [0xee; CAPSULE_CMD_MAX];
    let n = Encoder::new(Role::Host, &PLAIN).capsule_cmd(&sqe, 512, &mut out);
    let expect = hex("04 00 48 48 48020000
         01 40 3412 01000000 00000000 00000000 0000000000000000
         0000000000000000 00020000 000000 01
         10000000 00000000 00000000 00000000 00000000 00000000");
    assert_eq!(out[..n], expect);

    // No data: PDO is 0 and PLEN the header's length.
    let n = Encoder::new(Role::Host, &PLAIN).capsule_cmd(&sqe, 0, &mut out);
    assert_eq!(out[..8], hex("04 00 48 00 48000000"));
    assert_eq!(n, 72);
}

#[test]
fn capsule_resp_figure_25_with_header_digest() {
    let mut cqe = Cqe::new(0x1234, Status::INVALID_FIELD.with_dnr());
    cqe.sqhd = 0xffff.into();
    let params = Params { hdgst: true, ..PLAIN };
    let mut out = [0xee; CAPSULE_RESP_MAX];
    let n = Encoder::new(Role::Target, &params).capsule_resp(&cqe, &mut out);
    let header = hex("05 01 18 00 1c000000  00000000 00000000 ffff 0000 3412 0480");
    assert_eq!(out[..24], header);
    assert_eq!(out[24..n], bitwise_crc32c(&header).to_le_bytes());
    assert_eq!(n, 28);
}

#[test]
fn h2c_data_figures_8_and_26() {
    // CPDA 0Fh asks for 64 bytes: 40 bytes of padding after the 24 of the header.
    let params = Params { cpda: 15, ..PLAIN };
    let d = Data { cccid: 7, ttag: 0x2211, offset: 0x1000, length: 0x2000, last: true, success: false };
    let mut out = [0xee; DATA_HEADER_MAX];
    let n = Encoder::new(Role::Host, &params).h2c_data(&d, &mut out);
    let mut expect = hex("06 04 18 40 40200000  0700 1122 00100000 00200000 00000000");
    expect.resize(64, 0);
    assert_eq!(out[..n], expect);
}

#[test]
fn c2h_data_figures_9_and_27() {
    // HPDA 03h asks for 16 bytes: 8 bytes of padding. Both digests: the header's moves PDO from 32 no further.
    let params = Params { hpda: 3, hdgst: true, ddgst: true, ..PLAIN };
    let d = Data { cccid: 7, ttag: 99, offset: 0, length: 4, last: true, success: true };
    let mut out = [0xee; DATA_HEADER_MAX];
    let n = Encoder::new(Role::Target, &params).c2h_data(&d, &mut out);
    let mut expect = hex("07 0f 18 20 28000000  0700 0000 00000000 04000000 00000000");
    expect.extend_from_slice(&bitwise_crc32c(&expect).to_le_bytes());
    expect.extend_from_slice(&[0; 4]);
    assert_eq!(out[..n], expect, "PLEN is 32 + 4 of data + 4 of digest");
}

#[test]
fn r2t_figure_28() {
    let mut out = [0xee; R2T_MAX];
    let r2t = R2t { cccid: 0x0102, ttag: 0x0304, offset: 0x2000, length: 0x1000 };
    let n = Encoder::new(Role::Target, &PLAIN).r2t(&r2t, &mut out);
    assert_eq!(out[..n], hex("09 00 18 00 18000000  0201 0403 00200000 00100000 00000000"));
}

#[test]
fn term_req_figures_22_and_23() {
    let mut out = [0; TERM_REQ_MAX];
    let offending = hex("06 04 18 18 20000000");
    let pdu = encode_term_req(Role::Host, &FatalError::r2t_limit(3), &offending, &mut out).unwrap();
    assert_eq!(pdu, hex("02 00 18 00 20000000  0500 00000000 00000000000000000000  06 04 18 18 20000000"));
}

#[test]
fn header_with_digest_is_padded_beyond_one_alignment() {
    // 76 bytes of header and digest do not fit into 72: the data starts at 144.
    let params = Params { cpda: 17, hdgst: true, ..PLAIN };
    let mut out = [0xee; CAPSULE_CMD_MAX];
    assert_eq!(Encoder::new(Role::Host, &params).capsule_cmd(&Sqe::default(), 8, &mut out), 144);
    assert_eq!((out[3], out[4]), (144, 152));
}

#[test]
fn sizes_of_the_buffers_suffice_for_every_alignment() {
    for pda in 0..=31 {
        for hdgst in [false, true] {
            let p = Params { hdgst, ddgst: true, hpda: pda, cpda: pda, ..PLAIN };
            let (host, target) = (Encoder::new(Role::Host, &p), Encoder::new(Role::Target, &p));
            let d = Data { length: 4, ..Data::default() };
            host.capsule_cmd(&Sqe::default(), 1, &mut [0; CAPSULE_CMD_MAX]);
            host.h2c_data(&d, &mut [0; DATA_HEADER_MAX]);
            target.c2h_data(&d, &mut [0; DATA_HEADER_MAX]);
            target.r2t(&R2t::default(), &mut [0; R2T_MAX]);
            target.capsule_resp(&Cqe::default(), &mut [0; CAPSULE_RESP_MAX]);
        }
    }
}

/// CRC32C by its definition: reflected polynomial 82F63B78h, initial value and final inversion of all ones.
fn bitwise_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &b in bytes {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn digest_equals_its_definition_at_every_length() {
    let bytes: Vec<u8> = (0..1200u32).map(|i| ((i * i) >> 3) as u8).collect();
    for n in 0..bytes.len() {
        assert_eq!(crc32c(&bytes[..n]), bitwise_crc32c(&bytes[..n]), "{n} bytes");
    }
}
