//! What is written with more than one number: rates, budgets, shares with a floor, backoffs.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Millis, Ratio, UnitError, error};

/// How much per how long, written `"50/s"`, `"100/s burst 200"`, `"1_000/m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Cells that come back in one `per`; at least 1.
    pub count: u32,
    /// The span that `count` is for; not zero.
    pub per: Duration,
    /// Cells that may go at once; at least 1. Not written: the same as `count`.
    pub burst: u32,
}

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || error(text, "a rate", r#""50/s", "100/s burst 200" or "1000/m""#);
        let (rate, burst) = match text.split_once("burst") {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let whole = |t: &str| {
            t.trim()
                .replace('_', "")
                .parse::<u32>()
                .ok()
                .filter(|&n| n > 0)
        };
        let (count, per) = rate.split_once('/').ok_or_else(fail)?;
        let count = whole(count).ok_or_else(fail)?;
        let per = match per.trim() {
            "s" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "day" | "d" => Duration::from_secs(86_400),
            other => Millis::from_str(other).map_err(|_| fail())?.0,
        };
        let burst = match burst {
            Some(text) => whole(text).ok_or_else(fail)?,
            None => count,
        };
        if per.is_zero() {
            Err(fail())
        } else {
            Ok(Self { count, per, burst })
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 if self.per.subsec_nanos() == 0 => write!(f, "{}/s", self.count)?,
            60 if self.per.subsec_nanos() == 0 => write!(f, "{}/m", self.count)?,
            3600 if self.per.subsec_nanos() == 0 => write!(f, "{}/h", self.count)?,
            _ => write!(f, "{}/{}", self.count, Millis(self.per))?,
        }
        if self.burst == self.count {
            Ok(())
        } else {
            write!(f, " burst {}", self.burst)
        }
    }
}

as_text!(
    Rate,
    r#"a rate, as "50/s" or "100/s burst 200""#,
    "[1-9][0-9_]{0,8}/(s|m|h|d|[1-9][0-9_]{0,8}(ms|s|m|h|d))( burst [1-9][0-9_]{0,8})?"
);

/// What retries may add, written `"20%"` or `"20% min 3/s"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetSpec {
    /// Retries allowed for each call that was made.
    pub ratio: Ratio,
    /// Retries allowed a second whatever the traffic.
    pub min_per_second: u32,
}

impl FromStr for BudgetSpec {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || error(text, "a retry budget", r#""20%" or "20% min 3/s""#);
        let (ratio, min) = match text.split_once("min") {
            Some((ratio, min)) => (ratio, min.trim().strip_suffix("/s").ok_or_else(fail)?),
            None => (text, "0"),
        };
        Ok(Self {
            ratio: ratio.trim().parse().map_err(|_| fail())?,
            min_per_second: min.trim().parse().map_err(|_| fail())?,
        })
    }
}

impl fmt::Display for BudgetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ratio)?;
        if self.min_per_second == 0 {
            Ok(())
        } else {
            write!(f, " min {}/s", self.min_per_second)
        }
    }
}

as_text!(
    BudgetSpec,
    r#"a retry budget, as "20% min 3/s""#,
    concat!(number!(), "%( min [0-9]{1,9}/s)?")
);

/// A share of what is under way, with a floor, written `"50%"` or `"50% min 10"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShareSpec {
    /// For each call under way.
    pub ratio: Ratio,
    /// Allowed whatever is under way.
    pub min: u32,
}

impl FromStr for ShareSpec {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || {
            error(
                text,
                "a share of what is under way",
                r#""50%" or "50% min 10""#,
            )
        };
        let (ratio, min) = text.split_once("min").unwrap_or((text, "0"));
        Ok(Self {
            ratio: ratio.trim().parse().map_err(|_| fail())?,
            min: min.trim().parse().map_err(|_| fail())?,
        })
    }
}

impl fmt::Display for ShareSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ratio)?;
        if self.min == 0 {
            Ok(())
        } else {
            write!(f, " min {}", self.min)
        }
    }
}

as_text!(
    ShareSpec,
    r#"a share of what is under way, as "50% min 10""#,
    concat!(number!(), "%( min [0-9]{1,9})?")
);

/// From the first wait to the longest, written `"25ms..250ms"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffRange {
    /// Upper end of the first wait.
    pub base: Duration,
    /// Upper end of every wait.
    pub max: Duration,
}

impl FromStr for BackoffRange {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || error(text, "a backoff", r#""25ms..250ms" or "25ms""#);
        let (base, max) = text.split_once("..").unwrap_or((text, text));
        let parse = |t: &str| Millis::from_str(t).map(Duration::from).map_err(|_| fail());
        Ok(Self {
            base: parse(base)?,
            max: parse(max)?,
        })
    }
}

impl fmt::Display for BackoffRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", Millis(self.base), Millis(self.max))
    }
}

as_text!(
    BackoffRange,
    r#"a backoff, as "25ms..250ms""#,
    concat!(time!(), "(\\.\\.", time!(), ")?")
);
