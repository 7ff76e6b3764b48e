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

/// One of two fields that must fit each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a, T> {
    pub(crate) name: &'a str,
    pub(crate) value: T,
    /// Whether nobody needs to have written it.
    pub(crate) is_default: bool,
}

impl<'a, T: PartialEq> Field<'a, T> {
    pub(crate) fn new(name: &'a str, value: T, default: T) -> Self {
        let is_default = value == default;
        Self {
            name,
            value,
            is_default,
        }
    }
}

/// `Err` unless `ok`: `low` is to be `than[0]` what `high` is, which is `than[1]` of `low`.
///
/// A field that has its default has most likely not been written: the error names the other one, and
/// says which default it does not fit.
pub(crate) fn ensure_order<T: std::fmt::Display>(
    ok: bool,
    low: Field<'_, T>,
    high: Field<'_, T>,
    than: [&str; 2],
) -> Result<(), PolicyError> {
    if ok {
        return Ok(());
    }
    let (wrote, other, than) = if low.is_default && !high.is_default {
        (high, low, than[1])
    } else {
        (low, high, than[0])
    };
    let name = other.name;
    let hint = if other.is_default {
        format!(", the default: set {name} too")
    } else {
        String::new()
    };
    let allowed = format!("{than} {name} = {}{hint}", other.value);
    Err(PolicyError::new(wrote.name, wrote.value, allowed))
}

/// What [`ensure_order`] says of `low <= high`.
pub(crate) const AT_MOST: [&str; 2] = ["at most", "at least"];
/// What it says of `low < high`.
pub(crate) const LESS: [&str; 2] = ["less than", "more than"];
