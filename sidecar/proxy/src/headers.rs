//! Which fields go on, which stop here, and which we write.
//!
//! No byte of a received head is forwarded: hyper parses it, this module takes away what belongs to
//! one connection or what only a trusted proxy may say, and what goes out is written anew.
//!
//! # Source
//! RFC 9110 §7.6.1 (fields of one connection), §7.6.3 (`Via`).

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{self, Entry},
};
use selvedge_resilience::{Rng, context::trace::hex_id};

use crate::admit::{Seen, is_pretence};

/// `x-request-id`.
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What is told upstream of where a request comes from. Made once a connection.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    peer: HeaderValue,
    scheme: HeaderValue,
    trusted: bool,
}

impl Origin {
    pub(crate) fn new(peer: IpAddr, scheme: &'static str, trusted: bool) -> Self {
        let peer = HeaderValue::try_from(peer.to_canonical().to_string());
        Self {
            peer: peer.expect("an address is ASCII"),
            scheme: HeaderValue::from_static(scheme),
            trusted,
        }
    }

    /// Whether it is a proxy of ours.
    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Takes away what an untrusted client pretends, and says who it is.
    fn write(&self, headers: &mut HeaderMap, seen: Seen) {
        if seen.pretence && !self.trusted {
            strip_pretence(headers);
        }
        if !seen.pretence || !self.trusted {
            headers.insert(X_FORWARDED_FOR.clone(), self.peer.clone());
            headers.insert(X_FORWARDED_PROTO.clone(), self.scheme.clone());
            return;
        }
        let chain = join(headers, &X_FORWARDED_FOR, b", ", Some(&self.peer));
        headers.insert(X_FORWARDED_FOR.clone(), chain);
        headers
            .entry(X_FORWARDED_PROTO.clone())
            .or_insert_with(|| self.scheme.clone());
    }
}

fn strip_pretence(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_pretence(name.as_str()))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// All values of `name`, and `last`, as one.
fn join(
    headers: &HeaderMap,
    name: &HeaderName,
    glue: &[u8],
    last: Option<&HeaderValue>,
) -> HeaderValue {
    let mut all = Vec::new();
    for value in headers.get_all(name).iter().chain(last) {
        if !all.is_empty() {
            all.extend_from_slice(glue);
        }
        all.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&all).expect("values joined by printable glue are a value")
}

/// Makes a client's fields those of a request to an upstream.
///
/// A WebSocket's `Connection` and `Upgrade` are written again by the transport that can carry them.
pub(crate) fn for_upstream(
    headers: &mut HeaderMap,
    seen: Seen,
    origin: &Origin,
    via: &HeaderValue,
) {
    if seen.hop {
        strip_hop_by_hop(headers);
    }
    if seen.crumbs {
        // HTTP/2 may split cookies; HTTP/1 must not (RFC 9113 §8.2.3).
        let cookies = join(headers, &header::COOKIE, b"; ", None);
        headers.insert(header::COOKIE, cookies);
    }
    origin.write(headers, seen);
    headers.append(header::VIA, via.clone());
}

/// Takes away the fields that speak of one connection only.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderValue> = match headers.entry(header::CONNECTION) {
        Entry::Occupied(entry) => entry.remove_entry_mult().1.collect(),
        Entry::Vacant(_) => Vec::new(),
    };
    for value in &listed {
        for token in value.as_bytes().split(|byte| *byte == b',') {
            // Whatever Connection says, these are not its own.
            if let Ok(name) = HeaderName::from_bytes(token.trim_ascii())
                && name != header::CONTENT_LENGTH
                && name != header::HOST
                && name != header::AUTHORIZATION
            {
                headers.remove(name);
            }
        }
    }
    // gRPC asks with it whether trailers survive the way; they do.
    let trailers = headers
        .get(header::TE)
        .is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if !trailers {
        headers.remove(header::TE);
    }
    for name in [
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &header::PROXY_AUTHORIZATION,
        &header::PROXY_AUTHENTICATE,
        &header::TRANSFER_ENCODING,
        &header::UPGRADE,
        // Ours to meet: hyper answers 100 once the upstream is ready for the body.
        &header::EXPECT,
    ] {
        headers.remove(name);
    }
}

/// Makes an upstream's fields those of an answer to a client.
///
/// Returns whether the answer's framing contradicted itself, which ends its connection.
pub(crate) fn from_upstream(headers: &mut HeaderMap, version: Version) -> bool {
    if version == Version::HTTP_2 {
        return false;
    }
    // One pass over what there is instead of a look-up for each thing that there mostly is not.
    let (mut coded, mut hop) = (false, false);
    for name in headers.keys() {
        coded |= *name == header::TRANSFER_ENCODING;
        hop |= *name == header::CONNECTION || *name == KEEP_ALIVE;
    }
    let contradictory = coded && headers.remove(header::CONTENT_LENGTH).is_some();
    if hop || coded {
        strip_hop_by_hop(headers);
    }
    contradictory
}

