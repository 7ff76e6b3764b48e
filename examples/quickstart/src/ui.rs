//! What the person at the terminal sees: steps, a progress bar, plain lines where there is no terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

/// Writes to standard output; colours only for a terminal and without `NO_COLOR`.
#[derive(Debug, Clone)]
pub(crate) struct Ui {
    colour: bool,
    terminal: bool,
}

impl Ui {
    /// Looks at standard output and the environment.
    pub(crate) fn detect() -> Self {
        let terminal = std::io::stdout().is_terminal();
        // https://no-color.org: set and not empty.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            colour: terminal && !no_color && !dumb,
            terminal: terminal && !dumb,
        }
    }

    /// One line.
    #[expect(
        clippy::unused_self,
        reason = "all output goes through the one who knows the terminal"
    )]
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        // A closed pipe (`| head`) is no reason to leave children behind: go on without words.
        writeln!(std::io::stdout().lock(), "{}", text.as_ref()).ok();
    }

    /// One line above a running progress bar.
    pub(crate) fn line_over(&self, bar: &Progress, text: &str) {
        bar.bar.suspend(|| self.line(text));
    }

    /// A step with its name in a column of its own.
    pub(crate) fn step(&self, name: &str, text: &str) {
        self.line(self.step_text(name, text));
    }

    /// The text of [`Ui::step`].
    pub(crate) fn step_text(&self, name: &str, text: &str) -> String {
        format!("{} {text}", self.bold(&format!("{name:>9}")))
    }

    /// Bold, if the terminal can.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Green for good, red for bad, if the terminal can.
    pub(crate) fn verdict(&self, good: bool, text: &str) -> String {
        self.paint(if good { "1;32" } else { "1;31" }, text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A progress display for `total` requests.
    pub(crate) fn progress(&self, total: u64) -> Progress {
        let target = if self.terminal {
            ProgressDrawTarget::stdout_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = if self.colour {
            "     {prefix:.bold} {wide_bar:.cyan/dim} {pos}/{len}  {msg}"
        } else {
            "     {prefix} {wide_bar} {pos}/{len}  {msg}"
        };
        bar.set_style(
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        bar.set_prefix("load");
        Progress {
            bar,
            plain: !self.terminal,
            ui: self.clone(),
            last: Instant::now(),
            total,
        }
    }
}

/// A bar on a terminal, a line every other second elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: bool,
    ui: Ui,
    last: Instant,
    total: u64,
}

impl Progress {
    /// `done` of the requests were answered, with `failed` among them.
    pub(crate) fn update(&mut self, done: u64, failed: u64, p99: Duration) {
        let message = format!("failed {failed}  p99 {:.1} ms", p99.as_secs_f64() * 1e3);
        if self.plain {
            if self.last.elapsed() >= Duration::from_secs(2) {
                self.last = Instant::now();
                self.ui
                    .step("load", &format!("{done}/{}  {message}", self.total));
            }
        } else {
            self.bar.set_position(done);
            self.bar.set_message(message);
        }
    }

    /// Leaves the last state on the screen.
    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }
}
