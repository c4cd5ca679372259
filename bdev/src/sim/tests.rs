//! The simulator against a single member, which is right, and against layers on it that are wrong.

use std::any::Any;
use std::sync::Arc;

use longshore_reactor::Reactor;

use super::*;
use crate::base::Base;
use crate::channel::Channel;
use crate::core::{CoreOptions, CoreState};
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoFlags, IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};

/// What a layer on the member does wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    FlushNothing,
    DropFua,
    AckEarly,
    Misplace,
}

const BLOCKS: u64 = 64;

struct Single {
    fault: Fault,
    block: usize,
    volatile: bool,
}

impl Single {
    fn of(seed: u64, fault: Fault) -> Single {
        Single { fault, block: if seed.is_multiple_of(2) { 512 } else { 4096 }, volatile: !seed.is_multiple_of(5) }
    }
}

impl Stack for Single {
    fn shape(&self) -> Shape {
        let blocks = BLOCKS;
        Shape { blocks, stripe: 4, members: 1, member_blocks: 64, start_requests: 20, ..Shape::default() }
    }

    fn images(&self) -> Vec<Image> {
        vec![Image::new(self.block, BLOCKS as usize, self.volatile)]
    }

    fn windows(&self) -> Windows {
        || vec!["any"]
    }

    async fn start(&self, place: &Place) -> Result<(), String> {
        let fault = self.fault;
        let made = Base::build(&place.registry, &member_name(0), "faulty", DEVICE, None, |base| {
            Arc::new(Faulty { base, fault })
        });
        made.map(drop).map_err(|e| e.to_string())
    }

    async fn stop(&self, place: &Place) {
        let _ = place.registry.unregister(DEVICE).await;
    }
}

struct Faulty {
    base: Base,
    fault: Fault,
}

impl Bdev for Faulty {
    fn product_name(&self) -> &'static str {
        "faulty"
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn supported(&self) -> SupportedOps {
        self.base.supported()
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.base)
    }

    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(FaultyChannel(self.base.channel()?, self.fault)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct FaultyChannel(Channel, Fault);

impl IoChannel for FaultyChannel {
    fn submit(&self, mut io: IoRef) {
        match (self.1, io.op()) {
            (Fault::FlushNothing, Op::Flush) => return io.complete_later(crate::Status::SUCCESS),
            (Fault::DropFua, Op::Write) => io.set_flags(IoFlags::NONE),
            (Fault::Misplace, Op::Write) if io.lba() == 7 => io.set_lba(8),
            (Fault::AckEarly, Op::Write) if io.nblocks() == 1 => {
                let mut bytes = vec![];
                io.segments().for_each(|s| bytes.extend_from_slice(s));
                if let Some(mut buf) = Reactor::current().dma().alloc(bytes.len())
                    && let Some(to) = buf.get_mut()
                {
                    to.copy_from_slice(&bytes);
                    drop(self.0.write(io.lba(), 1, buf, io.flags()));
                    return io.complete_later(crate::Status::SUCCESS);
                }
            }
            _ => {}
        }
        self.0.submit(io);
    }

    fn abort(&self, id: IoId) -> bool {
        self.0.abort(id)
    }
}

fn run(seed: u64, fault: Fault) -> Outcome {
    run_seed(seed, Single::of(seed, fault), 200)
}

#[test]
fn a_single_member_does_what_it_promises() {
    let report = run_seeds(0..500, 1, |seed| run(seed, Fault::None));
    println!("{report}");
    assert_eq!((report.failures, report.missed(&["any"])), (0, vec![]), "{report}");
    assert!(report.fewest >= 200 && report.crashes > 1000, "{report}");
}

fn caught(fault: Fault) {
    let found = (0..200).map(|seed| (seed, run(seed, fault))).find(|(_, o)| o.wrong.is_err());
    let (seed, o) = found.unwrap_or_else(|| panic!("{fault:?} goes unnoticed"));
    let Err(why) = &o.wrong else { return };
    println!("{fault:?} is caught by seed {seed}: {why}");
    let again = run(seed, fault);
    assert_eq!((&again.script, &again.wrong), (&o.script, &o.wrong), "a seed always does the same");
    let repeat = run_script(seed, Single::of(seed, fault), &o.script);
    assert_eq!(repeat.wrong, o.wrong, "its script does the same again");
    let small = shrink(o.script, 3000, |s| run_script(seed, Single::of(seed, fault), s).wrong.is_err());
    println!("{small}");
    assert!(small.requests() <= 12, "{} requests are left:\n{small}", small.requests());
}

#[test]
fn a_flush_that_does_nothing_is_caught() {
    caught(Fault::FlushNothing);
}

#[test]
fn a_fua_that_is_dropped_is_caught() {
    caught(Fault::DropFua);
}

#[test]
fn a_write_acknowledged_before_it_is_done_is_caught() {
    caught(Fault::AckEarly);
}

#[test]
fn a_write_in_the_wrong_place_is_caught() {
    caught(Fault::Misplace);
}

#[test]
fn what_was_there_before_a_block_became_unreadable_is_never_read_though_a_write_mends_it_meanwhile() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let read = crate::ec::tests::sim(seed, async move |r| {
            drop(CoreState::init(&r, CoreOptions { requests: 16, child_reserve: 0 }));
            let mut image = Image::new(512, 16, true);
            image.put(3, [Content::Fill(1)]);
            image.spoil(3);
            let world = World::new(seed, vec![image], Vec::new);
            world.power_on();
            let reg = Registry::new();
            reg.register("m", None, SimMember::new(&world, 0)).unwrap();
            let desc = reg.open("m", true, Box::new(|_| {})).unwrap();
            let c = desc.channel().unwrap();
            let mut new = r.dma().alloc(512).unwrap();
            new.get_mut().unwrap().fill(2);
            let read = c.read(3, 1, r.dma().alloc(512).unwrap());
            assert!(c.write(3, 1, new, IoFlags::NONE).await.0.is_ok());
            let (status, buf) = read.await;
            status.is_ok().then(|| buf.unwrap().as_slice()[0])
        });
        seen.insert(read);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [None, Some(2)]);
}

#[test]
fn the_member_is_a_device_as_any_other() {
    let image = Image::new(512, 16, true);
    let world = World::new(1, vec![image], Vec::new);
    world.power_on();
    let dev = SimMember::new(&world, 0);
    assert!(dev.geometry().volatile_cache && dev.supported().has(Op::Flush) && !dev.supported().has(Op::Compare));
    let reg = Registry::new();
    assert_eq!(reg.register("m", None, dev).map(|n| n.num_blocks()), Ok(16));
}
