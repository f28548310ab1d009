//! Guesses at the tokens to come, from the tokens so far (prompt lookup; Saxena, 2023).
//!
//! Where the last few tokens appeared before, what followed them may follow again. Guesses are
//! computed together with the newest token and kept as far as they are what sampling chooses
//! anyway, so they change nothing but the speed.

/// Longest and shortest run of tokens to look for.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;
/// Steps without a guess after guesses kept failing.
const PAUSE: usize = 16;

/// Guesses for one request, more of them the better they do.
#[derive(Clone, Debug)]
pub(crate) struct Guesser {
    /// Most guesses per step; 0 is off.
    most: usize,
    /// Guesses per step now.
    len: usize,
    /// Steps to skip.
    pause: usize,
}

impl Guesser {
    pub fn new(most: usize) -> Self {
        Self { most, len: most.min(2), pause: 0 }
    }

    /// At most `most` tokens that may follow `tokens`.
    pub fn guess(&mut self, tokens: &[u32], most: usize) -> Vec<u32> {
        lookup(tokens, self.allowance().min(most))
    }

    /// How many guesses are worth their computation in the next step.
    pub fn allowance(&mut self) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.len
    }

    /// Learns how many of `guessed` were right.
    pub fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == guessed {
            self.len = (2 * self.len).min(self.most);
        } else if right == 0 {
            self.len = (self.len / 2).max(1);
            self.pause = if guessed == 1 { PAUSE } else { 0 };
        } else {
            self.len = right;
        }
    }
}

/// The tokens after the latest earlier appearance of the longest end of `tokens`.
fn lookup(tokens: &[u32], most: usize) -> Vec<u32> {
    let n = tokens.len();
    if most == 0 {
        return Vec::new();
    }
    for len in (SHORTEST..=LONGEST.min(n.saturating_sub(1))).rev() {
        let end = &tokens[n - len..];
        // Windows that end before the last token.
        let found = tokens[..n - 1].windows(len).rposition(|window| window == end);
        if let Some(at) = found {
            return tokens[at + len..].iter().take(most).copied().collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_longest_match_counts() {
        for (tokens, want) in [
            (&[1, 2, 3, 9, 1, 2][..], &[3, 9, 1][..]),
            (&[1, 2, 3, 1, 2, 4, 1, 2], &[4, 1, 2]),
            (&[5, 1, 2, 3, 1, 2, 4, 5, 1, 2], &[3, 1, 2]), // three tokens beat two
            (&[7, 7, 7, 7], &[7]),
            (&[1, 2, 3], &[]),
            (&[1], &[]),
            (&[], &[]),
        ] {
            assert_eq!(lookup(tokens, 3), want, "{tokens:?}");
        }
    }

    #[test]
    fn guesses_follow_their_success() {
        let mut guesser = Guesser::new(4);
        let text = [1, 2, 3, 4, 5, 6, 1, 2];
        assert_eq!(guesser.guess(&text, 9).len(), 2);
        guesser.learn(2, 2);
        assert_eq!(guesser.guess(&text, 9).len(), 4);
        guesser.learn(4, 0);
        guesser.learn(2, 0);
        assert_eq!(guesser.guess(&text, 9).len(), 1);
        guesser.learn(1, 0);
        assert!((0..PAUSE).all(|_| guesser.guess(&text, 9).is_empty()));
        assert_eq!(guesser.guess(&text, 9).len(), 1);
        assert!(Guesser::new(0).guess(&text, 9).is_empty());
    }
}
