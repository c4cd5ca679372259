//! The `longshore` daemon.

mod check;
mod daemon;
mod embedded;
mod identity;
mod options;
mod signals;
mod state;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = check::requested() {
        return code;
    }
    let (options, embedded) = options::Options::from_command_line();
    match daemon::run(&options, embedded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("longshore: {line}");
            ExitCode::FAILURE
        }
    }
}
