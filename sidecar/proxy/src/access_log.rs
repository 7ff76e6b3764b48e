//! A line a request, as JSON, without making a request wait for a disk.
//!
//! Each worker fills a buffer of its own and hands it over when it is full or a second old; one
//! thread writes. When the disk is slower than the traffic, lines are dropped and counted, never
//! requests held up.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::ProxyMetrics;

/// Handed over at this size. Source: nginx `access_log … buffer=64k`, as commonly set.
const BUFFER: usize = 64 << 10;
/// Buffers that may wait for the disk: 4 MiB.
const WAITING: usize = 64;

/// Where lines go. Clones share the file and its thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct AccessLog {
    buffers: SyncSender<Message>,
    dropped: Counter,
}

/// What the writing thread is told.
#[derive(Debug)]
enum Message {
    Lines(Vec<u8>),
    /// Everything before this is wanted on its way to the disk.
    Sync(SyncSender<()>),
}

/// How long the end of a process may wait for the disk.
const SYNC: Duration = Duration::from_secs(1);

impl AccessLog {
    /// Opens `path` for appending; `-` is standard output.
    ///
    /// # Errors
    /// If the file cannot be opened or the thread not started.
    pub fn open(path: &Path, metrics: &ProxyMetrics) -> io::Result<Self> {
        let mut out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(OpenOptions::new().create(true).append(true).open(path)?)
        };
        let (buffers, waiting) = sync_channel::<Message>(WAITING);
        let dropped = metrics.log_dropped();
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                for message in waiting {
                    let buffer = match message {
                        Message::Lines(buffer) => buffer,
                        Message::Sync(done) => {
                            let _whoever_waited_has_left = done.send(());
                            continue;
                        }
                    };
                    if let Err(error) = out.write_all(&buffer).and_then(|()| out.flush()) {
                        lost.inc_by(lines(&buffer));
                        tracing::error!(%error, "access log lines could not be written");
                    }
                }
            })?;
        Ok(Self { buffers, dropped })
    }

    /// Waits, at most a second, until what was handed over is written: before a process ends.
    /// Blocks.
    pub fn sync(&self) {
        let (done, wait) = sync_channel(1);
        if self.buffers.send(Message::Sync(done)).is_ok() && wait.recv_timeout(SYNC).is_err() {
            tracing::warn!("the access log was not written to its end");
        }
    }

    /// A worker's own buffer.
    pub(crate) fn buffer(&self) -> LogBuffer {
        LogBuffer {
            log: self.clone(),
            filled: Mutex::new(Filled {
                bytes: Vec::with_capacity(BUFFER + (4 << 10)),
                wall: Wall::default(),
            }),
        }
    }
}

fn lines(buffer: &[u8]) -> u64 {
    buffer.split(|byte| *byte == b'\n').count() as u64 - 1
}

/// A worker's lines that have not been handed over yet.
#[derive(Debug)]
pub(crate) struct LogBuffer {
    log: AccessLog,
    filled: Mutex<Filled>,
}

#[derive(Debug)]
struct Filled {
    bytes: Vec<u8>,
    wall: Wall,
}

/// The time of day, as RFC 3339. The wall's clock is read and written out once a second and not
/// once a line; in between the request's own clock says how far it is.
#[derive(Debug, Default)]
struct Wall {
    /// When the second that `text` is of began.
    began: Option<Instant>,
    text: String,
}

impl Wall {
    fn write(&mut self, out: &mut Vec<u8>, now: Instant) {
        let since = |began: Instant| now.saturating_duration_since(began).as_millis();
        let millis = match self.began.map(since) {
            Some(millis @ 0..1000) => millis as u32,
            _ => self.read(now),
        };
        out.extend_from_slice(self.text.as_bytes());
        let digit = |divisor| b'0' + (millis / divisor % 10) as u8;
        out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b'Z']);
    }

    /// Reads the wall's clock; returns the milliseconds of its second.
    fn read(&mut self, now: Instant) -> u32 {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.text = rfc3339(wall.as_secs());
        let into = Duration::from_nanos(u64::from(wall.subsec_nanos()));
        self.began = now.checked_sub(into);
        wall.subsec_millis()
    }
}

impl LogBuffer {
    /// Adds a line that begins with the time; `fields` writes the rest.
    pub(crate) fn line(&self, now: Instant, fields: impl FnOnce(&mut Vec<u8>)) {
        let mut filled = self.filled.lock();
        let filled = &mut *filled;
        let bytes = &mut filled.bytes;
        bytes.extend_from_slice(b"{\"time\":\"");
        filled.wall.write(bytes, now);
        bytes.push(b'"');
        fields(bytes);
        bytes.extend_from_slice(b"}\n");
        if bytes.len() >= BUFFER {
            self.hand_over(bytes);
        }
    }

