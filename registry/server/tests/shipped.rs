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

/// Keys that have no default to be written, by section.
const WITHOUT_DEFAULT: [(&str, &[&str]); 4] = [
    ("auth", &["peer"]),
    ("tls", &["cert", "key", "ca", "client_ca", "server_name"]),
    ("regions", &["gateway_service"]),
    ("dns", &["bind"]),
];
/// Keys that are tables, shown under a heading of their own.
const TABLES: [&str; 2] = ["clients", "peers"];

#[test]
fn every_key_of_every_section_is_shipped() {
    let written = serde_json::to_value(RegistryConfig::default()).expect("serialises");
    let sections = written.as_object().expect("a table");
    for (section, keys) in sections.iter().filter(|(_, value)| value.is_object()) {
        if section == "locality" {
            continue;
        }
        let heading = format!("\n[{section}]\n");
        let at = SHIPPED
            .find(&heading)
            .unwrap_or_else(|| panic!("[{section}] is not shipped"));
        let rest = &SHIPPED[at + heading.len()..];
        let text = &rest[..rest.find("\n[").unwrap_or(rest.len())];
        let hidden = WITHOUT_DEFAULT.iter().filter(|(name, _)| name == section);
        let keys = keys
            .as_object()
            .expect("a table")
            .keys()
            .map(String::as_str);
        for key in keys.chain(hidden.flat_map(|(_, keys)| keys.iter().copied())) {
            let heading = format!("# [[{section}.{key}]]");
            let shown = |line: &str| {
                let line = line.strip_prefix('#').unwrap_or(line).trim_start();
                let value = line.strip_prefix(key);
                value.is_some_and(|rest| rest.starts_with(" = "))
            };
            let table = TABLES.contains(&key) && text.contains(&heading);
            assert!(
                table || text.lines().any(shown),
                "{section}.{key} is not in the shipped file"
            );
        }
    }
}

#[test]
fn the_files_of_the_composition_are_good() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/compose");
    for n in 1..=3 {
        let path = Path::new(folder).join(format!("registry-{n}.toml"));
        let text = std::fs::read_to_string(&path).expect("is there");
        // The key comes from the environment of the container.
        let key = "cVRZ6yoWrKDrrwc7bPeQ0m0aKQ8WRsNwUQxTMnuSb1c=";
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), key).expect("written");
        let from = format!("{{ file = {:?} }}", file.path());
        let text = text.replace("{ env = \"SELVEDGE_GOSSIP_KEY\" }", &from);
        let loaded = config::parse::<RegistryConfig>(&path, text);
        let config = loaded.unwrap_or_else(|error| panic!("{error}")).value;
        config.validate().unwrap_or_else(|error| panic!("{error}"));
    }
}
