//! Durations, sizes, shares, rates: text to value and back.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that is not a value of the unit asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: write it as {allowed}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    allowed: &'static str,
}

fn error(text: &str, what: &'static str, allowed: &'static str) -> UnitError {
    UnitError {
        text: text.to_owned(),
        what,
        allowed,
    }
}

/// Splits `"250ms"` into `(250.0, "ms")`; underscores may group the digits.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    let number: String = text[..end].chars().filter(|&c| c != '_').collect();
    let number = number.parse::<f64>().ok().filter(|n| n.is_finite())?;
    Some((number, text[end..].trim()))
}

/// Digits that every number fits in, for the patterns of JSON Schema: an editor need not know more
/// forms than the common ones.
#[cfg(feature = "schema")]
macro_rules! number {
    () => {
        "[0-9][0-9_]{0,8}(\\.[0-9]{1,3})?"
    };
}
#[cfg(feature = "schema")]
macro_rules! time {
    () => {
        concat!(number!(), "(us|ms|s|m|h|d)")
    };
}

/// The forms of a time, for the JSON Schema of what may be one.
#[cfg(feature = "schema")]
pub(crate) const TIME_PATTERN: &str = time!();

/// Serde through `Display` and `FromStr`; a plain number is taken where `$number` says how. The
/// pattern is for JSON Schema: all that it lets through is understood.
macro_rules! as_text {
    ($type:ty, $expects:literal, $pattern:expr $(, $number:expr)?) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expects)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    $(
                        fn visit_f64<E: de::Error>(self, n: f64) -> Result<$type, E> {
                            let make: fn(f64) -> Result<$type, UnitError> = $number;
                            make(n).map_err(E::custom)
                        }
                        fn visit_i64<E: de::Error>(self, n: i64) -> Result<$type, E> {
                            self.visit_f64(n as f64)
                        }
                        fn visit_u64<E: de::Error>(self, n: u64) -> Result<$type, E> {
                            self.visit_f64(n as f64)
                        }
                    )?
                }
                d.deserialize_any(Visitor)
            }
        }
        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let pattern = concat!("^(", $pattern, ")$");
                let numbers: &[fn(f64) -> Result<$type, UnitError>] = &[$($number)?];
                if numbers.is_empty() {
                    return schemars::json_schema!({
                        "type": "string", "pattern": pattern, "description": $expects
                    });
                }
                schemars::json_schema!({
                    "type": ["string", "number"], "minimum": 0, "pattern": pattern,
                    "description": $expects
                })
            }
        }
    };
}

mod compound;

pub use self::compound::{BackoffRange, BudgetSpec, Rate, ShareSpec};

/// A time span, written `"250ms"`, `"5s"`, `"10m"`, `"1h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub Duration);

