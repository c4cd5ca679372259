//! Writes the seeds of the targets to fuzz/seeds/, from which the fuzzer starts.

use longshore_nvme::tcp_pdu::*;
use longshore_nvme::wire::fabrics::{ConnectCmd, ConnectData};
use longshore_nvme::wire::{Cqe, NqnField, Sqe, Status, opcode};
use std::path::Path;
use zerocopy::IntoBytes;

const DATA: [u8; 64] = [0x5a; 64];

fn main() -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/pdu_stream");
    std::fs::create_dir_all(&dir)?;
    for digests in 0..4u8 {
        for align in [0, 15] {
            let params = Params {
                hdgst: digests & 1 != 0,
                ddgst: digests & 2 != 0,
                hpda: align,
                cpda: align,
                maxr2t: 0,
                maxh2cdata: 8192,
            };
            for (role, name, stream) in [(0, "to_target", to_target(&params)), (1, "to_host", to_host(&params))] {
                let config = role | digests << 1 | 8;
                let seed = [&[config, align, 40, 7][..], &stream].concat();
                std::fs::write(dir.join(format!("{name}_{digests}_{align}")), seed)?;
            }
        }
    }
    let req = encode_ic_req(&IcReq { hdgst: true, ddgst: true, ..IcReq::default() });
    std::fs::write(dir.join("ic_req"), [&[16, 0, 9, 9][..], &req].concat())?;
    let resp = encode_ic_resp(&IcResp { cpda: 0, hdgst: false, ddgst: false, maxh2cdata: 131_072 });
    std::fs::write(dir.join("ic_resp"), [&[17, 0, 9, 9][..], &resp].concat())?;
    let mut out = [0; TERM_REQ_MAX];
    let term = encode_term_req(Role::Host, &FatalError::unknown_cccid(3), &DATA, &mut out).expect("not silent");
    std::fs::write(dir.join("h2c_term_req"), [&[0, 0, 9, 9][..], term].concat())?;
    commands()?;
    ec_format()
}

/// Seeds of `ec_format`: a kind, then a structure, or changes of an array.
fn ec_format() -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/ec_format");
    std::fs::create_dir_all(&dir)?;
    // Member, structure, offset, value: see the target.
    let change = |member: u8, structure: u8, at: u16, value: u8| [member, structure, at as u8, (at >> 8) as u8, value];
    let seeds: [(&str, Vec<[u8; 5]>); 8] = [
        ("whole", vec![]),
        ("epoch", vec![change(0, 1, 136, 9)]),
        ("failed", (0..3).map(|m| change(m, 1, 256 + 16, 2)).collect()),
        ("geometry", (0..3).map(|m| change(m, 1, 82, 16)).collect()),
        ("map", vec![change(1, 2, 56, 0xff), change(1, 2, 16, 8)]),
        ("record", vec![change(0, 5, 48, 3), change(2, 5, 76, 0)]),
        ("intent", vec![change(0, 4, 24, 5)]),
        ("strip", vec![change(1, 6, 100, 1)]),
    ];
    for (name, changes) in seeds {
        std::fs::write(dir.join(name), [&[1, 0][..], &changes.concat()].concat())?;
    }
    ec_start()
}

/// Seeds of `ec_start`: who is absent and what is asked for, a size, then changes of an array.
fn ec_start() -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/ec_start");
    std::fs::create_dir_all(&dir)?;
    // In member 3, that is all of them, and in the newer superblock if nothing else is said.
    let change = |structure: u8, at: u16, value: u8| [3, structure, at as u8, (at >> 8) as u8, value];
    let superblock = |at: u16, value: u8| change(1, at, value);
    let number = |structure: u8, at: u16, value: u64| -> Vec<[u8; 5]> {
        (at..).zip(value.to_le_bytes()).map(|(at, byte)| change(structure, at, byte)).collect()
    };
    const WHOLE: u8 = 3 << 1;
    const SALVAGE: u8 = 1;
    const LATE: u8 = 8;
    let seeds: [(&str, u8, Vec<[u8; 5]>); 10] = [
        ("whole", WHOLE, vec![]),
        ("absent", 0, vec![]),
        ("returns", 1 << 1 | LATE, vec![]),
        ("salvaged", SALVAGE | 2 << 1 | LATE, vec![superblock(256 + 16, 2), superblock(256 + 24, 5)]),
        ("mirror", SALVAGE | 2 << 1 | LATE, vec![superblock(72, 1), superblock(74, 1)]),
        ("one_and_two", SALVAGE | 1 << 1, vec![superblock(72, 1), superblock(74, 2)]),
        ("rebuilding", WHOLE, vec![superblock(320 + 16, 3), superblock(320 + 20, 1), superblock(320 + 32, 7)]),
        ("epoch", WHOLE, number(1, 136, (1 << 61) - 5)),
        ("sequence", WHOLE, [number(3, 16, (1 << 61) - 1), number(4, 16, (1 << 61) - 1)].concat()),
        ("record", WHOLE, vec![change(5, 40, 0xff), change(5, 32, 0xff), change(5, 56, 7)]),
    ];
    for (name, control, changes) in seeds {
        std::fs::write(dir.join(name), [&[control, 0][..], &changes.concat()].concat())?;
    }
    Ok(())
}

