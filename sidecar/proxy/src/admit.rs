//! What may pass the door at all: one pure function, asked before anything else.
//!
//! hyper parses; it does not check that a request has one `Host`, that its target has a form that
//! we serve, or that `Transfer-Encoding` means one thing. What two servers read differently is how
//! requests are smuggled, so whatever has more than one reading ends here, with a stable reason,
//! and the connection is closed.
//!
//! # Source
//! RFC 9110, 9112 and 9113; Envoy's edge guide for the limits.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts};

use crate::{
    door::Refusal,
    path::{PathError, normalise},
};

/// What a request may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's head. Default 32 KiB: as most edge proxies compared.
    pub head: usize,
    /// Fields in it. Default 100: nginx, Apache, hyper.
    pub fields: usize,
    /// Bytes of one field's value. Default 16 KiB.
    pub field: usize,
    /// Whether an absolute target may name any scheme and host: the door of a forward proxy.
    pub any_target: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 32 << 10,
            fields: 100,
            field: 16 << 10,
            any_target: false,
        }
    }
}

/// A request that has one reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Lower case, without port and trailing dot; empty for an HTTP/1.0 request without `Host`.
    pub host: Box<str>,
    /// What goes upstream as `Host`, where it is not what the header says already.
    pub authority: Option<HeaderValue>,
    /// The normalised path, where it is not what the head says already.
    pub path: Option<Box<str>>,
    /// Whether it asks for a WebSocket.
    pub websocket: bool,
    /// Which kinds of fields it has that do not go on as they are.
    pub(crate) seen: Seen,
}

impl Admitted {
    /// The normalised path.
    pub fn path<'a>(&'a self, head: &'a Parts) -> &'a str {
        self.path.as_deref().unwrap_or_else(|| head.uri.path())
    }
}

/// Kinds of fields, noted in the one pass over them so that nobody has to look for what is not
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// Hop-by-hop fields.
    pub hop: bool,
    /// Fields that only a proxy in front of us may set, or names with an underscore.
    pub pretence: bool,
    /// `X-Request-Id`.
    pub request_id: bool,
    /// `X-Priority`.
    pub priority: bool,
    /// More than one `cookie` field (HTTP/2 allows crumbs).
    pub crumbs: bool,
}

/// Proxies a request may have passed. Source: a guess; ten is more than any chain that is meant.
const MAX_VIA: usize = 10;

/// Whether `head` has exactly one reading, and which.
///
/// # Errors
/// [`Refusal`] with a stable reason; the connection should be closed.
pub fn admit(head: &Parts, limits: &Limits) -> Result<Admitted, Refusal> {
    let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    if !matches!(
        head.version,
        Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2
    ) {
        return Err(Refusal::new(
            status,
            "version",
            "this HTTP version is not spoken here",
        ));
    }
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Refusal::new(
            status,
            "method",
            "this method is not allowed here",
        ));
    }
    let fields = fields(head, limits)?;
    let (host, authority) = host(head, &fields, limits)?;
    Ok(Admitted {
        host,
        authority,
        path: path(head)?,
        websocket: websocket(head, &fields),
        seen: fields.seen,
    })
}

fn bad(reason: &'static str, title: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, reason, title)
}

/// What one pass over the fields finds.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a HeaderValue>,
    upgrade: Option<&'a HeaderValue>,
    connection_upgrade: bool,
    seen: Seen,
}