    /// Hands over what there is.
    pub(crate) fn flush(&self) {
        let mut filled = self.filled.lock();
        if !filled.bytes.is_empty() {
            self.hand_over(&mut filled.bytes);
        }
    }

    fn hand_over(&self, bytes: &mut Vec<u8>) {
        let full = std::mem::replace(bytes, Vec::with_capacity(BUFFER + (4 << 10)));
        if let Err(
            TrySendError::Full(Message::Lines(lost))
            | TrySendError::Disconnected(Message::Lines(lost)),
        ) = self.log.buffers.try_send(Message::Lines(full))
        {
            self.log.dropped.inc_by(lines(&lost));
        }
    }
}

impl Drop for LogBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A second after 1970, without its fractions and zone.
pub(crate) fn rfc3339(second: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(second);
    // "Tue, 15 Nov 1994 08:12:31 GMT" has every part; putting them in order is all that is left.
    let date = httpdate::fmt_http_date(time);
    let part = |range: std::ops::Range<usize>| date.get(range).unwrap_or_default();
    let month = match part(8..11) {
        "Jan" => "01",
        "Feb" => "02",
        "Mar" => "03",
        "Apr" => "04",
        "May" => "05",
        "Jun" => "06",
        "Jul" => "07",
        "Aug" => "08",
        "Sep" => "09",
        "Oct" => "10",
        "Nov" => "11",
        _ => "12",
    };
    format!("{}-{month}-{}T{}", part(12..16), part(5..7), part(17..25))
}

/// Adds `,"name":"value"`, escaped.
pub(crate) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let plain = |byte: u8| matches!(byte, 0x20 | 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    open(out, name);
    // Without a way out in the middle, so that many bytes are looked at at once.
    if value.iter().fold(true, |all, byte| all & plain(*byte)) {
        out.extend_from_slice(value);
    } else {
        escape(out, value);
    }
    out.push(b'"');
}

/// The same for what we wrote ourselves and need not look at.
pub(crate) fn plain(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    open(out, name);
    out.extend_from_slice(value);
    out.push(b'"');
}

/// The same for an address.
pub(crate) fn address(out: &mut Vec<u8>, name: &str, addr: SocketAddr) {
    open(out, name);
    match addr {
        SocketAddr::V4(addr) => {
            for (octet, end) in addr.ip().octets().into_iter().zip(*b"...:") {
                digits(out, octet);
                out.push(end);
            }
            digits(out, addr.port());
        }
        // Writing to a `Vec` does not fail.
        SocketAddr::V6(addr) => {
            let _infallible = write!(out, "{addr}");
        }
    }
    out.push(b'"');
}

fn open(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":\"");
}

fn digits(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Everything that is not printable ASCII becomes `\u…`: terminals and log viewers obey escape
/// sequences and direction marks that a client may have sent.
fn escape(out: &mut Vec<u8>, value: &[u8]) {
    for unit in String::from_utf8_lossy(value).encode_utf16() {
        match unit {
            0x22 => out.extend_from_slice(b"\\\""),
            0x5c => out.extend_from_slice(b"\\\\"),
            0x20..=0x7e => out.push(unit as u8),
            other => {
                out.extend_from_slice(b"\\u");
                for shift in [12, 8, 4, 0] {
                    out.push(b"0123456789abcdef"[usize::from(other >> shift & 0xF)]);
                }
            }
        }
    }
}

/// Adds `,"name":value`.
pub(crate) fn number(out: &mut Vec<u8>, name: &str, value: impl itoa::Integer) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    digits(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00");
        assert_eq!(rfc3339(1_709_251_199), "2024-02-29T23:59:59");
    }

    #[test]
    fn what_a_client_sends_stays_data() {
        let mut out = Vec::new();
        field(&mut out, "path", "/a\"\\\n\u{1b}[31m\u{202e}é".as_bytes());
        let line = format!("{{\"x\":1{}}}", String::from_utf8(out).expect("ascii"));
        assert!(
            line.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{line}"
        );
        let parsed: serde_json::Value = serde_json::from_str(&line).expect("json");
        assert_eq!(parsed["path"], "/a\"\\\n\u{1b}[31m\u{202e}é");
    }

    #[test]
    fn lines_reach_the_file_whole() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("access.log");
        let metrics = ProxyMetrics::new(&selvedge_registry::node::metrics::Metrics::default());
        let log = AccessLog::open(&path, &metrics).expect("open");
        let buffer = log.buffer();
        for n in 0..2_000 {
            buffer.line(Instant::now(), |out| {
                number(out, "n", n);
                field(out, "pad", &[b'x'; 60]);
            });
        }
        drop((buffer, log));
        let all = || std::fs::read_to_string(&path).unwrap_or_default();
        while all().lines().count() < 2_000 {
            std::thread::yield_now();
        }
        for (n, line) in all().lines().enumerate() {
            let line: serde_json::Value = serde_json::from_str(line).expect("json");
            assert_eq!(line["n"], n);
        }
    }
}
