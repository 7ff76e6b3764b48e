//! `tracestate`: what each tracing system on the way wants to find again, passed on within limits.
//!
//! Passing it on unread would be simplest, but it comes from strangers, and one that grows with
//! every hop ends in a refused request somewhere behind us. So it is read as strictly as the
//! specification says, dropped where it is broken, and cut where it is too long.
//!
//! # Source
//! W3C Trace Context, level 1, §3.3: at most 32 members, each key once; at least 512 characters must
//! be passed on; members longer than 128 characters go first, then those at the end.

use std::fmt;

use http::{HeaderMap, HeaderValue};

use super::trace::TRACESTATE;

/// Members that a list may have.
const MEMBERS_MAX: usize = 32;
/// Characters that are passed on.
const LENGTH_MAX: usize = 512;
/// A member longer than this goes first where the list is too long.
const LONG: usize = 128;

/// A valid list of at most 32 members, newest first. Empty if there was none, or a broken one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceState(Vec<(String, String)>);

impl TraceState {
    /// Reads what `headers` carry: several headers are one list, one broken member spoils it all.
    pub fn extract(headers: &HeaderMap) -> Self {
        let mut members = Vec::new();
        for value in headers.get_all(&TRACESTATE) {
            let Ok(text) = value.to_str() else {
                return Self::default();
            };
            for member in text.split(',') {
                let member = member.trim_matches([' ', '\t']);
                if member.is_empty() {
                    continue;
                }
                match member.split_once('=') {
                    Some((key, value)) if is_key(key) && is_value(value) => {
                        members.push((key.to_owned(), value.to_owned()));
                    }
                    _ => return Self::default(),
                }
            }
        }
        let twice = |at: usize| members[..at].iter().any(|(key, _)| *key == members[at].0);
        if members.len() > MEMBERS_MAX || (1..members.len()).any(twice) {
            return Self::default();
        }
        Self(members)
    }

    /// What the member `key` says.
    pub fn value(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Puts a member of one's own in front, in place of what it said before; the last of 32 makes
    /// room. `false`, and nothing changes, if key or value are not allowed.
    pub fn set(&mut self, key: &str, value: &str) -> bool {
        if !is_key(key) || !is_value(value) {
            return false;
        }
        self.0.retain(|(name, _)| name != key);
        self.0.truncate(MEMBERS_MAX - 1);
        self.0.insert(0, (key.to_owned(), value.to_owned()));
        true
    }

    /// Whether there is nothing to pass on.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Cuts it to what must be passed on.
    fn limited(mut self) -> Self {
        let length = |members: &[(String, String)]| -> usize {
            members.iter().map(|(k, v)| k.len() + v.len() + 2).sum()
        };
        while length(&self.0) > LENGTH_MAX + 1 {
            let long = self.0.iter().rposition(|(k, v)| k.len() + v.len() >= LONG);
            self.0.remove(long.unwrap_or(self.0.len() - 1));
        }
        self
    }

    /// Writes it into `headers` in place of what was there, cut to its limits.
    pub fn inject(self, headers: &mut HeaderMap) {
        headers.remove(&TRACESTATE);
        let limited = self.limited();
        if limited.is_empty() {
            return;
        }
        if let Ok(value) = HeaderValue::try_from(limited.to_string()) {
            headers.insert(TRACESTATE.clone(), value);
        }
    }
}

impl fmt::Display for TraceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// `simple` up to 256 characters, or `tenant@system` up to 241 and 14.
fn is_key(key: &str) -> bool {
    let body = |b: u8| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'*' | b'/')
    };
    let lower = |text: &str| text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    match key.split_once('@') {
        None => (1..=256).contains(&key.len()) && lower(key) && key.bytes().all(body),
        Some((tenant, system)) => {
            let tenant_start = tenant
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric());
            (1..=241).contains(&tenant.len())
                && tenant_start
                && tenant.bytes().all(body)
                && (1..=14).contains(&system.len())
                && lower(system)
                && system.bytes().all(body)
        }
    }
}

/// Up to 256 printable characters but comma and equals, not ending with a space.
fn is_value(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && value
            .bytes()
            .all(|b| matches!(b, 0x20..=0x7E) && b != b',' && b != b'=')
        && !value.ends_with(' ')
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> TraceState {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACESTATE.clone(), value.parse().expect("value"));
        }
        TraceState::extract(&headers)
    }

    #[test]
    fn valid_lists_pass_and_broken_ones_are_dropped() {
        let long_key = format!("{}=1", "k".repeat(257));
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=1")).collect();
        let cases: &[(&[&str], &str)] = &[
            (&["rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7"),
            (&["a=1,b=2", "c=3"], "a=1,b=2,c=3"),
            (&["a=1 , \tb=2,,"], "a=1,b=2"),
            (&["0tenant@system=x y"], "0tenant@system=x y"),
            (&["a=1,a=2"], ""),
            (&["a=1", "a=2"], ""),
            (&["a"], ""),
            (&["a="], ""),
            (&["A=1"], ""),
            (&["1a=1"], ""),
            (&["a=b=c"], ""),
            (&["a@=1"], ""),
            (&["a@Sys=1"], ""),
            (&[&long_key], ""),
            (&[&many.join(",")], ""),
            (&[&many[..32].join(",")], &many[..32].join(",")),
            (&[""], ""),
            (&[], ""),
        ];
        for (values, want) in cases {
            assert_eq!(read(values).to_string(), *want, "{values:?}");
        }
    }

    #[test]
    fn too_long_a_list_loses_long_members_first_and_then_the_last() {
        let long = format!("long={}", "x".repeat(200));
        let short: Vec<String> = (0..25)
            .map(|n| format!("k{n:02}={}", "v".repeat(20)))
            .collect();
        let mut headers = HeaderMap::new();
        read(&[&format!("{long},{}", short.join(","))]).inject(&mut headers);
        let sent = headers[&TRACESTATE].to_str().expect("ascii");
        assert!(sent.len() <= LENGTH_MAX, "{}", sent.len());
        assert!(!sent.contains("long="));
        assert!(sent.starts_with("k00=") && !sent.contains("k24="));
        let all = short.join(",");
        assert!(all.starts_with(sent), "in order");
    }

    #[test]
    fn ours_goes_to_the_front_and_replaces_what_it_said() {
        let mut state = read(&["a=1,b=2"]);
        assert!(state.set("b", "3"));
        assert_eq!(state.to_string(), "b=3,a=1");
        assert_eq!(state.value("a"), Some("1"));
        assert!(!state.set("B", "3") && !state.set("b", "x,y"));
        for n in 0..40 {
            assert!(state.set(&format!("k{n}"), "1"));
        }
        assert_eq!(state.0.len(), 32);
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics_and_what_is_written_is_read_back(text in "[ -~]{0,80}") {
            let state = read(&[&text]);
            let again = read(&[&state.to_string()]);
            proptest::prop_assert_eq!(state, again);
        }
    }
}