fn fields<'a>(head: &'a Parts, limits: &Limits) -> Result<Fields<'a>, Refusal> {
    let mut found = Fields::default();
    let (mut lengths, mut codings, mut cookies, mut via) = (0, 0, 0, 0);
    if head.headers.len() > limits.fields {
        return Err(too_large(
            "the request has more header fields than are allowed",
        ));
    }
    for (name, value) in &head.headers {
        if value.len() > limits.field {
            return Err(too_large(
                "a header field of the request is longer than is allowed",
            ));
        }
        match *name {
            header::HOST if found.host.replace(value).is_some() => {
                return Err(bad("host", "the request has more than one Host field"));
            }
            header::HOST => {}
            header::CONTENT_LENGTH => {
                lengths += 1;
                let digits = value.as_bytes();
                if lengths > 1 || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                    return Err(bad(
                        "content-length",
                        "the request's length is not one number",
                    ));
                }
            }
            header::TRANSFER_ENCODING => {
                codings += 1;
                found.seen.hop = true;
                let chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
                if codings > 1 || !chunked || head.version != Version::HTTP_11 {
                    let title = "the only transfer coding that is taken is chunked, once";
                    return Err(bad("transfer-encoding", title));
                }
            }
            header::CONNECTION => {
                found.seen.hop = true;
                found.connection_upgrade |= connection(value)?;
            }
            header::UPGRADE => {
                found.seen.hop = true;
                found.upgrade = Some(value);
            }
            header::EXPECT => {
                found.seen.hop = true;
                if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
                    let status = StatusCode::EXPECTATION_FAILED;
                    let title = "the only expectation that is met is 100-continue";
                    return Err(Refusal::new(status, "expect", title));
                }
            }
            header::COOKIE => {
                cookies += 1;
                found.seen.crumbs = cookies > 1;
            }
            header::VIA => via += value.as_bytes().split(|byte| *byte == b',').count(),
            _ => note(name, &mut found.seen),
        }
    }
    if via > MAX_VIA {
        let title = "the request has passed too many proxies";
        return Err(Refusal::new(StatusCode::LOOP_DETECTED, "loop", title));
    }
    Ok(found)
}

fn too_large(title: &'static str) -> Refusal {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    Refusal::new(status, "head-too-large", title)
}

/// Which kind of field `name` is, if it is not an end-to-end one.
fn note(name: &HeaderName, seen: &mut Seen) {
    if *name == header::TE || *name == header::PROXY_AUTHORIZATION {
        seen.hop = true;
        return;
    }
    let name = name.as_str();
    match name.as_bytes().first() {
        Some(b'k' | b'p') => seen.hop |= matches!(name, "keep-alive" | "proxy-connection"),
        Some(b'x') if name == "x-request-id" => seen.request_id = true,
        Some(b'x') if name == "x-priority" => seen.priority = true,
        Some(b'x' | b'f' | b's') => seen.pretence |= is_pretence(name),
        _ => {}
    }
    seen.pretence |= name.as_bytes().contains(&b'_');
}

/// Whether only a proxy that is trusted may send a field of this name.
///
/// `x-envoy-expected-rq-timeout-ms` is a caller's deadline, which anybody may set: a shorter one
/// harms only who sends it.
pub(crate) fn is_pretence(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || name == "forwarded"
        || name == "x-real-ip"
        || name.starts_with("selvedge-")
        || name.starts_with("x-selvedge-")
        || (name.starts_with("x-envoy-") && name != "x-envoy-expected-rq-timeout-ms")
        // CGI programs and WSGI read `x_forwarded_for` and `x-forwarded-for` as one.
        || name.contains('_')
}

/// Whether `Connection` asks for an upgrade; refused if it names what it must not take away.
fn connection(value: &HeaderValue) -> Result<bool, Refusal> {
    let mut upgrade = false;
    for token in value.as_bytes().split(|byte| *byte == b',') {
        let token = token.trim_ascii();
        upgrade |= token.eq_ignore_ascii_case(b"upgrade");
        let forwarded = token
            .get(..12)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"));
        if forwarded || token.eq_ignore_ascii_case(b"host") || token.starts_with(b":") {
            let title = "Connection names a field that is not its own";
            return Err(bad("connection", title));
        }
    }
    Ok(upgrade)
}

