//! The loops over groups, blocks and tiles, generic over format and instruction set.
//!
//! A tile of up to eight rows of `x` runs with exactly as many accumulators. A few tiles read
//! the packed bytes; many share a panel: four groups of `W` decoded once, 512 columns at a time.

use super::activations::{Activations, Block, TILE};
use super::format::{Format, Panel};
use super::{EXACT_ROWS, GROUP, Packed};
use crate::matmul::Output;

/// What an instruction set must offer: registers over `ROWS` rows of `W`.
pub(super) trait Isa {
    /// Rows of `W` in a register, 8 or 16.
    const ROWS: usize;
    /// Rows of `x` computed together: 1, or up to 8.
    const TILE: usize;
    /// Four unsigned bytes per row.
    type Bytes: Copy;
    /// A number per row.
    type Floats: Copy;
    /// A whole number per row.
    type Sum: Copy;

    /// # Safety
    /// Each reads `ROWS` elements from its pointers (`bytes`: four per row) and needs the
    /// instruction set; so do all functions below.
    unsafe fn bytes(p: *const u8) -> Self::Bytes;
    /// Every byte shifted right by `shift` (below 8), then masked.
    unsafe fn bits(v: Self::Bytes, shift: usize, mask: u8) -> Self::Bytes;
    /// Every byte (at most 15) times 16.
    unsafe fn shift_up(v: Self::Bytes) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    unsafe fn store_bytes(p: *mut u8, v: Self::Bytes);
    /// Asks for the cache line at `p`, which need not exist.
    fn prefetch_l1(p: *const u8);
    /// The same, no nearer than the second level.
    fn prefetch_l2(p: *const u8);

    unsafe fn floats(p: *const f32) -> Self::Floats;
    unsafe fn halves(p: *const u8) -> Self::Floats;
    unsafe fn signed_bytes(p: *const u8) -> Self::Floats;
    /// A nibble of `low` and above it two bits of `high`.
    unsafe fn six_bits(low: *const u8, low_shift: usize, high: *const u8, high_shift: usize) -> Self::Floats;
    unsafe fn splat(x: f32) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a b + c`, one rounding.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c − a b`, one rounding.
    unsafe fn fnma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn store(p: *mut f32, v: Self::Floats);

    unsafe fn zero() -> Self::Sum;
    /// Adds the products with four signed bytes at `a`; `flush` after every `DEPTH`-th call.
    unsafe fn add<const DEPTH: usize>(sum: Self::Sum, w: Self::Bytes, a: *const i8, flush: bool)
    -> Self::Sum;
    /// The sum as floats; `a` is the sum of the signed bytes.
    unsafe fn total<const DEPTH: usize>(sum: Self::Sum, a: i32) -> Self::Floats;
}

/// One task.
pub(super) struct Job<'a> {
    pub weight: &'a Packed,
    pub x: &'a Activations,
    pub first: usize,
    pub last: usize,
    pub column: usize,
    pub out: &'a Output,
}

/// The body for indices 0 to 7, written out: left as loops, LLVM keeps accumulators in memory.
macro_rules! unroll {
    ($i:ident, $body:block) => {
        unroll!(@ $i, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident, $body:block, $($n:literal)*) => {{
        $({
            let $i = $n as usize;
            $body
        })*
    }};
}

/// Adds scale number `WHICH` of block `j` for rows `0..M` of a tile at `x`.
///
/// # Safety
/// As [`Format::quants`], [`Format::scales`] and [`Isa`].
#[inline(always)]
unsafe fn scaled<I: Isa, F: Format, const M: usize, const DEPTH: usize, const WHICH: usize>(
    (quants, head): (*const u8, *const u8),
    j: usize,
    row: usize,
    x: *const Block,
    acc: &mut [I::Floats; M],
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [I::zero(); M];
        unroll!(step, {
            if step * F::SCALES / 8 == WHICH {
                let w = F::quants::<I>(quants, j, step);
                let flush = DEPTH > 0 && (step + 1).is_multiple_of(DEPTH);
                unroll!(t, {
                    if t < M {
                        let a = (&raw const (*x.add(t)).q).cast::<i8>().add(4 * step);
                        sums[t] = I::add::<DEPTH>(sums[t], w, a, flush);
                    }
                });
            }
        });
        let (scale, min) = F::scales::<I>(head, j, WHICH, row);
        unroll!(t, {
            if t < M {
                let x = &*x.add(t);
                let s = if F::SCALES == 1 { x.s } else { x.halves[WHICH] };
                let total = I::total::<DEPTH>(sums[t], x.sum);
                acc[t] = I::fma(total, I::mul(scale, I::splat(x.d)), acc[t]);
                acc[t] = I::fnma(min, I::splat(s), acc[t]);
            }
        });
    }
}

