//! Which requests ask the same, and which answers are for all who asked.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, EXPECT, HOST, IF_MATCH,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, RANGE, SET_COOKIE,
        UPGRADE, VARY,
    },
};

use super::CoalesceConfig;
use crate::{config::PolicyError, context::priority};

/// What a call asks for: equal keys, equal questions. Compared byte by byte; a hash alone would
/// answer one person with another's answer once in a while.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// A key of the caller's own making.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The same question, of someone or about something more: a key is equal to it only if both
    /// halves are. A copy.
    #[must_use]
    pub fn and(self, more: &[u8]) -> Self {
        // The length last: read from the end, the two halves come apart in one way.
        let key = [&self.0, more, &(more.len() as u64).to_le_bytes()].concat();
        Self(key.into())
    }
}

/// Longer keys are not worth their memory.
const KEY_MAX: usize = 16 << 10;

/// Headers in which answers differ whatever the callee says. A batch job's lead may be shed where a
/// person's request would not be, so the priority is one of them.
fn always() -> [HeaderName; 8] {
    [
        AUTHORIZATION,
        RANGE,
        IF_MATCH,
        IF_NONE_MATCH,
        IF_MODIFIED_SINCE,
        IF_UNMODIFIED_SINCE,
        IF_RANGE,
        priority::HEADER.clone(),
    ]
}

/// The key of HTTP requests, and what of their answers is shared.
#[derive(Debug, Clone)]
pub struct KeyRules {
    headers: Vec<HeaderName>,
    cookies: bool,
}

impl KeyRules {
    /// As configured.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: &CoalesceConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let mut headers = always().to_vec();
        let own = config.headers.iter();
        headers.extend(own.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()));
        if config.cookies {
            headers.push(COOKIE);
        }
        headers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        headers.dedup();
        Ok(Self {
            headers,
            cookies: config.cookies,
        })
    }

    /// The key of a request without a body; `None`: it goes by itself.
    ///
    /// A request that asks for a fresh answer (`Cache-Control: no-cache`) is one of those: the call
    /// under way may have begun before what it wants to see.
    pub fn key(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Key> {
        if *method != Method::GET && *method != Method::HEAD {
            return None;
        }
        let refused = [UPGRADE, EXPECT];
        if refused.iter().any(|name| headers.contains_key(name))
            || (!self.cookies && headers.contains_key(COOKIE))
            || says(
                headers,
                &CACHE_CONTROL,
                &["no-cache", "no-store", "max-age=0"],
            )
            || says(headers, &PRAGMA, &["no-cache"])
        {
            return None;
        }
        let mut key = Vec::with_capacity(128);
        part(&mut key, method.as_str().as_bytes());
        part(&mut key, uri.scheme_str().unwrap_or_default().as_bytes());
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        part(&mut key, authority.as_bytes());
        values(&mut key, headers, &HOST);
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        part(&mut key, target.as_bytes());
        for name in &self.headers {
            values(&mut key, headers, name);
        }
        (key.len() <= KEY_MAX).then(|| Key::new(key))
    }

    /// Whether an answer with this head is for everybody who asked with the same key.
    ///
    /// Not: one for a single person (`Set-Cookie`, `Cache-Control: private` or `no-store`), one that
    /// varies by what is not in the key, one that is a stream by its nature, or no answer yet.
    pub fn may_share(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        !status.is_informational()
            && !headers.contains_key(SET_COOKIE)
            && !says(headers, &CACHE_CONTROL, &["private", "no-store"])
            && !is_stream(headers)
            && items(headers, &VARY).all(|name| self.covers(name))
    }

    fn covers(&self, name: &str) -> bool {
        HeaderName::from_bytes(name.as_bytes())
            .is_ok_and(|name| name != "*" && (name == HOST || self.headers.contains(&name)))
    }
}

/// With its length in front, so that no two lists of parts look the same.
fn part(key: &mut Vec<u8>, bytes: &[u8]) {
    key.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    key.extend_from_slice(bytes);
}

fn values(key: &mut Vec<u8>, headers: &HeaderMap, name: &HeaderName) {
    let values = headers.get_all(name);
    key.extend_from_slice(&(values.iter().count() as u64).to_le_bytes());
    for value in values {
        part(key, value.as_bytes());
    }
}

/// The members of a header's lists; what is not text is nothing that we know.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let text = |value: &'a HeaderValue| value.to_str().unwrap_or("*");
    let lists = headers.get_all(name).into_iter().map(text);
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// Whether one of `words` is among the header's directives, with or without an argument.
fn says(headers: &HeaderMap, name: &HeaderName, words: &[&str]) -> bool {
    items(headers, name).any(|item| {
        let bare = item.split('=').next().unwrap_or_default();
        let is = |word: &&str| item.eq_ignore_ascii_case(word) || bare.eq_ignore_ascii_case(word);
        words.iter().any(is)
    })
}

fn is_stream(headers: &HeaderMap) -> bool {
    const STREAMS: [&[u8]; 3] = [
        b"text/event-stream",
        b"application/grpc",
        b"multipart/x-mixed-replace",
    ];
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        let is = |stream: &&[u8]| {
            kind.get(..stream.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(stream))
        };
        STREAMS.iter().any(is)
    })
}
