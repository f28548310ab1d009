//! Splits the KV cache into fixed-size blocks and lends them to sequences.
//!
//! Called by `Scheduler`; never touches tensors, only block ids. Blocks are counted by
//! reference, so that sequences may share a prefix. A full block is known by a hash chained
//! over the tokens up to its end; when nobody holds it any more it keeps its contents, until
//! the least recently used one makes room (vLLM; Kwon et al., 2023).

use std::collections::{BTreeMap, HashMap};

/// Names the contents of a block: all tokens up to its end. Wide enough that two contents
/// never share a name, whoever chooses the tokens.
pub type BlockHash = [u8; 32];

/// The name of a block that holds `tokens` behind the block named `before`.
#[must_use]
pub fn chain(before: &BlockHash, tokens: &[u32]) -> BlockHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Which blocks are free, how many sequences hold each other one, and what full ones contain.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    refs: Vec<u32>,
    /// Blocks without holder and without known contents.
    empty: Vec<u32>,
    /// Blocks without holder and with known contents, by the time of their release.
    idle: BTreeMap<u64, u32>,
    released_at: Vec<u64>,
    clock: u64,
    /// Names of known contents, both ways.
    hashes: Vec<Option<BlockHash>>,
    known: HashMap<BlockHash, u32>,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` positions.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "blocks hold positions");
        Self {
            block_size,
            refs: vec![0; num_blocks],
            // Popped from the end: low ids first, so a small load touches little memory.
            empty: (0..num_blocks as u32).rev().collect(),
            idle: BTreeMap::new(),
            released_at: vec![0; num_blocks],
            clock: 0,
            hashes: vec![None; num_blocks],
            known: HashMap::new(),
        }
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
        self.empty.len() + self.idle.len()
    }

    /// Blocks nobody holds whose contents are known.
    #[must_use]
    pub fn num_idle(&self) -> usize {
        self.idle.len()
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
        if missing > self.num_free() {
            return false;
        }
        for _ in 0..missing {
            let block = self.empty.pop().unwrap_or_else(|| self.forget());
            self.refs[block as usize] = 1;
            table.push(block);
        }
        true
    }

    /// Takes the least recently used of the idle blocks; its contents are lost.
    fn forget(&mut self) -> u32 {
        let (_, block) = self.idle.pop_first().expect("counted by the caller");
        let hash = self.hashes[block as usize].take().expect("idle blocks have known contents");
        self.known.remove(&hash);
        block
    }

    /// How many of `hashes` are known from the first on, and how many of these nobody holds.
    #[must_use]
    pub fn lookup(&self, hashes: &[BlockHash]) -> (usize, usize) {
        let found = hashes.iter().map_while(|hash| self.known.get(hash));
        found
            .fold((0, 0), |(all, idle), &block| (all + 1, idle + usize::from(self.refs[block as usize] == 0)))
    }

    /// One more holder for the blocks of `hashes`, all of them known.
    #[must_use]
    pub fn share(&mut self, hashes: &[BlockHash]) -> Vec<u32> {
        let share = |hash: &BlockHash| {
            let block = *self.known.get(hash).expect("looked up before");
            let refs = &mut self.refs[block as usize];
            if *refs == 0 {
                self.idle.remove(&self.released_at[block as usize]);
            }
            *refs += 1;
            block
        };
        hashes.iter().map(share).collect()
    }

    /// Makes the contents of a full block known. Nothing happens if another block has the same.
    pub fn publish(&mut self, block: u32, hash: BlockHash) {
        assert!(self.refs[block as usize] > 0, "block {block} is free, it holds nothing");
        if self.hashes[block as usize].is_none() && !self.known.contains_key(&hash) {
            self.hashes[block as usize] = Some(hash);
            self.known.insert(hash, block);
        }
    }

    /// Gives back every block of `table` and empties it.
    pub fn release(&mut self, table: &mut Vec<u32>) {
        // In reverse: the next sequence gets them in order again, and of a known prefix the
        // end is forgotten before the beginning.
        for block in table.drain(..).rev() {
            let refs = &mut self.refs[block as usize];
            assert!(*refs > 0, "block {block} was given back twice");
            *refs -= 1;
            if *refs > 0 {
                continue;
            }
            if self.hashes[block as usize].is_some() {
                self.clock += 1;
                self.released_at[block as usize] = self.clock;
                self.idle.insert(self.clock, block);
            } else {
                self.empty.push(block);
            }
        }
    }

    /// Panics unless reference counts are exactly the holders in `tables`, every other block is
    /// free once, and names and contents agree.
    pub fn check_integrity<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) {
        let mut held = vec![0u32; self.refs.len()];
        for &block in tables.flatten() {
            held[block as usize] += 1;
        }
        assert_eq!(held, self.refs, "reference counts are the number of holders");
        let mut free = self.empty.clone();
        free.extend(self.idle.values());
        free.sort_unstable();
        let expected: Vec<u32> = (0..self.refs.len() as u32).filter(|&b| held[b as usize] == 0).collect();
        assert_eq!(free, expected, "free blocks are those without a holder, each once");
        assert!(self.empty.iter().all(|&b| self.hashes[b as usize].is_none()), "empty blocks are unknown");
        for (&at, &block) in &self.idle {
            assert_eq!(self.released_at[block as usize], at, "idle blocks know when they were released");
            assert!(self.hashes[block as usize].is_some(), "idle blocks are known");
        }
        let named = self.hashes.iter().flatten().count();
        assert_eq!(named, self.known.len(), "every known block has one name");
        for (hash, &block) in &self.known {
            assert_eq!(self.hashes[block as usize].as_ref(), Some(hash), "names lead to their blocks");
        }
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
            steps in prop::collection::vec((0u8..4, 0usize..8, 0usize..40), 0..80),
        ) {
            let mut manager = BlockManager::new(num_blocks, block_size);
            let mut tables: Vec<Vec<u32>> = vec![Vec::new(); 4];
            let name = |i: usize| chain(&[0; 32], &[i as u32]);
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
                        let names: Vec<BlockHash> = (len..len + 3).map(name).collect();
                        let (found, idle) = manager.lookup(&names);
                        let free = manager.num_free();
                        let shared = manager.share(&names[..found]);
                        prop_assert_eq!(manager.num_free(), free - idle);
                        tables.push(shared);
                    }
                    2 => {
                        if let Some(&block) = tables[i].get(len % 4) {
                            manager.publish(block, name(len));
                            prop_assert!(manager.lookup(&[name(len)]).0 == 1 || manager.hashes[block as usize].is_some());
                        }
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
    fn the_least_recently_used_is_forgotten_and_the_end_before_the_beginning() {
        let mut manager = BlockManager::new(4, 1);
        let names: Vec<BlockHash> = (0..4).map(|i| chain(&[0; 32], &[i])).collect();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        assert!(manager.grow(&mut first, 2) && manager.grow(&mut second, 2));
        for (block, name) in first.iter().chain(&second).zip(&names) {
            manager.publish(*block, *name);
        }
        manager.release(&mut first);
        manager.release(&mut second);
        assert_eq!((manager.num_free(), manager.num_idle()), (4, 4));
        let mut third = Vec::new();
        assert!(manager.grow(&mut third, 1));
        assert_eq!(manager.lookup(&names[..2]), (1, 1), "the end of the first went");
        // Using it again makes the first the most recent.
        let mut again = manager.share(&names[..1]);
        manager.release(&mut again);
        assert!(manager.grow(&mut third, 3));
        assert_eq!(manager.lookup(&names[..1]), (1, 1));
        assert_eq!(manager.lookup(&names[2..]), (0, 0));
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
