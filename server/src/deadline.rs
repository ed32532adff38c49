//! How long a caller waits, by gRPC's own header, and what of it may be spent here. Pure.
//!
//! A header that does not read is no deadline, as gRPC servers have it; callers of this have their own default.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Most that is kept back for the answer's way.
const MARGIN_MOST: Duration = Duration::from_millis(200);

/// The caller's deadline: at most eight digits and a unit. `None` when it set none that reads.
#[must_use]
pub fn deadline_of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// What of it may be spent here, so that the answer arrives in time.
#[must_use]
pub fn working_limit(whole: Duration) -> Duration {
    whole.saturating_sub((whole / 10).min(MARGIN_MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_apart_and_nonsense_is_no_deadline() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline_of(&metadata)
        };
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for nonsense in ["", "S", "5", "-1S", "5s"] {
            assert_eq!(read(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(deadline_of(&MetadataMap::new()), None);
        assert_eq!(working_limit(Duration::from_secs(1)), Duration::from_millis(900));
        assert_eq!(working_limit(Duration::from_secs(60)), Duration::from_millis(59_800));
    }
}
