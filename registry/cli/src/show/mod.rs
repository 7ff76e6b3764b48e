//! Answers as tables and as documents.

pub(crate) mod catalogue;
mod cluster;
pub(crate) mod events;
mod policies;

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use selvedge_registry::Locality;
use serde::Serialize;
use serde_json::Value;

pub(crate) use self::{cluster::Status, policies::as_file};

/// What can be shown.
pub(crate) trait Answer {
    /// For scripts.
    fn document(&self) -> Value;
    /// A line above the table.
    fn headline(&self) -> Option<String> {
        None
    }
    /// The names of the columns; none: the headline is all.
    fn columns(&self) -> &'static [&'static str];
    /// As many cells a row as there are columns.
    fn rows(&self) -> Vec<Vec<String>>;
    /// Lines below the table.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Something that was done: a sentence, and what it was done to.
pub(crate) struct Done {
    pub(crate) sentence: String,
    pub(crate) document: Value,
}

impl Answer for Done {
    fn document(&self) -> Value {
        self.document.clone()
    }
    fn headline(&self) -> Option<String> {
        Some(self.sentence.clone())
    }
    fn columns(&self) -> &'static [&'static str] {
        &[]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        Vec::new()
    }
}

/// Columns as wide as their widest cell, two spaces between them.
pub(crate) struct Table {
    headline: Option<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn of<A: Answer>(answer: &A) -> Self {
        let head = answer.columns().iter().map(|name| name.to_uppercase());
        let mut rows = vec![head.collect::<Vec<_>>()];
        rows.extend(answer.rows());
        Self {
            headline: answer.headline(),
            rows: match answer.columns() {
                [] => Vec::new(),
                _ => rows,
            },
            notes: answer.notes(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(headline) = &self.headline {
            writeln!(f, "{headline}")?;
        }
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(move |row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(widest).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let padded: Vec<_> = cells.map(|(cell, w)| format!("{cell:<w$}")).collect();
            writeln!(f, "{}", padded.join("  ").trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

fn document(answer: &impl Serialize) -> Value {
    // Our documents always serialise: their keys are strings.
    serde_json::to_value(answer).unwrap_or_default()
}

fn place(locality: &Locality) -> String {
    match (locality.region.as_str(), locality.zone.as_str()) {
        ("", "") => "-".to_owned(),
        (region, "") => region.to_owned(),
        ("", zone) => zone.to_owned(),
        (region, zone) => format!("{region}/{zone}"),
    }
}

/// A moment of some server's wall clock.
fn moment(unix_ms: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms)) {
        Some(time) if unix_ms > 0 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "-".to_owned(),
    }
}

/// `text`, or a dash.
fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or("-")
        .to_owned()
}

/// A word of the wire, as it is written there.
fn word(value: &impl Serialize) -> String {
    match document(value) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use selvedge_registry::wire::ServiceList;
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let list: ServiceList = serde_json::from_value(json!({
            "revision": "1-2",
            "services": [
                {"name": "a", "instances": 10, "up": 9},
                {"name": "a-long-one", "instances": 1, "up": 0},
            ],
        }))
        .expect("a list");
        let text = Table::of(&list).to_string();
        let want =
            "SERVICE     INSTANCES  UP\na           10         9\na-long-one  1          0\n";
        assert_eq!(text, want);
    }
}
