//! A layer that passes every request to the device below: the simplest filter, and a start for others.

use std::any::Any;
use std::sync::Arc;

use longshore_reactor::Reactor;

use crate::channel::Channel;
use crate::desc::BdevDesc;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoId, IoRef, Op};
use crate::node::{BdevNode, ClaimKind};
use crate::registry::{BdevError, Registry};

/// Product name of passthru devices.
pub const PRODUCT_NAME: &str = "passthru";

/// A device that is another one under a second name.
pub struct Passthru {
    base: std::sync::Mutex<Option<BdevDesc>>,
    base_node: Arc<BdevNode>,
}

impl Passthru {
    /// Opens and claims `base` for a passthru device.
    ///
    /// # Errors
    /// `base` does not exist or is claimed.
    pub fn new(registry: &Arc<Registry>, base: &str, sink: crate::EventSink) -> Result<Arc<Passthru>, BdevError> {
        let desc = registry.open(base, true, sink)?;
        desc.claim(ClaimKind::ExclusiveWrite, "passthru")?;
        let base_node = desc.node().clone();
        Ok(Arc::new(Passthru { base: std::sync::Mutex::new(Some(desc)), base_node }))
    }

    /// Name of the device below.
    pub fn base_name(&self) -> &str {
        self.base_node.name()
    }
}

impl Bdev for Passthru {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        Geometry { num_blocks: self.base_node.num_blocks(), ..self.base_node.geometry().clone() }
    }

    fn supported(&self) -> SupportedOps {
        let ops: Vec<Op> = Op::ALL.into_iter().filter(|&o| self.base_node.supports(o)).collect();
        SupportedOps::of(&ops)
    }

    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let g = self.base.lock().unwrap_or_else(|e| e.into_inner());
        let desc = g.as_ref().ok_or_else(|| BdevError::NotFound(self.base_node.name().to_owned()))?;
        Ok(Box::new(PassthruChannel { lower: desc.channel()? }))
    }

    fn base_names(&self) -> Vec<String> {
        vec![self.base_node.name().to_owned()]
    }

    fn stack_depth(&self) -> usize {
        1 + self.base_node.device().stack_depth()
    }

    fn destruct(&self) {
        self.base.lock().unwrap_or_else(|e| e.into_inner()).take();
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
    use crate::testing::{filled, open, run};
    use crate::{IoFlags, Status, malloc::Malloc, null::Null};

    fn stack(reg: &Arc<Registry>, base: &str, n: usize) -> Vec<String> {
        let mut names = vec![base.to_owned()];
        for i in 0..n {
            let name = format!("p{i}");
            let p = Passthru::new(reg, &names[i], Box::new(|_| {})).unwrap();
            reg.register(&name, None, p).unwrap();
            names.push(name);
        }
        names
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
            let top = Passthru::new(&reg, &names[4], Box::new(|_| {})).unwrap();
            assert!(reg.register("too-deep", None, top).is_err());
            let (_desc, ch) = open(&reg, "p3");
            assert_eq!(ch.read(0, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
        });
    }
}
