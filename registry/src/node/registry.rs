//! `[registry]`: who knows where services are, in every process that asks.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::config::Secret;
use crate::{
    client::{
        Builder, RegistryClient,
        connect::{Connector, TlsError, TlsFiles},
    },
    instance::Locality,
};

/// The section as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryFile {
    /// Any of these is asked, as `"http://10.0.0.5:7900"`, or `https`; more than one for failover.
    pub servers: Vec<String>,
    /// What we present to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// PEM file of the authorities of their certificates; needed with `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate chain, where they ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name on their certificates, if not the one that is dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// File that keeps the last known lists, for a start while every server is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Where a service takes no calls in this region, call it through another region's gateways.
    #[serde(default)]
    pub region_fallback: bool,
}

/// What is wrong with the section: at which key, and why.
#[derive(Debug)]
pub struct RegistryFileError {
    /// The key within the section.
    pub key: &'static str,
    /// What is wrong and what is allowed.
    pub why: String,
}

impl fmt::Display for RegistryFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry.{}: {}", self.key, self.why)
    }
}

impl std::error::Error for RegistryFileError {}

impl RegistryFile {
    /// A client by this section, in a process that runs `here`.
    ///
    /// # Errors
    /// [`RegistryFileError`]: also what is wrong with the files that it names.
    pub fn client(&self, here: &Locality) -> Result<Builder, RegistryFileError> {
        let (servers, tls) = self.servers()?;
        let refuse = |key, why: String| Err(RegistryFileError { key, why });
        let because = |key| {
            move |error: TlsError| RegistryFileError {
                key,
                why: causes(&error),
            }
        };
        let files = [&self.ca, &self.cert, &self.key];
        let mut connector = match (&self.ca, tls) {
            (Some(ca), true) => {
                let identity = match (&self.cert, &self.key) {
                    (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
                    (None, None) => None,
                    _ => return refuse("cert", "cert and key go together".into()),
                };
                let files = TlsFiles {
                    ca: ca.clone(),
                    identity,
                    server_name: self.server_name.clone(),
                };
                Connector::tls(&files).map_err(because("ca"))?
            }
            (None, true) => {
                let why = "with https, name the authorities of the servers' certificates";
                return refuse("ca", why.into());
            }
            (_, false) if files.iter().any(|file| file.is_some()) => {
                return refuse("servers", "certificates are for https://".into());
            }
            (_, false) => Connector::plain(),
        };
        if let Some(token) = &self.token {
            connector = connector
                .with_token(token.expose())
                .map_err(because("token"))?;
        }
        let mut builder = RegistryClient::builder(servers)
            .connector(connector)
            .locality(here.clone())
            .region_fallback(self.region_fallback);
        if let Some(cache) = &self.cache {
            builder = builder.cache(cache);
        }
        Ok(builder)
    }

    /// The servers as `host:port`, and whether they are reached over TLS.
    fn servers(&self) -> Result<(Vec<String>, bool), RegistryFileError> {
        let refuse = |why: String| RegistryFileError {
            key: "servers",
            why,
        };
        if self.servers.is_empty() {
            return Err(refuse("no server is named: at least one is needed".into()));
        }
        let mut list = Vec::new();
        let mut schemes = Vec::new();
        for server in &self.servers {
            let (scheme, authority) = authority(server).ok_or_else(|| {
                refuse(format!(
                    "{server:?} is not a registry: expected \"http://10.0.0.5:7900\" or \"https://…\""
                ))
            })?;
            list.push(authority);
            schemes.push(scheme == "https");
        }
        if schemes.iter().any(|tls| *tls != schemes[0]) {
            return Err(refuse("either all are https, or none".into()));
        }
        Ok((list, schemes[0]))
    }
}

/// Scheme and `host:port` of a registry server as it is written.
pub fn authority(server: &str) -> Option<(&'static str, String)> {
    let uri: http::Uri = server.parse().ok()?;
    let scheme = match uri.scheme_str()? {
        "http" => "http",
        "https" => "https",
        _ => return None,
    };
    let authority = uri.authority().filter(|a| a.port_u16().is_some())?;
    // "http://user:password@host": nothing would be done with them.
    (uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@'))
        .then(|| (scheme, authority.to_string()))
}

fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_at_its_key() {
        let file = |text: &str| -> RegistryFile { toml::from_str(text).expect(text) };
        for (text, key) in [
            ("servers = []", "servers"),
            ("servers = [\"10.0.0.5:7900\"]", "servers"),
            ("servers = [\"http://10.0.0.5\"]", "servers"),
            ("servers = [\"http://a:1/x\"]", "servers"),
            ("servers = [\"ftp://a:1\"]", "servers"),
            ("servers = [\"http://a:1\", \"https://b:1\"]", "servers"),
            ("servers = [\"http://a:1\"]\nca = \"ca.pem\"", "servers"),
            ("servers = [\"https://a:1\"]", "ca"),
            ("servers = [\"https://a:1\"]\nca = \"/nowhere.pem\"", "ca"),
            (
                "servers = [\"https://a:1\"]\nca = \"c\"\ncert = \"d\"",
                "cert",
            ),
        ] {
            let error = file(text).client(&Locality::default()).expect_err(text);
            assert_eq!(error.key, key, "{text}: {error}");
        }
        let good = file("servers = [\"http://a:1\", \"http://[::1]:2/\"]");
        assert!(good.client(&Locality::default()).is_ok());
    }
}
