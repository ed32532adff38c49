//! What must be found under the keys, from what became of the writes. Pure.
//!
//! Each key has one client that writes and reads it, one operation after the other. So what a read has to
//! find is known to the value: what the last acknowledged write left, or what one of the writes did that
//! were sent since then and whose outcome is unknown (W4).
//!
//! - A *register* holds a value that is made of its key and the number of the write. Every byte of it
//!   follows from the two, so that a mixed or rotten value is told from a write.
//! - A *counter* is only ever added 1 to. An addition that is missing is lost, one too many was applied
//!   twice (W3).
//!
//! A number that comes back although another was acknowledged after it counts as a loss of the latter. What
//! a read has found counts as acknowledged from then on, with all that was sent before it: a doubt that is
//! settled stays settled. That no write of unknown outcome takes effect after the next one holds where
//! processes are killed and not suspended: no request outlives its connection, and an entry of a log that
//! outlives its leader comes before whatever the next leader takes.

/// Key and number in front of every value, bytes.
pub(super) const HEAD_BYTES: usize = 16;

/// The judgement on what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it must be.
    Fine,
    /// Something acknowledged is missing.
    Lost,
    /// An addition was applied more than once.
    Doubled,
    /// Nobody wrote that, or it was refused for good.
    Wrong,
}

/// A key that holds a numbered value.
#[derive(Clone, Debug, Default)]
pub(super) struct Register {
    /// The number last acknowledged, or found since then; 0 before the first.
    acknowledged: u64,
    /// The number last given to a write.
    last: u64,
    /// Sent after `acknowledged`, with unknown outcome.
    doubtful: Vec<u64>,
}

impl Register {
    /// The number of the next write.
    pub(super) fn begin(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn acknowledged(&mut self, number: u64) {
        self.acknowledged = number;
        self.doubtful.clear();
    }

    pub(super) fn doubted(&mut self, number: u64) {
        self.doubtful.push(number);
    }

    /// Judges the number of the value that was found; `None`: there was none. A doubtful one that was found
    /// is settled.
    pub(super) fn judge(&mut self, found: Option<u64>) -> Verdict {
        match found {
            None if self.acknowledged == 0 => Verdict::Fine,
            None => Verdict::Lost,
            Some(number) if number == self.acknowledged => Verdict::Fine,
            Some(number) if self.doubtful.contains(&number) => {
                self.acknowledged = number;
                self.doubtful.retain(|later| *later > number);
                Verdict::Fine
            }
            Some(number) if number < self.acknowledged => Verdict::Lost,
            Some(_) => Verdict::Wrong,
        }
    }
}

/// A key that counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    least: i64,
    most: i64,
}

impl Counter {
    /// An addition was acknowledged with this sum, which is judged.
    pub(super) fn acknowledged(&mut self, sum: i64) -> Verdict {
        let mut with = Self { least: self.least + 1, most: self.most + 1 };
        let verdict = with.judge(Some(sum));
        (self.least, self.most) = (sum, sum);
        verdict
    }

    /// The outcome of an addition is unknown.
    pub(super) fn doubted(&mut self) {
        self.most += 1;
    }

    /// Judges the number that was found; `None`: there was none. Additions that were found stay.
    pub(super) fn judge(&mut self, found: Option<i64>) -> Verdict {
        let found = found.unwrap_or(0);
        if found < self.least {
            Verdict::Lost
        } else if found > self.most {
            Verdict::Doubled
        } else {
            self.least = found;
            Verdict::Fine
        }
    }
}

/// The value of write `number` of a key, `bytes` long, at least [`HEAD_BYTES`].
pub(super) fn value_of(key: u64, number: u64, bytes: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes.max(HEAD_BYTES) + 8);
    value.extend_from_slice(&key.to_be_bytes());
    value.extend_from_slice(&number.to_be_bytes());
    let mut random = fastrand::Rng::with_seed(key.rotate_left(32) ^ number);
    while value.len() < bytes {
        value.extend_from_slice(&random.u64(..).to_be_bytes());
    }
    value.truncate(bytes.max(HEAD_BYTES));
    value
}

/// The number of the write that made this value of a key; `None` when none can have.
pub(super) fn number_of(key: u64, value: &[u8], bytes: usize) -> Option<u64> {
    let number = value.get(8..HEAD_BYTES)?.try_into().ok().map(u64::from_be_bytes)?;
    (value == value_of(key, number, bytes)).then_some(number)
}

