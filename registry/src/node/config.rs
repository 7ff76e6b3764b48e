//! Configuration files: read whole, checked whole, refused with the place and the remedy.
//!
//! A mesh is misconfigured at three in the morning by somebody who is tired. The message must be
//! enough: file, line, column, the line itself, what is wrong with it and what is allowed.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// The exit code of a process whose configuration cannot be used.
pub const EXIT_CODE: u8 = 2;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What it says cannot work.
    #[error("{place}: {message}{excerpt}")]
    Invalid {
        /// File, line and column.
        place: String,
        /// What is wrong and what is allowed.
        message: String,
        /// The line with a caret under the place.
        excerpt: String,
    },
}

/// A document that was read: its values, and its text to point into.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The values.
    pub value: T,
    source: Source,
}

#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    text: String,
}

/// Reads and parses `path`.
///
/// # Errors
/// [`ConfigError`], ready to be shown to a person.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Loaded<T>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, text)
}

/// Parses `text` that came from `path`.
///
/// # Errors
/// [`ConfigError`], ready to be shown to a person.
pub fn parse<T: DeserializeOwned>(path: &Path, text: String) -> Result<Loaded<T>, ConfigError> {
    let source = Source {
        path: path.to_owned(),
        text,
    };
    match toml::from_str(&source.text) {
        Ok(value) => Ok(Loaded { value, source }),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            Err(source.error(at, with_suggestion(error.message().trim_end())))
        }
    }
}

impl<T> Loaded<T> {
    /// An error about the value at `path` (as `services.orders.policy` or `routes[2].to`), pointing
    /// at its line, or at the nearest thing around it that is written down.
    pub fn error(&self, path: &str, message: impl Into<String>) -> ConfigError {
        self.source
            .error(locate(&self.source.text, path), message.into())
    }

    /// `file:line` of the value at `path`.
    pub fn place(&self, path: &str) -> String {
        let (line, _, _) = position(&self.source.text, locate(&self.source.text, path));
        format!("{}:{line}", self.source.path.display())
    }

    /// The file's text, as it was read.
    pub fn text(&self) -> &str {
        &self.source.text
    }
}

impl Source {
    fn error(&self, at: usize, message: String) -> ConfigError {
        let (line, column, text) = position(&self.text, at);
        let text = shown(text, column, message == IN_CLEAR);
        let margin = " ".repeat(line.to_string().len());
        let indent: String = text
            .chars()
            .take(column - 1)
            .map(|c| if c == '\t' { c } else { ' ' })
            .collect();
        ConfigError::Invalid {
            place: format!("{}:{line}:{column}", self.path.display()),
            message,
            excerpt: format!("\n{margin} |\n{line} | {text}\n{margin} | {indent}^"),
        }
    }
}

/// A line as it may be shown: an error goes to a terminal, a journal, a ticket. Each character of
/// what is hidden becomes one, so that the caret stays where it points. `is_secret`: all that
/// begins at `column` is.
fn shown(line: &str, column: usize, is_secret: bool) -> String {
    if is_secret {
        let before: String = line.chars().take(column - 1).collect();
        return before + "***";
    }
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after
            .find(['/', '"', '\'', ' ', ','])
            .unwrap_or(after.len());
        let who = after[..end].rfind('@').unwrap_or(0);
        shown.extend(std::iter::repeat_n('*', after[..who].chars().count()));
        rest = &after[who..];
    }
    shown + rest
}

/// Line, column (both from 1, in characters) and the line at byte `at`.
fn position(text: &str, at: usize) -> (usize, usize, &str) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[..at].matches('\n').count() + 1;
    let end = text[at..]
        .find('\n')
        .map_or(text.len(), |newline| at + newline);
    (
        line,
        text[start..at].chars().count() + 1,
        text[start..end].trim_end_matches('\r'),
    )
}

