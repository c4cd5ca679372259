//! Simulator of crashes: a device stack on simulated members whose power fails, in simulated time, from one seed.
//!
//! The modules under trial are the ones that are shipped. They run on [`longshore_reactor::sim::Sim`], on members ([`SimMember`]) that
//! have a volatile cache, answer in any order, vanish, return with what they had, and fail reads. At a seeded moment power fails: of
//! each block, every member keeps any one of its versions that were not durable, or the durable one ([`Image`]). Then the stack is
//! started anew on what is left, perhaps without some members, perhaps only to be interrupted again. An [`Oracle`] knows what each
//! block may be.
//!
//! A layer is tried by a [`Stack`]: how it is made, started and stopped. [`run_seed`] does the rest, [`run_script`] repeats it,
//! [`shrink()`] finds a smaller script that fails as well, and [`run_seeds`] runs many. `docs/simulator.md` says how to use it.

mod author;
mod budget;
mod image;
mod member;
mod oracle;
mod report;
mod run;
mod salvage;
mod scenes;
mod script;
mod shrink;
mod worker;
mod world;

pub use author::Author;
pub use budget::Budget;
pub use image::{Content, Image, WriteId};
pub use member::SimMember;
pub use oracle::{Oracle, Stamp, Ticket, fill, stamp_of};
pub use report::{Report, run_seeds};
pub use run::{DEVICE, Outcome, Place, Stack, Tally, member_name, run_script, run_seed};
pub use salvage::Outlook;
pub use script::{Comes, Life, Script, Shape, Step};
pub use shrink::shrink;
pub use world::{Health, Windows, World};

#[cfg(test)]
mod tests;
