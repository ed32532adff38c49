//! The one rule of evenness: how many units each candidate takes.
//!
//! Everyone starts at a low mark; the remaining units are handed out one by one, each to the
//! candidate below its high mark for which `(2q + 1) / w` is smallest, `q` being what it has and
//! `w` its weight; the lower id wins a tie. This is the method of odd divisors (Sainte-Laguë): a
//! share is rounded to the nearest whole number rather than up or down, so neither large nor small
//! candidates are favoured, and equal weights end within one unit of each other.
//!
//! Invariants: exact whole numbers, never a float; the answer depends on the set of candidates and
//! not on their order; one more unit never takes a unit away from anybody. What this module does
//! not do: say *which* units a candidate gets.
//!
//! Nothing here fails. When the low marks exceed the total everybody keeps the low mark; when the
//! high marks are below it the rest stays unplaced. Callers compare the sum where that matters.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// One taker of units. A high mark below the low mark counts as equal to it, and a candidate of
/// weight 0 stays at its low mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Breaks ties: the lower id takes the unit.
    pub id: u64,
    /// Compared with the other weights only; the unit is free.
    pub weight: u64,
    /// Units that it has in any case.
    pub low: u64,
    /// Units beyond which it takes no more.
    pub high: u64,
}

/// Shares `total` units out among `candidates`; the answer is in their order.
///
/// The time grows with the units above the low marks, times the logarithm of the candidates.
#[must_use]
pub fn quota(total: u64, candidates: &[Candidate]) -> Vec<u64> {
    let mut shares: Vec<u64> = candidates.iter().map(|candidate| candidate.low).collect();
    let held: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    let mut left = u128::from(total).saturating_sub(held);
    let mut claims: BinaryHeap<Reverse<Claim>> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.weight > 0 && candidate.low < candidate.high)
        .map(|(position, candidate)| {
            Reverse(Claim { candidate: *candidate, position, share: candidate.low })
        })
        .collect();
    while left > 0 {
        let Some(Reverse(mut claim)) = claims.pop() else { break };
        claim.share += 1;
        left -= 1;
        shares[claim.position] = claim.share;
        if claim.share < claim.candidate.high {
            claims.push(Reverse(claim));
        }
    }
    shares
}

/// A candidate below its high mark. The smaller claim takes the next unit.
#[derive(Clone, Copy, Debug)]
struct Claim {
    candidate: Candidate,
    position: usize,
    share: u64,
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (u128::from(self.candidate.weight), u128::from(other.candidate.weight));
        let (p, q) = (2 * u128::from(self.share) + 1, 2 * u128::from(other.share) + 1);
        // p / a against q / b: whole parts first, then the rests crosswise. Multiplying p by b at
        // once could need 129 bits; a rest is below its divisor, so these products fit in 128.
        (p / a)
            .cmp(&(q / b))
            .then_with(|| (p % a * b).cmp(&(q % b * a)))
            .then_with(|| self.candidate.id.cmp(&other.candidate.id))
            .then_with(|| self.position.cmp(&other.position))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Claim {}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: u64, weight: u64, low: u64, high: u64) -> Candidate {
        Candidate { id, weight, low, high }
    }

    #[test]
    fn ties_go_to_the_lower_id_wherever_it_stands() {
        let candidates = [candidate(9, 1, 0, 9), candidate(4, 1, 0, 9), candidate(6, 1, 0, 9)];
        assert_eq!(quota(1, &candidates), [0, 1, 0]);
        assert_eq!(quota(2, &candidates), [0, 1, 1]);
        assert_eq!(quota(4, &candidates), [1, 2, 1]);
    }

    #[test]
    fn shares_are_rounded_to_the_nearest() {
        // Of 7 units: 0.7, 2.1 and 4.2 in proportion.
        let candidates = [candidate(1, 1, 0, 7), candidate(2, 3, 0, 7), candidate(3, 6, 0, 7)];
        assert_eq!(quota(7, &candidates), [1, 2, 4]);
    }

    #[test]
    fn marks_hold_even_when_the_total_cannot_be_met() {
        let candidates = [candidate(1, 1, 2, 3), candidate(2, 100, 0, 4), candidate(3, 1, 5, 1)];
        assert_eq!(quota(0, &candidates), [2, 0, 5]);
        assert_eq!(quota(9, &candidates), [2, 2, 5]);
        assert_eq!(quota(1_000, &candidates), [3, 4, 5]);
        assert_eq!(quota(5, &[]), [0u64; 0]);
    }

    #[test]
    fn weight_zero_takes_nothing_beyond_its_low_mark() {
        assert_eq!(quota(5, &[candidate(1, 0, 1, 9), candidate(2, 1, 0, 9)]), [1, 4]);
    }

    #[test]
    fn the_largest_numbers_neither_overflow_nor_lose_a_digit() {
        let most = u64::MAX;
        let near = [candidate(1, most - 1, 0, 9), candidate(2, most, 0, 9)];
        assert_eq!(quota(1, &near), [0, 1]);
        assert_eq!(quota(2, &near), [1, 1]);
        let far = [candidate(1, most, most - 2, most), candidate(2, most, 0, 9)];
        assert_eq!(quota(most, &far), [most - 2, 2]);
        let over = [candidate(1, most, most - 2, most), candidate(2, most, most - 1, most)];
        assert_eq!(quota(most, &over), [most - 2, most - 1]);
    }
}