/// What was found wrong, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) wrong: u64,
    /// Of the first few.
    pub(super) examples: Vec<String>,
}

/// Examples that are told.
const EXAMPLES: usize = 10;

impl Damage {
    pub(super) fn note(&mut self, verdict: Verdict, what: impl FnOnce() -> String) {
        match verdict {
            Verdict::Fine => return,
            Verdict::Lost => self.lost += 1,
            Verdict::Doubled => self.doubled += 1,
            Verdict::Wrong => self.wrong += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{verdict:?}: {}", what()));
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.wrong == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_holds_the_last_acknowledged_write_or_a_doubtful_one_after_it() {
        let mut register = Register::default();
        assert_eq!(register.judge(None), Verdict::Fine);
        let first = register.begin();
        register.acknowledged(first);
        let doubtful = register.begin();
        register.doubted(doubtful);
        let refused = register.begin();
        assert_eq!((first, doubtful, refused), (1, 2, 3));
        assert_eq!(register.judge(Some(first)), Verdict::Fine);
        assert_eq!(register.judge(Some(refused)), Verdict::Wrong);
        assert_eq!(register.judge(None), Verdict::Lost);
        assert_eq!(register.judge(Some(doubtful)), Verdict::Fine);
        assert_eq!(register.judge(Some(first)), Verdict::Lost, "the doubt is settled");
        assert_eq!(register.judge(Some(doubtful)), Verdict::Fine);
        let next = register.begin();
        register.acknowledged(next);
        assert_eq!(register.judge(Some(next)), Verdict::Fine);
        assert_eq!(register.judge(Some(doubtful)), Verdict::Lost, "it came before");
    }

    #[test]
    fn what_was_found_settles_all_doubts_before_it_and_none_after_it() {
        let mut register = Register::default();
        for _ in 0..3 {
            let number = register.begin();
            register.doubted(number);
        }
        assert_eq!(register.judge(Some(2)), Verdict::Fine);
        assert_eq!(register.judge(Some(1)), Verdict::Lost);
        assert_eq!(register.judge(None), Verdict::Lost);
        assert_eq!(register.judge(Some(3)), Verdict::Fine);
        assert_eq!(register.judge(Some(2)), Verdict::Lost);
    }

    #[test]
    fn a_counter_knows_every_addition() {
        let mut counter = Counter::default();
        assert_eq!(counter.acknowledged(1), Verdict::Fine);
        assert_eq!(counter.judge(Some(1)), Verdict::Fine);
        assert_eq!(counter.judge(Some(2)), Verdict::Doubled);
        assert_eq!(counter.judge(None), Verdict::Lost);
        counter.doubted();
        assert_eq!(counter.judge(Some(1)), Verdict::Fine);
        assert_eq!(counter.judge(Some(2)), Verdict::Fine);
        assert_eq!(counter.judge(Some(1)), Verdict::Lost, "the doubtful one was there");
        assert_eq!(counter.acknowledged(3), Verdict::Fine, "the doubtful one was applied");
        assert_eq!(counter.judge(Some(2)), Verdict::Lost);
        assert_eq!(counter.acknowledged(5), Verdict::Doubled);
        assert_eq!(counter.acknowledged(5), Verdict::Lost);
    }

    #[test]
    fn a_value_tells_its_write_and_every_other_byte_is_noticed() {
        for bytes in [16, 24, 100] {
            let value = value_of(7, 9, bytes);
            assert_eq!(value.len(), bytes);
            assert_eq!(number_of(7, &value, bytes), Some(9));
            assert_eq!(number_of(8, &value, bytes), None, "of another key");
            assert_eq!(number_of(7, &value[..bytes - 1], bytes), None);
            for at in 0..bytes {
                let mut other = value.clone();
                other[at] ^= 1;
                let is_other_write = bytes == HEAD_BYTES && at >= 8;
                assert_eq!(number_of(7, &other, bytes).is_some(), is_other_write, "{bytes} {at}");
            }
        }
    }

    #[test]
    fn damage_is_counted_by_kind() {
        let mut damage = Damage::default();
        damage.note(Verdict::Fine, || panic!("nothing to tell"));
        assert!(damage.is_none());
        for verdict in [Verdict::Lost, Verdict::Lost, Verdict::Doubled, Verdict::Wrong] {
            damage.note(verdict, || "a key".to_owned());
        }
        assert_eq!((damage.lost, damage.doubled, damage.wrong), (2, 1, 1));
        assert_eq!(damage.examples[0], "Lost: a key");
        assert!(!damage.is_none());
    }
}
