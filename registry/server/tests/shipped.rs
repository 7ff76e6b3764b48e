//! The complete file that we ship: it is taken as it stands, and with everything in it that is
//! commented out.

use std::path::Path;

use selvedge_registry::node::config;
use selvedge_registry_server::RegistryConfig;

const SHIPPED: &str = include_str!("../../../deploy/config/registry.toml");

/// `#key = value` without its mark; the sources of secrets are not there in a test.
fn with_every_key() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest)
            if rest.starts_with(|c: char| c.is_ascii_lowercase()) && !rest.contains("{ env = ") =>
        {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    SHIPPED.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_is_good() {
    let path = Path::new("registry.toml");
    for text in [SHIPPED.to_owned(), with_every_key()] {
        let loaded = config::parse::<RegistryConfig>(path, text);
        let config = loaded.unwrap_or_else(|error| panic!("{error}")).value;
        config.validate().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn every_key_of_the_gossip_is_shipped() {
    let written = serde_json::to_value(RegistryConfig::default().gossip).expect("serialises");
    for key in written.as_object().expect("a table").keys() {
        let shown = |line: &str| {
            let line = line.strip_prefix('#').unwrap_or(line);
            line.strip_prefix(key.as_str())
                .is_some_and(|rest| rest.starts_with(" = "))
        };
        assert!(
            SHIPPED.lines().any(shown),
            "{key} is not in the shipped file"
        );
    }
}
