//! Arrays that are started with fewer members than they start with by themselves. `sim::salvage` says what has to be there then.

use std::sync::Arc;

use super::stack::Array;
use crate::ec::assemble::{Assembly, Decision, Refusal, Situation, decide};
use crate::ec::create::{Options, prepare};
use crate::ec::faults::{self, Window};
use crate::ec::format::MemberState;
use crate::sim::{Outlook, Place, World, member_name};

impl Array {
    /// What the array is made and salvaged with.
    pub(super) fn asked(&self, named: bool) -> Options {
        Options {
            name: self.head().name,
            data_chunk_count: self.layout.k as u32,
            parity_chunk_count: self.layout.m as u32,
            strip_size_kb: self.layout.strip / 1024,
            base_bdevs: (0..self.layout.n()).map(member_name).collect(),
            uuid: named.then(|| self.uuid()),
            ..Options::default()
        }
    }

    /// Starts the array as `bdev_ec_create` does with `salvage_requested`. By itself it must not start.
    pub(super) async fn salvage(&self, place: &Place) -> Result<(), String> {
        match self.judge(place).await? {
            Decision::Refuse(Refusal::TooFew { .. }) => {}
            _ if !place.world.powered() => return Err("power failed".into()),
            other => return Err(format!("it was to be salvaged, and by itself: {other:?}")),
        }
        faults::enter(Window::Salvage);
        let asked = Options { salvage_requested: true, ..self.asked(place.world.below(2) == 0) };
        let p = prepare(&place.registry, &asked, &(Arc::new(|_, _| {}) as _)).await.map_err(|e| e.to_string())?;
        self.run(place, (p.head, p.quorum), p.members).await?;
        faults::leave(Window::Salvage);
        Ok(())
    }

    pub(super) fn look_ahead(&self, world: &World, present: &[usize]) -> Outlook {
        let found: Vec<_> = present.iter().filter_map(|&slot| self.at_rest(world, slot)).collect();
        let taken = |a: &Assembly| {
            let in_sync =
                |slot: &usize| a.members[*slot].is_some() && a.head.members[*slot].state == MemberState::InSync;
            (0..self.layout.n()).filter(in_sync).collect()
        };
        match decide(&found, Situation { waited: true, salvage: false }) {
            Decision::Assemble(a) => return Outlook::Starts(taken(&a)),
            Decision::Refuse(Refusal::TooFew { .. }) => {}
            other => return Outlook::Refuses(format!("{other:?}")),
        }
        match decide(&found, Situation { waited: true, salvage: true }) {
            Decision::Assemble(a) => Outlook::Salvages(taken(&a)),
            other => Outlook::Refuses(format!("{other:?}")),
        }
    }
}
