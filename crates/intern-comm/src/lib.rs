//! Collectives between the ranks of one job: threads of a process, or processes under MPI.
//!
//! A [`Comm`] is one rank's handle. Every collective is built on the exchange of byte messages
//! that a [`Communicator`] provides, so the algorithms, their traffic and the order of their sums
//! are the same everywhere: floats are added in the order of the ranks, integers in any, and each
//! element is moved no more often than a ring would. What a rank hands to others is counted, by
//! operation. A rank that ends early makes the others' calls fail with its name; nothing waits for
//! the dead.
//!
//! Backends: [`Comm::alone`] (one rank), [`threads::run`], and [`world`] with the feature `mpi`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};

#[cfg(feature = "mpi")]
mod mpi;
pub mod threads;

/// Whether ranks can be processes under MPI.
pub const HAS_MPI: bool = cfg!(feature = "mpi");

/// Bytes of one message of a long collective, so that its buffers stay small.
const WINDOW: usize = 4 << 20;

/// What a backend provides: byte messages between numbered ranks.
///
/// `op` names the caller's operation; ranks that meet in different ones have a bug, which a
/// backend may report.
pub trait Communicator: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Sends `data` to rank `to`; does not wait for it to be received.
    ///
    /// # Errors
    /// If a rank has ended.
    fn send(&self, op: &'static str, tag: u16, to: usize, data: &[u8]) -> Result<()>;

    /// Receives exactly `data.len()` bytes: the oldest message of rank `from` with this tag.
    ///
    /// # Errors
    /// If the sender has ended, or sent something else.
    fn recv(&self, op: &'static str, tag: u16, from: usize, data: &mut [u8]) -> Result<()>;

    /// Each of the ranks `members`, of which this is one, sends `send[i]` to `members[i]` and
    /// receives `recv[i]` from it, itself included.
    ///
    /// # Errors
    /// As [`Communicator::send`] and [`Communicator::recv`].
    fn exchange(
        &self,
        op: &'static str,
        members: &[usize],
        send: &[&[u8]],
        recv: &mut [&mut [u8]],
    ) -> Result<()>;

    /// Ends this rank for a reason; the others' pending and later calls fail with it.
    fn abandon(&self, reason: &str);
}

/// [`Communicator::exchange`], message by message.
fn exchange_singly(
    ranks: &impl Communicator,
    op: &'static str,
    members: &[usize],
    send: &[&[u8]],
    recv: &mut [&mut [u8]],
) -> Result<()> {
    for (&to, data) in members.iter().zip(send).filter(|(to, _)| **to != ranks.rank()) {
        ranks.send(op, 0, to, data)?;
    }
    for (&from, (data, own)) in members.iter().zip(recv.iter_mut().zip(send)) {
        if from == ranks.rank() {
            data.copy_from_slice(own);
        } else {
            ranks.recv(op, 0, from, data)?;
        }
    }
    Ok(())
}

/// How elements of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Their sum; integers wrap.
    Sum,
    /// The largest.
    Max,
}

/// An element that can be reduced.
pub trait Element: bytemuck::Pod {
    /// `a` and `b` as one.
    #[must_use]
    fn combine(op: Op, a: Self, b: Self) -> Self;
}

macro_rules! element {
    ($type:ty, $add:expr) => {
        impl Element for $type {
            fn combine(op: Op, a: Self, b: Self) -> Self {
                match op {
                    Op::Sum => $add(a, b),
                    Op::Max => a.max(b),
                }
            }
        }
    };
}
element!(i64, i64::wrapping_add);
element!(f32, |a, b| a + b);
element!(f64, |a, b| a + b);

/// Calls of one operation and the bytes they handed to other ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Calls.
    pub calls: u64,
    /// Bytes sent by this rank.
    pub bytes: u64,
}

/// One rank's handle on its job, or on a group of its ranks.
pub struct Comm {
    backend: Arc<dyn Communicator>,
    /// The backend's numbers of the group's ranks.
    members: Vec<usize>,
    /// This rank's place among them.
    rank: usize,
    /// Of the job, all groups together.
    traffic: Arc<Mutex<BTreeMap<&'static str, Traffic>>>,
}

/// The job this process was started in by an MPI launcher; `None` where there was none.
///
/// # Errors
/// If there is one with several ranks, and the feature `mpi` is not compiled in.
pub fn world() -> Result<Option<Comm>> {
    #[cfg(feature = "mpi")]
    return Ok(launched().then(|| Comm::new(Box::new(mpi::World::new()))));
    #[cfg(not(feature = "mpi"))]
    {
        ensure!(
            !launched(),
            "this process is one of several that an MPI launcher started, and the program was built without MPI\n\
             hint: cargo build --release --features mpi"
        );
        Ok(None)
    }
}

