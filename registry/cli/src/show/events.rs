//! Events of policies, oldest first.

use serde_json::Value;

use super::{Answer, Table};

/// One event.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    /// First, so that lines are in order by it: RFC 3339 with milliseconds, in UTC.
    at: String,
    from: String,
    cells: [String; 5],
}

impl Line {
    /// As `url` told it.
    pub(crate) fn of(url: &str, event: &Value) -> Self {
        let text = |field: &str| event[field].as_str().unwrap_or("-").to_owned();
        let owner = match event["listener"] {
            Value::String(_) => "listener",
            _ => "service",
        };
        Self {
            at: text("at"),
            from: url.to_owned(),
            cells: ["side", owner, "policy", "endpoint", "text"].map(text),
        }
    }
}

/// Events of one port, or of several.
#[derive(Debug)]
pub(crate) struct Lines {
    several: bool,
    lines: Vec<Line>,
}

impl Lines {
    pub(crate) fn new(several: bool) -> Self {
        let lines = Vec::new();
        Self { several, lines }
    }

    /// Each port's own come in order; of one instant, they stay so.
    pub(crate) fn push(&mut self, line: Line) {
        let at = self.lines.partition_point(|before| before.at <= line.at);
        self.lines.insert(at, line);
    }

    pub(crate) fn clear(&mut self) {
        self.lines.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// For who has seen the columns' names.
    pub(crate) fn without_columns(&self) -> String {
        let text = Table::of(self).to_string();
        let lines = text.split_inclusive('\n').skip(1);
        lines.collect()
    }
}

impl Answer for Lines {
    fn document(&self) -> Value {
        // Scripts get the ports' own documents.
        Value::Null
    }
    fn columns(&self) -> &'static [&'static str] {
        if self.several {
            &["at", "from", "side", "name", "policy", "endpoint", "what"]
        } else {
            &["at", "side", "name", "policy", "endpoint", "what"]
        }
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |line: &Line| {
            let from = self.several.then(|| line.from.clone());
            let at = std::iter::once(line.at.clone());
            at.chain(from).chain(line.cells.iter().cloned()).collect()
        };
        self.lines.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_of_several_ports_are_in_order_by_time_and_each_port_keeps_its_own() {
        let event = |at: &str, text: &str| json!({ "at": at, "side": "client", "text": text });
        let mut lines = Lines::new(true);
        for (url, at, text) in [
            ("a", "08:01.000Z", "1"),
            ("a", "08:03.000Z", "4"),
            ("a", "08:03.000Z", "5"),
            ("b", "08:02.000Z", "2"),
            ("b", "08:02.001Z", "3"),
            ("b", "08:03.000Z", "6"),
        ] {
            lines.push(Line::of(url, &event(at, text)));
        }
        let rows = lines.rows();
        let what: String = rows.iter().map(|row| row[6].clone()).collect();
        assert_eq!(what, "123456");
        assert_eq!(rows[1][..2], ["08:02.000Z", "b"]);
        let listener = json!({ "listener": "http", "service": "no" });
        assert_eq!(Line::of("a", &listener).cells[1], "http");
        assert!(!lines.without_columns().contains("POLICY"));
        assert_eq!(Lines::new(false).columns().len() + 1, lines.columns().len());
    }
}