/// Adds block `j` for rows `0..M` of a tile at `x`.
///
/// # Safety
/// As [`scaled`].
#[inline(always)]
unsafe fn block<I: Isa, F: Format, const M: usize>(
    from: (*const u8, *const u8),
    j: usize,
    row: usize,
    x: *const Block,
    acc: &mut [I::Floats; M],
) {
    // SAFETY: promised by the caller. `DEPTH` must be a constant of its own to be a parameter.
    unsafe {
        match F::DEPTH {
            8 => scaled::<I, F, M, 8, 0>(from, j, row, x, acc),
            4 => scaled::<I, F, M, 4, 0>(from, j, row, x, acc),
            2 => scaled::<I, F, M, 2, 0>(from, j, row, x, acc),
            _ => scaled::<I, F, M, 0, 0>(from, j, row, x, acc),
        }
        if F::SCALES == 2 {
            match F::DEPTH {
                8 => scaled::<I, F, M, 8, 1>(from, j, row, x, acc),
                4 => scaled::<I, F, M, 4, 1>(from, j, row, x, acc),
                2 => scaled::<I, F, M, 2, 1>(from, j, row, x, acc),
                _ => scaled::<I, F, M, 0, 1>(from, j, row, x, acc),
            }
        }
    }
}

/// How far ahead packed bytes are asked into the first and into the second level cache. The
/// processor's own guesses miss, since a block's bytes are read in several places at once; and
/// what only the first level is asked for cannot wait there long enough for memory to answer.
const AHEAD: (usize, usize) = (4096, 24576);

/// Asks for the share of block `j` in what lies [`AHEAD`].
#[inline(always)]
fn prefetch<I: Isa, F: Format>(quants: *const u8, head: *const u8, j: usize) {
    let share = F::QUANTS / F::BLOCKS;
    let (near, far) = (quants.wrapping_add(AHEAD.0 + j * share), quants.wrapping_add(AHEAD.1 + j * share));
    unroll!(line, {
        if 64 * line < share {
            I::prefetch_l1(near.wrapping_add(64 * line));
            I::prefetch_l2(far.wrapping_add(64 * line));
        }
    });
    let share = F::HEAD / F::BLOCKS;
    I::prefetch_l1(head.wrapping_add(AHEAD.0 * F::HEAD / F::QUANTS + j * share));
    I::prefetch_l2(head.wrapping_add(AHEAD.1 * F::HEAD / F::QUANTS + j * share));
}

/// Columns of output rows: where a register is loaded from and stored to.
struct Place<'a> {
    out: &'a Output,
    column: usize,
    /// Rows of `W` that exist from here on.
    rest: usize,
}

impl Place<'_> {
    /// # Safety
    /// As [`Output::at`].
    #[inline(always)]
    unsafe fn load<I: Isa>(&self, t: usize) -> I::Floats {
        // SAFETY: only elements that exist are read from `out`.
        unsafe {
            let p = self.out.at(t, self.column);
            if self.rest >= I::ROWS {
                return I::floats(p);
            }
            let mut rows = [0.0f32; GROUP];
            std::ptr::copy_nonoverlapping(p, rows.as_mut_ptr(), self.rest);
            I::floats(rows.as_ptr())
        }
    }

    /// # Safety
    /// As [`Output::at`].
    #[inline(always)]
    unsafe fn store<I: Isa>(&self, t: usize, v: I::Floats) {
        // SAFETY: only elements that exist are written to `out`.
        unsafe {
            let p = self.out.at(t, self.column);
            if self.rest >= I::ROWS {
                return I::store(p, v);
            }
            let mut rows = [0.0f32; GROUP];
            I::store(rows.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(rows.as_ptr(), p, self.rest);
        }
    }
}

