//! What a connection's certificates come from: files, which somebody renews.

use std::{
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

/// How often renewed files are looked for, at most. A guess: certificates live for hours at least.
pub(super) const LOOK: Duration = Duration::from_secs(30);

/// What a connection to a registry server needs beyond its address. Nothing: plain TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file of the authorities that servers' certificates come from. There is no default: a
    /// mesh has an authority of its own.
    pub ca: PathBuf,
    /// PEM files of our certificate chain and of its key, where the server asks who we are.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that every server's certificate carries, where servers are dialled by another one
    /// (an address, a pod's name). Not set: the name that is dialled.
    pub server_name: Option<String>,
}

/// Why TLS cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file does not hold what it should.
    #[error("read {what} in {path}: {reason}")]
    File {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it was not found.
        reason: String,
    },
    /// Certificate and key do not belong together, or are of a kind that cannot be used.
    #[error("use certificate {path}")]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The name is neither a host's nor an address.
    #[error("{0:?} is not a name that a certificate can carry")]
    Name(String),
}

/// Every certificate in the PEM file at `path`; at least one.
///
/// # Errors
/// [`TlsError::File`] naming the file and what is wrong with it.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::File {
        what: "certificates",
        path: path.to_owned(),
        reason,
    };
    let list = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
    let list: Vec<_> = list
        .collect::<Result<_, _>>()
        .map_err(|error| fail(error.to_string()))?;
    if list.is_empty() {
        return Err(fail("there is no CERTIFICATE block".into()));
    }
    Ok(list)
}

/// The private key in the PEM file at `path`.
///
/// # Errors
/// [`TlsError::File`]; never with a byte of the key.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::File {
        what: "a private key",
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The authorities in the PEM file at `path`.
///
/// # Errors
/// [`TlsError`] naming the file.
pub fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Unusable {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

/// The one crypto provider of the mesh, handed in where it is used: nothing depends on a process
/// default that somebody else may set.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What the files held when they were read last.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) http1: TlsConnector,
    pub(super) http2: TlsConnector,
    pub(super) name: Option<ServerName<'static>>,
}

impl Tls {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Unusable {
                path: files.ca.clone(),
                source,
            })?
            .with_root_certificates(read_roots(&files.ca)?);
        let mut http1 = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(read_certificates(chain)?, read_key(key)?)
                .map_err(|source| TlsError::Unusable {
                    path: chain.clone(),
                    source,
                })?,
        };
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        let name = files.server_name.as_ref().map(|name| server_name(name));
        Ok(Self {
            http1: TlsConnector::from(Arc::new(http1)),
            http2: TlsConnector::from(Arc::new(http2)),
            name: name.transpose()?,
        })
    }
}

/// The files, and what of them is used.
pub(super) struct Renewed {
    files: TlsFiles,
    current: ArcSwap<Tls>,
    looked: Mutex<Looked>,
}

struct Looked {
    again: Instant,
    contents: Vec<Option<u64>>,
}

impl Renewed {
    pub(super) fn new(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        // Before they are read: what comes in between is seen the next time.
        let contents = contents(files);
        Ok(Arc::new(Self {
            files: files.clone(),
            current: ArcSwap::from_pointee(Tls::read(files)?),
            looked: Mutex::new(Looked {
                again: Instant::now() + LOOK,
                contents,
            }),
        }))
    }

    /// For the next connection. Cancel-safe: what was begun is finished for the one after.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<Tls> {
        let now = Instant::now();
        let is_due = {
            let mut looked = self.looked.lock();
            let is_due = looked.again <= now;
            if is_due {
                looked.again = now + LOOK;
            }
            is_due
        };
        if is_due {
            let this = Arc::clone(self);
            // Disks may be slow. A look that failed leaves what there is.
            let _looked = tokio::task::spawn_blocking(move || this.look()).await;
        }
        self.current.load_full()
    }

    fn look(&self) {
        let now = contents(&self.files);
        if self.looked.lock().contents == now {
            return;
        }
        match Tls::read(&self.files) {
            Ok(tls) => {
                self.current.store(Arc::new(tls));
                tracing::info!(ca = %self.files.ca.display(), "certificates renewed");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                let causes = std::iter::successors(Some(error), |error| (*error).source());
                let causes: Vec<String> = causes.map(ToString::to_string).collect();
                tracing::error!(
                    error = causes.join(": "),
                    "renewed certificates cannot be used, the old ones stay"
                );
            }
        }
        self.looked.lock().contents = now;
    }
}

/// A hash of what each file holds, as a key is not to lie about; `None` of one that cannot be read.
fn contents(files: &TlsFiles) -> Vec<Option<u64>> {
    let identity = files.identity.iter().flat_map(|(chain, key)| [chain, key]);
    let all = std::iter::once(&files.ca).chain(identity);
    let hash = |bytes: Vec<u8>| {
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        hasher.finish()
    };
    all.map(|path| std::fs::read(path).ok().map(hash)).collect()
}

pub(super) fn server_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.to_owned()).map_err(|_| TlsError::Name(text.to_owned()))
}
