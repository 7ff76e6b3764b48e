//! What policies did, as gateways and sidecars tell it on their admin ports.
//!
//! A call goes through two of them at least, and what opened the circuit at the edge was seen first
//! beside the service. So several may be asked, and their events are put in order by their time.

use std::time::Duration;

use http::header;
use selvedge_registry::client::Call;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    args::{Events, Output},
    ask::{self, Registry, with_query},
    failure::Failure,
    print::Printer,
    show::events::{Line, Lines},
};

/// Between two questions of who follows: what is new is collected twice a second over there.
const PAUSE: Duration = Duration::from_millis(500);

/// The answer of one port.
#[derive(Debug, Deserialize)]
struct List {
    events: Vec<Value>,
    /// How many came after the last answer and are gone.
    lost: u64,
    /// Whether the last answer was another process's.
    restarted: bool,
    last: String,
}

/// One gateway or sidecar.
struct Port<'a> {
    url: &'a str,
    asked: Registry,
    /// The newest event that it has told of.
    last: Option<String>,
}

impl Port<'_> {
    async fn ask(&mut self, order: &Events) -> Result<Value, Failure> {
        let what = format!("ask {} what happened", self.url);
        let given = self.last.as_ref().or(order.after.as_ref());
        let after = given.map(|id| ("after".to_owned(), id.clone()));
        let service = order.service.as_ref();
        let service = service.map(|name| ("service".to_owned(), name.to_string()));
        let query: Vec<_> = after.into_iter().chain(service).collect();
        let call = Call {
            path: &with_query("/events", &query),
            headers: vec![(header::ACCEPT, "application/json".to_owned())],
            ..Call::default()
        };
        ask::read(&what, &self.asked.call(&what, "GET", &call).await?)
    }

    /// What is new, for people and for scripts.
    async fn news(&mut self, order: &Events) -> Result<(List, Value), Failure> {
        let mut document = self.ask(order).await?;
        let list = List::deserialize(&document).map_err(|source| Failure::Strange {
            what: format!("ask {} what happened", self.url),
            source,
        })?;
        if let Value::Object(fields) = &mut document {
            fields.insert("from".to_owned(), json!(self.url));
        }
        self.last = Some(list.last.clone());
        Ok((list, document))
    }
}

/// The latest; and with `--follow` what comes, until Ctrl-C.
pub(crate) async fn run(printer: Printer, order: &Events) -> Result<(), Failure> {
    if order.after.is_some() && order.ports.len() > 1 {
        let why = "--after is an event of one port: ask that one alone";
        return Err(Failure::Usage(why.to_owned()));
    }
    let token = ask::token(order.admin_token_file.as_deref(), "SELVEDGE_ADMIN_TOKEN")?;
    let port = |url| {
        let asked = Registry::admin(url, token.clone())?;
        let last = None;
        Ok(Port { url, asked, last })
    };
    let ports = order.ports.iter().map(String::as_str).map(port);
    let mut ports = ports.collect::<Result<Vec<_>, Failure>>()?;
    let mut lines = Lines::new(ports.len() > 1);
    let mut silent = Vec::new();
    for port in &mut ports {
        match port.news(order).await {
            Ok((list, document)) => take(printer, &mut lines, port.url, list, &document)?,
            Err(failure) => silent.push(failure),
        }
    }
    // Of several, one that is down is no reason to say nothing of the others: it may be what is asked
    // for.
    let nobody = silent.len() == ports.len();
    let failed = silent.pop_if(|_| nobody);
    for failure in &silent {
        Printer::note(&failure.message());
    }
    if let Some(failure) = failed {
        return Err(failure);
    }
    let follows = order.follow;
    let shows = printer.0 == Output::Table && (!follows || !lines.is_empty());
    if shows {
        printer.show(&lines)?;
    }
    if !follows {
        return Ok(());
    }
    tokio::select! {
        failed = follow(printer, order, ports, (lines, shows)) => failed,
        stopped = tokio::signal::ctrl_c() => stopped.map_err(|source| Failure::System {
            what: "wait for Ctrl-C".to_owned(),
            source,
        }),
    }
}

/// What comes; the columns are named with the first lines, unless they have been (`named`).
async fn follow(
    printer: Printer,
    order: &Events,
    mut ports: Vec<Port<'_>>,
    (mut lines, mut named): (Lines, bool),
) -> Result<(), Failure> {
    loop {
        sleep(PAUSE).await;
        lines.clear();
        for port in &mut ports {
            match port.news(order).await {
                Ok((list, document)) => take(printer, &mut lines, port.url, list, &document)?,
                Err(failure) if failure.exit_code() == 4 => return Err(failure),
                Err(failure) => {
                    Printer::note(&format!("{}; trying again", failure.message()));
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
        if printer.0 == Output::Table && !lines.is_empty() {
            if std::mem::replace(&mut named, true) {
                Printer::text(&lines.without_columns())?;
            } else {
                printer.show(&lines)?;
            }
        }
    }
}

/// Scripts get the document, if there is anything in it; people get lines, and a word where some
/// are missing.
fn take(
    printer: Printer,
    lines: &mut Lines,
    url: &str,
    list: List,
    document: &Value,
) -> Result<(), Failure> {
    let nothing = list.events.is_empty() && list.lost == 0 && !list.restarted;
    if printer.0 == Output::Json {
        if nothing {
            return Ok(());
        }
        return Printer::text(&format!("{document}\n"));
    }
    if list.restarted {
        Printer::note(&format!("{url} has been started anew"));
    }
    if list.lost > 0 {
        Printer::note(&format!("{url}: {} events are missing", list.lost));
    }
    for event in &list.events {
        lines.push(Line::of(url, event));
    }
    Ok(())
}