/// Takes away what trailers must not say (RFC 9110 §6.5.1).
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    for name in [
        &header::CONTENT_LENGTH,
        &header::TRANSFER_ENCODING,
        &header::HOST,
        &header::CONNECTION,
        &header::AUTHORIZATION,
        &header::PROXY_AUTHORIZATION,
        &header::SET_COOKIE,
        &header::TE,
        &header::UPGRADE,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
    ] {
        trailers.remove(name);
    }
    strip_pretence_trailers(trailers);
}

fn strip_pretence_trailers(trailers: &mut HeaderMap) {
    if trailers
        .keys()
        .any(|name| name.as_str().starts_with("x-forwarded-"))
    {
        strip_pretence(trailers);
    }
}

/// The request's id: the client's, if it is one, or a new one.
pub(crate) fn request_id(headers: &mut HeaderMap, seen: Seen, rng: &Rng) -> HeaderValue {
    if seen.request_id
        && let Some(id) = headers.get(&REQUEST_ID).filter(|id| is_id(id))
    {
        return id.clone();
    }
    let number = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
    let id = HeaderValue::from_bytes(&hex_id(number)).expect("hexadecimal digits are a value");
    headers.insert(REQUEST_ID.clone(), id.clone());
    id
}

/// Longer or stranger ids are not passed into logs.
fn is_id(value: &HeaderValue) -> bool {
    let plain =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const ALL: Seen = Seen {
        hop: true,
        pretence: true,
        request_id: true,
        priority: true,
        crumbs: true,
    };

    fn upstream(headers: &mut HeaderMap, trusted: bool) {
        let origin = Origin::new("10.0.0.9".parse().expect("address"), "http", trusted);
        let seen = Seen {
            crumbs: headers.contains_key("cookie"),
            ..ALL
        };
        for_upstream(
            headers,
            seen,
            &origin,
            &HeaderValue::from_static("1.1 test"),
        );
    }

    #[test]
    fn fields_of_one_connection_stop_here() {
        let mut headers = map(&[
            ("connection", "x-mine, close, Content-Length, authorization"),
            ("connection", "keep-alive"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "secret"),
            ("content-length", "5"),
            ("authorization", "mine"),
            ("accept", "*/*"),
        ]);
        upstream(&mut headers, false);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        let want = [
            "accept",
            "authorization",
            "content-length",
            "via",
            "x-forwarded-for",
            "x-forwarded-proto",
        ];
        assert_eq!(left, want);
    }

    #[test]
    fn grpcs_question_for_trailers_goes_on() {
        let mut headers = map(&[("te", "trailers")]);
        upstream(&mut headers, false);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let given = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x_forwarded_for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("selvedge-identity", "root"),
        ];
        let mut headers = map(&given);
        upstream(&mut headers, false);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers.len(), 3, "and via: {headers:?}");

        let mut headers = map(&given);
        upstream(&mut headers, true);
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn cookie_crumbs_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        upstream(&mut headers, false);
        assert_eq!(headers["cookie"], "a=1; b=2");
        assert_eq!(headers.get_all("cookie").iter().count(), 1);
    }

    #[test]
    fn a_length_beside_a_coding_is_dropped_and_told() {
        let mut headers = map(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        assert!(from_upstream(&mut headers, Version::HTTP_11));
        assert!(headers.is_empty());
        let mut headers = map(&[("content-length", "3")]);
        assert!(!from_upstream(&mut headers, Version::HTTP_11));
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn a_clients_id_is_kept_if_it_is_one() {
        let rng = Rng::new(1);
        let mut headers = map(&[("x-request-id", "abc-1")]);
        assert_eq!(request_id(&mut headers, ALL, &rng), "abc-1");
        for strange in ["", "a b", "{\"a\"}"] {
            let mut headers = map(&[("x-request-id", strange)]);
            let id = request_id(&mut headers, ALL, &rng);
            assert_eq!(id.len(), 32, "{strange:?}");
            assert_eq!(headers["x-request-id"], id);
        }
    }

    #[test]
    fn trailers_cannot_frame_route_or_authenticate() {
        let mut trailers = map(&[
            ("grpc-status", "0"),
            ("content-length", "7"),
            ("authorization", "x"),
            ("x-forwarded-for", "1.1.1.1"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(trailers.len(), 1);
    }
}
