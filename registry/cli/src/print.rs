//! Standard output, in the form that was asked for.

use std::io::Write;

use crate::{
    args::Output,
    failure::Failure,
    show::{Answer, Table},
};

/// Prints answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer(pub(crate) Output);

impl Printer {
    pub(crate) fn show<A: Answer>(self, answer: &A) -> Result<(), Failure> {
        match self.0 {
            Output::Table => Self::text(&Table::of(answer).to_string()),
            Output::Json => Self::text(&format!("{}\n", answer.document())),
        }
    }

    pub(crate) fn text(text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|source| Failure::System {
            what: "print".to_owned(),
            source,
        })
    }

    /// A word to whoever watches, which is no answer.
    pub(crate) fn note(text: &str) {
        #[expect(clippy::print_stderr, reason = "a command line tool's remarks")]
        {
            eprintln!("selvedge: {text}");
        }
    }
}
