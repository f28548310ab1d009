//! Ctrl-C and SIGTERM: a word to the user and exit code 128 + signal; during a training run,
//! first save. A second signal ends the process at once.
//!
//! Outputs appear whole or not at all, so a command that may be repeated can end anywhere.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;

/// The signal that came during a run, 0 for none.
static REQUESTED: AtomicI32 = AtomicI32::new(0);
/// Signals end the process: no run is going, or one has already been asked to stop.
static ENDS: AtomicBool = AtomicBool::new(true);

const MESSAGE: &[u8] = b"\ninterrupted\nhint: run the same command again; it continues with what is done\n";

/// From here on a signal ends the process with a message instead of silently. For commands that
/// continue when repeated; without effect where handlers cannot be installed.
pub fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        for signal in [SIGINT, SIGTERM] {
            // SAFETY: the handler touches atomics, writes bytes and exits, all of which a signal handler may do.
            let _ = unsafe { low_level::register(signal, move || on_signal(signal)) };
        }
    });
}

fn on_signal(signal: i32) {
    REQUESTED.store(signal, Ordering::SeqCst);
    if ENDS.swap(true, Ordering::SeqCst) {
        let _ = rustix::io::write(rustix::stdio::stderr(), MESSAGE);
        low_level::exit(128 + signal);
    }
}

/// The exit code of a process that a signal asked to end, once its work is saved.
#[must_use]
pub fn exit_code() -> Option<u8> {
    let signal = REQUESTED.load(Ordering::SeqCst);
    (signal != 0).then(|| u8::try_from(128 + signal).unwrap_or(1))
}

/// While this lives, the first signal is noted instead of ending the process.
pub struct Guard(());

impl Guard {
    /// Starts noting signals.
    #[must_use]
    pub fn new() -> Self {
        install();
        REQUESTED.store(0, Ordering::SeqCst);
        ENDS.store(false, Ordering::SeqCst);
        Self(())
    }

    /// Whether a signal asked for the end.
    #[must_use]
    pub fn requested(&self) -> bool {
        exit_code().is_some()
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        ENDS.store(true, Ordering::SeqCst);
    }
}
