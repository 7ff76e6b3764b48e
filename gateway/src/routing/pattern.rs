//! What a rule asks of a request.

use std::{fmt, str::FromStr};

use http::{HeaderName, HeaderValue, Method};

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct PatternError {
    text: String,
    why: &'static str,
}

/// A host: `api.example.com`, or `*.example.com` for everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host.
    Exact(Box<str>),
    /// One or more labels before this suffix (kept without `*.`), never the suffix itself.
    Wildcard(Box<str>),
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let error = |why| PatternError {
            text: text.to_owned(),
            why,
        };
        let lower = text.to_ascii_lowercase();
        let (wild, name) = match lower.strip_prefix("*.") {
            Some(suffix) => (true, suffix),
            None => (false, lower.as_str()),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.starts_with('[') && !wild {
            return Ok(Self::Exact(name.into()));
        }
        if name.contains(':') {
            return Err(error("has a port: a host is matched without its port"));
        }
        let labels_are_fine = name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
        if !labels_are_fine {
            return Err(error(
                "is not a host: expected \"api.example.com\" or \"*.example.com\"",
            ));
        }
        Ok(if wild {
            Self::Wildcard(name.into())
        } else {
            Self::Exact(name.into())
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// A path: `/x` for everything at and below it, `=/x` for that path alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathPattern {
    /// This path, to the letter.
    Exact(Box<str>),
    /// This path and all below it, by whole segments; kept without a trailing slash, so that the
    /// root is empty.
    Prefix(Box<str>),
}

impl Default for PathPattern {
    fn default() -> Self {
        Self::Prefix(Box::default())
    }
}

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let error = |why| PatternError {
            text: text.to_owned(),
            why,
        };
        let (exact, path) = match text.strip_prefix('=') {
            Some(path) => (true, path),
            None => (false, text),
        };
        if path.starts_with('~') {
            return Err(error(
                "is a regular expression, which is not offered: expected \"/prefix\" or \"=/exact\"",
            ));
        }
        if !path.starts_with('/') {
            return Err(error(
                "does not begin with a slash: expected \"/prefix\" or \"=/exact\"",
            ));
        }
        if path
            .bytes()
            .any(|b| b.is_ascii_control() || b" ?#\\\"<>{}^`|".contains(&b) || b >= 0x80)
        {
            return Err(error(
                "has a character that no request's path has: write it percent-encoded",
            ));
        }
        let body = path.strip_suffix('/').unwrap_or(path);
        let odd = body
            .split('/')
            .skip(1)
            .any(|segment| matches!(segment, "" | "." | ".."));
        if odd {
            return Err(error(
                "would never match: requests' paths have no empty, \".\" or \"..\" segments",
            ));
        }
        Ok(if exact {
            Self::Exact(path.into())
        } else {
            Self::Prefix(body.into())
        })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "={path}"),
            Self::Prefix(path) if path.is_empty() => f.write_str("/"),
            Self::Prefix(path) => f.write_str(path),
        }
    }
}

/// Everything that one rule asks; what is empty asks nothing.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// Any of these hosts.
    pub hosts: Vec<HostPattern>,
    /// This path.
    pub path: PathPattern,
    /// Any of these methods.
    pub methods: Vec<Method>,
    /// Each of these headers, with that value in one of its lines.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Each of these query parameters, by the first value it has (percent-decoded).
    pub query: Vec<(String, String)>,
}
