//! Erasure-coded arrays in the crash simulator: every seed another geometry on other members.

mod made;
mod salvaged;
mod stack;
mod tests;

use stack::Array;

use super::faults::{self, Mutant, Window};
use crate::sim::{Outcome, Script, run_script, run_seed};

/// Fewest requests of a seed.
const REQUESTS: usize = 200;

/// Runs what `seed` makes up, with a fault built in or none.
fn try_seed(seed: u64, mutant: Option<Mutant>) -> Outcome {
    faults::set(mutant);
    let o = run_seed(seed, Array::of(seed), REQUESTS);
    faults::set(None);
    o
}

/// Runs a script of `seed` again.
fn try_script(seed: u64, mutant: Option<Mutant>, script: &Script) -> Outcome {
    faults::set(mutant);
    let o = run_script(seed, Array::of(seed), script);
    faults::set(None);
    o
}

fn name(w: Window) -> &'static str {
    match w {
        Window::JournalDurableDataNot => "journal durable, data in place not",
        Window::BetweenMemberWrites => "between writes to members",
        Window::SuperblockUpdate => "superblock update",
        Window::RebuildStep => "rebuild step",
        Window::Join => "join",
        Window::DegradedWrite => "degraded write",
        Window::Recovery => "recovery",
        Window::BitmapCommit => "bitmap commit",
        Window::Create => "create",
        Window::Salvage => "salvage",
        Window::Elsewhere => "an accel core computes",
    }
}
