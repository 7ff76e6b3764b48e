//! The complete file that we ship: it is taken as it stands, and with everything in it that is
//! commented out.

use std::path::Path;

use selvedge_gateway::config;

const SHIPPED: &str = include_str!("../../deploy/config/gateway.toml");

/// `#key = value` without its mark; the admin token's source is not there in a test.
fn with_every_key() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest)
            if rest.starts_with(|c: char| c.is_ascii_lowercase()) && !rest.starts_with("token") =>
        {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    SHIPPED.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_is_good() {
    let path = Path::new("gateway.toml");
    for text in [SHIPPED.to_owned(), with_every_key()] {
        let config = config::parse(path, text).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.access_log.is_some());
    }
}
