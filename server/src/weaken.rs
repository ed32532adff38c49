//! Switches that turn single safety rules off, so that tests can show that each rule is needed: a
//! rule's test must fail without its rule.
//!
//! Only tests can build a [`Weakened`] that weakens anything; elsewhere it has no state and every
//! question is answered `false`.

/// A rule that a test can turn off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weaken {
    /// W3: every mutation of a known writer is executed, also one that was executed before.
    EveryMutationIsFresh,
    /// R5: a session is answered although the state is older than what it has seen.
    OlderThanSession,
    /// R4: a read with a bound is answered whatever the age of the state.
    OlderThanBound,
    /// W5: a read hides a key that is past its deadline, whether or not an entry has ended it.
    ReadsJudgeTime,
}

/// At most one rule that is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weakened(#[cfg(test)] Option<Weaken>);

impl Weakened {
    #[cfg(test)]
    pub(crate) fn by(rule: Weaken) -> Self {
        Self(Some(rule))
    }

    #[cfg(test)]
    pub(crate) fn is(self, rule: Weaken) -> bool {
        self.0 == Some(rule)
    }

    #[cfg(not(test))]
    pub(crate) fn is(self, _rule: Weaken) -> bool {
        false
    }
}
