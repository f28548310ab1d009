//! Tells the C library's allocator to keep freed buffers for the next step.
//!
//! A training step allocates and frees the same large buffers over and over. By default glibc
//! returns each to the system, and the page faults of getting it back cost a tenth to a third of
//! a small model's step. Elsewhere than on Linux with glibc both functions do nothing.

/// From now on freed memory stays with the process, large buffers included.
///
/// Cheap, and once is enough. The process's size then stays at its peak until
/// [`return_freed_memory`]; nothing is returned of its own accord.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            for (parameter, value) in [
                (glibc::M_MMAP_MAX, 0),              // large buffers from the heap too
                (glibc::M_TRIM_THRESHOLD, i32::MAX), // never shrink the heap
                (glibc::M_TOP_PAD, 64 << 20),        // grow it in large steps
            ] {
                // SAFETY: `mallopt` takes two integers; an unknown one is refused by its result.
                unsafe { glibc::mallopt(parameter, value) };
            }
        });
    }
}

/// Returns what is free now to the system: for the end of a training run.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` takes the bytes to leave at the heap's top and touches only free memory.
    unsafe {
        glibc::malloc_trim(0);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    pub const M_TRIM_THRESHOLD: i32 = -1;
    pub const M_TOP_PAD: i32 = -2;
    pub const M_MMAP_MAX: i32 = -4;

    unsafe extern "C" {
        pub fn mallopt(parameter: i32, value: i32) -> i32;
        pub fn malloc_trim(pad: usize) -> i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_usable_before_and_after() {
        let before = vec![1.0f32; 1 << 20];
        keep_freed_memory();
        let after = vec![2.0f32; 1 << 20];
        drop(before);
        return_freed_memory();
        assert!(after.iter().all(|x| *x == 2.0));
    }
}
