//! Ctrl-C ends an answer, not the program.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Carries a stopped answer out of the model's code.
struct Stopped;

/// Notices ctrl-C. A second one before the first was heard ends the program.
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over ctrl-C.
    pub fn on_ctrl_c() -> Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        flag::register_conditional_shutdown(SIGINT, 130, pressed.clone()).context("listening for ctrl-C")?;
        flag::register(SIGINT, pressed.clone()).context("listening for ctrl-C")?;
        Ok(Self(pressed))
    }

    /// Runs `work`, which calls what it is given now and then; `None` if ctrl-C stopped it there.
    ///
    /// [`LanguageModel`](intern_lm::LanguageModel) knows no way to stop, so the check unwinds
    /// through it: what it drops on the way ends the request, here as on a server.
    pub fn stoppable<T>(&self, work: impl FnOnce(&dyn Fn()) -> T) -> Option<T> {
        self.0.store(false, Ordering::Relaxed);
        let check = || {
            if self.0.swap(false, Ordering::Relaxed) {
                resume_unwind(Box::new(Stopped));
            }
        };
        match catch_unwind(AssertUnwindSafe(|| work(&check))) {
            Ok(done) => Some(done),
            Err(payload) if payload.is::<Stopped>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stops_at_a_check() {
        let interrupt = Interrupt(Arc::default());
        assert_eq!(interrupt.stoppable(|check| (check(), 5).1), Some(5));
        let mut steps = 0;
        let stopped = interrupt.stoppable(|check| {
            for _ in 0..10 {
                check();
                steps += 1;
                interrupt.0.store(steps == 3, Ordering::Relaxed);
            }
        });
        assert_eq!((stopped, steps), (None, 3));
    }
}
