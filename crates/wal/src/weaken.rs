//! Switches that turn single safety rules off, so that tests can show that each rule is needed: a
//! rule's test must fail without its rule.
//!
//! Only tests can build a [`Weakened`] that weakens anything; elsewhere it has no state and every
//! question is answered `false`.

/// A rule that a test can turn off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weaken {
    /// L2: batches above the durable mark are believed as read, not written again.
    BelievePageCache,
    /// L2: all segments have the same salt.
    OneSalt,
    /// L3: whatever fails its check is cut off as torn.
    CutAnyBadBatch,
    /// L3: a bad batch above the durable mark is torn, without proof by sector tags.
    CutWithoutProof,
    /// L3: a batch with an unwritten sector is torn, also below the durable mark.
    IgnoreMarks,
    /// L4: what the manifest of a damaged batch says is not adopted.
    IgnoreManifests,
    /// L6: new segments start without hard state.
    OmitHardState,
    /// L9: completions run before the sync.
    CompleteBeforeSync,
    /// N1: the end of a batch is told before its sync.
    TellBeforeSync,
}

/// At most one rule that is off.
#[derive(Clone, Copy, Debug, Default)]
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
