//! One form for each path, so that what is matched is what is sent.
//!
//! `/a/../admin`, `/%61dmin` and `//admin` are `/admin` to some servers and something else to
//! others. A proxy that decides on one reading and forwards another can be talked past. So a path is
//! brought to one form once; routing, authorization and the upstream all see that form.
//!
//! # Source
//! RFC 3986 §6.2.2 (case, percent-encoding, dot segments); merged slashes as nginx
//! `merge_slashes` and Envoy `merge_slashes`. `%2F` is never decoded: it is data, not a separator.

use std::borrow::Cow;

/// Why a path has no safe reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// `%` without two hexadecimal digits after it.
    #[error("a percent sign in the path is not followed by two hexadecimal digits")]
    BadEscape,
    /// `%00`: ends the path for servers written in C.
    #[error("the path holds a zero byte")]
    Nul,
    /// `\` or `%5C`: a separator to some servers.
    #[error("the path holds a backslash")]
    Backslash,
    /// `..;x`: a dot segment to servers that cut path parameters off first.
    #[error("the path holds a dot segment with parameters")]
    DotParameter,
}

/// The normal form of `path`, which begins with a slash. Borrowed where it was normal already.
///
/// Idempotent. O(length); allocates only for paths that change.
///
/// # Errors
/// [`PathError`] for paths that servers are known to read in more than one way.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let normal = remove_dot_segments(&decode(path)?)?;
    Ok(if normal == path {
        Cow::Borrowed(path)
    } else {
        Cow::Owned(normal)
    })
}

/// Whether nothing in `path` needs a closer look.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        let suspicious = match byte {
            b'%' | b'\\' => true,
            b'/' | b'.' => after_slash,
            _ => false,
        };
        if suspicious {
            return false;
        }
        after_slash = byte == b'/';
    }
    true
}

/// Decodes what needs no escape, writes the other escapes in upper case, merges slashes.
fn decode(path: &str) -> Result<String, PathError> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => return Err(PathError::Backslash),
            b'/' if out.last() == Some(&b'/') => {}
            b'%' => {
                let digit = |byte: Option<u8>| {
                    let digit = char::from(byte?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let high = digit(bytes.next()).ok_or(PathError::BadEscape)?;
                let low = digit(bytes.next()).ok_or(PathError::BadEscape)?;
                match high << 4 | low {
                    0 => return Err(PathError::Nul),
                    b'\\' => return Err(PathError::Backslash),
                    plain if is_unreserved(plain) => out.push(plain),
                    _ => out.extend([b'%', upper_hex(high), upper_hex(low)]),
                }
            }
            other => out.push(other),
        }
    }
    // Only ASCII was taken out or put in, so what was UTF-8 still is.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn upper_hex(digit: u8) -> u8 {
    b"0123456789ABCDEF"[usize::from(digit & 0xF)]
}

/// RFC 3986 §5.2.4; more `..` than there are segments end at the root.
fn remove_dot_segments(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = false;
        match segment {
            "." | "" => ends_in_slash = true,
            ".." => {
                segments.pop();
                ends_in_slash = true;
            }
            dots if dots.starts_with(".;") || dots.starts_with("..;") => {
                return Err(PathError::DotParameter);
            }
            other => segments.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_in_slash || segments.is_empty() {
        out.push('/');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_have_one_form() {
        let cases = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("//a///b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/../../etc", "/etc"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/./b", "/a/b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%20b", "/a%20b"),
            ("/%7euser", "/~user"),
            ("/..a/...", "/..a/..."),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/%252e%252e/x", "/%252e%252e/x"),
        ];
        for (given, want) in cases {
            assert_eq!(normalise(given).as_deref(), Ok(want), "{given}");
        }
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        let cases = [
            ("/a%", PathError::BadEscape),
            ("/a%2", PathError::BadEscape),
            ("/a%zz", PathError::BadEscape),
            ("/a%00b", PathError::Nul),
            ("/a\\b", PathError::Backslash),
            ("/a%5cb", PathError::Backslash),
            ("/a/..;/admin", PathError::DotParameter),
            ("/a/%2e%2e;x/admin", PathError::DotParameter),
        ];
        for (given, want) in cases {
            assert_eq!(normalise(given), Err(want), "{given}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_normal(path in "(/|[a.;%25eE2fF\\\\]){0,24}") {
            let path = format!("/{path}");
            if let Ok(once) = normalise(&path) {
                prop_assert_eq!(normalise(&once), Ok(Cow::Borrowed(&*once)));
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.contains("//"));
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }
    }
}
