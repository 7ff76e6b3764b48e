//! Questions to the registry and orders to it, as its v1 API takes them.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    time::Duration,
};

use http::header;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use selvedge_registry::{
    Locality,
    client::{Call, RegistryClient, Reply},
    node::{config::Secret, registry::RegistryFile},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{args::At, failure::Failure};

/// The registry, whichever of its servers answers.
pub(crate) struct Registry {
    pub(crate) client: RegistryClient,
    /// How to reach one of them alone.
    file: RegistryFile,
}

/// A token: from the file, or else from the environment.
pub(crate) fn token(file: Option<&Path>, variable: &str) -> Result<Option<Secret>, Failure> {
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| Failure::Read {
            path: path.to_owned(),
            source,
        })?;
        let token = text.trim();
        if token.is_empty() {
            let why = format!("{} holds no token: it is empty", path.display());
            return Err(Failure::Usage(why));
        }
        return Ok(Some(Secret::new(token)));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a token must not be an argument, and clap would make it one"
    )]
    let token = std::env::var(variable);
    Ok(token
        .ok()
        .filter(|token| !token.is_empty())
        .map(Secret::new))
}

impl Registry {
    pub(crate) fn new(at: &At) -> Result<Self, Failure> {
        let file = RegistryFile {
            servers: at.servers.clone(),
            token: token(at.token_file.as_deref(), "SELVEDGE_TOKEN")?,
            ca: at.ca.clone(),
            cert: at.cert.clone(),
            key: at.key.clone(),
            server_name: at.server_name.clone(),
            cache: None,
            region_fallback: false,
        };
        Self::by(file, "--server")
    }

    /// An admin port. Its answers are no catalogue's, but the ways are the same.
    pub(crate) fn admin(server: &str, token: Option<Secret>) -> Result<Self, Failure> {
        let file = RegistryFile {
            servers: vec![server.to_owned()],
            token,
            ..RegistryFile::default()
        };
        Self::by(file, "--admin")
    }

    fn by(file: RegistryFile, servers: &str) -> Result<Self, Failure> {
        let builder = file.client(&Locality::default()).map_err(|error| {
            let option = match error.key {
                "servers" => servers.to_owned(),
                "token" => "the token".to_owned(),
                key => format!("--{}", key.replace('_', "-")),
            };
            Failure::Usage(format!("{option}: {}", error.why))
        })?;
        Ok(Self {
            client: builder.spawn(),
            file,
        })
    }

    /// One server of it, by its address.
    pub(crate) fn server(&self, addr: impl Display) -> Result<Self, Failure> {
        let tls = self.file.servers.iter().any(|s| s.starts_with("https:"));
        let scheme = if tls { "https" } else { "http" };
        let file = RegistryFile {
            servers: vec![format!("{scheme}://{addr}")],
            ..self.file.clone()
        };
        Self::by(file, "--server")
    }

    /// The answer, whatever it is; `what` is what is tried, as the message will say.
    pub(crate) async fn send(
        &self,
        what: &str,
        method: &'static str,
        call: &Call<'_>,
    ) -> Result<Reply, Failure> {
        self.client.call(method, call).await.map_err(|source| {
            let who = match self.file.servers.len() {
                1 => "the server does not answer",
                _ => "none of the servers answers, the last one",
            };
            Failure::Silent {
                what: what.to_owned(),
                who,
                source: Box::new(source),
            }
        })
    }

    /// The answer, if it is a good one.
    pub(crate) async fn call(
        &self,
        what: &str,
        method: &'static str,
        call: &Call<'_>,
    ) -> Result<Reply, Failure> {
        let reply = self.send(what, method, call).await?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        Err(refused(what, &reply))
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
    ) -> Result<T, Failure> {
        let call = Call {
            path,
            ..Call::default()
        };
        read(what, &self.call(what, "GET", &call).await?)
    }

    /// Without a document.
    pub(crate) async fn order(
        &self,
        what: &str,
        method: &'static str,
        path: &str,
    ) -> Result<Reply, Failure> {
        let call = Call {
            path,
            ..Call::default()
        };
        self.call(what, method, &call).await
    }

    /// With a JSON document.
    pub(crate) async fn put(
        &self,
        what: &str,
        method: &'static str,
        path: &str,
        document: &impl Serialize,
    ) -> Result<Reply, Failure> {
        let call = Call {
            path,
            // Ours always serialise: their keys are strings.
            body: serde_json::to_vec(document).unwrap_or_default(),
            headers: vec![(header::CONTENT_TYPE, "application/json".to_owned())],
            ..Call::default()
        };
        self.call(what, method, &call).await
    }
}

pub(crate) fn refused(what: &str, reply: &Reply) -> Failure {
    Failure::Refused {
        what: what.to_owned(),
        status: reply.status,
        problem: reply.problem(),
    }
}

pub(crate) fn read<T: DeserializeOwned>(what: &str, reply: &Reply) -> Result<T, Failure> {
    serde_json::from_slice(&reply.body).map_err(|source| Failure::Strange {
        what: what.to_owned(),
        source,
    })
}

/// `path`, with what is set of `query`.
pub(crate) fn with_query(path: &str, query: &[(String, String)]) -> String {
    let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs = query
        .iter()
        .map(|(key, value)| format!("{}={}", escaped(key), escaped(value)));
    let query = pairs.collect::<Vec<_>>().join("&");
    match query.as_str() {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// What `file` holds, or standard input for `-`.
pub(crate) async fn text(file: &Path) -> Result<String, Failure> {
    let path: PathBuf = file.to_owned();
    let read = move || match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let done = tokio::task::spawn_blocking(read).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|source| Failure::Read {
        path: file.to_owned(),
        source,
    })
}

/// Two seconds may be short for a server that hands thousands of leases over meanwhile.
pub(crate) const PATIENT: Duration = Duration::from_secs(10);
