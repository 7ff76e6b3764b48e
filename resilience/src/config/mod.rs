//! The words and units of every Selvedge configuration file.
//!
//! A bare number in a file is a riddle: seconds or milliseconds, percent or ratio? So durations,
//! sizes, shares and rates are strings with units, each parsed in one place, printed back in the
//! same form, and refused with the forms that are allowed.

mod units;

#[cfg(feature = "schema")]
pub(crate) use units::TIME_PATTERN;
pub use units::{BackoffRange, BudgetSpec, ByteSize, Millis, Rate, Ratio, ShareSpec, UnitError};

/// A policy that cannot work: which field, what it says, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} = {value} cannot work: {allowed}")]
#[non_exhaustive]
pub struct PolicyError {
    /// The field's path in the document, as `retry.attempts`.
    pub path: String,
    /// The value given.
    pub value: String,
    /// What is allowed instead.
    pub allowed: String,
}

impl PolicyError {
    /// Names the field, the value it had and what it may be.
    pub fn new(path: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Self {
        let mut value = value.to_string();
        if value.is_empty() {
            // Nothing would read as if nothing had been written.
            value.push_str("\"\"");
        }
        Self {
            path: path.into(),
            value,
            allowed: allowed.into(),
        }
    }

    /// The same error seen from the document around it.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.path = format!("{parent}.{}", self.path);
        self
    }
}

/// `Err` with the field's path unless `ok`.
pub(crate) fn ensure(
    ok: bool,
    path: &str,
    value: impl ToString,
    allowed: &str,
) -> Result<(), PolicyError> {
    if ok {
        Ok(())
    } else {
        Err(PolicyError::new(path, value, allowed))
    }
}