/// Whether an MPI launcher started this process as one of several.
fn launched() -> bool {
    // Open MPI, MPICH and Slurm's PMI.
    let size = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(1);
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().any(|name| size(name) > 1)
}

/// Which rank of a launcher's job this process is, known before [`world`] joins it; `None` where
/// there are not several.
#[must_use]
pub fn launched_rank() -> Option<usize> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok());
    launched().then(|| ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].into_iter().find_map(number).unwrap_or(0))
}

impl Comm {
    /// The handle of a rank of `backend`.
    #[must_use]
    pub fn new(backend: Box<dyn Communicator>) -> Self {
        let (rank, members) = (backend.rank(), (0..backend.size()).collect());
        Self { backend: backend.into(), members, rank, traffic: Arc::default() }
    }

    /// The handle on the group of `ranks` (numbers of this group, ascending), of which this is one.
    /// No message is needed to form it; ranks that share several groups must call their
    /// collectives in the same order.
    ///
    /// # Panics
    /// If this rank is not among them.
    #[must_use]
    pub fn group(&self, ranks: &[usize]) -> Self {
        let rank = ranks.iter().position(|&r| r == self.rank).expect("a rank makes groups it is in");
        Self {
            backend: self.backend.clone(),
            members: ranks.iter().map(|&r| self.members[r]).collect(),
            rank,
            traffic: self.traffic.clone(),
        }
    }

    /// A job of one rank, whose collectives do nothing.
    #[must_use]
    pub fn alone() -> Self {
        threads::group(1).remove(0)
    }

