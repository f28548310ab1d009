//! Ranks as threads of one process: for tests, for several devices in a machine, and the job of
//! one rank.
//!
//! Each rank has an inbox with a queue per sender. Sending appends and never waits; receiving
//! waits for the sender's next message of a tag, for its end, or for any rank's failure.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use anyhow::{Result, bail, ensure};

use crate::{Comm, Communicator, exchange_singly};

/// A message's tag, the operation it belongs to, and its bytes.
type Message = (u16, &'static str, Vec<u8>);

/// What all ranks of a job share.
struct Hub {
    inboxes: Vec<Inbox>,
    /// The first rank that failed, and why.
    failure: OnceLock<(usize, String)>,
}

struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Messages by sender.
    queues: Vec<VecDeque<Message>>,
    /// Senders that are no longer there.
    left: Vec<bool>,
}

/// The handles of a job of `size` ranks, in order, each for a thread of its own.
#[must_use]
pub fn group(size: usize) -> Vec<Comm> {
    assert!(size > 0, "a job has at least one rank");
    let state = || State { queues: (0..size).map(|_| VecDeque::new()).collect(), left: vec![false; size] };
    let inbox = || Inbox { state: Mutex::new(state()), changed: Condvar::new() };
    let hub = Arc::new(Hub { inboxes: (0..size).map(|_| inbox()).collect(), failure: OnceLock::new() });
    (0..size).map(|rank| Comm::new(Box::new(Thread { hub: hub.clone(), rank }))).collect()
}

/// Runs `work` once per rank, each on a thread of its own, and returns what they gave, in order.
///
/// # Errors
/// The error of the rank that failed first, which ends the others.
///
/// # Panics
/// If a rank panics, with its panic.
pub fn run<T: Send>(size: usize, work: impl Fn(&Comm) -> Result<T> + Sync) -> Result<Vec<T>> {
    let first = OnceLock::new();
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let spawn = |comm: Comm| {
            let (work, first) = (&work, &first);
            scope.spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| work(&comm)));
                let why = match &result {
                    Ok(Ok(_)) => return result,
                    Ok(Err(e)) => format!("{e:#}"),
                    Err(_) => "it panicked".to_string(),
                };
                let _ = first.set(comm.rank());
                comm.abandon(&why);
                result
            })
        };
        let ranks: Vec<_> = group(size).into_iter().map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().expect("its panics are caught")).collect()
    });
    match first.get() {
        None => results.into_iter().map(|r| r.unwrap_or_else(|panic| resume_unwind(panic))).collect(),
        Some(&rank) => match results.swap_remove(rank) {
            Err(panic) => resume_unwind(panic),
            Ok(result) => Err(result.err().expect("this rank failed")),
        },
    }
}

/// One rank.
struct Thread {
    hub: Arc<Hub>,
    rank: usize,
}

impl Thread {
    /// Tells every waiting rank to look again.
    fn wake_all(&self, change: impl Fn(&mut State)) {
        for inbox in &self.hub.inboxes {
            change(&mut inbox.state.lock().expect("no panic while held"));
            inbox.changed.notify_all();
        }
    }
}

impl Communicator for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.hub.inboxes.len()
    }

    fn send(&self, op: &'static str, tag: u16, to: usize, data: &[u8]) -> Result<()> {
        let inbox = &self.hub.inboxes[to];
        let mut state = inbox.state.lock().expect("no panic while held");
        state.queues[self.rank].push_back((tag, op, data.to_vec()));
        inbox.changed.notify_all();
        Ok(())
    }

    fn recv(&self, op: &'static str, tag: u16, from: usize, data: &mut [u8]) -> Result<()> {
        let inbox = &self.hub.inboxes[self.rank];
        let mut state = inbox.state.lock().expect("no panic while held");
        let (_, sent, message) = loop {
            let queue = &mut state.queues[from];
            if let Some(at) = queue.iter().position(|m| m.0 == tag) {
                break queue.remove(at).expect("just found");
            }
            if let Some((rank, why)) = self.hub.failure.get() {
                bail!("rank {rank} of {} failed: {why}", self.size());
            }
            ensure!(!state.left[from], "rank {from} of {} ended before {op}", self.size());
            state = inbox.changed.wait(state).expect("no panic while held");
        };
        drop(state);
        ensure!(
            sent == op && message.len() == data.len(),
            "rank {} is in {op} of {} bytes, rank {from} in {sent} of {}",
            self.rank,
            data.len(),
            message.len()
        );
        data.copy_from_slice(&message);
        Ok(())
    }

    fn exchange(
        &self,
        op: &'static str,
        members: &[usize],
        send: &[&[u8]],
        recv: &mut [&mut [u8]],
    ) -> Result<()> {
        exchange_singly(self, op, members, send, recv)
    }

    fn abandon(&self, reason: &str) {
        let _ = self.hub.failure.set((self.rank, reason.to_string()));
        self.wake_all(|_| {});
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.wake_all(|state| state.left[self.rank] = true);
    }
}
