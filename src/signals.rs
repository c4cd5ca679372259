//! SIGTERM and SIGINT: the first one drains, a second one ends the process at once.

use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// Sends a unit for the first signal; exits with status 130 on the second.
///
/// # Errors
/// The handlers cannot be installed.
pub(crate) fn watch(stop: Sender<()>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopping = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                continue; // a closed terminal does not end a daemon
            }
            if stopping {
                signal_hook::low_level::exit(130);
            }
            stopping = true;
            let _ = stop.send(());
        }
    })?;
    Ok(())
}