/// The byte at which the value at `path` begins, as far as the path is written down.
fn locate(text: &str, path: &str) -> usize {
    use toml::de::{DeTable, DeValue};
    let Ok(document) = DeTable::parse(text) else {
        return 0;
    };
    let mut at = document.span().start;
    let mut table: Option<&DeTable<'_>> = Some(document.get_ref());
    for segment in path.split('.') {
        let (name, index) = match segment.strip_suffix(']').and_then(|s| s.split_once('[')) {
            Some((name, index)) => (name, index.parse::<usize>().ok()),
            None => (segment, None),
        };
        let Some((key, value)) =
            table.and_then(|t| t.iter().find(|(key, _)| key.get_ref().as_ref() == name))
        else {
            break;
        };
        at = key.span().start;
        let mut value = value;
        if let (DeValue::Array(items), Some(index)) = (value.get_ref(), index)
            && let Some(item) = items.get(index)
        {
            at = item.span().start;
            value = item;
        }
        table = if let DeValue::Table(table) = value.get_ref() {
            Some(table)
        } else {
            at = value.span().start;
            None
        };
    }
    at
}

/// Adds "did you mean" to an unknown field that is close to a known one.
fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next().filter(|_| message.starts_with("unknown ")) else {
        return message.to_owned();
    };
    match nearest(unknown, quoted) {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// The candidate that is at most a third of its letters away from `word`.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|known| (distance(word, known), known))
        .filter(|(distance, known)| *distance <= known.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A secret, written `{ env = "NAME" }` or `{ file = "/path" }`: never in the configuration itself,
/// never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: String,
    file: Option<PathBuf>,
}

/// Why a secret cannot be had from its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read.
    #[error("read secret {path}: {source}", path = path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("the secret is empty")]
    Empty,
}

impl Secret {
    /// For comparing and sending, never for showing.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// A secret that was made here.
    pub fn new(text: impl Into<String>) -> Self {
        let (text, file) = (text.into(), None);
        Self { text, file }
    }

    /// What the file at `path` holds now, without the space around it.
    ///
    /// # Errors
    /// [`SecretError`], never with a byte of it.
    pub fn from_file(path: impl Into<PathBuf>) -> Result<Self, SecretError> {
        let path = path.into();
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::read(&text, Some(path)),
            Err(source) => Err(SecretError::Read { path, source }),
        }
    }

    fn read(text: &str, file: Option<PathBuf>) -> Result<Self, SecretError> {
        let text = text.trim().to_owned();
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        Ok(Self { text, file })
    }

    /// The file that it came from, which may hold another one by now.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("***")
    }
}

/// A secret where its place is wanted. Not to be repeated.
const IN_CLEAR: &str =
    "a secret does not stand here, but where it is: { env = \"NAME\" } or { file = \"/path\" }";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum From {
    Env(String),
    File(PathBuf),
}

/// Takes where a secret is, and refuses a secret without repeating it.
struct Place;

