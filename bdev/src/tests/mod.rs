//! Sentences about the core as a whole.

mod across_cores;
mod limits;
mod splitting;
