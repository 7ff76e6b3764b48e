//! W3C Baggage: names and values that an application sends along with a call, hop by hop.
//!
//! A tenant, an experiment, a test run: whoever needs it may be five hops away, and every service
//! between must pass it on without knowing it. That makes it the easiest way to fill everybody's
//! headers, so what is read is bounded, and what is broken is left out member by member.
//!
//! # What it does not do
//! It keeps no secret and proves nothing: it goes to every callee, third parties included.
//!
//! # Source
//! W3C Baggage: at most 8192 bytes; at least 64 members must be passed on.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// `baggage`.
pub static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Bytes of all members together.
const LENGTH_MAX: usize = 8192;
/// Members.
const MEMBERS_MAX: usize = 64;

/// One name with its value and properties.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    key: String,
    /// Decoded.
    value: String,
    /// As they came: `;ttl=5;secret`, or empty.
    properties: String,
}

impl Member {
    fn parse(text: &str) -> Option<Self> {
        let (pair, properties) = match text.find(';') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (key.trim(), value.trim());
        let printable = |b: u8| matches!(b, 0x20..=0x7E | b'\t');
        (is_token(key) && value.bytes().all(is_octet) && properties.bytes().all(printable)).then(
            || Self {
                key: key.to_owned(),
                value: decode(value),
                properties: properties.trim_end().to_owned(),
            },
        )
    }

    fn len(&self) -> usize {
        let value: usize = self
            .value
            .bytes()
            .map(|b| if is_octet(b) { 1 } else { 3 })
            .sum();
        self.key.len() + 1 + value + self.properties.len()
    }
}

/// What a call carries, in the order it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage(Vec<Member>);

impl Baggage {
    /// Reads what `headers` carry: broken members are left out, of two with one key the last
    /// counts, and what is beyond 64 members or 8192 bytes is not read.
    pub fn extract(headers: &HeaderMap) -> Self {
        let mut baggage = Self::default();
        for value in headers.get_all(&BAGGAGE) {
            let Ok(text) = value.to_str() else { continue };
            for member in text.split(',').filter_map(Member::parse) {
                if !baggage.push(member) {
                    return baggage;
                }
            }
        }
        baggage
    }

    /// The value of `key`, decoded.
    pub fn value(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|member| member.key == key);
        found.map(|member| member.value.as_str())
    }

    /// Names and values, decoded.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|member| (member.key.as_str(), member.value.as_str()))
    }

    /// Sets a value, in place of what it was. `false`, and nothing changes, if `key` is not a token
    /// or there is no more room.
    pub fn set(&mut self, key: &str, value: &str) -> bool {
        is_token(key)
            && self.push(Member {
                key: key.to_owned(),
                value: value.to_owned(),
                properties: String::new(),
            })
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|member| member.key != key);
    }

    /// Whether there is nothing to pass on.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes it into `headers` in place of what was there.
    pub fn inject(&self, headers: &mut HeaderMap) {
        headers.remove(&BAGGAGE);
        if self.is_empty() {
            return;
        }
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.insert(BAGGAGE.clone(), value);
        }
    }

    fn push(&mut self, member: Member) -> bool {
        let others = || self.0.iter().filter(|other| other.key != member.key);
        let length: usize = others().map(|other| other.len() + 1).sum();
        if others().count() >= MEMBERS_MAX || length + member.len() > LENGTH_MAX {
            return false;
        }
        self.remove(&member.key);
        self.0.push(member);
        true
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, member) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}=", member.key)?;
            for byte in member.value.bytes() {
                if is_octet(byte) && byte != b'%' {
                    write!(f, "{}", char::from(byte))?;
                } else {
                    write!(f, "%{byte:02X}")?;
                }
            }
            f.write_str(&member.properties)?;
        }
        Ok(())
    }
}

/// RFC 9110 `token`.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Printable, but space, quote, comma, semicolon and backslash.
fn is_octet(b: u8) -> bool {
    matches!(b, 0x21..=0x7E) && !matches!(b, b'"' | b',' | b';' | b'\\')
}

/// Percent-decodes; what is no UTF-8 afterwards becomes replacement characters, as the
/// specification says.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |at: usize| bytes.get(at).and_then(|&b| char::from(b).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (byte, hex(at + 1), hex(at + 2)) {
            out.push((high << 4 | low) as u8);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Baggage {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(BAGGAGE.clone(), value.parse().expect("value"));
        }
        Baggage::extract(&headers)
    }

    #[test]
    fn members_are_read_and_written_and_broken_ones_left_out() {
        const CASES: &[(&[&str], &str)] = &[
            (&["tenant=acme"], "tenant=acme"),
            (&["a=1,b=2", "c=3"], "a=1,b=2,c=3"),
            (&["a = 1 ;ttl=5;secret , b=2"], "a=1;ttl=5;secret,b=2"),
            (&["a=1,b,c=3"], "a=1,c=3"),
            (&["a=1,=2,b c=3"], "a=1"),
            (&["a=1,a=2"], "a=2"),
            (&["a=%20%F0%9F%A6%80"], "a=%20%F0%9F%A6%80"),
            (&["a=50%,b=%zz"], "a=50%25,b=%25zz"),
            (&["a=x\"y"], ""),
            (&["a="], "a="),
            (&[""], ""),
        ];
        for (values, want) in CASES {
            assert_eq!(read(values).to_string(), *want, "{values:?}");
        }
        assert_eq!(read(&["a=%20%F0%9F%A6%80"]).value("a"), Some(" \u{1F980}"));
        assert_eq!(read(&["a=%FF"]).value("a"), Some("\u{FFFD}"));
    }

    #[test]
    fn what_is_beyond_the_limits_is_not_read() {
        let many: Vec<String> = (0..100).map(|n| format!("k{n}=v")).collect();
        assert_eq!(read(&[&many.join(",")]).iter().count(), 64);
        let big = format!("a=1,b={},c=3", "x".repeat(8190));
        assert_eq!(read(&[&big]).to_string(), "a=1");
        let mut full = read(&[&format!("b={}", "x".repeat(8190))]);
        assert_eq!(full.to_string().len(), 8192);
        assert!(!full.set("c", "1"));
        assert!(full.set("b", "1") && full.set("c", "1"));
        assert_eq!(full.iter().collect::<Vec<_>>(), [("b", "1"), ("c", "1")]);
        assert!(!full.set("no token", "1"));
    }

    proptest::proptest! {
        #[test]
        fn any_value_comes_back_as_it_was(value in "\\PC{0,40}") {
            let mut baggage = Baggage::default();
            proptest::prop_assert!(baggage.set("k", &value));
            let mut headers = HeaderMap::new();
            baggage.inject(&mut headers);
            let again = Baggage::extract(&headers);
            proptest::prop_assert_eq!(again.value("k"), Some(value.as_str()));
        }

        #[test]
        fn reading_never_panics(text in "[ -~]{0,80}") {
            let baggage = read(&[&text]);
            proptest::prop_assert_eq!(read(&[&baggage.to_string()]), baggage);
        }
    }
}
