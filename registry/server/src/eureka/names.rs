//! Eureka's names and ours.
//!
//! Eureka takes any text as an application's and an instance's name; ours are a DNS label and a
//! path segment. So `MY_APP` is the service `my-app`, and what does not survive the way there and
//! back is kept beside the record and given back as it was.

use std::fmt::Write as _;

use selvedge_registry::{InstanceId, ServiceName};

/// Longest part of a name that is kept when it has to be cut.
const KEPT: usize = 54;
/// The same of an instance's.
const KEPT_ID: usize = 118;

/// Bytes that an application's or an instance's name may have.
pub(crate) const MAX_NAME: usize = 512;

/// The service that an application is. Two applications whose names differ in `_`, `.` and `-`
/// only are one service, and stay two applications for Eureka's clients.
pub(crate) fn service(app: &str) -> ServiceName {
    let label: String = app
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '-') => c,
            _ => '-',
        })
        .collect();
    let mut label = label.trim_matches('-').to_owned();
    if label.is_empty() || label.len() > 63 {
        label.truncate(KEPT);
        let label_or = if label.is_empty() { "app" } else { &label };
        label = format!("{label_or}-{}", digest(&app.to_ascii_uppercase()));
    }
    ServiceName::new(label).expect("letters, digits and dashes, none at the ends")
}

/// The application that a service is where nothing else is said.
pub(crate) fn app(service: &ServiceName) -> String {
    service.as_str().to_ascii_uppercase()
}

/// The id that an instance has with us; its own where that is one.
pub(crate) fn instance(id: &str) -> InstanceId {
    if let Ok(id) = InstanceId::new(id) {
        return id;
    }
    let mut own: String = id
        .chars()
        .take(KEPT_ID)
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "-_.:".contains(c) => c,
            _ => '_',
        })
        .collect();
    write!(own, ".{}", digest(id)).expect("strings take everything");
    InstanceId::new(own).expect("letters and digits, at most 127")
}

fn digest(text: &str) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    format!("{:08x}", hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ours_and_stay_apart() {
        let long = "X".repeat(200);
        for (name, want) in [
            ("FOO", "foo"),
            ("Foo_Bar", "foo-bar"),
            ("_A.B_", "a-b"),
            ("9", "9"),
        ] {
            assert_eq!(service(name).as_str(), want);
        }
        assert_eq!(service(&long).as_str().len(), 63);
        assert_ne!(service(&long), service(&format!("{long}Y")));
        assert_eq!(service("ÄÖ"), service("ÄÖ"));
        assert_ne!(service("ÄÖ"), service("ÜÖ"));
        assert!(service("__").as_str().starts_with("app-"));

        assert_eq!(instance("h:foo:8080").as_str(), "h:foo:8080");
        for odd in ["a b", "a/b", "..", "ä", &"x".repeat(300)] {
            let ours = instance(odd);
            assert!(ours.as_str().len() <= 128, "{odd}");
            assert_ne!(ours, instance(&format!("{odd}!")), "{odd}");
            assert_eq!(ours, instance(odd));
        }
    }
}
