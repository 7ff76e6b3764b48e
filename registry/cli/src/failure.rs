//! Why a command was not done, and what the process exits with.

use std::path::PathBuf;

use http::StatusCode;
use selvedge_registry::client::{ClientError, RegistrationRefused};

/// Why a command was not done. The message says what was tried; causes say why it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what}: {problem}")]
    Refused {
        what: String,
        status: StatusCode,
        problem: String,
    },
    #[error(transparent)]
    Registration(#[from] RegistrationRefused),
    #[error("{what}: {who}")]
    Silent {
        what: String,
        who: &'static str,
        #[source]
        source: Box<ClientError>,
    },
    #[error("{what}: the answer cannot be understood")]
    Strange {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    /// The command line, or a file that it names.
    #[error("{0}")]
    Usage(String),
    #[error("read {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What was asked for is not so.
    #[error("{0}")]
    No(String),
    #[error("{what}")]
    System {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    /// As `--help` lists them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { status, .. } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => 4,
                // Every one was asked, and none is ready.
                StatusCode::SERVICE_UNAVAILABLE => 3,
                _ => 1,
            },
            Self::Registration(refused) => match refused.problem.get(..3) {
                Some("401" | "403") => 4,
                _ => 1,
            },
            Self::Usage(_) | Self::Read { .. } => 2,
            Self::Silent { .. } => 3,
            Self::Strange { .. } | Self::No(_) | Self::System { .. } => 1,
        }
    }

    /// Whether whoever read us has enough: `selvedge watch … | head -1`.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// It and its causes, as one message.
    pub(crate) fn message(&self) -> String {
        let all = std::iter::successors(Some(self as &dyn std::error::Error), |e| e.source());
        all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}
