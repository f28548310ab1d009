//! Splits the KV cache into fixed-size blocks and lends them to sequences.
//!
//! Called by `Scheduler`; never touches tensors, only block ids. Blocks are counted by
//! reference, so that sequences may share a prefix (vLLM; Kwon et al., 2023).

/// Which blocks are free, and how many sequences hold each other one.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    refs: Vec<u32>,
    free: Vec<u32>,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` positions.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "blocks hold positions");
        // Popped from the end: low ids first, so a small load touches little memory.
        let free = (0..num_blocks as u32).rev().collect();
        Self { block_size, refs: vec![0; num_blocks], free }
    }

    /// Positions per block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// All blocks.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.refs.len()
    }

    /// Blocks nobody holds.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that `len` positions take.
    #[must_use]
    pub fn blocks_for(&self, len: usize) -> usize {
        len.div_ceil(self.block_size)
    }

    /// Grows `table` to hold `len` positions. False, and nothing changes, when there are too few blocks.
    #[must_use]
    pub fn grow(&mut self, table: &mut Vec<u32>, len: usize) -> bool {
        let missing = self.blocks_for(len).saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        for _ in 0..missing {
            let block = self.free.pop().expect("counted above");
            self.refs[block as usize] = 1;
            table.push(block);
        }
        true
    }

    /// A second holder for every block of `table`, for a sequence that continues the same prefix.
    #[must_use]
    pub fn share(&mut self, table: &[u32]) -> Vec<u32> {
        for &block in table {
            assert!(self.refs[block as usize] > 0, "block {block} is free and cannot be shared");
            self.refs[block as usize] += 1;
        }
        table.to_vec()
    }

    /// Gives back every block of `table` and empties it.
    pub fn release(&mut self, table: &mut Vec<u32>) {
        // In reverse, so that the next sequence gets them in order again.
        for block in table.drain(..).rev() {
            let refs = &mut self.refs[block as usize];
            assert!(*refs > 0, "block {block} was given back twice");
            *refs -= 1;
            if *refs == 0 {
                self.free.push(block);
            }
        }
    }

    /// Panics unless reference counts are exactly the holders in `tables` and the rest is free.
    pub fn check_integrity<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) {
        let mut held = vec![0u32; self.refs.len()];
        for &block in tables.flatten() {
            held[block as usize] += 1;
        }
        assert_eq!(held, self.refs, "reference counts are the number of holders");
        let mut free = self.free.clone();
        free.sort_unstable();
        let expected: Vec<u32> = (0..self.refs.len() as u32).filter(|&b| held[b as usize] == 0).collect();
        assert_eq!(free, expected, "free blocks are those without a holder, each once");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_stay_true_under_any_order_of_calls(
            num_blocks in 0usize..12,
            block_size in 1usize..5,
            steps in prop::collection::vec((0u8..3, 0usize..8, 0usize..40), 0..60),
        ) {
            let mut manager = BlockManager::new(num_blocks, block_size);
            let mut tables: Vec<Vec<u32>> = vec![Vec::new(); 4];
            for (what, i, len) in steps {
                let i = i % tables.len();
                match what {
                    0 => {
                        let (before, free) = (tables[i].clone(), manager.num_free());
                        let grown = manager.grow(&mut tables[i], len);
                        let needed = manager.blocks_for(len).saturating_sub(before.len());
                        prop_assert_eq!(grown, needed <= free);
                        prop_assert_eq!(tables[i].len(), before.len() + if grown { needed } else { 0 });
                    }
                    1 => {
                        let shared = manager.share(&tables[i]);
                        tables.push(shared);
                    }
                    _ => manager.release(&mut tables[i]),
                }
                manager.check_integrity(tables.iter().map(Vec::as_slice));
            }
            for table in &mut tables {
                manager.release(table);
            }
            prop_assert_eq!(manager.num_free(), num_blocks);
        }
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_caught() {
        let mut manager = BlockManager::new(2, 4);
        let mut table = Vec::new();
        assert!(manager.grow(&mut table, 4));
        let mut copy = table.clone();
        manager.release(&mut table);
        manager.release(&mut copy);
    }
}
