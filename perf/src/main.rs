//! The `longshore-perf` load generator: NVMe/TCP targets, local bdev stacks, and the raw-socket ceiling they are held to.

mod ceiling;
mod cli;
mod cpu;
mod describe;
mod device;
mod html;
mod lane;
mod latency;
mod load;
mod local;
mod prefill;
mod progress;
mod random;
mod remote;
mod report;
mod run;
mod target;
mod trid;
mod units;
mod verify;
mod zipf;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use load::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Ceiling(args)) => ceiling::run(&args).map(|()| Outcome::Good),
        Some(Command::CeilingPeer(args)) => ceiling::serve(&args).map(|()| Outcome::Good),
        Some(Command::Discover(args)) => target::discover(&args),
        Some(Command::Identify(args)) => target::identify(&args),
        None => load::run(&cli.run),
    };
    match outcome {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(2),
        Ok(Outcome::TargetLost) => ExitCode::from(3),
        Err(e) => {
            eprintln!("longshore-perf: {e}");
            ExitCode::FAILURE
        }
    }
}