impl Job<'_> {
    /// Where rows `row ..` of `group` go, if they exist.
    fn place(&self, group: usize, row: usize) -> Option<Place<'_>> {
        let n = group * GROUP + row;
        let rest = self.weight.rows.checked_sub(n).filter(|&rest| rest > 0)?;
        Some(Place { out: self.out, column: self.column + n, rest })
    }
}

/// Runs a task.
///
/// # Safety
/// As [`Packed::task`]; the processor has `I`.
#[inline(always)]
pub(super) unsafe fn run<I: Isa, F: Format>(job: &Job) {
    // SAFETY: promised by the caller.
    unsafe {
        if job.x.rows() <= EXACT_ROWS {
            return exact::<I, F>(job);
        }
        match (F::SCALES, F::DEPTH) {
            (1, 8) => panels::<I, F, Panel<1, 8>>(job),
            (1, 4) => panels::<I, F, Panel<1, 4>>(job),
            (2, 2) => panels::<I, F, Panel<2, 2>>(job),
            (1, 0) => panels::<I, F, Panel<1, 0>>(job),
            _ => unreachable!("no format has these scales and this depth"),
        }
    }
}

/// All of `x`, straight from the packed bytes; a group stays in the cache for the next tile.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn exact<I: Isa, F: Format>(job: &Job) {
    let blocks = job.weight.layout.blocks;
    // SAFETY: pointers stay within the group and the tile; places are the job's.
    unsafe {
        for group in job.first..job.last {
            let base = job.weight.group(group);
            let from = (base, base.add(blocks * F::QUANTS));
            for top in (0..job.x.rows()).step_by(TILE) {
                let (x, height) = job.x.tile(top);
                for row in (0..GROUP).step_by(I::ROWS) {
                    let Some(place) = job.place(group, row) else { break };
                    Sweep { from, blocks, row, x, height, first: true }.run::<I, F>(&place, top);
                }
            }
        }
    }
}

/// Groups per panel.
const PANEL_GROUPS: usize = 4;
/// Blocks of 32 columns per panel, whole GGUF blocks.
const PANEL_BLOCKS: usize = 16;

/// A decoded part of four groups, in the layout of [`Panel`].
#[repr(C, align(64))]
struct PanelBuffer {
    quants: [[u8; 512]; PANEL_GROUPS * PANEL_BLOCKS],
    scales: [[f32; 64]; PANEL_GROUPS * PANEL_BLOCKS],
}

/// All of `x`, a decoded panel at a time.
///
/// # Safety
/// As [`run`]; `P` has the scales and depth of `F`.
#[inline(always)]
unsafe fn panels<I: Isa, F: Format, P: Format>(job: &Job) {
    let blocks = job.weight.layout.blocks * F::BLOCKS;
    let mut panel = std::mem::MaybeUninit::<PanelBuffer>::uninit();
    let panel = panel.as_mut_ptr();
    // SAFETY: pointers stay within groups, panel and tiles; places are the job's.
    unsafe {
        let quants = (&raw mut (*panel).quants).cast::<u8>();
        let scales = (&raw mut (*panel).scales).cast::<u8>();
        for first in (job.first..job.last).step_by(PANEL_GROUPS) {
            let groups = PANEL_GROUPS.min(job.last - first);
            for start in (0..blocks).step_by(PANEL_BLOCKS) {
                let count = PANEL_BLOCKS.min(blocks - start);
                for g in 0..groups {
                    let at = g * PANEL_BLOCKS;
                    decode::<I, F, P>(
                        job,
                        first + g,
                        start,
                        count,
                        (quants.add(512 * at), scales.add(P::HEAD * at)),
                    );
                }
                for top in (0..job.x.rows()).step_by(TILE) {
                    let (tile, height) = job.x.tile(top);
                    let tile = tile.add(start * height);
                    for g in 0..groups {
                        let at = g * PANEL_BLOCKS;
                        let from = (quants.add(512 * at).cast_const(), scales.add(P::HEAD * at).cast_const());
                        for row in (0..GROUP).step_by(I::ROWS) {
                            let Some(place) = job.place(first + g, row) else { break };
                            let sweep =
                                Sweep { from, blocks: count, row, x: tile, height, first: start == 0 };
                            sweep.run::<I, P>(&place, top);
                        }
                    }
                }
            }
        }
    }
}

