//! Ranks as processes that an MPI launcher started.
//!
//! MPI ends the whole job when one of its processes dies, and names it; so nothing here waits for
//! the dead. All calls come from one thread at a time.

use std::sync::Mutex;

use anyhow::{Context, Result};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives, Destination, Source};

use crate::{Communicator, exchange_singly};

/// This process among those of the launcher's job; MPI ends when it is dropped.
pub(crate) struct World {
    rank: usize,
    size: usize,
    /// Held by whoever calls MPI, which wants one caller at a time.
    universe: Mutex<Universe>,
    sent: Mutex<Vec<Sent>>,
}

/// A message on its way, with its bytes.
struct Sent {
    /// `None` once it is done.
    request: Option<Request<'static, [u8], StaticScope>>,
    at: *mut u8,
    len: usize,
}

// SAFETY: requests are used only under `World::universe`'s lock, by one thread at a time.
unsafe impl Send for Sent {}

impl Sent {
    /// Whether MPI has no more use for the bytes, which are then freed.
    fn is_done(&mut self) -> bool {
        if let Some(Err(request)) = self.request.take().map(Request::test) {
            self.request = Some(request);
            return false;
        }
        // SAFETY: these are the bytes `send` leaked, once; the finished request held the only reference.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.at, self.len)) });
        true
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let sent = self.sent.get_mut().expect("no panic while held");
        while !sent.is_empty() {
            sent.retain_mut(|s| !s.is_done());
        }
    }
}

impl World {
    /// Starts MPI; once in a process.
    pub(crate) fn new() -> Self {
        let (universe, _) =
            mpi::initialize_with_threading(Threading::Serialized).expect("MPI is started once in a process");
        let world = universe.world();
        Self {
            rank: world.rank() as usize,
            size: world.size() as usize,
            universe: Mutex::new(universe),
            sent: Mutex::default(),
        }
    }

    fn with<T>(&self, call: impl FnOnce(SimpleCommunicator) -> T) -> T {
        let universe = self.universe.lock().expect("no panic while held");
        call(universe.world())
    }
}

/// MPI counts in 32-bit integers.
fn count(n: usize) -> Result<i32> {
    i32::try_from(n).context("a message of 2 GiB or more")
}

impl Communicator for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&self, _op: &'static str, tag: u16, to: usize, data: &[u8]) -> Result<()> {
        count(data.len())?;
        let data: &'static mut [u8] = Box::leak(Box::from(data));
        let (at, len) = (data.as_mut_ptr(), data.len());
        let mut sent = self.sent.lock().expect("no panic while held");
        self.with(|world| {
            sent.retain_mut(|s| !s.is_done());
            let request =
                world.process_at_rank(to as i32).immediate_send_with_tag(StaticScope, &*data, i32::from(tag));
            sent.push(Sent { request: Some(request), at, len });
        });
        Ok(())
    }

    fn recv(&self, _op: &'static str, tag: u16, from: usize, data: &mut [u8]) -> Result<()> {
        count(data.len())?;
        self.with(|world| world.process_at_rank(from as i32).receive_into_with_tag(data, i32::from(tag)));
        Ok(())
    }

    fn exchange(
        &self,
        op: &'static str,
        members: &[usize],
        send: &[&[u8]],
        recv: &mut [&mut [u8]],
    ) -> Result<()> {
        if members.len() < self.size {
            return exchange_singly(self, op, members, send, recv);
        }
        let counts = |lens: &mut dyn Iterator<Item = usize>| -> Result<(Vec<i32>, Vec<i32>)> {
            let counts = lens.map(count).collect::<Result<Vec<_>>>()?;
            let mut at = 0i32;
            let places = counts
                .iter()
                .map(|n| {
                    let next = at.checked_add(*n).context("messages of 2 GiB or more")?;
                    Ok(std::mem::replace(&mut at, next))
                })
                .collect::<Result<_>>()?;
            Ok((counts, places))
        };
        let (send_counts, send_places) = counts(&mut send.iter().map(|s| s.len()))?;
        let (recv_counts, recv_places) = counts(&mut recv.iter().map(|r| r.len()))?;
        // One byte more than is sent: Rust's address of nothing is what MPI calls `MPI_IN_PLACE`.
        let mut from = send.concat();
        from.push(0);
        let mut into = vec![0u8; recv.iter().map(|r| r.len()).sum::<usize>() + 1];
        self.with(|world| {
            let from = Partition::new(&from[..], send_counts, send_places);
            let mut into = PartitionMut::new(&mut into[..], recv_counts, recv_places);
            world.all_to_all_varcount_into(&from, &mut into);
        });
        let mut rest = &into[..];
        for piece in recv {
            let (head, tail) = rest.split_at(piece.len());
            piece.copy_from_slice(head);
            rest = tail;
        }
        Ok(())
    }

    fn abandon(&self, reason: &str) {
        eprintln!("error: rank {} of {} failed: {reason}", self.rank, self.size);
        self.with(|world| world.abort(1));
    }
}
