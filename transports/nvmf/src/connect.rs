//! Fabrics commands: Connect, Disconnect and the properties. Base Specification, "Fabrics Commands".

use std::rc::Rc;
use std::time::Duration;

use longshore_nvme::wire::fabrics::{
    CNTLID_DYNAMIC, ConnectCmd, ConnectData, DisconnectCmd, connect_invalid_data, connect_invalid_sqe, connect_success,
};
use longshore_nvme::wire::opcode::fabrics;
use longshore_nvme::wire::{Sqe, Status};
use longshore_reactor::Reactor;
use zerocopy::FromBytes;

use crate::access::Identity;
use crate::controller::{Controller, IoQueue};
use crate::directory::Owner;
use crate::poll_group::PollGroup;
use crate::predecessors;
use crate::qpair::{Life, Qpair};
use crate::request::Begin;
use crate::transport::{Disconnect, QpairTransport};
use crate::{io, property};

/// Bytes of data that a Connect may bring: what it needs is 1024.
const MOST_DATA: u32 = 4096;

/// Checks a fabrics command by its type and length.
pub(crate) fn begin(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, in_capsule: u32) -> Result<Begin, Status> {
    let life = qp.life.get();
    match sqe.fctype() {
        fabrics::CONNECT => {
            // One at a time: nobody has vouched for this host yet, and each may hold a buffer until its data has come.
            if life != Life::New || qp.connect.replace(true) {
                return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
            }
            let len = size_of::<ConnectData>() as u32;
            let plan = match sqe.dptr.length.get() {
                0..=MOST_DATA => io::sgl::from_host(qp, slot, sqe, in_capsule, io::sgl::Length::AtLeast(len)),
                _ => Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()),
            };
            if plan.is_err() {
                qp.connect.set(false);
            }
            plan
        }
        _ if life != Life::Live => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
        fabrics::PROPERTY_GET | fabrics::PROPERTY_SET if qp.qid.get() == 0 => Ok(Begin::Execute),
        fabrics::DISCONNECT => Ok(Begin::Execute),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

pub(crate) fn execute(qp: &Rc<Qpair>, slot: u16) {
    let sqe = qp.slots[usize::from(slot)].borrow().sqe;
    let status = match sqe.fctype() {
        fabrics::CONNECT => return connect(qp, slot, &sqe),
        fabrics::DISCONNECT => return disconnect(qp, slot, &sqe),
        fabrics::PROPERTY_GET => property_get(qp, slot, &sqe),
        fabrics::PROPERTY_SET => match qp.admin.get() {
            Some(c) => property::set(c, &sqe),
            None => Err(Status::INVALID_OPCODE.with_dnr()),
        },
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    };
    qp.complete(slot, status.err().unwrap_or(Status::SUCCESS));
}

fn property_get(qp: &Qpair, slot: u16, sqe: &Sqe) -> Result<(), Status> {
    let c = qp.admin.get().ok_or(Status::INVALID_OPCODE.with_dnr())?;
    let value = property::get(c, sqe)?;
    let mut r = qp.slots[usize::from(slot)].borrow_mut();
    (r.dw0, r.dw1) = (value as u32, (value >> 32) as u32);
    Ok(())
}

fn disconnect(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe) {
    if qp.qid.get() == 0 {
        return qp.complete(slot, Status::INVALID_QUEUE_TYPE.with_dnr());
    }
    if DisconnectCmd::of(sqe).recfmt.get() != 0 {
        return qp.complete(slot, Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr());
    }
    qp.complete(slot, Status::SUCCESS);
    qp.disconnect(Disconnect::Requested);
}

/// A Connect that is refused: status and Dword 0.
struct Refusal(Status, u32);

/// A field of the command is wrong.
fn bad_cmd(offset: u16) -> Refusal {
    Refusal(Status::CONNECT_INVALID_PARAMETERS.with_dnr(), connect_invalid_sqe(offset))
}

/// A field of the data names something that is not there, or not yet: the host may retry.
fn bad_data(offset: u16) -> Refusal {
    Refusal(Status::CONNECT_INVALID_PARAMETERS, connect_invalid_data(offset))
}

fn answer(qp: &Qpair, slot: u16, r: Result<u16, Refusal>) {
    qp.connect.set(false);
    let (status, dw0) = match r {
        Ok(cntlid) => {
            if qp.life.get() == Life::Connecting {
                qp.life.set(Life::Live);
            }
            (Status::SUCCESS, connect_success(cntlid))
        }
        Err(Refusal(status, dw0)) => {
            if qp.life.get() == Life::Connecting {
                qp.life.set(Life::New);
                qp.unreserve_buffer();
            }
            (status, dw0)
        }
    };
    {
        let mut r = qp.slots[usize::from(slot)].borrow_mut();
        r.dw0 = dw0;
    }
    qp.complete(slot, status);
}

fn connect(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe) {
    let data = {
        // Others may be waiting for the buffer, and this may wait for its predecessor.
        let buf = qp.slots[usize::from(slot)].borrow_mut().buf.take();
        buf.and_then(|b| Some(ConnectData::read_from_prefix(b.as_slice()).ok()?.0))
    };
    let Some(data) = data else {
        qp.connect.set(false);
        return qp.complete(slot, Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    };
    debug_assert_eq!(qp.life.get(), Life::New, "one Connect at a time");
    qp.life.set(Life::Connecting);
    decide(qp, slot, sqe, data, 0);
}

/// How often, and how many times, an admin queue looks whether its predecessors have ended or are to be waited for no longer.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOKS: u32 = 4000;

/// A controller of the same host is ending: its commands may still be in a device, and must not overtake those that the host
/// sends again. Waits for its end, or until it is known what has to be kept from the host instead.
fn must_wait(qp: &Qpair, data: &ConnectData) -> bool {
    let g = &qp.group;
    let (Some(nqn), Some(host)) = (data.subnqn.get(), data.hostnqn.get()) else { return false };
    let id = g.view().subsystem(nqn).map(|s| s.id);
    id.is_some_and(|id| g.target().directory().predecessors.must_wait(&(id, host.to_owned())))
}

fn decide(qp: &Rc<Qpair>, slot: u16, sqe: &Sqe, data: ConnectData, looks: u32) {
    if qp.life.get() != Life::Connecting {
        return qp.complete(slot, Status::ABORTED_SQ_DELETION); // the connection ended meanwhile
    }
    let cmd = ConnectCmd::of(sqe);
    // The controller's number, should it become one: drawn before the look at predecessors, so that those are all with smaller ones.
    let id = if cmd.qid.get() == 0 { qp.group.target().fresh_id() } else { 0 };
    if cmd.qid.get() == 0 && must_wait(qp, &data) {
        if looks >= LOOKS {
            return answer(qp, slot, Err(Refusal(Status::CONNECT_CONTROLLER_BUSY, 0)));
        }
        let (me, sqe) = (qp.clone(), *sqe);
        let again = move |_: &Reactor| decide(&me, slot, &sqe, data, looks + 1);
        return qp.group.reactor().timer(LOOK_AGAIN, again).detach();
    }
    let r = match cmd.qid.get() {
        0 => connect_admin(qp, cmd, &data, id),
        _ => match find_owner(qp, cmd, &data) {
            Ok((who, owner)) => return ask_owner(qp, slot, cmd, who, owner),
            Err(e) => Err(e),
        },
    };
    answer(qp, slot, r);
}

/// What both kinds of queue are checked for. Answers with the host's NQN.
fn check(qp: &Qpair, cmd: &ConnectCmd, data: &ConnectData) -> Result<(String, String), Refusal> {
    if cmd.recfmt.get() != 0 {
        return Err(Refusal(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(), 0));
    }
    let bad_name = |offset| Refusal(Status::CONNECT_INVALID_PARAMETERS.with_dnr(), connect_invalid_data(offset));
    let nqn = data.subnqn.get().ok_or(bad_name(ConnectData::OFFSET_SUBNQN))?;
    let host = data.hostnqn.get().ok_or(bad_name(ConnectData::OFFSET_HOSTNQN))?;
    if cmd.qid.get() != qp.qid.get() {
        return Err(bad_cmd(ConnectCmd::OFFSET_QID)); // another command than the one the queue pair was made for
    }
    let most = if cmd.qid.get() == 0 { qp.options.max_aq_depth } else { u32::from(qp.options.max_queue_depth) };
    let size = u32::from(cmd.sqsize.get());
    if size == 0 || size >= most {
        return Err(bad_cmd(ConnectCmd::OFFSET_SQSIZE));
    }
    Ok((nqn.to_owned(), host.to_owned()))
}

fn set_queue(qp: &Qpair, cmd: &ConnectCmd) {
    qp.depth.set(cmd.sqsize.get() + 1);
    qp.flow_control.set(cmd.cattr & ConnectCmd::CATTR_DISABLE_SQ_FLOW_CONTROL == 0);
}

/// Takes what a queue pair is guaranteed: one buffer of the largest size, and requests of the block layer.
fn reserve(qp: &Qpair, hostnqn: &str, hostid: [u8; 16]) -> Result<(), Refusal> {
    let g = &qp.group;
    let host = g.shares.host(g.reactor(), hostnqn, hostid);
    qp.reserve_buffer(host.clone()).map_err(|why| {
        g.counters.refused.set(g.counters.refused.get() + 1);
        g.shares.say_refused(g.reactor(), &host, why);
        Refusal(Status::CONNECT_CONTROLLER_BUSY, 0)
    })
}

fn connect_admin(qp: &Rc<Qpair>, cmd: &ConnectCmd, data: &ConnectData, id: u64) -> Result<u16, Refusal> {
    let (nqn, hostnqn) = check(qp, cmd, data)?;
    let g = &qp.group;
    let view = g.view();
    let sub = view.subsystem(&nqn).ok_or(bad_data(ConnectData::OFFSET_SUBNQN))?;
    let Some(transport) = qp.transport() else { return Err(Refusal(Status::INTERNAL_ERROR, 0)) };
    let listener = transport.listener().clone();
    // A subsystem is invisible where it does not listen. Discovery is answered on every port.
    if !sub.discovery && sub.listener(&listener).is_none() {
        return Err(Refusal(Status::CONNECT_INVALID_HOST, 0));
    }
    if !sub.allows(&hostnqn) {
        return Err(Refusal(Status::CONNECT_INVALID_HOST, 0));
    }
    // Dynamic controller model: the subsystem chooses.
    if data.cntlid.get() != CNTLID_DYNAMIC {
        let at = connect_invalid_data(ConnectData::OFFSET_CNTLID);
        return Err(Refusal(Status::CONNECT_INVALID_PARAMETERS.with_dnr(), at));
    }
    reserve(qp, &hostnqn, data.hostid)?;
    let owner = Owner { id, core: g.core(), hostnqn: hostnqn.clone(), hostid: data.hostid };
    let cntlid = g.target().directory().insert(sub, owner);
    let Some(cntlid) = cntlid else {
        tracing::warn!("subsystem '{nqn}' has no controller identifier left for host '{hostnqn}'");
        return Err(Refusal(Status::CONNECT_CONTROLLER_BUSY, 0));
    };
    let who = Identity {
        controller: id,
        cntlid,
        subsystem: sub.id,
        nqn,
        hostnqn,
        hostid: data.hostid,
        core: g.core(),
        wzsl: sub.options.wzsl,
        dmrsl: sub.options.dmrsl,
        errors: Default::default(),
        waits_to_retry: Default::default(),
    };
    let held = g.target().directory().predecessors.let_in(&who.association(), id);
    if let Some(held) = held {
        predecessors::warn(&who, &held);
    }
    let access = g.access(&who, &listener);
    let _ = qp.access.set(access.clone());
    let _ = qp.of_host.set(g.shares.host(g.reactor(), &who.hostnqn, who.hostid));
    let c = Controller::new(g, qp, who, data.hostid, sub, access, cmd.kato.get());
    let _ = qp.admin.set(c);
    set_queue(qp, cmd);
    g.counters.admin.set(g.counters.admin.get() + 1);
    Ok(cntlid)
}

/// What an I/O queue asks the core that owns its controller.
struct Question {
    controller: u64,
    qid: u16,
    core: usize,
    serial: u64,
}

fn find_owner(qp: &Qpair, cmd: &ConnectCmd, data: &ConnectData) -> Result<(Question, Owner), Refusal> {
    let (nqn, hostnqn) = check(qp, cmd, data)?;
    let g = &qp.group;
    let view = g.view();
    let sub = view.subsystem(&nqn).ok_or(bad_data(ConnectData::OFFSET_SUBNQN))?;
    if sub.discovery {
        return Err(bad_cmd(ConnectCmd::OFFSET_QID)); // a discovery controller has no I/O queues
    }
    let listener = qp.transport().map(|t| t.listener().clone());
    if !sub.allows(&hostnqn) || listener.is_none_or(|l| sub.listener(&l).is_none()) {
        return Err(Refusal(Status::CONNECT_INVALID_HOST, 0));
    }
    let owner = g.target().directory().find(&nqn, data.cntlid.get()).cloned();
    let owner = owner.ok_or(bad_data(ConnectData::OFFSET_CNTLID))?;
    if owner.hostnqn != hostnqn || owner.hostid != data.hostid {
        return Err(Refusal(Status::CONNECT_INVALID_HOST, 0));
    }
    reserve(qp, &hostnqn, data.hostid)?;
    let q = Question { controller: owner.id, qid: cmd.qid.get(), core: g.core(), serial: qp.serial };
    Ok((q, owner))
}

fn ask_owner(qp: &Rc<Qpair>, slot: u16, cmd: &ConnectCmd, q: Question, owner: Owner) {
    set_queue(qp, cmd);
    let (home, serial) = (qp.group.core(), qp.serial);
    qp.group.target().send(owner.core, move |g| {
        let r = accept_io(g, &q);
        g.target().send(home, move |g| {
            let Some(qp) = g.find_qpair(serial) else { return };
            io_answered(&qp, slot, r);
        });
    });
}

/// On the owner's core: may the controller have this I/O queue?
fn accept_io(g: &Rc<PollGroup>, q: &Question) -> Result<Identity, (Status, u32)> {
    let gone = (Status::CONNECT_INVALID_PARAMETERS, connect_invalid_data(ConnectData::OFFSET_CNTLID));
    let c = g.find_controller(q.controller).filter(|c| !c.is_ending()).ok_or(gone)?;
    let bad_qid = (Status::CONNECT_INVALID_PARAMETERS, connect_invalid_sqe(ConnectCmd::OFFSET_QID));
    if !c.ready() || c.cc().iosqes() != 6 || c.cc().iocqes() != 4 {
        return Err(bad_qid);
    }
    if q.qid > c.granted.get() {
        return Err((bad_qid.0.with_dnr(), bad_qid.1));
    }
    let mut queues = c.queues.borrow_mut();
    if queues.contains_key(&q.qid) {
        return Err(bad_qid);
    }
    queues.insert(q.qid, IoQueue { core: q.core, serial: q.serial });
    Ok(c.who.clone())
}

fn io_answered(qp: &Rc<Qpair>, slot: u16, r: Result<Identity, (Status, u32)>) {
    let r = match r {
        Ok(who) => {
            let cntlid = who.cntlid;
            // While the owner was asked, host or listener may have been removed: nobody has told this queue.
            let still_admitted = |t: &dyn QpairTransport| {
                let view = qp.group.view();
                let sub = view.subsystem(&who.nqn).filter(|s| s.id == who.subsystem);
                sub.is_some_and(|s| s.allows(&who.hostnqn) && s.listener(t.listener()).is_some())
            };
            if let Some(t) = qp.transport().filter(|t| still_admitted(&**t)) {
                let access = qp.group.access(&who, t.listener());
                let _ = qp.access.set(access);
                let g = &qp.group;
                let _ = qp.of_host.set(g.shares.host(g.reactor(), &who.hostnqn, who.hostid));
                let c = &qp.group.counters.io;
                c.set(c.get() + 1);
                Ok(cntlid)
            } else {
                // The connection or its admission ended meanwhile: the owner must forget the queue again.
                let (id, qid, serial) = (who.controller, qp.qid.get(), qp.serial);
                qp.group.target().send(who.core, move |g| {
                    if let Some(c) = g.find_controller(id) {
                        c.io_qpair_gone(qid, serial);
                    }
                });
                Err(Refusal(Status::ABORTED_SQ_DELETION, 0))
            }
        }
        Err((status, dw0)) => Err(Refusal(status, dw0)),
    };
    answer(qp, slot, r);
}

/// The connection ends.
pub(crate) fn closing(qp: &Qpair) {
    if let Some(c) = qp.admin.get() {
        c.closing();
    }
}
