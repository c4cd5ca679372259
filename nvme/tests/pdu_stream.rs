//! However a stream of PDUs is cut into slices, and whoever receives the data, the same PDUs come out.

mod pdu;

use longshore_nvme::tcp_pdu::*;
use longshore_nvme::wire::Sqe;
use pdu::*;

#[test]
fn every_pdu_round_trips_with_every_digest_and_alignment() {
    for params in all_params() {
        for sender in [Role::Host, Role::Target] {
            let mut rng = Rng::new(7);
            let mut s = Stream::new(sender, &params);
            for _ in 0..60 {
                s.random(sender, &mut rng);
            }
            assert_eq!(decode_all(peer(sender), &params, &s.bytes), s.expect, "{sender:?} {params:?}");
        }
    }
}

#[test]
fn a_stream_cut_in_two_at_any_byte_gives_the_same_events() {
    for params in [PLAIN, DIGESTS, Params { hpda: 31, cpda: 17, ..DIGESTS }, Params { cpda: 5, hpda: 5, ..PLAIN }] {
        for sender in [Role::Host, Role::Target] {
            let mut rng = Rng::new(21);
            let mut s = Stream::new(sender, &params);
            for _ in 0..8 {
                s.random(sender, &mut rng);
            }
            for cut in 0..=s.bytes.len() {
                let mut d = Decoder::new(peer(sender), ADMIN_IN_CAPSULE);
                let mut out = Vec::new();
                feed(&mut d, &params, &s.bytes[..cut], &mut out);
                feed(&mut d, &params, &s.bytes[cut..], &mut out);
                assert_eq!(out, s.expect, "{sender:?} {params:?} cut at {cut}");
            }
        }
    }
}

#[test]
fn one_byte_at_a_time_and_random_pieces_give_the_same_events() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let params = all_params().nth(rng.below(24) as usize).unwrap();
        let sender = if rng.flag() { Role::Host } else { Role::Target };
        let mut s = Stream::new(sender, &params);
        for _ in 0..20 {
            s.random(sender, &mut rng);
        }
        let largest = [1, 3, 30, 400][rng.below(4) as usize];
        let mut d = Decoder::new(peer(sender), ADMIN_IN_CAPSULE);
        let mut out = Vec::new();
        let mut rest = &s.bytes[..];
        while !rest.is_empty() {
            let n = (rng.below(largest) as usize + 1).min(rest.len());
            feed(&mut d, &params, &rest[..n], &mut out);
            rest = &rest[n..];
        }
        assert_eq!(out, s.expect, "seed {seed}");
    }
}

#[test]
fn data_received_directly_counts_like_data_in_the_stream() {
    for params in all_params() {
        for seed in 0..6 {
            let mut rng = Rng::new(seed);
            let sender = if seed % 2 == 0 { Role::Host } else { Role::Target };
            let mut s = Stream::new(sender, &params);
            for _ in 0..12 {
                s.random(sender, &mut rng);
            }
            let mut d = Decoder::new(peer(sender), ADMIN_IN_CAPSULE);
            let mut out = Vec::new();
            let mut rest = &s.bytes[..];
            while !rest.is_empty() {
                let n = (rng.below(60) as usize + 1).min(rest.len());
                feed(&mut d, &params, &rest[..n], &mut out);
                rest = &rest[n..];
                let pending = d.payload_pending();
                if pending != 0 && rng.flag() {
                    // What the kernel would place into the command's own buffer, maybe short, then the tail behind it.
                    let n = rng.below(u64::from(pending)) as usize + 1;
                    d.direct_done(&rest[..n]);
                    match out.last_mut() {
                        Some(Ev::Data(v)) => v.extend_from_slice(&rest[..n]),
                        _ => out.push(Ev::Data(rest[..n].to_vec())),
                    }
                    rest = &rest[n..];
                    feed(&mut d, &params, &[], &mut out);
                }
            }
            feed(&mut d, &params, &[], &mut out);
            assert_eq!(out, s.expect, "{params:?} seed {seed}");
        }
    }
}

#[test]
#[should_panic(expected = "bytes received directly")]
fn more_data_than_the_pdu_has_is_refused() {
    let mut s = Stream::new(Role::Host, &PLAIN);
    s.h2c(Data { length: 8, ..Data::default() }, &[1; 8]);
    let mut d = Decoder::new(Role::Target, 0);
    feed(&mut d, &PLAIN, &s.bytes[..s.bytes.len() - 4], &mut Vec::new());
    assert_eq!(d.payload_pending(), 4);
    d.direct_done(&[1; 5]);
}

#[test]
fn a_wrong_data_digest_spoils_only_its_own_pdu() {
    for sender in [Role::Host, Role::Target] {
        let mut s = Stream::new(sender, &DIGESTS);
        let put = |s: &mut Stream, cccid| {
            let data = Data { cccid, length: 16, ..Data::default() };
            if sender == Role::Host { s.h2c(data, &[5; 16]) } else { s.c2h(data, &[5; 16]) }
        };
        put(&mut s, 1);
        let spoilt = s.bytes.len() - 6;
        put(&mut s, 2);
        s.bytes[spoilt] ^= 1;
        let out = decode_all(peer(sender), &DIGESTS, &s.bytes);
        assert_eq!(out[3], Ev::End(false));
        assert_eq!(out[4..], s.expect[4..], "the PDU after it is whole");
    }
}

#[test]
fn padding_is_not_looked_at_and_not_digested() {
    let params = Params { cpda: 31, ..DIGESTS };
    let mut s = Stream::new(Role::Host, &params);
    let at = s.bytes.len();
    s.h2c(Data { length: 4, ..Data::default() }, &[9; 4]);
    s.bytes[at + 28..at + 128].fill(0xa5);
    assert_eq!(decode_all(Role::Target, &params, &s.bytes), s.expect);
}

#[test]
fn in_capsule_data_may_have_any_length_up_to_the_limit() {
    for n in [1, 2, 3, 4, 5, 8191, 8192] {
        let mut s = Stream::new(Role::Host, &DIGESTS);
        s.command(1, &vec![3; n]);
        assert_eq!(decode_all(Role::Target, &DIGESTS, &s.bytes), s.expect, "{n} bytes");
    }
}

#[test]
fn the_rest_of_a_capsule_that_looks_like_the_start_of_one_is_not_taken_for_it() {
    let mut s = Stream::new(Role::Host, &PLAIN);
    let mut sqe = Sqe::new(2, 1, 1);
    (sqe.cdw14, sqe.cdw15) = (0x0048_0004.into(), 0x48.into());
    let mut h = [0; CAPSULE_CMD_MAX];
    let n = Encoder::new(Role::Host, &PLAIN).capsule_cmd(&sqe, 0, &mut h);
    s.bytes.extend_from_slice(&h[..n]);
    s.expect.push(Ev::Header(Pdu::CapsuleCmd(CapsuleCmd { sqe, data_len: 0 })));
    s.command(2, &[]);
    let (first, rest) = s.bytes.split_at(128 + 64);
    let mut d = Decoder::new(Role::Target, 0);
    let mut out = Vec::new();
    feed(&mut d, &PLAIN, first, &mut out);
    feed(&mut d, &PLAIN, rest, &mut out);
    assert_eq!(out, s.expect);
}
