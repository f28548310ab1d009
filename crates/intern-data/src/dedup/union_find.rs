//! Disjoint sets with path halving and union by size.

/// Sets over `0..n`, each element alone at first.
#[derive(Clone, Debug)]
pub struct UnionFind {
    parent: Vec<u32>,
    size: Vec<u32>,
}

impl UnionFind {
    /// `n` sets of one.
    #[must_use]
    pub fn new(n: usize) -> Self {
        Self { parent: (0..n as u32).collect(), size: vec![1; n] }
    }

    /// The element that stands for `x`'s set.
    pub fn find(&mut self, x: usize) -> usize {
        let mut x = x as u32;
        while self.parent[x as usize] != x {
            let up = self.parent[self.parent[x as usize] as usize];
            self.parent[x as usize] = up;
            x = up;
        }
        x as usize
    }

    /// Joins two sets; `false` if they were one.
    pub fn union(&mut self, a: usize, b: usize) -> bool {
        let (a, b) = (self.find(a), self.find(b));
        if a == b {
            return false;
        }
        let (big, small) = if self.size[a] >= self.size[b] { (a, b) } else { (b, a) };
        self.parent[small] = big as u32;
        self.size[big] += self.size[small];
        true
    }

    /// Size of `x`'s set.
    pub fn size(&mut self, x: usize) -> usize {
        let root = self.find(x);
        self.size[root] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sets_are_connected_components(edges in proptest::collection::vec((0..12usize, 0..12usize), 0..20)) {
            let mut sets = UnionFind::new(12);
            let mut reach = [[false; 12]; 12];
            (0..12).for_each(|i| reach[i][i] = true);
            for &(a, b) in &edges {
                sets.union(a, b);
                reach[a][b] = true;
                reach[b][a] = true;
            }
            for k in 0..12 { for i in 0..12 { for j in 0..12 {
                reach[i][j] |= reach[i][k] && reach[k][j];
            } } }
            for (i, row) in reach.iter().enumerate() {
                prop_assert_eq!(sets.size(i), row.iter().filter(|r| **r).count());
                for (j, together) in row.iter().enumerate() {
                    prop_assert_eq!(sets.find(i) == sets.find(j), *together);
                }
            }
        }
    }
}
