//! How many sequences may be in the server at once: those that run, and a bounded queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::ApiError;
use super::metrics::Metrics;

/// Counts sequences from admission to the end of their request.
pub(super) struct Gate {
    inside: Arc<AtomicUsize>,
    limit: usize,
}

/// The place of one request; leaving it gives it back.
pub(super) struct Ticket {
    inside: Arc<AtomicUsize>,
    sequences: usize,
}

impl Gate {
    /// New requests are refused while `limit` sequences are inside.
    pub fn new(limit: usize) -> Self {
        Self { inside: Arc::default(), limit }
    }

    /// Admits a request of so many sequences if there is any room; one that needs more than is
    /// left is admitted too, or large ones would starve.
    ///
    /// # Errors
    /// Status 429 with the time after which to try again.
    pub fn enter(&self, sequences: usize, metrics: &Metrics) -> Result<Ticket, ApiError> {
        let admit = |inside: usize| (inside < self.limit).then_some(inside + sequences);
        match self.inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit) {
            Ok(_) => Ok(Ticket { inside: self.inside.clone(), sequences }),
            Err(inside) => {
                metrics.refused.add(1);
                // By then about one of the sequences inside has ended.
                let wait = metrics.e2e.mean().unwrap_or(1.0).ceil().clamp(1.0, 60.0);
                Err(ApiError::queue_full(inside, wait as u64))
            }
        }
    }

    /// Sequences inside.
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inside.fetch_sub(self.sequences, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gate_refuses_until_somebody_leaves() {
        let (gate, metrics) = (Gate::new(2), Metrics::default());
        let one = gate.enter(1, &metrics).unwrap();
        let many = gate.enter(5, &metrics).unwrap();
        assert!(gate.enter(1, &metrics).is_err());
        drop(many);
        assert_eq!(gate.inside(), 1);
        let again = gate.enter(1, &metrics).unwrap();
        drop((one, again));
        assert_eq!((gate.inside(), metrics.refused.get()), (0, 1));
    }
}