impl Millis {
    /// From whole milliseconds.
    pub const fn new(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl From<Millis> for Duration {
    fn from(value: Millis) -> Self {
        value.0
    }
}

impl FromStr for Millis {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || {
            error(
                text,
                "a duration",
                r#""250ms", "1.5s", "10m", "1h" or "1d""#,
            )
        };
        let (number, unit) = number_and_unit(text).ok_or_else(fail)?;
        let seconds = match unit {
            "us" | "µs" => number / 1e6,
            "ms" => number / 1e3,
            "s" => number,
            "m" | "min" => number * 60.0,
            "h" => number * 3600.0,
            "d" => number * 86_400.0,
            "" if number == 0.0 => 0.0,
            _ => return Err(fail()),
        };
        Duration::try_from_secs_f64(seconds)
            .map(Self)
            .map_err(|_| fail())
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        match micros {
            0 => f.write_str("0s"),
            n if n % 3_600_000_000 == 0 => write!(f, "{}h", n / 3_600_000_000),
            n if n % 60_000_000 == 0 => write!(f, "{}m", n / 60_000_000),
            n if n % 1_000_000 == 0 => write!(f, "{}s", n / 1_000_000),
            n if n % 1_000 == 0 => write!(f, "{}ms", n / 1_000),
            n => write!(f, "{n}us"),
        }
    }
}

as_text!(
    Millis,
    r#"a duration with its unit, as "250ms", "5s" or "10m""#,
    concat!("0|", time!())
);

/// A size in bytes, written `"64KiB"`, `"10MiB"`, `"512B"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// As a `usize`, capped at what the machine addresses.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || error(text, "a size", r#""512B", "64KiB", "10MiB" or "1GiB""#);
        let (number, unit) = number_and_unit(text).ok_or_else(fail)?;
        let scale: u64 = match unit {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" => 1 << 30,
            "" if number == 0.0 => 1,
            _ => return Err(fail()),
        };
        let bytes = number * scale as f64;
        if bytes.fract() != 0.0 || bytes > u64::MAX as f64 {
            return Err(fail());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n > 0 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

as_text!(
    ByteSize,
    r#"a size with its unit, as "64KiB" or "10MiB""#,
    "[0-9][0-9_]{0,8}(B|kB|KB|KiB|MB|MiB|GB|GiB)"
);

/// A share, written `"50%"` or `0.5`. Finite and not negative; fields narrow it further.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// A share given as a fraction: 0.5 is half. `None` if negative or not finite.
    pub const fn new(fraction: f64) -> Option<Self> {
        if fraction >= 0.0 && fraction.is_finite() {
            Some(Self(fraction))
        } else {
            None
        }
    }

    /// A share in whole percent.
    pub const fn percent(percent: u32) -> Self {
        Self(percent as f64 / 100.0)
    }

    /// The fraction: 0.5 for half.
    pub const fn fraction(self) -> f64 {
        self.0
    }
}

const RATIO_FORMS: &str = r#""50%" or 0.5"#;

impl FromStr for Ratio {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || error(text, "a share", RATIO_FORMS);
        match number_and_unit(text).ok_or_else(fail)? {
            (n, "%") => Ok(Self(n / 100.0)),
            (n, "") => Ok(Self(n)),
            _ => Err(fail()),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Three decimals of a percent, without the zeros at the end.
        let text = format!("{:.3}", self.0 * 100.0);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

as_text!(
    Ratio,
    r#"a share, as "50%" or 0.5"#,
    concat!(number!(), "%?"),
    |n| Ratio::new(n).ok_or_else(|| error(&n.to_string(), "a share", RATIO_FORMS))
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses, prints, parses again: the printed form is the canonical one.
    fn round<T: FromStr<Err = UnitError> + fmt::Display + PartialEq + fmt::Debug>(
        cases: &[(&str, &str)],
    ) {
        for (input, printed) in cases {
            let value: T = input.parse().unwrap_or_else(|e| panic!("{input}: {e}"));
            assert_eq!(value.to_string(), *printed, "{input}");
            assert_eq!(printed.parse::<T>().as_ref(), Ok(&value), "{input}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_meant() {
        round::<Millis>(&[
            ("250ms", "250ms"),
            ("1.5s", "1500ms"),
            ("90s", "90s"),
            ("60s", "1m"),
            ("0", "0s"),
            ("5us", "5us"),
        ]);
        round::<ByteSize>(&[
            ("64KiB", "64KiB"),
            ("1024B", "1KiB"),
            ("1.5MiB", "1536KiB"),
            ("10MB", "10000000B"),
            ("0", "0B"),
        ]);
        round::<Ratio>(&[
            ("50%", "50%"),
            ("0.5", "50%"),
            ("0.1%", "0.1%"),
            ("100%", "100%"),
        ]);
        round::<Rate>(&[
            ("50/s", "50/s"),
            ("100/s burst 200", "100/s burst 200"),
            ("1_000/m", "1000/m"),
            ("5/10s", "5/10s"),
        ]);
        round::<BudgetSpec>(&[("20% min 3/s", "20% min 3/s"), ("20%", "20%")]);
        round::<ShareSpec>(&[("50% min 10", "50% min 10"), ("20%", "20%")]);
        round::<BackoffRange>(&[("25ms..250ms", "25ms..250ms"), ("1s", "1s..1s")]);
    }

    #[test]
    fn riddles_are_refused_with_what_is_allowed() {
        for text in ["250", "5 parsecs", "", "ms", "-1s", "1e400s", "nan"] {
            let error = text.parse::<Millis>().expect_err(text).to_string();
            assert!(error.contains("250ms"), "{error}");
        }
        for text in ["64", "0.3B", "64Kib", "-1KiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["50", "0/s", "5/0s", "5/s burst 0", "5/s burst", "x/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["-5%", "fifty", "5‰"] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
        assert!("20% min 3".parse::<BudgetSpec>().is_err());
        for text in ["min 3", "20% min 3/s", "20% min -1", "20% min"] {
            assert!(text.parse::<ShareSpec>().is_err(), "{text}");
        }
        assert!("25..250".parse::<BackoffRange>().is_err());
    }
}