/// The host that is meant, and the `Host` to send on where the field does not say it.
fn host(
    head: &Parts,
    fields: &Fields<'_>,
    limits: &Limits,
) -> Result<(Box<str>, Option<HeaderValue>), Refusal> {
    if fields.host.is_none() && head.version == Version::HTTP_11 {
        return Err(bad("host", "the request has no Host field"));
    }
    let title = "the request's target is not one that is served here";
    if let Some(scheme) = head.uri.scheme_str()
        && !(limits.any_target || matches!(scheme, "http" | "https"))
    {
        return Err(bad("target", title));
    }
    let authority = match (head.uri.authority(), fields.host) {
        (Some(authority), _) => authority.as_str().as_bytes(),
        (None, Some(host)) => host.as_bytes(),
        (None, None) if head.version == Version::HTTP_10 => return Ok(("".into(), None)),
        (None, None) => return Err(bad("host", "the request names no host")),
    };
    let name = host_name(authority)
        .ok_or_else(|| bad("host", "the request's host is not a name or an address"))?;
    // The target wins over the field (RFC 9112 §3.2.2); what wins is what goes on.
    let differs = fields.host.is_none_or(|host| host.as_bytes() != authority);
    let replaced = differs
        .then(|| HeaderValue::from_bytes(authority))
        .transpose()
        .map_err(|_| bad("host", "the request's host is not a name or an address"))?;
    Ok((canonical(name), replaced))
}

/// The host of `host[:port]`, brackets included, if it is nothing but that.
fn host_name(authority: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(authority).ok()?;
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        inside.parse::<std::net::Ipv6Addr>().ok()?;
        (
            text.get(..inside.len() + 2)?,
            after
                .strip_prefix(':')
                .or_else(|| after.is_empty().then_some("0")),
        )
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("0")),
        }
    };
    port?.parse::<u16>().ok()?;
    // "+80" parses as a number but is no port.
    let digits = port?.bytes().all(|byte| byte.is_ascii_digit());
    let name = host.starts_with('[')
        || host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'));
    (digits && name && !host.is_empty() && host != ".").then_some(host)
}

fn canonical(host: &str) -> Box<str> {
    host.strip_suffix('.')
        .unwrap_or(host)
        .to_ascii_lowercase()
        .into()
}

fn path(head: &Parts) -> Result<Option<Box<str>>, Refusal> {
    let path = head.uri.path();
    if path == "*" && head.method == Method::OPTIONS {
        return Ok(None);
    }
    if !path.starts_with('/') {
        return Err(bad("target", "the request's target has no path"));
    }
    match normalise(path) {
        Ok(Cow::Borrowed(_)) => Ok(None),
        Ok(Cow::Owned(path)) => Ok(Some(path.into())),
        Err(error) => Err(bad("path", path_title(error))),
    }
}

fn path_title(error: PathError) -> &'static str {
    match error {
        PathError::BadEscape => "the path holds a percent sign that escapes nothing",
        PathError::Nul => "the path holds a zero byte",
        PathError::Backslash => "the path holds a backslash",
        PathError::DotParameter => "the path holds a dot segment with parameters",
    }
}

