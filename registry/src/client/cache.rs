//! The last good list, on disk: a process that starts while the whole registry is away begins with
//! what its predecessor knew, instead of with nothing.
//!
//! # Guarantees
//! A crash at any moment leaves the old file or the new one: it is written beside, synced, renamed,
//! and the directory synced. What cannot be read back is ignored, with a warning.
//!
//! # What it does not do
//! Age: a list is better than none, and callers' own verdicts sort out what is gone.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::wire::{PolicyRecord, ServiceRecord};

/// Written by us; another one is not read.
const FORMAT: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    format: u32,
    pub(super) services: Vec<ServiceRecord>,
    pub(super) policies: Vec<PolicyRecord>,
}

impl Known {
    pub(super) fn new(services: Vec<ServiceRecord>, policies: Vec<PolicyRecord>) -> Self {
        Self {
            format: FORMAT,
            services,
            policies,
        }
    }
}

/// What was known; `None` if there is no file that can be used.
pub(super) fn load(path: &Path) -> Option<Known> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "read last known services failed");
            return None;
        }
    };
    match serde_json::from_slice::<Known>(&bytes) {
        Ok(known) if known.format == FORMAT => Some(known),
        Ok(known) => {
            tracing::warn!(path = %path.display(), format = known.format, "last known services are of another format");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "last known services cannot be read");
            None
        }
    }
}

/// Keeps `known`. Blocks.
pub(super) fn save(path: &Path, known: &Known) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Two processes that share a file by mistake must not write into each other's copy.
    name.push(format!(".{}.tmp", std::process::id()));
    let beside: PathBuf = path.with_file_name(name);
    let written = (|| {
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(known)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _nothing_more_to_do = fs::remove_file(&beside);
    }
    written?;
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("known.json");
        assert_eq!(load(&path), None, "no file yet");
        let record: ServiceRecord =
            serde_json::from_str(r#"{"service":"orders","revision":"1-2","instances":[]}"#)
                .expect("record");
        let known = Known::new(vec![record], Vec::new());
        save(&path, &known).expect("saved");
        assert_eq!(load(&path), Some(known.clone()));
        assert_eq!(
            fs::read_dir(dir.path()).expect("dir").count(),
            1,
            "no litter"
        );
        let bytes = fs::read(&path).expect("read");
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).expect("write");
            assert_eq!(load(&path), None, "cut at {cut}");
        }
        fs::write(&path, r#"{"format":2,"services":[],"policies":[]}"#).expect("write");
        assert_eq!(load(&path), None, "another format");
        let nowhere = dir.path().join("none").join("known.json");
        assert!(save(&nowhere, &known).is_err());
    }
}
