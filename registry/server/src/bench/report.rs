//! What was measured, beside what is promised.

use std::{io::Write as _, time::Duration};

/// Lines of a table.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<(String, String, String)>,
    missed: bool,
}

impl Report {
    /// A number that may be `limit` at most.
    pub(super) fn most(&mut self, what: &str, got: f64, limit: f64, unit: &str) {
        let kept = got <= limit;
        self.missed |= !kept;
        let verdict = if kept { "" } else { "  MISSED" };
        let digits = usize::from(limit < 10.0) * 2;
        self.rows.push((
            what.to_owned(),
            format!("{got:.digits$} {unit}"),
            format!("≤ {limit} {unit}{verdict}"),
        ));
    }

    /// A number that nothing is promised of.
    pub(super) fn note(&mut self, what: &str, got: &str) {
        let row = (what.to_owned(), got.to_owned(), String::new());
        self.rows.push(row);
    }

    /// Whether every promise was kept.
    pub(super) fn kept(&self) -> bool {
        !self.missed
    }

    pub(super) fn print(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "| what | measured | promised |\n|---|---|---|")?;
        for (what, got, promised) in &self.rows {
            writeln!(out, "| {what} | {got} | {promised} |")?;
        }
        Ok(())
    }
}

/// Milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