impl<'de> Visitor<'de> for Place {
    type Value = From;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ env = \"NAME\" } or { file = \"/path\" }")
    }

    fn visit_str<E: serde::de::Error>(self, _secret: &str) -> Result<From, E> {
        Err(E::custom(IN_CLEAR))
    }

    fn visit_i64<E: serde::de::Error>(self, _secret: i64) -> Result<From, E> {
        Err(E::custom(IN_CLEAR))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<From, A::Error> {
        From::deserialize(MapAccessDeserializer::new(map))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let secret = match d.deserialize_any(Place)? {
            From::Env(name) => {
                #[expect(clippy::disallowed_methods, reason = "configuration is loaded here")]
                let value = std::env::var(&name);
                let value = value.map_err(|_| {
                    D::Error::custom(format!("environment variable {name} is not set"))
                })?;
                Self::read(&value, None)
            }
            From::File(path) => Self::from_file(path),
        };
        secret.map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Doc {
        listen: String,
        #[serde(default)]
        routes: Vec<Route>,
        secret: Option<Secret>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Route {
        path: String,
        timeout: Option<selvedge_resilience::config::Millis>,
    }

    fn message(text: &str) -> String {
        parse::<Doc>(Path::new("x.toml"), text.to_owned())
            .expect_err(text)
            .to_string()
    }

    #[test]
    fn mistakes_are_shown_with_their_place_and_what_is_allowed() {
        let cases = [
            ("lisden = \"a\"", "x.toml:1:1", "did you mean `listen`?"),
            ("listen = 5", "x.toml:1:10", "expected a string"),
            (
                "listen = \"a\"\n[[routes]]\npath = \"/\"\ntimeout = \"5\"",
                "x.toml:4:11",
                "\"250ms\"",
            ),
            (
                "listen = \"a\"\nlisten = \"b\"",
                "x.toml:2:1",
                "duplicate key",
            ),
            ("listen = ", "x.toml:1:10", "^"),
            (
                "listen = \"a\"\nsecret = { env = \"SELVEDGE_NOT_SET\" }",
                "x.toml:2:",
                "is not set",
            ),
            ("", "x.toml:1:1", "missing field `listen`"),
        ];
        for (text, place, hint) in cases {
            let message = message(text);
            assert!(message.starts_with(place), "{text}:\n{message}");
            assert!(message.contains(hint), "{text}:\n{message}");
        }
    }

    #[test]
    fn what_is_wrong_in_meaning_points_at_its_line_too() {
        let text = "listen = \"a\"\n\n[[routes]]\npath = \"/\"\n[[routes]]\npath = \"/b\"\n";
        let doc = parse::<Doc>(Path::new("x.toml"), text.to_owned()).expect("parses");
        assert_eq!(doc.place("routes[1].path"), "x.toml:6");
        assert_eq!(doc.place("listen"), "x.toml:1");
        let error = doc.error("routes[1].path", "taken").to_string();
        assert_eq!(
            error,
            "x.toml:6:8: taken\n  |\n6 | path = \"/b\"\n  |        ^"
        );
        assert_eq!(doc.place("routes[1].not_written"), "x.toml:5");
    }

    #[test]
    fn secrets_are_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).expect("json"), "\"***\"");
        for written in ["\"hunter2\"", "'hunter2' # hunter2", "12345 # hunter2"] {
            let in_clear = message(&format!("listen = \"a\"\nsecret = {written}"));
            assert!(in_clear.starts_with("x.toml:2:10"), "{in_clear}");
            assert!(in_clear.contains("{ env = \"NAME\" }"), "{in_clear}");
            assert!(in_clear.contains("2 | secret = ***\n"), "{in_clear}");
            let shown = ["hunter2", "12345"].iter().any(|s| in_clear.contains(s));
            assert!(!shown, "{in_clear}");
        }
        let other = message("listen = \"a\"\nsecret = { envv = \"X\" }");
        assert!(other.contains("unknown variant `envv`"), "{other}");
    }

    #[test]
    fn a_secret_knows_its_file_and_can_be_read_again() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        std::fs::write(&path, " hunter2\n").expect("written");
        let text = format!("listen = \"a\"\nsecret = {{ file = {path:?} }}");
        let doc = parse::<Doc>(Path::new("x.toml"), text.clone()).expect("parses");
        let secret = doc.value.secret.expect("there");
        assert_eq!((secret.expose(), secret.file()), ("hunter2", Some(&*path)));
        std::fs::write(&path, "hunter3").expect("written");
        let again = Secret::from_file(&path).expect("there");
        assert_eq!(again.expose(), "hunter3");
        std::fs::write(&path, " \n").expect("written");
        let empty = Secret::from_file(&path).expect_err("empty");
        assert_eq!(empty.to_string(), "the secret is empty");
        std::fs::remove_file(&path).expect("removed");
        for said in [
            message(&text),
            Secret::from_file(&path).expect_err("gone").to_string(),
        ] {
            let want = format!("read secret {}: ", path.display());
            assert!(said.contains(&want), "{said}");
        }
        assert_eq!(Secret::new("a").file(), None);
    }

    #[test]
    fn a_password_in_a_url_is_not_shown_either() {
        let text = r#"liste = ["http://u:pä55@a:1/x", "http://b/@x", "http://v:q@c"]"#;
        let error = message(text);
        let want = r#"liste = ["http://******@a:1/x", "http://b/@x", "http://***@c"]"#;
        assert!(error.contains(want), "{error}");
    }
}
