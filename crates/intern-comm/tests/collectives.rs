//! Every operation over one to four ranks, what it moves, and what happens when a rank ends.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use intern_comm::{Comm, Op, even_cuts, threads};

/// Element `i` of rank `rank`; thirds, so that sums depend on their order.
fn float(rank: usize, i: usize) -> f32 {
    (rank * 7 + i) as f32 / 3.0
}

/// Runs every operation on `comm` and checks what it gives.
fn check_all(comm: &Comm) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    comm.barrier()?;

    // Longer than a message's window, and not a multiple of anything.
    for len in [0, 1, 2, 5, 1_500_007] {
        let sum = |i: usize| (1..size).fold(float(0, i), |sum, r| sum + float(r, i));
        let mut data: Vec<f32> = (0..len).map(|i| float(rank, i)).collect();
        comm.all_reduce(&mut data, Op::Sum)?;
        assert!(data.iter().enumerate().all(|(i, x)| *x == sum(i)), "sums in the order of the ranks");

        let cuts = even_cuts(len, size, 4);
        let mut data: Vec<f32> = (0..len).map(|i| float(rank, i)).collect();
        comm.reduce_scatter(&mut data, &cuts, Op::Sum)?;
        for (i, x) in data.iter().enumerate() {
            let own = (cuts[rank]..cuts[rank + 1]).contains(&i);
            assert_eq!(*x, if own { sum(i) } else { float(rank, i) });
        }
        comm.all_gather(&mut data, &cuts)?;
        assert!(data.iter().enumerate().all(|(i, x)| *x == sum(i)));
    }

    let mut ints = [i64::MAX, rank as i64, -(rank as i64)];
    comm.all_reduce(&mut ints, Op::Sum)?;
    let total = (size * (size - 1) / 2) as i64;
    assert_eq!(ints, [i64::MAX.wrapping_mul(size as i64), total, -total]);
    let mut tops = [rank as f64, -(rank as f64)];
    comm.all_reduce(&mut tops, Op::Max)?;
    assert_eq!(tops, [size as f64 - 1.0, 0.0]);

    for root in 0..size {
        let mut word = if rank == root { *b"word" } else { [0; 4] };
        comm.broadcast(root, &mut word)?;
        assert_eq!(&word, b"word");
    }

    // Around the ring.
    let mut token = [0i64];
    comm.send((rank + 1) % size, 1, &[rank as i64])?;
    comm.recv((rank + size - 1) % size, 1, &mut token)?;
    assert_eq!(token[0] as usize, (rank + size - 1) % size);

    // Everybody sends first, more than a mailbox holds, and receives by tag, not in the order sent.
    let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
    for tag in [2, 3] {
        comm.send(next, tag, &vec![f32::from(tag); 200_000])?;
    }
    for tag in [3, 2] {
        let mut data = vec![0.0; 200_000];
        comm.recv(before, tag, &mut data)?;
        assert!(data.iter().all(|x| *x == f32::from(tag)));
    }

    // Groups of ranks: the even and the odd ones, which work at the same time, then all but the first.
    let same: Vec<usize> = (0..size).filter(|r| r % 2 == rank % 2).collect();
    let group = comm.group(&same);
    assert_eq!((group.rank(), group.size()), (rank / 2, same.len()));
    let mut sum: Vec<i64> = vec![rank as i64; 100_000];
    group.all_reduce(&mut sum, Op::Sum)?;
    assert!(sum.iter().all(|s| *s == same.iter().sum::<usize>() as i64));
    if rank > 0 {
        let others = comm.group(&(1..size).collect::<Vec<_>>());
        let mut word = [if rank == size - 1 { 7i64 } else { 0 }];
        others.broadcast(others.size() - 1, &mut word)?;
        assert_eq!(word, [7]);
    }
    comm.barrier()
}

#[test]
fn every_operation_over_one_to_four_ranks() {
    for size in 1..=4 {
        threads::run(size, check_all).unwrap();
    }
    check_all(&Comm::alone()).unwrap();
}

#[test]
fn no_more_moves_than_around_a_ring() {
    for size in 1..=4u64 {
        let (len, bytes) = (12_000usize, 12_000 * 8);
        let counted = threads::run(size as usize, |comm| {
            let mut data = vec![1i64; len];
            let cuts = even_cuts(len, comm.size(), 1);
            comm.reduce_scatter(&mut data, &cuts, Op::Sum)?;
            comm.all_gather(&mut data, &cuts)?;
            comm.all_reduce(&mut data, Op::Sum)?;
            comm.barrier()?;
            Ok(comm.traffic())
        });
        for traffic in counted.unwrap() {
            let expect = [("all_gather", 1), ("all_reduce", 2), ("barrier", 0), ("reduce_scatter", 1)];
            for (op, times) in expect {
                assert_eq!(traffic[op].bytes, times * bytes * (size - 1) / size, "{op} over {size}");
                assert_eq!(traffic[op].calls, 1);
            }
        }
    }
}

/// Rank 1 of three ends as `end` does while the others are in a collective.
#[track_caller]
fn check_end(end: fn() -> Result<()>, expect: &str) {
    let start = Instant::now();
    let seen = std::sync::Mutex::new(Vec::new());
    let result = threads::run(3, |comm| {
        comm.barrier()?;
        if comm.rank() == 1 {
            return end();
        }
        let error = comm.all_reduce(&mut [1.0f32; 9], Op::Sum).unwrap_err();
        seen.lock().unwrap().push(format!("{error:#}"));
        bail!(error)
    });
    assert!(result.is_err());
    let seen = seen.into_inner().unwrap();
    assert!(seen.len() == 2 && seen.iter().any(|e| e.contains(expect)), "{seen:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_rank_that_ends_is_named() {
    check_end(|| bail!("out of memory"), "rank 1 of 3 failed: out of memory");
    check_end(|| Ok(()), "rank 1 of 3 ended before all_reduce");
}

#[test]
#[should_panic(expected = "of rank 1")]
fn a_panic_goes_on_in_the_caller() {
    let _ = threads::run(2, |comm| {
        assert_ne!(comm.rank(), 1, "the panic of rank 1");
        comm.barrier()
    });
}

#[test]
fn ranks_in_different_operations_are_told() {
    let error = threads::run(2, |comm| {
        if comm.rank() == 0 { comm.barrier() } else { comm.all_reduce(&mut [0i64; 4], Op::Max) }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("barrier") && error.contains("all_reduce"), "{error}");
}

#[test]
fn every_operation_over_processes() {
    if !intern_comm::HAS_MPI {
        eprintln!("skipped: built without the feature mpi");
        return;
    }
    for ranks in ["2", "3"] {
        let mut command = std::process::Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", ranks]);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", "mpi", "--nocapture"]);
        let output = command.output().expect("mpirun starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(&format!("of {ranks}: ok")), "{text}");
    }
}

/// The same under MPI: `mpirun -n N cargo test -p intern-comm --features mpi -- --exact mpi`.
#[test]
fn mpi() {
    if let Some(comm) = intern_comm::world().unwrap() {
        check_all(&comm).unwrap();
        println!("rank {} of {}: ok", comm.rank(), comm.size());
    }
}
