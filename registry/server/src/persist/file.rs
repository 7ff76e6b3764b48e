//! The file: written beside the last one and put in its place, checked as a whole before anything
//! of it is believed.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{Header, Restored};
use crate::catalogue::{Catalogue, PolicyEntry, Record, Store};

const MAGIC: &[u8; 8] = b"SLVDREG1";
/// Bytes before the packed lines: magic and length.
const HEAD: u64 = 16;
/// Quick: this runs beside everything else, twice a minute.
const LEVEL: i32 = 1;
/// Longest line: a record with all that it may have, every byte escaped.
const MAX_LINE: u64 = 1 << 20;

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is none.
    #[error("there is no file")]
    Missing,
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It is what was written, and not by us.
    #[error("a line of it cannot be understood")]
    Line(#[source] serde_json::Error),
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Read(error),
        }
    }
}

#[derive(Serialize)]
enum Out<'a> {
    #[serde(rename = "head")]
    Head(&'a Header),
    #[serde(rename = "r")]
    Record(&'a Record),
    #[serde(rename = "p")]
    Policy(&'a PolicyEntry),
    #[serde(rename = "end")]
    End { records: u64 },
}

#[derive(Deserialize)]
enum In {
    #[serde(rename = "head")]
    Head(Header),
    #[serde(rename = "r")]
    Record(Box<Record>),
    #[serde(rename = "p")]
    Policy(Box<PolicyEntry>),
    #[serde(rename = "end")]
    End { records: u64 },
}

/// Hashes and counts what goes by.
struct Hashed {
    file: File,
    hash: Xxh3,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes to the first of `paths` and puts it in the place of the second, which becomes the third.
pub(super) fn write(
    [temporary, last, previous]: &[PathBuf; 3],
    header: &Header,
    catalogue: &Catalogue,
) -> io::Result<()> {
    let written = write_temporary(temporary, header, catalogue);
    if let Err(error) = written {
        // It may be what fills the disk.
        let _may_be_gone = fs::remove_file(temporary);
        return Err(error);
    }
    if last.exists() {
        // By a second name, so that there is a last one at every moment.
        match fs::remove_file(previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::hard_link(last, previous)?,
        }
    }
    fs::rename(temporary, last)?;
    last.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn write_temporary(path: &Path, header: &Header, catalogue: &Catalogue) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(MAGIC)?;
    file.write_all(&[0; 8])?;
    let hashed = Hashed {
        file,
        hash: Xxh3::new(),
        bytes: 0,
    };
    let mut out = zstd::stream::write::Encoder::new(hashed, LEVEL)?;
    let mut line = |document: &Out<'_>, text: &mut Vec<u8>| {
        text.clear();
        serde_json::to_writer(&mut *text, document)?;
        text.push(b'\n');
        out.write_all(text)
    };
    let mut text = Vec::new();
    line(&Out::Head(header), &mut text)?;
    for policy in catalogue.policy_entries() {
        line(&Out::Policy(policy), &mut text)?;
    }
    let mut records = 0;
    for record in catalogue.records() {
        records += 1;
        line(&Out::Record(record), &mut text)?;
    }
    line(&Out::End { records }, &mut text)?;
    let Hashed {
        mut file,
        hash,
        bytes,
    } = out.finish()?;
    file.write_all(&hash.digest().to_le_bytes())?;
    file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    file.write_all(&bytes.to_le_bytes())?;
    file.sync_all()
}

/// Reads a file, if all of it is good.
pub(super) fn read(path: &Path, epoch: u64) -> Result<Restored, LoadError> {
    let mut file = File::open(path)?;
    let packed = check(&mut file)?;
    file.seek(SeekFrom::Start(HEAD))?;
    let lines = zstd::stream::read::Decoder::new(file.take(packed)).map_err(LoadError::Read)?;
    let mut lines = BufReader::new(lines);
    let mut store = Store::new(epoch);
    let (mut header, mut seen, mut complete) = (None, 0, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line);
        if n.map_err(LoadError::Read)? == 0 {
            break;
        }
        match serde_json::from_slice(&line).map_err(LoadError::Line)? {
            In::Head(head) => header = Some(head),
            In::Policy(policy) => {
                store.merge_policy(*policy);
            }
            In::Record(record) => {
                seen += 1;
                store.merge(*record, 0);
            }
            In::End { records } => complete = records == seen,
        }
    }
    match header {
        Some(header) if complete => Ok(Restored { header, store }),
        _ => Err(LoadError::Damaged("it is not complete")),
    }
}

/// Goes through the file once, believing nothing; tells how many packed bytes it holds.
fn check(file: &mut File) -> Result<u64, LoadError> {
    let length = file.metadata()?.len();
    let (mut magic, mut number) = ([0; 8], [0; 8]);
    if length < HEAD + 8 {
        return Err(LoadError::Damaged("it is too short"));
    }
    file.read_exact(&mut magic)?;
    file.read_exact(&mut number)?;
    let packed = u64::from_le_bytes(number);
    if magic != *MAGIC {
        return Err(LoadError::Damaged("it does not begin as ours do"));
    }
    if HEAD.checked_add(packed).and_then(|n| n.checked_add(8)) != Some(length) {
        return Err(LoadError::Damaged("its length is not what it says"));
    }
    let mut hash = Xxh3::new();
    let mut rest = packed;
    let mut buffer = vec![0; 64 << 10];
    while rest > 0 {
        let most = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        let n = file.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(LoadError::Damaged("it ends early"));
        }
        hash.update(&buffer[..n]);
        rest -= n as u64;
    }
    file.read_exact(&mut number)?;
    if hash.digest() != u64::from_le_bytes(number) {
        return Err(LoadError::Damaged("its checksum is wrong"));
    }
    Ok(packed)
}