/// Seeds of `nvme_command`: control byte, entry, and what the data is made of, per command.
fn commands() -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/nvme_command");
    std::fs::create_dir_all(&dir)?;
    const IO: u8 = 1;
    const REPAIR: u8 = 16;
    let step = |control: u8, opcode: u8, flags: u8, cdw10: u32, cdw11: u32| {
        let mut s = Sqe::new(opcode, 7, 1);
        s.flags |= flags;
        (s.cdw10, s.cdw11, s.cdw12) = (cdw10.into(), cdw11.into(), 3.into());
        [&[control | REPAIR][..], s.as_bytes(), &[0x5a]].concat()
    };
    let io = |opcode, flags, cdw10| step(IO, opcode, flags, cdw10, 4);
    use opcode::{admin, io as op};
    let seeds = [
        ("read_write", vec![io(op::WRITE, 0, 8), io(op::READ, 0, 8), io(op::FLUSH, 0, 0), io(op::COMPARE, 0, 8)]),
        ("fused", vec![io(op::COMPARE, 1, 8), io(op::WRITE, 2, 8), io(op::COMPARE, 1, 8), io(op::READ, 0, 0)]),
        (
            "fused_late",
            vec![step(5, op::COMPARE, 1, 8, 0), step(5, op::WRITE, 2, 8, 0), step(0, admin::ABORT, 0, 7 << 16 | 1, 0)],
        ),
        ("deallocate", vec![io(op::DATASET_MANAGEMENT, 0, 3), io(op::WRITE_ZEROES, 0, 1000), io(op::READ, 0, 1023)]),
        ("identify", [0u32, 1, 2, 3, 6, 8, 0x13].map(|cns| step(0, admin::IDENTIFY, 0, cns, 0)).to_vec()),
        ("logs", [0u32, 1, 2, 3, 4, 5, 0xc].map(|l| step(0, admin::GET_LOG_PAGE, 0, l | 0x3ff << 16, 0)).to_vec()),
        ("features", [7u32, 0xb, 0xf].map(|f| step(0, admin::SET_FEATURES, 0, f, 0x100)).to_vec()),
        ("events", vec![step(0, admin::ASYNC_EVENT_REQUEST, 0, 0, 0); 6]),
        ("abort", vec![step(5, op::WRITE, 0, 8, 0), step(0, admin::ABORT, 0, 7 << 16 | 1, 0)]),
        ("disable", vec![step(0, admin::FABRICS, 0, 0, 0x14), io(op::READ, 0, 0), io(op::FABRICS, 0, 0)]),
    ];
    for (name, steps) in seeds {
        std::fs::write(dir.join(name), steps.concat())?;
    }
    Ok(())
}

fn put(out: &mut Vec<u8>, enc: &Encoder, header: &[u8], data: &[u8]) {
    out.extend_from_slice(header);
    out.extend_from_slice(data);
    if enc.data_digest() && !data.is_empty() {
        out.extend_from_slice(&crc32c(data).to_le_bytes());
    }
}

fn to_target(params: &Params) -> Vec<u8> {
    let enc = Encoder::new(Role::Host, params);
    let (mut out, mut h) = (Vec::new(), [0; CAPSULE_CMD_MAX]);
    let mut data = [0; size_of::<ConnectData>()];
    data[16..18].fill(0xff);
    data[256..512].copy_from_slice(&NqnField::new("nqn.2016-06.io.spdk:cnode1").expect("short").0);
    data[512..768].copy_from_slice(&NqnField::new("nqn.2014-08.org.nvmexpress:uuid:0").expect("short").0);
    let n = enc.capsule_cmd(&ConnectCmd::new(1, 0, 31, 0, 10_000).sqe(), 1024, &mut h);
    put(&mut out, &enc, &h[..n], &data);
    let n = enc.capsule_cmd(&Sqe::new(opcode::io::READ, 2, 1), 0, &mut h);
    put(&mut out, &enc, &h[..n], &[]);
    let d = Data { cccid: 3, ttag: 1, offset: 0, length: DATA.len() as u32, last: true, success: false };
    let n = enc.h2c_data(&d, &mut h);
    put(&mut out, &enc, &h[..n], &DATA);
    out
}

fn to_host(params: &Params) -> Vec<u8> {
    let enc = Encoder::new(Role::Target, params);
    let (mut out, mut h) = (Vec::new(), [0; CAPSULE_CMD_MAX]);
    let n = enc.r2t(&R2t { cccid: 3, ttag: 1, offset: 0, length: 64 }, &mut h);
    put(&mut out, &enc, &h[..n], &[]);
    let d = Data { cccid: 2, ttag: 0, offset: 0, length: DATA.len() as u32, last: true, success: true };
    let n = enc.c2h_data(&d, &mut h);
    put(&mut out, &enc, &h[..n], &DATA);
    let n = enc.capsule_resp(&Cqe::new(1, Status::SUCCESS), &mut h);
    put(&mut out, &enc, &h[..n], &[]);
    out
}
