//! Values with units: their form in files, variables, flags and messages.
//!
//! Owns parsing and printing. Knows no limits: those belong to the settings.
//!
//! Invariant: what is displayed is parsed back as the same value.
//!
//! On failure a text is refused with the form that was expected ([`BadText`]); nothing is rounded
//! and no unit is assumed.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text is not a value of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {text:?}")]
pub struct BadText {
    expected: &'static str,
    text: String,
}

/// A time, written as a whole number with its unit: `100ms`, `2s`, `1m`. Kept in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(u64);

/// Largest first.
const TIME_UNITS: &[(&str, u64)] = &[("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Duration {
    /// So many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// As the rest of the program counts time.
    #[must_use]
    pub fn get(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl FromStr for Duration {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let expected = "a whole number with ms, s or m, as in 100ms";
        let bad = || BadText { expected, text: text.to_owned() };
        parse_units(text, TIME_UNITS).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_units(f, self.0, TIME_UNITS)
    }
}

/// A number of bytes, written as a whole number with its unit: `4096B`, `64KiB`, `16MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Largest first.
const SIZE_UNITS: &[(&str, u64)] =
    &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for ByteSize {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let expected = "a whole number with B, KiB, MiB or GiB, as in 16MiB";
        let bad = || BadText { expected, text: text.to_owned() };
        parse_units(text, SIZE_UNITS).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_units(f, self.0, SIZE_UNITS)
    }
}

fn parse_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, each) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*each)
}

/// In the largest unit that leaves a whole number.
fn write_units(f: &mut fmt::Formatter<'_>, amount: u64, units: &[(&str, u64)]) -> fmt::Result {
    let whole = |each: u64| amount >= each && amount.is_multiple_of(each);
    let found = units.iter().find(|(_, each)| whole(*each)).or(units.last());
    let (unit, each) = found.copied().unwrap_or(("", 1));
    write!(f, "{}{unit}", amount / each)
}

/// A weight in hundredths, written as a decimal: `Weight(150)` is `1.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(pub u32);

impl Weight {
    fn decimal(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl FromStr for Weight {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let expected = "a decimal with at most two digits after the point, as in 1.5";
        let bad = || BadText { expected, text: text.to_owned() };
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 2 {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_| bad())?;
        let part: u32 = format!("{part:0<2}").parse().map_err(|_| bad())?;
        let hundredths = whole.checked_mul(100).and_then(|whole| whole.checked_add(part));
        hundredths.map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug of a float has a digit after the point also when it is zero, as TOML wants it.
        write!(f, "{:?}", self.decimal())
    }
}

impl Serialize for Weight {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.decimal())
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

/// A path for reading: what is not UTF-8 in it is replaced, so that it always has a form. Nothing
/// that was checked has such a path.
pub(crate) fn lossy_path<S: serde::Serializer>(
    path: &Path,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Values that a file holds as text, by the form that they are parsed from and displayed in.
///
/// Numbers are taken by their digits: `weight = 2` means something, and `lease = 600` is told which
/// form is expected.
pub(crate) mod text {
    use std::fmt;
    use std::marker::PhantomData;
    use std::str::FromStr;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    struct Text<T>(PhantomData<T>);

    impl<T> Visitor<'_> for Text<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }

    pub(crate) fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: fmt::Display,
        S: Serializer,
    {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: fmt::Display,
        D: Deserializer<'de>,
    {
        deserializer.deserialize_any(Text::<T>(PhantomData))
    }
}
