//! What a request says: its path, its query, its body.

use std::io::Read;

use axum::{body::Body, response::Response};
use flate2::read::GzDecoder;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::{answer::text, xml};
use crate::api::patience::{TooSlow, is_too_slow};

/// The parts of a path after its prefix: without empty ones, decoded.
pub(crate) fn segments(path: &str) -> Option<Vec<String>> {
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    let mut is = |word: &str| {
        parts
            .next_if(|part| part.eq_ignore_ascii_case(word))
            .is_some()
    };
    let eureka = is("eureka");
    let v2 = is("v2");
    if !eureka && !v2 {
        return None;
    }
    let decode = |part: &str| {
        percent_decode_str(part)
            .decode_utf8()
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    parts.map(decode).collect()
}

/// `k=v&k=v`, decoded; a plus is a space.
pub(super) fn query(raw: Option<&str>) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    let pairs = raw.unwrap_or_default().split('&');
    pairs
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

pub(super) fn value_of<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = query.iter().find(|(key, _)| key == name)?;
    Some(&found.1)
}

/// Reads a body of JSON or XML, compressed or not, whatever its type is said to be.
pub(crate) async fn document(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Value, Response> {
    let too_large = || {
        let why = format!("the body is too large: at most {limit} bytes");
        text(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let bad = |why: String| text(StatusCode::BAD_REQUEST, why);
    let body = match Limited::new(body, limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(too_large());
        }
        Err(error) if is_too_slow(&*error) => {
            return Err(text(StatusCode::REQUEST_TIMEOUT, TooSlow.to_string()));
        }
        Err(error) => return Err(bad(format!("the body ended early: {error}"))),
    };
    let encoding = headers.get(header::CONTENT_ENCODING);
    let gzip = encoding.is_some_and(|value| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        value.contains("gzip")
    });
    let body = if gzip {
        let mut plain = Vec::new();
        let mut decoder = GzDecoder::new(&*body).take(limit as u64 + 1);
        if let Err(error) = decoder.read_to_end(&mut plain) {
            return Err(bad(format!("the body is not gzip: {error}")));
        }
        if plain.len() > limit {
            return Err(too_large());
        }
        plain
    } else {
        body.into()
    };
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let is_xml = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<');
    if !is_xml {
        return serde_json::from_slice(body).map_err(|e| bad(format!("not JSON: {e}")));
    }
    let xml = std::str::from_utf8(body).map_err(|e| bad(format!("not UTF-8: {e}")))?;
    xml::read(xml).map_err(bad)
}