/// One tile against rows of one group.
pub(super) struct Sweep {
    /// Numbers and scales of the first block.
    from: (*const u8, *const u8),
    /// GGUF blocks.
    blocks: usize,
    /// First row of the group.
    row: usize,
    x: *const Block,
    /// Rows of the tile.
    height: usize,
    /// Whether sums start at zero, or at what was stored.
    first: bool,
}

impl Sweep {
    /// All rows of the tile, to output rows from `top` on.
    ///
    /// # Safety
    /// As [`run`].
    #[inline(always)]
    unsafe fn run<I: Isa, F: Format>(&self, place: &Place, top: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            let mut t = 0;
            while t < self.height {
                let rest = self.height - t;
                t += match I::TILE {
                    1 => self.rows::<I, F, 1>(place, t, top),
                    _ => match rest {
                        1 => self.rows::<I, F, 1>(place, t, top),
                        2 => self.rows::<I, F, 2>(place, t, top),
                        3 => self.rows::<I, F, 3>(place, t, top),
                        4 => self.rows::<I, F, 4>(place, t, top),
                        5 => self.rows::<I, F, 5>(place, t, top),
                        6 => self.rows::<I, F, 6>(place, t, top),
                        7 => self.rows::<I, F, 7>(place, t, top),
                        _ => self.rows::<I, F, 8>(place, t, top),
                    },
                };
            }
        }
    }

    /// Rows `t..t + M` of the tile; `M`.
    ///
    /// # Safety
    /// As [`run`].
    #[inline(always)]
    unsafe fn rows<I: Isa, F: Format, const M: usize>(&self, place: &Place, t: usize, top: usize) -> usize {
        let (t0, row) = (top + t, self.row);
        // SAFETY: promised by the caller.
        unsafe {
            let mut acc = [I::splat(0.0); M];
            if !self.first {
                unroll!(t, {
                    if t < M {
                        acc[t] = place.load::<I>(t0 + t);
                    }
                });
            }
            let (mut quants, mut head, mut x) = (self.from.0.add(4 * row), self.from.1, self.x.add(t));
            for _ in 0..self.blocks {
                for j in 0..F::BLOCKS {
                    if F::STREAMED && row == 0 && t == 0 {
                        prefetch::<I, F>(quants, head, j);
                    }
                    block::<I, F, M>((quants, head), j, row, x, &mut acc);
                    x = x.add(self.height);
                }
                (quants, head) = (quants.add(F::QUANTS), head.add(F::HEAD));
            }
            unroll!(t, {
                if t < M {
                    place.store::<I>(t0 + t, acc[t]);
                }
            });
        }
        M
    }
}

/// Decodes blocks `start ..` of a group.
///
/// # Safety
/// `to` has room for `count` blocks; `start` and `count` are whole GGUF blocks.
#[inline(always)]
unsafe fn decode<I: Isa, F: Format, P: Format>(
    job: &Job,
    group: usize,
    start: usize,
    count: usize,
    to: (*mut u8, *mut u8),
) {
    // SAFETY: promised by the caller.
    unsafe {
        let base = job.weight.group(group);
        let heads = base.add(job.weight.layout.blocks * F::QUANTS);
        for b in 0..count {
            let (whole, j) = ((start + b) / F::BLOCKS, (start + b) % F::BLOCKS);
            let (quants, head) = (base.add(whole * F::QUANTS), heads.add(whole * F::HEAD));
            for row in (0..GROUP).step_by(I::ROWS) {
                unroll!(step, {
                    let w = F::quants::<I>(quants.add(4 * row), j, step);
                    I::store_bytes(to.0.add(512 * b + 64 * step + 4 * row), w);
                });
                for which in 0..F::SCALES {
                    let (scale, min) = F::scales::<I>(head, j, which, row);
                    let at = to.1.add(P::HEAD * b + 128 * which + 4 * row).cast::<f32>();
                    I::store(at, scale);
                    I::store(at.add(16), min);
                }
            }
        }
    }
}
