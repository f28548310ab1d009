//! Ctrl-C and SIGTERM while a run is going: save, then stop. A second signal kills at once,
//! and outside a run signals do what they always do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

struct Flags {
    /// A signal came during the run.
    requested: Arc<AtomicBool>,
    /// Signals kill: no run is going, or one has already been asked to stop.
    kills: Arc<AtomicBool>,
}

static FLAGS: OnceLock<Option<Flags>> = OnceLock::new();

/// While this lives, the first signal is noted instead of killing the process.
pub struct Guard(Option<&'static Flags>);

impl Guard {
    /// Starts noting signals; without effect where handlers cannot be installed.
    #[must_use]
    pub fn new() -> Self {
        let flags = FLAGS.get_or_init(|| install().ok()).as_ref();
        if let Some(flags) = flags {
            flags.requested.store(false, Ordering::SeqCst);
            flags.kills.store(false, Ordering::SeqCst);
        }
        Self(flags)
    }

    /// Whether a signal asked for the end.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.is_some_and(|flags| flags.requested.load(Ordering::SeqCst))
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(flags) = self.0 {
            flags.kills.store(true, Ordering::SeqCst);
        }
    }
}

/// Handlers run in this order: kill if signals kill now, else note it and kill from then on.
fn install() -> std::io::Result<Flags> {
    let flags = Flags { requested: Arc::new(AtomicBool::new(false)), kills: Arc::new(AtomicBool::new(true)) };
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&flags.kills))?;
        flag::register(signal, Arc::clone(&flags.requested))?;
        flag::register(signal, Arc::clone(&flags.kills))?;
    }
    Ok(flags)
}
