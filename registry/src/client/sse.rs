//! Server-sent events, as far as a watch uses them.
//!
//! Source: WHATWG HTML, "Server-sent events": lines end in LF, CRLF or CR; an empty line ends an
//! event; a line that begins with a colon is a comment.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    pub(super) event: String,
    pub(super) data: String,
    pub(super) id: Option<String>,
}

/// Largest event: a snapshot of a very large service. A server that sends more is broken.
const MAX_EVENT: usize = 64 << 20;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    event: Event,
    after_cr: bool,
}

impl Parser {
    /// Takes the next bytes; hands every finished event to `sink`.
    ///
    /// # Errors
    /// If an event grows beyond what any service needs.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(Event),
    ) -> Result<(), &'static str> {
        for &byte in bytes {
            match byte {
                // The second half of CRLF.
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(&mut sink);
                }
                _ => {
                    self.after_cr = false;
                    self.line.push(byte);
                }
            }
        }
        if self.line.len() + self.event.data.len() > MAX_EVENT {
            return Err("an event of more than 64 MiB");
        }
        Ok(())
    }

    fn end_line(&mut self, sink: &mut impl FnMut(Event)) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if !event.data.is_empty() {
                sink(event);
            }
            return;
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.event),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments and fields of later versions.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": hi\n\nevent: delta\nid: 1-2\ndata: {}\n\r\ndata: a\r\ndata: b\r\n\r\nretry: 5\n\n";

    fn events(chunks: &[&[u8]]) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser
                .push(chunk, |event| events.push(event))
                .expect("small");
        }
        events
    }

    #[test]
    fn events_come_out_whole_however_the_stream_is_cut() {
        let want = vec![
            Event {
                event: "delta".into(),
                data: "{}".into(),
                id: Some("1-2".into()),
            },
            Event {
                data: "a\nb".into(),
                ..Event::default()
            },
        ];
        assert_eq!(events(&[STREAM.as_bytes()]), want);
        let bytes: Vec<&[u8]> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(events(&bytes), want);
    }

    proptest::proptest! {
        #[test]
        fn no_stream_breaks_the_parser(chunks: Vec<Vec<u8>>) {
            events(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
    }
}
