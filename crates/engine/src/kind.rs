//! Which engine a node runs, by name.
//!
//! The names are configuration: they are not changed. An engine does not read the folder of another
//! kind; a node that changes its kind starts from an empty folder and is refilled.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::fjall::{FjallEngine, FjallOptions};
use crate::memory::MemoryEngine;
use crate::sled::{SledEngine, SledOptions};
use crate::{Engine, EngineError};

/// The engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The default. Passed every crash run so far.
    #[default]
    Fjall,
    /// Selectable. Its files are no more than a cache; see its module for the reasons.
    Sled,
    /// For tests and the simulation.
    Memory,
}

impl EngineKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fjall, Self::Sled, Self::Memory];

    /// Its name in configuration and on `/metrics`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fjall => "fjall",
            Self::Sled => "sled",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no engine has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no engine is called {0:?}; there are fjall, sled and memory")]
pub struct UnknownEngine(pub String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownEngine(text.to_owned()))
    }
}

/// Opens the engine in `dir` with its default options, creating what is missing. The memory engine
/// starts empty and does not look at `dir`.
///
/// # Errors
/// [`EngineError::DoesNotOpen`] when the folder is damaged, also where the engine itself panics;
/// [`EngineError::Failed`] when the folder is in use or the machine refuses.
pub fn open(kind: EngineKind, dir: &Path) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(match kind {
        EngineKind::Fjall => Arc::new(FjallEngine::open(dir, FjallOptions::default())?),
        EngineKind::Sled => Arc::new(SledEngine::open(dir, SledOptions::default())?),
        EngineKind::Memory => Arc::new(MemoryEngine::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse::<EngineKind>(), Ok(kind));
        }
        let refused = "Fjall".parse::<EngineKind>();
        assert_eq!(refused, Err(UnknownEngine("Fjall".to_owned())));
    }
}
