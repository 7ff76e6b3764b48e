//! Names that travel: of services and of their instances.
//!
//! A name becomes a DNS label, a metric label, a path segment and a log field. Checking it once,
//! where it enters, spares every one of those an escape.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A name that breaks the rules: what it is, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: allowed are {allowed}")]
pub struct NameError {
    text: String,
    what: &'static str,
    allowed: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $allowed:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `text`.
            ///
            /// # Errors
            /// [`NameError`] with what is allowed.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                let text = text.as_ref();
                let ok: fn(&str) -> bool = $ok;
                if ok(text) {
                    return Ok(Self(text.into()));
                }
                // What is too long to be a name is too long for a log line.
                let shown = text.chars().take(80).collect();
                Err(NameError { text: shown, what: $what, allowed: $allowed })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a service: a DNS label, so that it can be one.
    ServiceName,
    "service name",
    "1 to 63 of a-z, 0-9 and '-', not at either end",
    |text| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-')
    }
);

name!(
    /// The name of an instance, unique within its service: a host and port, a pod's name, a UUID.
    InstanceId,
    "instance id",
    "1 to 128 of a-z, A-Z, 0-9, '-', '_', '.' and ':'",
    |text| {
        (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
            && text != "."
            && text != ".."
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        let long = "a".repeat(64);
        for (text, ok) in [
            ("orders", true),
            ("orders-v2", true),
            ("9", true),
            ("", false),
            ("Orders", false),
            ("orders_v2", false),
            ("-orders", false),
            ("orders-", false),
            ("a.b", false),
            ("ordérs", false),
            (&long, false),
            (&long[1..], true),
        ] {
            assert_eq!(ServiceName::new(text).is_ok(), ok, "{text}");
        }
        for (text, ok) in [
            ("10.0.0.1:8080", true),
            ("", false),
            ("a/b", false),
            ("..", false),
            ("a b", false),
        ] {
            assert_eq!(InstanceId::new(text).is_ok(), ok, "{text}");
        }
        let error = serde_json::from_str::<ServiceName>(r#""<script>""#).expect_err("not a name");
        assert!(error.to_string().contains("1 to 63"), "{error}");
    }
}
