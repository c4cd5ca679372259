//! The `longshore-perf` load generator: NVMe/TCP targets, local bdev stacks, and the raw-socket ceiling they are held to.

#![allow(dead_code)] // the load generator that uses the rest follows

mod ceiling;
mod cli;
mod cpu;
mod trid;
mod units;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Ceiling(args)) => ceiling::run(&args),
        Some(Command::CeilingPeer(args)) => ceiling::serve(&args),
        Some(Command::Discover(_) | Command::Identify(_)) => Err("NVMe/TCP is not built into this version yet".into()),
        None => Err("nothing to load: name a target with -r or a local bdev with --bdev".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("longshore-perf: {e}");
            ExitCode::FAILURE
        }
    }
}
