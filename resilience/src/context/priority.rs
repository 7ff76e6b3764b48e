//! How much a request matters, so that what matters least is refused first.
//!
//! An overloaded service refuses somebody. If it picks at random, a batch job and a payment suffer
//! alike; if only the first hop knows which is which, the hops behind it pick at random again. So
//! the caller says it once, in a header, and every hop passes it on.
//!
//! # Idea
//! One `u16`, **lower matters more**: 0 is refused last. The names are the first values of three
//! equal classes, and a fourth class lies below them:
//!
//! | value | class |
//! |---|---|
//! | 0 … 16 383 | critical |
//! | 16 384 … 32 767 | default: also what says nothing, or nothing that can be read |
//! | 32 768 … 49 151 | batch |
//! | 49 152 … 65 535 | below batch |
//!
//! The room inside a class is for *cohorts*: under load a shedder that knows only three values must
//! refuse all of a class or none of it, and a user who is refused one page of four is served none.
//! [`Priority::with_cohort`] spreads a class by a key (a user, a tenant), so that the same users are
//! refused on every hop and the others are served whole.
//!
//! # What it does not do
//! It does not trust: an edge must overwrite or remove what strangers send ([`Priority::inject`],
//! [`HEADER`]).
//!
//! # Source
//! Classes: Netflix's prioritised load shedding (critical, default, batch). Cohorts: Uber Cinnamon
//! (6 tiers × 128), Tencent DAGOR (hashed user).

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderName, HeaderValue};

/// `x-priority`: `critical`, `default`, `batch`, or a number from 0 to 65535.
pub static HEADER: HeaderName = HeaderName::from_static("x-priority");

/// Values of one class.
const CLASS: u16 = 1 << 14;

/// How much a request matters; lower matters more. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u16);

impl Priority {
    /// A user waits and something breaks for them without it: refused last.
    pub const CRITICAL: Self = Self(0);
    /// A request that says nothing.
    pub const DEFAULT: Self = Self(CLASS);
    /// Nobody waits; it can be done again later.
    pub const BATCH: Self = Self(2 * CLASS);
    /// Nothing matters less.
    pub const LOWEST: Self = Self(u16::MAX);

    /// The same class, at a place in it that `key` decides: equal keys, equal places.
    ///
    /// `key`: a hash, or any number that tells users apart; it is mixed here.
    #[must_use]
    pub const fn with_cohort(self, key: u64) -> Self {
        // Fibonacci hashing: neighbouring user numbers land far apart.
        let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - 14);
        Self(self.class_floor() | mixed as u16)
    }

    /// The names of the classes, from what matters most on.
    pub const CLASSES: [&'static str; 4] = ["critical", "default", "batch", "lowest"];

    /// The name of its class, for metric labels: one of [`CLASSES`](Self::CLASSES).
    pub const fn class(self) -> &'static str {
        Self::CLASSES[(self.0 / CLASS) as usize]
    }

    /// What `headers` say; [`DEFAULT`](Self::DEFAULT) if they say nothing that can be read, or say
    /// it twice.
    pub fn extract(headers: &HeaderMap) -> Self {
        Self::find(headers).unwrap_or_default()
    }

    /// The same, telling "nothing" from "default".
    pub fn find(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&HEADER).iter();
        match (values.next(), values.next()) {
            (Some(only), None) => only.to_str().ok()?.parse().ok(),
            _ => None,
        }
    }

    /// Writes it into `headers` in place of what was there.
    pub fn inject(self, headers: &mut HeaderMap) {
        headers.insert(HEADER.clone(), self.header());
    }

    fn header(self) -> HeaderValue {
        match self {
            Self::CRITICAL => HeaderValue::from_static("critical"),
            Self::DEFAULT => HeaderValue::from_static("default"),
            Self::BATCH => HeaderValue::from_static("batch"),
            Self(value) => HeaderValue::from(value),
        }
    }

    const fn class_floor(self) -> u16 {
        self.0 / CLASS * CLASS
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Text that is no priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a priority: write it as critical, default, batch or a number up to 65535")]
pub struct PriorityError(String);

impl FromStr for Priority {
    type Err = PriorityError;
    fn from_str(text: &str) -> Result<Self, PriorityError> {
        let digits = || !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text {
            "critical" => Ok(Self::CRITICAL),
            "default" => Ok(Self::DEFAULT),
            "batch" => Ok(Self::BATCH),
            _ if digits() => text
                .parse()
                .map(Self)
                .map_err(|_| PriorityError(text.to_owned())),
            _ => Err(PriorityError(text.to_owned())),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CRITICAL => f.write_str("critical"),
            Self::DEFAULT => f.write_str("default"),
            Self::BATCH => f.write_str("batch"),
            Self(value) => write!(f, "{value}"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_and_riddles_are_default() {
        const CASES: &[(&str, Option<Priority>)] = &[
            ("critical", Some(Priority::CRITICAL)),
            ("default", Some(Priority::DEFAULT)),
            ("batch", Some(Priority::BATCH)),
            ("0", Some(Priority::CRITICAL)),
            ("17", Some(Priority(17))),
            ("65535", Some(Priority::LOWEST)),
            ("65536", None),
            ("+17", None),
            ("-1", None),
            ("Critical", None),
            ("", None),
            ("u=1", None),
        ];
        for (text, want) in CASES {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER.clone(), HeaderValue::from_static(text));
            assert_eq!(Priority::find(&headers), *want, "{text}");
            assert_eq!(
                Priority::extract(&headers),
                want.unwrap_or(Priority::DEFAULT),
                "{text}"
            );
        }
        assert_eq!(Priority::extract(&HeaderMap::new()), Priority::DEFAULT);
    }

    #[test]
    fn two_answers_are_none_and_what_is_written_replaces_both() {
        let mut headers = HeaderMap::new();
        headers.append(HEADER.clone(), HeaderValue::from_static("critical"));
        headers.append(HEADER.clone(), HeaderValue::from_static("batch"));
        assert_eq!(Priority::find(&headers), None);
        for priority in [
            Priority::CRITICAL,
            Priority(7),
            Priority::DEFAULT,
            Priority::BATCH,
            Priority::LOWEST,
        ] {
            priority.inject(&mut headers);
            assert_eq!(Priority::find(&headers), Some(priority));
            assert_eq!(headers[&HEADER], priority.to_string());
        }
    }

    #[test]
    fn cohorts_stay_in_their_class_and_fill_it() {
        for class in [Priority::CRITICAL, Priority::DEFAULT, Priority::BATCH] {
            let places: Vec<_> = (0..1000).map(|user| class.with_cohort(user)).collect();
            assert!(places.iter().all(|p| p.class() == class.class()));
            assert_eq!(places[17], class.with_cohort(17));
            let middle = class.0 + CLASS / 2;
            let low = places.iter().filter(|p| p.0 < middle).count();
            assert!(
                (450..=550).contains(&low),
                "{low} of 1000 in the lower half"
            );
        }
        assert!(Priority::CRITICAL < Priority::DEFAULT && Priority::DEFAULT < Priority::BATCH);
        assert_eq!(Priority::LOWEST.class(), "lowest");
    }
}