/// Whether the request asks for a WebSocket. Any other upgrade is not refused but ignored, as RFC
/// 9110 §7.8 allows: h2c by upgrade was a way around proxies.
fn websocket(head: &Parts, fields: &Fields<'_>) -> bool {
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && fields.connection_upgrade
        && fields
            .upgrade
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn of(request: http::request::Builder) -> Result<Admitted, Refusal> {
        let (head, ()) = request.body(()).expect("valid").into_parts();
        admit(&head, &Limits::default())
    }

    fn get(uri: &str) -> http::request::Builder {
        Request::get(uri)
    }

    #[test]
    fn a_plain_request_is_left_as_it_is() {
        let admitted = of(get("/a?b=%2e").header("host", "Shop.Example.:8080")).expect("admitted");
        assert_eq!(&*admitted.host, "shop.example");
        assert_eq!((&admitted.authority, &admitted.path), (&None, &None));
        assert!(!admitted.websocket);
    }

    #[test]
    fn the_target_wins_over_the_host_field() {
        let admitted = of(get("http://a.example:81/x").header("host", "b.example")).expect("ok");
        assert_eq!(&*admitted.host, "a.example");
        assert_eq!(
            admitted.authority,
            Some(HeaderValue::from_static("a.example:81"))
        );
    }

    #[test]
    fn requests_with_two_readings_are_refused() {
        let host = |value: &str| get("/").header("host", value);
        let ok = || host("a");
        let cases = [
            ("no host", get("/"), 400, "host"),
            ("two hosts", ok().header("host", "b"), 400, "host"),
            ("empty host", host(""), 400, "host"),
            ("userinfo", host("u@a"), 400, "host"),
            ("path in host", host("a/b"), 400, "host"),
            ("comma", host("a,b"), 400, "host"),
            ("port", host("a:x"), 400, "host"),
            ("signed port", host("a:+80"), 400, "host"),
            ("port too large", host("a:65536"), 400, "host"),
            ("half a bracket", host("[::1"), 400, "host"),
            ("zone", host("[fe80::1%25eth0]"), 400, "host"),
            ("scheme", get("ftp://a/").header("host", "a"), 400, "target"),
            (
                "two codings",
                ok().header("transfer-encoding", "gzip, chunked"),
                400,
                "transfer-encoding",
            ),
            (
                "coding twice",
                ok().header("transfer-encoding", "chunked")
                    .header("transfer-encoding", "chunked"),
                400,
                "transfer-encoding",
            ),
            (
                "coding in 1.0",
                ok().version(Version::HTTP_10)
                    .header("transfer-encoding", "chunked"),
                400,
                "transfer-encoding",
            ),
            (
                "signed length",
                ok().header("content-length", "+5"),
                400,
                "content-length",
            ),
            (
                "listed length",
                ok().header("content-length", "5, 5"),
                400,
                "content-length",
            ),
            (
                "expectation",
                ok().header("expect", "miracle"),
                417,
                "expect",
            ),
            (
                "connection: host",
                ok().header("connection", "close, Host"),
                400,
                "connection",
            ),
            (
                "connection: xff",
                ok().header("connection", "X-Forwarded-For"),
                400,
                "connection",
            ),
            (
                "long field",
                ok().header("x", "y".repeat(17 << 10)),
                431,
                "head-too-large",
            ),
            ("path", get("/a%00").header("host", "a"), 400, "path"),
            ("trace", ok().method("TRACE"), 405, "method"),
            (
                "connect",
                Request::connect("a:80").header("host", "a"),
                405,
                "method",
            ),
            ("version", ok().version(Version::HTTP_09), 505, "version"),
            ("loop", ok().header("via", "1.1 a,".repeat(11)), 508, "loop"),
        ];
        for (name, request, status, reason) in cases {
            let refusal = of(request).expect_err(name);
            assert_eq!(
                (refusal.status.as_u16(), refusal.reason),
                (status, reason),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_unusual_but_clear_is_taken() {
        let cases = [
            ("1.0 without host", get("/").version(Version::HTTP_10)),
            ("v6", get("/").header("host", "[::1]:80")),
            ("asterisk", Request::options("*").header("host", "a")),
            (
                "coding case",
                get("/")
                    .header("host", "a")
                    .header("transfer-encoding", "Chunked"),
            ),
            ("underscore in a host", get("/").header("host", "a_b.local")),
            ("h2", get("http://a/").version(Version::HTTP_2)),
        ];
        for (name, request) in cases {
            assert!(of(request).is_ok(), "{name}");
        }
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let ask = |upgrade: &str, connection: &str| {
            let request = get("/")
                .header("host", "a")
                .header("upgrade", upgrade)
                .header("connection", connection);
            of(request).expect("admitted").websocket
        };
        assert!(ask("websocket", "keep-alive, Upgrade"));
        assert!(!ask("h2c", "Upgrade"));
        assert!(!ask("websocket", "keep-alive"));
    }
}
