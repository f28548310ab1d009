//! What changes logits before a token is chosen: bias, and penalties on what was said before.
//!
//! Each costs nothing when off and one pass over the tokens so far when on. Presence and
//! frequency count generated tokens only, repetition the prompt too, as vLLM does.

use intern_lm::{Dry, Sampling};

/// The tokens so far.
#[derive(Clone, Copy)]
pub(crate) struct Said<'a> {
    /// Prompt, then what was generated.
    pub tokens: &'a [u32],
    pub prompt_len: usize,
    /// Per token id: whether DRY begins anew behind it. Needed only with DRY.
    pub breakers: &'a [bool],
}

/// Whether [`apply`] would change anything.
pub(crate) fn are_on(s: &Sampling) -> bool {
    !s.logit_bias.is_empty()
        || s.repetition_penalty != 1.0
        || s.presence_penalty != 0.0
        || s.frequency_penalty != 0.0
        || s.dry.as_ref().is_some_and(|d| d.multiplier != 0.0)
}

/// Bias, then repetition, presence, frequency and DRY.
pub(crate) fn apply(logits: &mut [f32], sampling: &Sampling, said: Said) {
    for (&id, bias) in &sampling.logit_bias {
        logits[id as usize] += bias;
    }
    if sampling.repetition_penalty != 1.0 {
        let penalty = sampling.repetition_penalty;
        once_each(said.tokens, logits.len(), |id| {
            let logit = &mut logits[id];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        });
    }
    let generated = &said.tokens[said.prompt_len.min(said.tokens.len())..];
    if sampling.presence_penalty != 0.0 {
        once_each(generated, logits.len(), |id| logits[id] -= sampling.presence_penalty);
    }
    if sampling.frequency_penalty != 0.0 {
        generated.iter().for_each(|&id| logits[id as usize] -= sampling.frequency_penalty);
    }
    if let Some(d) = sampling.dry.as_ref().filter(|d| d.multiplier != 0.0) {
        dry(logits, d, said);
    }
}

/// Calls `f` for every distinct token, in the order of first appearance.
fn once_each(tokens: &[u32], vocab: usize, mut f: impl FnMut(usize)) {
    let mut seen = vec![0u64; vocab.div_ceil(64)];
    for &id in tokens {
        let (word, bit) = (&mut seen[id as usize / 64], 1u64 << (id % 64));
        if *word & bit == 0 {
            *word |= bit;
            f(id as usize);
        }
    }
}

/// Penalizes each token by the longest repetition it would continue.
fn dry(logits: &mut [f32], dry: &Dry, said: Said) {
    let tokens = said.tokens;
    let breaks = |id: u32| said.breakers.get(id as usize).copied().unwrap_or(false);
    // A repetition cannot reach back past the last breaker.
    let limit = tokens.iter().rev().take_while(|&&id| !breaks(id)).count();
    if limit < dry.allowed_length.max(1) {
        return;
    }
    let common = common_suffixes(tokens);
    let mut longest = std::collections::BTreeMap::new();
    for (end, &len) in common.iter().enumerate() {
        let (next, len) = (tokens[end], len.min(limit));
        if len >= dry.allowed_length.max(1) && !breaks(next) {
            let best = longest.entry(next).or_insert(0);
            *best = len.max(*best);
        }
    }
    for (id, len) in longest {
        let power = f64::from(dry.base).powi((len - dry.allowed_length.min(len)).min(4096) as i32);
        // Bounded, so that a token can always be told from an impossible one.
        logits[id as usize] -= (f64::from(dry.multiplier) * power).min(1e30) as f32;
    }
}

/// For each `end` below the length: how many tokens before `end` equal the last ones of all
/// (the Z-function of the reversed text; linear time).
fn common_suffixes(tokens: &[u32]) -> Vec<usize> {
    let n = tokens.len();
    let at = |i: usize| tokens[n - 1 - i];
    let mut z = vec![0usize; n];
    let (mut left, mut right) = (0, 0);
    for i in 1..n {
        let mut len = if i < right { z[i - left].min(right - i) } else { 0 };
        while i + len < n && at(len) == at(i + len) {
            len += 1;
        }
        z[i] = len;
        if i + len > right {
            (left, right) = (i, i + len);
        }
    }
    // z[i] compares what ends before index n - i.
    let mut common = vec![0; n];
    for i in 1..n {
        common[n - i] = z[i];
    }
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn penalized(sampling: &Sampling, tokens: &[u32], prompt_len: usize, breakers: &[bool]) -> Vec<f32> {
        let mut logits = vec![2.0, -2.0, 1.0, 0.5];
        apply(&mut logits, sampling, Said { tokens, prompt_len, breakers });
        logits
    }

    #[test]
    fn each_penalty_counts_as_it_says() {
        let off = Sampling::default();
        assert!(!are_on(&off));
        assert_eq!(penalized(&off, &[0, 1, 2], 1, &[]), [2.0, -2.0, 1.0, 0.5]);
        for (sampling, want) in [
            (Sampling { repetition_penalty: 2.0, ..off.clone() }, [1.0, -4.0, 0.5, 0.5]),
            (Sampling { presence_penalty: 0.5, ..off.clone() }, [2.0, -2.5, 0.5, 0.5]),
            (Sampling { frequency_penalty: 0.5, ..off.clone() }, [2.0, -3.0, 0.5, 0.5]),
            (Sampling { logit_bias: [(3, 10.0), (0, -100.0)].into(), ..off }, [-98.0, -2.0, 1.0, 10.5]),
        ] {
            assert!(are_on(&sampling));
            // The prompt is 0 0 1; generated were 1 2 1.
            assert_eq!(penalized(&sampling, &[0, 0, 1, 1, 2, 1], 3, &[]), want, "{sampling:?}");
        }
    }

    #[test]
    fn dry_penalizes_what_continues_a_repetition() {
        let dry = Dry { multiplier: 1.0, base: 2.0, allowed_length: 2, sequence_breakers: vec![] };
        let sampling = Sampling { dry: Some(dry), ..Sampling::default() };
        // "0 1 2 3 … 0 1 2": 3 would repeat three tokens, so 2^(3-2).
        let text = [0, 1, 2, 3, 1, 1, 0, 1, 2];
        assert_eq!(penalized(&sampling, &text, 0, &[]), [2.0, -2.0, 1.0, 0.5 - 2.0]);
        // After the breaker 1 only one token repeats: free.
        assert_eq!(penalized(&sampling, &text, 0, &[false, true]), [2.0, -2.0, 1.0, 0.5]);
        // A breaker itself is never penalized.
        let three = [false, false, false, true];
        assert_eq!(penalized(&sampling, &[0, 1, 2, 3, 0, 1, 2], 0, &three), [2.0, -2.0, 1.0, 0.5]);
    }

    proptest! {
        #[test]
        fn suffixes_agree_with_counting(tokens in prop::collection::vec(0u32..3, 0..40)) {
            let n = tokens.len();
            for (end, &got) in common_suffixes(&tokens).iter().enumerate() {
                let want = (0..end).take_while(|&i| tokens[end - 1 - i] == tokens[n - 1 - i]).count();
                prop_assert_eq!(got, want, "{:?} {}", tokens, end);
            }
        }
    }
}