    /// This rank, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// What this rank has handed to others so far, by operation.
    #[must_use]
    pub fn traffic(&self) -> BTreeMap<&'static str, Traffic> {
        self.traffic.lock().expect("counting does not panic").clone()
    }

    /// Ends this rank for a reason; the others' pending and later calls fail with it.
    pub fn abandon(&self, reason: &str) {
        self.backend.abandon(reason);
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As every operation here: if a rank has ended.
    pub fn barrier(&self) -> Result<()> {
        self.count("barrier", 0);
        let mut none: Vec<&mut [u8]> = (0..self.size()).map(|_| &mut [][..]).collect();
        self.backend.exchange("barrier", &self.members, &vec![&[][..]; self.size()], &mut none)
    }

    /// Gives every rank the `data` of rank `root`; all pass slices of one length.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn broadcast<T: bytemuck::Pod>(&self, root: usize, data: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        if self.rank() != root {
            self.count("broadcast", 0);
            return self.backend.recv("broadcast", 0, self.members[root], bytes);
        }
        self.count("broadcast", bytes.len() * (self.size() - 1));
        let mut others = self.members.iter().enumerate().filter(|(to, _)| *to != root);
        others.try_for_each(|(_, &to)| self.backend.send("broadcast", 0, to, bytes))
    }

    /// Replaces `data` by its reduction over the ranks; all pass slices of one length.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn all_reduce<T: Element>(&self, data: &mut [T], op: Op) -> Result<()> {
        let cuts = even_cuts(data.len(), self.size(), 1);
        self.reduce_into_parts("all_reduce", data, &cuts, op)?;
        self.gather_parts("all_reduce", data, &cuts)?;
        self.count("all_reduce", 0);
        Ok(())
    }

    /// Reduces part `r` of `data` on rank `r`, part `r` being `cuts[r]..cuts[r + 1]`.
    ///
    /// A rank's own part then holds the result, and the rest of `data` its old content.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn reduce_scatter<T: Element>(&self, data: &mut [T], cuts: &[usize], op: Op) -> Result<()> {
        self.reduce_into_parts("reduce_scatter", data, cuts, op)?;
        self.count("reduce_scatter", 0);
        Ok(())
    }

    /// Gives every rank part `r` of `data` as rank `r` has it, for all `r`; parts are as in
    /// [`Comm::reduce_scatter`].
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn all_gather<T: bytemuck::Pod>(&self, data: &mut [T], cuts: &[usize]) -> Result<()> {
        self.gather_parts("all_gather", data, cuts)?;
        self.count("all_gather", 0);
        Ok(())
    }

    /// Sends `data` to rank `to`, which receives the messages of one `tag` in their order; does not
    /// wait for it. Tag 0 is the collectives'.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn send<T: bytemuck::Pod>(&self, to: usize, tag: u16, data: &[T]) -> Result<()> {
        self.count("send", std::mem::size_of_val(data));
        self.backend.send("send", tag, self.members[to], bytemuck::cast_slice(data))
    }

    /// Receives `data.len()` elements from rank `from`.
    ///
    /// # Errors
    /// If the sender has ended.
    pub fn recv<T: bytemuck::Pod>(&self, from: usize, tag: u16, data: &mut [T]) -> Result<()> {
        self.backend.recv("send", tag, self.members[from], bytemuck::cast_slice_mut(data))
    }

    /// Reduces each rank's part on it, a window at a time.
    fn reduce_into_parts<T: Element>(
        &self,
        op_name: &'static str,
        data: &mut [T],
        cuts: &[usize],
        op: Op,
    ) -> Result<()> {
        self.check(data.len(), cuts)?;
        if self.size() == 1 {
            return Ok(());
        }
        let (rank, size) = (self.rank(), self.size());
        let mut received: Vec<Vec<T>> = vec![Vec::new(); size];
        for window in windows::<T>(cuts) {
            let part = |r: usize| within(cuts, r, &window);
            let own = part(rank);
            let bytes: usize = (0..size).filter(|&r| r != rank).map(|r| part(r).len()).sum();
            self.add_bytes(op_name, bytes * size_of::<T>());
            let pieces: Vec<&[u8]> = (0..size).map(|r| bytemuck::cast_slice(&data[part(r)])).collect();
            received.iter_mut().for_each(|r| r.resize(own.len(), T::zeroed()));
            let mut into: Vec<&mut [u8]> =
                received.iter_mut().map(|r| bytemuck::cast_slice_mut(r.as_mut_slice())).collect();
            self.backend.exchange(op_name, &self.members, &pieces, &mut into)?;
            // In the order of the ranks, whoever is asked.
            data[own.clone()].copy_from_slice(&received[0]);
            for other in &received[1..] {
                for (a, b) in data[own.clone()].iter_mut().zip(other) {
                    *a = T::combine(op, *a, *b);
                }
            }
        }
        Ok(())
    }

    /// Gives each rank's part to all, a window at a time.
    fn gather_parts<T: bytemuck::Pod>(&self, op: &'static str, data: &mut [T], cuts: &[usize]) -> Result<()> {
        self.check(data.len(), cuts)?;
        if self.size() == 1 {
            return Ok(());
        }
        let (rank, size) = (self.rank(), self.size());
        for window in windows::<T>(cuts) {
            let own = data[within(cuts, rank, &window)].to_vec();
            let own: &[u8] = bytemuck::cast_slice(&own);
            self.add_bytes(op, own.len() * (size - 1));
            let mut into: Vec<&mut [u8]> = Vec::with_capacity(size);
            let (mut rest, mut at) = (&mut *data, 0);
            for r in 0..size {
                let part = within(cuts, r, &window);
                let (_, tail) = rest.split_at_mut(part.start - at);
                let (piece, tail) = tail.split_at_mut(part.len());
                into.push(bytemuck::cast_slice_mut(piece));
                (rest, at) = (tail, part.end);
            }
            self.backend.exchange(op, &self.members, &vec![own; size], &mut into)?;
        }
        Ok(())
    }

    fn check(&self, len: usize, cuts: &[usize]) -> Result<()> {
        let ascending = cuts.windows(2).all(|w| w[0] <= w[1]);
        ensure!(
            cuts.len() == self.size() + 1 && cuts[0] == 0 && cuts[self.size()] == len && ascending,
            "{len} elements cut at {cuts:?} for {} ranks",
            self.size()
        );
        Ok(())
    }

    fn count(&self, op: &'static str, bytes: usize) {
        let mut traffic = self.traffic.lock().expect("counting does not panic");
        let entry = traffic.entry(op).or_default();
        entry.calls += 1;
        entry.bytes += bytes as u64;
    }

    fn add_bytes(&self, op: &'static str, bytes: usize) {
        self.traffic.lock().expect("counting does not panic").entry(op).or_default().bytes += bytes as u64;
    }
}

/// Cuts `len` elements into `parts` of nearly equal length, every cut but the last a multiple of
/// `align`: `parts + 1` ascending positions.
#[must_use]
pub fn even_cuts(len: usize, parts: usize, align: usize) -> Vec<usize> {
    let blocks = len.div_ceil(align);
    (0..=parts).map(|i| (blocks * i / parts * align).min(len)).collect()
}

/// The offsets within each part that one message covers.
fn windows<T>(cuts: &[usize]) -> impl Iterator<Item = Range<usize>> {
    let longest = cuts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
    let step = (WINDOW / size_of::<T>() / (cuts.len() - 1)).max(1);
    (0..longest).step_by(step).map(move |from| from..from + step)
}

/// The elements of part `r` that lie in the window.
fn within(cuts: &[usize], r: usize, window: &Range<usize>) -> Range<usize> {
    let (start, end) = (cuts[r], cuts[r + 1]);
    (start + window.start).min(end)..(start + window.end).min(end)
}
