//! The `longshore` daemon.

mod daemon;
mod embedded;
mod options;
mod signals;
mod state;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (options, embedded) = options::Options::from_command_line();
    match daemon::run(&options, embedded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("longshore: {line}");
            ExitCode::FAILURE
        }
    }
}
