//! The complete file that we ship: it is taken as it stands, and with everything in it that is
//! commented out.

use std::path::Path;

use selvedge_sidecar::config;

const SHIPPED: &str = include_str!("../../deploy/config/sidecar.toml");

/// Secrets and files that are not there in a test.
const ELSEWHERE: [&str; 5] = ["token", "ca", "cert", "key", "server_name"];

/// `#key = value` without its mark.
fn with_every_key() -> String {
    let line = |line: &str| {
        let Some((key, _)) = line.split_once(" =") else {
            return line.to_owned();
        };
        match key.strip_prefix('#') {
            Some(key) if !key.contains(' ') && !ELSEWHERE.contains(&key) => line[1..].to_owned(),
            _ => line.to_owned(),
        }
    };
    SHIPPED.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_is_good() {
    let path = Path::new("sidecar.toml");
    for text in [SHIPPED.to_owned(), with_every_key()] {
        let config = config::parse(path, text).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.service.is_some());
    }
}
