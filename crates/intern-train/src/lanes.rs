//! Shares the sequences of an update out over the machine's threads.
//!
//! A *lane* works on one sequence at a time, on threads and buffers of its own; with at least as
//! many sequences as threads each lane has one thread, which then never waits for another. The
//! sums that lanes add to do not depend on their order, and kernels give the same bits for any
//! number of threads, so the number of lanes changes nothing but time and memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use intern_model::backprop::Workspace;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads and buffers for work on several sequences at once.
pub struct Lanes(Vec<Lane>);

struct Lane {
    pool: ThreadPool,
    work: Workspace,
}

impl Lanes {
    /// Lanes for at most `sequences` at once, on as many threads as the current pool has.
    pub fn new(sequences: usize) -> Result<Self> {
        let threads = rayon::current_num_threads();
        let lanes = threads.min(sequences).max(1);
        let lane = |i: usize| {
            let own = threads * (i + 1) / lanes - threads * i / lanes;
            let pool =
                ThreadPoolBuilder::new().num_threads(own).thread_name(move |t| format!("lane {i}.{t}"));
            Ok(Lane { pool: pool.build()?, work: Workspace::default() })
        };
        Ok(Self((0..lanes).map(lane).collect::<Result<_>>()?))
    }

    /// Runs `work` for each of `0..n`, in any order and several at once; results in order.
    pub fn run<T: Send>(
        &mut self,
        n: usize,
        work: impl Fn(usize, &mut Workspace) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new((0..n).map(|_| None).collect::<Vec<_>>());
        let run = |lane: &mut Lane| {
            lane.pool.install(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        return;
                    }
                    let result = work(i, &mut lane.work);
                    results.lock().expect("storing does not panic")[i] = Some(result);
                }
            });
        };
        std::thread::scope(|scope| {
            let (first, others) = self.0.split_first_mut().expect("at least one lane");
            for lane in others.iter_mut().take(n.saturating_sub(1)) {
                scope.spawn(|| run(lane));
            }
            run(first);
        });
        let results = results.into_inner().expect("storing does not panic");
        results.into_iter().map(|r| r.expect("every number is taken once")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_worked_on_once_and_results_are_in_order() {
        for (threads, sequences) in [(1, 1), (2, 8), (3, 2), (4, 1)] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut lanes = pool.install(|| Lanes::new(sequences)).unwrap();
            assert_eq!(lanes.0.len(), threads.min(sequences));
            assert_eq!(lanes.0.iter().map(|l| l.pool.current_num_threads()).sum::<usize>(), threads);
            for n in [0, 1, 5, 20] {
                let squares = lanes.run(n, |i, _| Ok(i * i)).unwrap();
                assert_eq!(squares, (0..n).map(|i| i * i).collect::<Vec<_>>());
            }
            assert!(lanes.run(5, |i, _| if i == 3 { anyhow::bail!("three") } else { Ok(()) }).is_err());
        }
    }
}
