//! Tokens that somebody renews, or takes away, while the server runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use selvedge_registry::node::config::Secret;

use super::{Auth, Tokens, config::is_guessed, hash};

/// How often the files are looked at. A guess, as for certificates: whoever takes a token away can
/// wait half a minute, or asks the server to look.
pub(super) const LOOK: Duration = Duration::from_secs(30);

/// Where a client's token comes from.
#[derive(Debug)]
pub(super) struct TokenFile {
    /// Whose it is, by its place in the list of tokens.
    at: usize,
    path: PathBuf,
    /// What was wrong with it the last time, so that it is said once.
    wrong: Mutex<Option<String>>,
}

impl TokenFile {
    pub(super) fn new(at: usize, path: &Path) -> Self {
        Self {
            at,
            path: path.to_owned(),
            wrong: Mutex::default(),
        }
    }

    /// The hash of the token that it holds.
    fn read(&self) -> Result<[u8; 32], String> {
        let secret = Secret::from_file(&self.path).map_err(|error| error.to_string())?;
        match is_guessed(&secret) {
            None => Ok(hash(secret.expose().as_bytes())),
            Some(error) => Err(error.to_string()),
        }
    }
}

impl Auth {
    /// Takes the tokens of files that have changed, for ever; never ends. Cancel-safe.
    pub(crate) async fn renew_for_ever(self: Arc<Self>) {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let this = Arc::clone(&self);
            // Disks may be slow. A look that failed leaves what there is.
            let _looked = tokio::task::spawn_blocking(move || this.renew()).await;
        }
    }

    /// Takes the tokens of files that have changed. Reads the files.
    pub(crate) fn renew(&self) {
        for file in &self.files {
            match file.read() {
                Ok(token) => {
                    *file.wrong.lock() = None;
                    self.replace(file.at, token);
                }
                Err(error) => {
                    let mut wrong = file.wrong.lock();
                    if wrong.as_ref() != Some(&error) {
                        let client = Arc::clone(self.tokens.load()[file.at].1.name());
                        tracing::error!(
                            client = %client,
                            path = %file.path.display(),
                            error,
                            "renewed token cannot be used, the old one stays"
                        );
                        *wrong = Some(error);
                    }
                }
            }
        }
    }

    fn replace(&self, at: usize, token: [u8; 32]) {
        let before = self.tokens.rcu(|tokens| {
            let mut tokens = Tokens::clone(tokens);
            let (known, caller) = &mut tokens[at];
            if *known != token {
                *known = token;
                *caller = caller.renewed();
            }
            tokens
        });
        let (known, caller) = &before[at];
        if *known != token {
            tracing::info!(client = %caller.name(), "token renewed, the old one is nobody's");
            caller.0.revoked.cancel();
        }
    }
}
