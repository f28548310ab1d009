//! A few threads that share short loops: the caller and its workers take turns at one counter.
//!
//! Made for the hundreds of regions of a forward pass: a worker that runs out of work spins for
//! some microseconds, then sleeps, since these are shared machines. Nobody waits for a worker
//! that has not begun: the caller does its part, and only those that took some are waited for.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(30);

/// Persistent threads for loops over independent tasks.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose loop runs; others do theirs alone.
    busy: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Copy of `State::epoch` to look at without the lock.
    epoch: AtomicU64,
    /// Next task of the current job.
    next: AtomicUsize,
    /// Workers inside the current job.
    active: AtomicUsize,
    panicked: AtomicBool,
}

struct State {
    /// Counts jobs, and the end.
    epoch: u64,
    job: Option<Job>,
    sleeping: usize,
    stop: bool,
}

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    work: *const (dyn Fn(usize) + Sync),
}

// SAFETY: the closure is Sync, and `Pool::run` keeps it alive until no worker is in the job.
unsafe impl Send for Job {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No invariant spans a panic: tasks run outside the locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool in which `threads` threads work, the caller among them; 0 takes every core.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State { epoch: 0, job: None, sleeping: 0, stop: false }),
            wake: Condvar::new(),
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        // Built first: dropping it stops the workers should a later one fail to start.
        let mut pool = Self { shared, workers: Vec::new(), busy: Mutex::new(()) };
        for i in 1..threads {
            let shared = pool.shared.clone();
            let name = format!("kernels-{i}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller among them.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(i)` for every `i` below `tasks`, in any order, on any of the threads.
    ///
    /// Panics if a task does, after all others that began have ended. Called from a task, or
    /// while another thread's loop runs, it does everything on the calling thread.
    pub fn run(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        let guard = match tasks {
            0 | 1 => None,
            _ if self.workers.is_empty() => None,
            _ => self.busy.try_lock().ok(),
        };
        let Some(_guard) = guard else { return (0..tasks).for_each(work) };
        let work: &(dyn Fn(usize) + Sync) = &work;
        // SAFETY: only the lifetime changes; the job ends before this function does.
        let work: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { tasks, work };
        self.shared.begin(job);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(job)));
        self.shared.end();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!self.shared.panicked.swap(false, Relaxed), "a task panicked on another thread");
    }

    /// [`Pool::run`] over the chunks of `data`, with their indices.
    pub fn chunks<T: Send>(&self, data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let count = data.len().div_ceil(size.max(1));
        let (all, len) = (Shareable(data.as_mut_ptr()), data.len());
        self.run(count, |i| {
            let (start, end) = (i * size, len.min((i + 1) * size));
            // SAFETY: chunks are disjoint parts of `data`, which is borrowed for the call.
            work(i, unsafe { std::slice::from_raw_parts_mut(all.get().add(start), end - start) });
        });
    }

    /// [`Pool::chunks`] over two slices with as many chunks.
    pub fn zip_chunks<A: Send, B: Send>(
        &self,
        (a, a_size): (&mut [A], usize),
        (b, b_size): (&mut [B], usize),
        work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        assert_eq!(a.len().div_ceil(a_size.max(1)), b.len().div_ceil(b_size.max(1)), "as many chunks");
        let (all, len) = (Shareable(b.as_mut_ptr()), b.len());
        self.chunks(a, a_size, |i, a| {
            let (start, end) = (i * b_size, len.min((i + 1) * b_size));
            // SAFETY: as in `chunks`.
            work(i, a, unsafe { std::slice::from_raw_parts_mut(all.get().add(start), end - start) });
        });
    }
}

/// A pointer several threads use for disjoint elements.
pub(crate) struct Shareable<T>(pub *mut T);

// SAFETY: its users touch disjoint elements, which may be sent to their threads.
unsafe impl<T: Send> Sync for Shareable<T> {}

impl<T> Shareable<T> {
    pub fn get(&self) -> *mut T {
        self.0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.stop = true;
        state.epoch += 1;
        self.shared.epoch.store(state.epoch, Release);
        drop(state);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn begin(&self, job: Job) {
        let mut state = lock(&self.state);
        self.next.store(0, Relaxed);
        state.job = Some(job);
        state.epoch += 1;
        self.epoch.store(state.epoch, Release);
        if state.sleeping > 0 {
            drop(state);
            self.wake.notify_all();
        }
    }

    /// Lets nobody in any more and waits for those inside.
    fn end(&self) {
        lock(&self.state).job = None;
        let mut looks = 0u32;
        while self.active.load(Acquire) > 0 {
            // Whoever is inside finishes its task; give it the core if it has none.
            looks += 1;
            if looks < 1 << 12 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    fn take_tasks(&self, job: Job) {
        loop {
            let i = self.next.fetch_add(1, Relaxed);
            if i >= job.tasks {
                return;
            }
            // SAFETY: the closure lives until `end` has returned, which waits for us.
            unsafe { (*job.work)(i) };
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        loop {
            let mut since = None;
            while self.epoch.load(Acquire) == seen {
                for _ in 0..64 {
                    std::hint::spin_loop();
                }
                if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
                    break;
                }
            }
            let mut state = lock(&self.state);
            while state.epoch == seen {
                state.sleeping += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
            seen = state.epoch;
            if state.stop {
                return;
            }
            let Some(job) = state.job else { continue };
            self.active.fetch_add(1, Relaxed); // under the lock, so `end` sees it
            drop(state);
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))).is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.active.fetch_sub(1, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn jobs_follow_each_other_without_mixing() {
        let pool = Pool::new(3).unwrap();
        for round in 0..2000 {
            let mut data = vec![0usize; 7];
            pool.chunks(&mut data, 2, |i, part| part.iter_mut().for_each(|x| *x = round + i));
            assert_eq!(data, [0, 0, 1, 1, 2, 2, 3].map(|i| round + i));
        }
    }

    #[test]
    fn loops_inside_loops_and_from_other_threads_work() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(4, |_| {
                            pool.run(3, |_| {
                                total.fetch_add(1, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 50 * 12);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..20 {
            let run = catch_unwind(AssertUnwindSafe(|| pool.run(20, |i| assert_ne!(i, bad))));
            assert!(run.is_err());
            let mut data = vec![0; 9];
            pool.chunks(&mut data, 1, |i, x| x[0] = i);
            assert_eq!(data, (0..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn two_slices_go_together() {
        let pool = Pool::new(2).unwrap();
        let (mut a, mut b) = (vec![0; 10], vec![0; 5]);
        pool.zip_chunks((&mut a, 4), (&mut b, 2), |i, a, b| {
            a.fill(i);
            b.fill(10 * i);
        });
        assert_eq!((a, b), (vec![0, 0, 0, 0, 1, 1, 1, 1, 2, 2], vec![0, 0, 10, 10, 20]));
    }
}
