//! A host in a few lines, which does what no proper one does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use longshore_nvme::tcp_pdu::{Encoder, IcReq, IcResp, Params, Role, encode_ic_req};
use longshore_nvme::wire::fabrics::{ConnectCmd, PropertySetCmd};
use longshore_nvme::wire::{SglDescriptor, Sqe};

use super::{NQN, Place};

/// One connection.
pub(crate) struct Queue(pub(crate) TcpStream);

impl Queue {
    /// A queue whose Connect succeeded, and the controller's identifier.
    fn connect(place: &Place, qid: u16, entries: u16, cntlid: u16) -> (Queue, u16) {
        let mut s = TcpStream::connect(("127.0.0.1", place.port())).expect("connect");
        s.set_nodelay(true).expect("TCP_NODELAY");
        s.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        s.write_all(&encode_ic_req(&IcReq::default())).expect("ICReq");
        s.read_exact(&mut [0; 128]).expect("ICResp");
        let mut q = Queue(s);
        // No keep-alive timeout: it sends none.
        let mut sqe = ConnectCmd::new(1, qid, entries - 1, 0, 0).sqe();
        sqe.dptr = SglDescriptor::in_capsule(0, 1024);
        let mut data = vec![0; 1024];
        data[..16].fill(0xaa);
        data[16..18].copy_from_slice(&cntlid.to_le_bytes());
        data[256..256 + NQN.len()].copy_from_slice(NQN.as_bytes());
        let host = b"nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000aaaa";
        data[512..512 + host.len()].copy_from_slice(host);
        q.0.write_all(&[&capsule(&sqe, 1024)[..], &data].concat()).expect("Connect");
        let (dw0, status) = q.answer();
        assert_eq!(status, 0, "Connect of queue {qid}");
        (q, dw0 as u16)
    }

    /// The next response: Dword 0 and status.
    fn answer(&mut self) -> (u32, u16) {
        let mut b = [0; 24];
        self.0.read_exact(&mut b).expect("an answer");
        assert_eq!(b[0], 5, "a response");
        (u32::from_le_bytes([b[8], b[9], b[10], b[11]]), u16::from_le_bytes([b[22], b[23]]) >> 1)
    }
}

/// A command capsule, to be followed by `data` bytes of data.
pub(crate) fn capsule(sqe: &Sqe, data: u32) -> Vec<u8> {
    let resp = IcResp { cpda: 0, hdgst: false, ddgst: false, maxh2cdata: 1 << 17 };
    let params = Params::agreed(&IcReq::default(), &resp).expect("what the target answers");
    let mut out = [0; 256];
    let n = Encoder::new(Role::Host, &params).capsule_cmd(sqe, data, &mut out);
    out[..n].to_vec()
}

/// The admin queue of an enabled controller, and so many I/O queues.
pub(crate) fn connect(place: &Place, queues: u16, entries: u16) -> Vec<Queue> {
    let (mut admin, cntlid) = Queue::connect(place, 0, 32, 0xffff);
    let enable = PropertySetCmd::new(2, 0x14, 1 | 6 << 16 | 4 << 20).sqe();
    admin.0.write_all(&capsule(&enable, 0)).expect("CC.EN");
    assert_eq!(admin.answer().1, 0, "CC.EN");
    let most = u32::from(queues - 1) << 16 | u32::from(queues - 1);
    let mut number = Sqe::new(0x09, 3, 0);
    (number.cdw10, number.cdw11) = (7.into(), most.into());
    admin.0.write_all(&capsule(&number, 0)).expect("Number of Queues");
    assert_eq!(admin.answer(), (most, 0), "the queues granted");
    let io = (1..=queues).map(|qid| Queue::connect(place, qid, entries, cntlid).0);
    let io: Vec<Queue> = io.collect();
    std::iter::once(admin).chain(io).collect()
}
