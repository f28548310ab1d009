//! Who still waits for a step while it is computed.
//!
//! A step of a large model takes seconds when it reads prompts. Between the products of a layer
//! the runner looks here, and goes on without the rows of those who are gone.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Time between two questions: they wake whoever is asked.
const GLANCE: Duration = Duration::from_millis(25);

/// The listeners of a step's sequences.
pub(crate) struct Watch<'a> {
    /// Whether somebody waits for sequence `i` of the step; nobody is ever gone without it.
    is_wanted: Option<&'a dyn Fn(usize) -> bool>,
    gone: RefCell<Vec<bool>>,
    asked: Cell<Instant>,
}

impl<'a> Watch<'a> {
    /// Watches over the first `sequences` of a step.
    pub fn new(sequences: usize, is_wanted: &'a dyn Fn(usize) -> bool) -> Self {
        let gone = RefCell::new(vec![false; sequences]);
        Self { is_wanted: Some(is_wanted), gone, asked: Cell::new(Instant::now()) }
    }

    /// Lets every step go to its end.
    pub fn off() -> Self {
        Self { is_wanted: None, gone: RefCell::default(), asked: Cell::new(Instant::now()) }
    }

    /// Asks for all of them, unless that was done a moment ago.
    pub fn look(&self) {
        let Some(is_wanted) = self.is_wanted else { return };
        if self.asked.get().elapsed() < GLANCE {
            return;
        }
        for (i, gone) in self.gone.borrow_mut().iter_mut().enumerate() {
            *gone = *gone || !is_wanted(i);
        }
        self.asked.set(Instant::now());
    }

    /// Whether nobody waits for sequence `i` any more.
    pub fn is_gone(&self, i: usize) -> bool {
        self.gone.borrow().get(i).copied().unwrap_or(false)
    }
}
