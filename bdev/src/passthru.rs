//! A layer that passes every request to the device below: the simplest filter, and a start for others.

use std::any::Any;
use std::sync::Arc;

use longshore_reactor::Reactor;
use uuid::Uuid;

use crate::base::Base;
use crate::channel::Channel;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoId, IoRef};
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use crate::vbdev::Vbdev;

/// Product name of passthru devices.
pub const PRODUCT_NAME: &str = "passthru";

/// Name of the module, in claims and configurations.
pub const MODULE: &str = "passthru";

/// How to build a passthru device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// The device below.
    pub base: String,
    /// Its UUID; by default one derived from the base's and the name.
    pub uuid: Option<Uuid>,
}

/// Configures a passthru device; `None` if it waits for its base.
///
/// # Errors
/// The name is taken, or the base is in use.
pub fn create(registry: &Arc<Registry>, options: Options) -> Result<Option<Arc<BdevNode>>, BdevError> {
    registry.configure(Arc::new(options))
}

impl Vbdev for Options {
    fn module(&self) -> &'static str {
        MODULE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn base(&self) -> &str {
        &self.base
    }

    fn build(&self, registry: &Arc<Registry>) -> Result<Arc<BdevNode>, BdevError> {
        Base::build(registry, &self.base, MODULE, &self.name, self.uuid, |base| Arc::new(Passthru { base }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device that is another one under a second name.
pub struct Passthru {
    base: Base,
}

impl Passthru {
    /// Name of the device below.
    pub fn base_name(&self) -> &str {
        self.base.node().name()
    }
}

impl Bdev for Passthru {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
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
        Ok(Box::new(PassthruChannel { lower: self.base.channel()? }))
    }

    fn holds_no_data(&self) -> bool {
        self.base.node().device().holds_no_data()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct PassthruChannel {
    lower: Channel,
}

impl IoChannel for PassthruChannel {
    fn submit(&self, io: IoRef) {
        self.lower.submit(io);
    }

    fn forwards(&self) -> Option<&Channel> {
        Some(&self.lower)
    }

    fn abort(&self, id: IoId) -> bool {
        self.lower.abort(id)
    }

    fn abort_all(&self) {
        self.lower.abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, filled, open, run};
    use crate::{IoFlags, NOT_LENT, Status, malloc::Malloc, null::Null};
    use std::rc::Rc;

    fn stack(reg: &Arc<Registry>, base: &str, n: usize) -> Vec<String> {
        let mut names = vec![base.to_owned()];
        for i in 0..n {
            let name = format!("p{i}");
            create(reg, Options { name: name.clone(), base: names[i].clone(), uuid: None }).unwrap().unwrap();
            names.push(name);
        }
        names
    }

    /// A file of 256 blocks of 4 KiB as `f`, with `p0` and `p1` above it.
    fn file_stack() -> Arc<Registry> {
        let path = std::env::temp_dir().join(format!("longshore-{}-{}", std::process::id(), Uuid::new_v4()));
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let reg = Registry::new();
        let file = crate::uring::Options::new("f", path.to_str().unwrap(), crate::uring::Family::Uring);
        crate::uring::create(&reg, crate::uring::Options { block_size: 4096, ..file }).unwrap();
        std::fs::remove_file(&path).unwrap();
        stack(&reg, "f", 2);
        reg
    }

    #[test]
    fn requests_go_through_every_layer_and_are_counted_at_each() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            stack(&reg, "m", 2);
            let (_desc, ch) = open(&reg, "p1");
            assert_eq!(ch.write(5, 1, filled(&r, 512, 3), IoFlags::NONE).await.0, Status::SUCCESS);
            let (st, buf) = ch.read(5, 1, filled(&r, 512, 0)).await;
            assert_eq!(st, Status::SUCCESS);
            assert!(buf.unwrap().as_slice().iter().all(|&b| b == 3));
            for n in ["m", "p0", "p1"] {
                let s = reg.find(n).unwrap().stats();
                assert_eq!((s.op(crate::Op::Write).blocks, s.op(crate::Op::Read).blocks), (1, 1), "{n}");
            }
        });
    }

    #[test]
    fn a_stack_is_as_deep_as_frames_allow_and_no_deeper() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("n", None, Null::new(Geometry::plain(512, 64))).unwrap();
            let names = stack(&reg, "n", 4);
            let top = Options { name: "too-deep".into(), base: names[4].clone(), uuid: None };
            assert!(create(&reg, top).is_err());
            let (_desc, ch) = open(&reg, "p3");
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
        });
    }

    #[test]
    fn a_layer_follows_its_base_and_comes_back_with_it() {
        run(|_| async move {
            let reg = Registry::new();
            let base_uuid = Some(Uuid::from_u128(7));
            let opts = Options { name: "p".into(), base: "n".into(), uuid: None };
            assert!(create(&reg, opts.clone()).unwrap().is_none(), "waits for its base");
            assert_eq!(create(&reg, opts).err(), Some(BdevError::Exists("p".into())));
            assert_eq!(reg.configurations().len(), 1);
            let n = reg.register("n", base_uuid, Null::new(Geometry::plain(512, 64))).unwrap();
            let p = reg.find("p").expect("built with its base");
            let uuid = p.uuid();
            reg.resized(&n, 128);
            assert_eq!(p.num_blocks(), 128);
            assert!(reg.open("n", true, Box::new(|_| {})).is_err(), "claimed");
            reg.unregister("n").await.unwrap();
            assert!(reg.find("p").is_none());
            reg.register("n", base_uuid, Null::new(Geometry::plain(512, 64))).unwrap();
            assert_eq!(reg.find("p").expect("built again").uuid(), uuid, "same base, same name, same UUID");
            reg.unconfigure(MODULE, "p").await.unwrap();
            assert!(reg.find("p").is_none() && reg.configurations().is_empty());
            assert!(reg.open("n", true, Box::new(|_| {})).is_ok(), "claim given up");
            let kinds: Vec<_> = reg.notifications.since(0, 100).into_iter().map(|n| (n.kind, n.ctx)).collect();
            assert_eq!(kinds.iter().filter(|k| **k == ("bdev_register", "p".to_owned())).count(), 2);
            assert_eq!(kinds.iter().filter(|k| **k == ("bdev_unregister", "p".to_owned())).count(), 2);
        });
    }

    #[test]
    fn without_auto_examine_layers_are_built_on_named_devices_only() {
        run(|_| async move {
            let reg = Registry::new();
            reg.set_auto_examine(false);
            reg.register("n", None, Null::new(Geometry::plain(512, 64))).unwrap();
            assert!(create(&reg, Options { name: "p".into(), base: "n".into(), uuid: None }).unwrap().is_none());
            reg.allow_examine("n").unwrap();
            assert!(reg.find("p").is_some());
            assert_eq!(reg.allow_examine("n"), Err(BdevError::Exists("n".into())));
        });
    }

    #[test]
    fn gates_and_counters_of_a_device_hold_for_requests_that_go_past_it() {
        run(|r| async move {
            let reg = Registry::new();
            let m = reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            stack(&reg, "m", 2);
            let (p0, p1) = (reg.find("p0").unwrap(), reg.find("p1").unwrap());
            let reads = |n: &Arc<BdevNode>| n.stats().op(crate::Op::Read).ops;
            let (_desc, ch) = open(&reg, "p1");
            for _ in 0..5 {
                assert!(ch.read(0, 1, filled(&r, 512, 0)).await.0.is_ok());
            }
            p0.reset_stats(crate::StatReset::All).await.unwrap();
            assert_eq!((reads(&m), reads(&p0), reads(&p1)), (5, 0, 5));
            m.enable_histogram(true, None).await.unwrap();
            for _ in 0..3 {
                assert!(ch.read(0, 1, filled(&r, 512, 0)).await.0.is_ok());
            }
            assert_eq!(m.histogram().unwrap().buckets.iter().sum::<u64>(), 3);
            m.enable_histogram(false, None).await.unwrap();
            assert!(ch.read(0, 1, filled(&r, 512, 0)).await.0.is_ok());
            assert_eq!((reads(&m), reads(&p0), reads(&p1)), (9, 4, 9));
            assert_eq!(
                m.channel_stats()[0].1.op(crate::Op::Read).ops,
                4,
                "those of now; five were settled at the reset"
            );
            m.set_qos(crate::QosUpdate { rw_ios_per_sec: Some(1000), ..Default::default() }).await.unwrap();
            let start = r.rdtsc();
            let limited: Vec<_> = (0..12).map(|_| ch.read(0, 1, filled(&r, 512, 0))).collect();
            for f in limited {
                assert!(f.await.0.is_ok());
            }
            // A slice or two may be saved up when the first comes; without the limit all twelve take microseconds.
            assert!(r.rdtsc() - start >= r.ticks(std::time::Duration::from_millis(5)));
        });
    }

    #[test]
    fn a_read_that_is_not_lent_anything_counts_nowhere_and_takes_nothing_of_a_rate_limit() {
        run(|r| async move {
            let reg = Registry::new();
            let n = reg.register("n", None, Null::new(Geometry::plain(512, 4096))).unwrap();
            stack(&reg, "n", 2);
            let (p0, p1) = (reg.find("p0").unwrap(), reg.find("p1").unwrap());
            let (_desc, ch) = open(&reg, "p1");
            assert!(ch.lends());
            let ends = Rc::new(Recorder::default());
            // More than such a device lends at a time.
            let lend = || {
                let mut io = ch.core().get().unwrap();
                io.prepare(crate::Op::Read, IoFlags::LEND, 0, 512);
                io.begin(ends.clone(), 0);
                ch.submit(io);
            };
            let start = r.rdtsc();
            for way in ["fast", "slow", "limited below", "limited"] {
                match way {
                    "slow" => n.enable_histogram(true, None).await.unwrap(),
                    "limited below" => {
                        n.enable_histogram(false, None).await.unwrap();
                        n.set_qos(crate::QosUpdate { r_mbytes_per_sec: Some(1), ..Default::default() }).await.unwrap();
                    }
                    "limited" => {
                        n.set_qos(crate::QosUpdate { r_mbytes_per_sec: Some(0), ..Default::default() }).await.unwrap();
                        p1.set_qos(crate::QosUpdate { r_mbytes_per_sec: Some(1), ..Default::default() }).await.unwrap();
                    }
                    _ => {}
                }
                ends.0.borrow_mut().clear();
                for i in 1..=100 {
                    lend();
                    assert_eq!(ends.ended(&r, i).await.last(), Some(&(0, NOT_LENT)), "{way}");
                }
                for n in [&n, &p0, &p1] {
                    let s = n.stats();
                    assert_eq!((s.op(crate::Op::Read).ops, s.errors.len()), (0, 0), "{way}, {}", n.name());
                }
            }
            assert_eq!(n.histogram().map_or(0, |h| h.buckets.iter().sum::<u64>()), 0);
            // Each takes a quarter of a second of the limit.
            assert!(r.rdtsc() - start < r.ticks(std::time::Duration::from_secs(10)), "they were not given back");
            assert!(ch.read(0, 8, filled(&r, 4096, 0)).await.0.is_ok());
            assert_eq!(p1.stats().op(crate::Op::Read).ops, 1);
            assert_eq!(ch.inflight(), 0);
        });
    }

    #[test]
    fn a_reset_below_waits_for_requests_that_went_past() {
        run(|r| async move {
            let reg = file_stack();
            let (_desc, ch) = open(&reg, "p1");
            let below = reg.open("f", false, Box::new(|_| {})).unwrap();
            let below = below.channel().unwrap();
            for _ in 0..20 {
                let before: Vec<_> = (0..32).map(|i| ch.write(i, 1, filled(&r, 4096, 1), IoFlags::NONE)).collect();
                let reset = below.reset();
                let after: Vec<_> = (0..32).map(|i| ch.write(i, 1, filled(&r, 4096, 2), IoFlags::NONE)).collect();
                assert_eq!(reset.await.0, Status::SUCCESS);
                for f in before.into_iter().chain(after) {
                    let s = f.await.0;
                    assert!(s == Status::SUCCESS || s == Status::ABORT_REQUESTED, "{s}");
                }
                assert_eq!((ch.inflight(), below.inflight()), (0, 0));
            }
            assert_eq!(ch.write(0, 1, filled(&r, 4096, 3), IoFlags::NONE).await.0, Status::SUCCESS);
        });
    }

    #[test]
    fn what_the_device_at_the_bottom_lacks_is_built_also_beneath_layers() {
        run(|r| async move {
            let reg = Registry::new();
            let plain = crate::testing::Plain(Malloc::new(Geometry::plain(512, 64)).unwrap());
            reg.register("m", None, Arc::new(plain)).unwrap();
            stack(&reg, "m", 2);
            let (_desc, ch) = open(&reg, "p1");
            assert!(ch.write(0, 4, filled(&r, 2048, 7), IoFlags::NONE).await.0.is_ok());
            assert_eq!(ch.compare(0, 4, filled(&r, 2048, 7)).await.0, Status::SUCCESS);
            assert_eq!(ch.compare(0, 4, filled(&r, 2048, 8)).await.0, Status::COMPARE_FAILURE);
            assert_eq!(ch.write_zeroes(1, 1, IoFlags::NONE).await.0, Status::SUCCESS);
            assert_eq!(ch.copy(0, 8, 2).await.0, Status::SUCCESS);
            let (old, new) = (filled(&r, 512, 7), filled(&r, 512, 9));
            assert_eq!(ch.compare_and_write(8, 1, old, new, IoFlags::NONE).await.0, Status::SUCCESS);
            let (_, buf) = ch.read(8, 2, filled(&r, 1024, 1)).await;
            let buf = buf.unwrap();
            assert!(buf.as_slice()[..512].iter().all(|&b| b == 9) && buf.as_slice()[512..].iter().all(|&b| b == 0));
        });
    }

    #[test]
    fn a_file_system_without_fallocate_is_met_also_beneath_layers() {
        run(|r| async move {
            let reg = file_stack();
            let (_desc, ch) = open(&reg, "p1");
            assert!(ch.write(0, 4, filled(&r, 16384, 7), IoFlags::NONE).await.0.is_ok());
            let refuse = |k| (k == longshore_reactor::OpKind::Fallocate).then_some(-libc::EOPNOTSUPP);
            r.inject(Some(Box::new(refuse)));
            assert_eq!(ch.write_zeroes(1, 2, IoFlags::NONE).await.0, Status::SUCCESS);
            let (_, buf) = ch.read(0, 4, filled(&r, 16384, 1)).await;
            let buf = buf.unwrap();
            assert!(buf.as_slice()[4096..12288].iter().all(|&b| b == 0) && buf.as_slice()[12288] == 7);
            assert_eq!(ch.inflight(), 0);
            r.inject(None);
        });
    }
}
