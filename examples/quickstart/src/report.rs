//! What came of it, in one table.

use std::time::Duration;

use crate::balancers::Balancer;
use crate::http_client::Asker;
use crate::kills::Killed;
use crate::load::{HOST, Summary};
use crate::mesh::Mesh;
use crate::process::State;
use crate::programs::Programs;
use crate::trace::{self, Trace};
use crate::ui::Ui;

/// In this time the last balancer must have let go of a dead instance.
const NOTICE: Duration = Duration::from_secs(1);

/// All that is worth telling.
pub(crate) struct Report {
    requests: u64,
    duration: Duration,
    summary: Summary,
    retries: u64,
    killed: Vec<Killed>,
    trace: Result<Trace, String>,
    /// Children that ended by themselves.
    unexpected: Vec<String>,
}

impl Report {
    /// Asks the mesh for what the load cannot know.
    pub(crate) async fn gather(
        requests: u64,
        duration: Duration,
        summary: Summary,
        killed: Vec<Killed>,
        mesh: &Mesh,
    ) -> anyhow::Result<Self> {
        let asker = Asker::new();
        let mut retries = 0;
        for balancer in &mesh.balancers {
            retries += balancer.retries(&asker).await;
        }
        let mut trace = Err("no gateway lives".to_owned());
        for gateway in &mesh.gateways {
            trace = trace::follow(*gateway, &mesh.logs)
                .await
                .map_err(|error| format!("{error:#}"));
            if trace.is_ok() {
                break;
            }
        }
        Ok(Self {
            requests,
            duration,
            summary,
            retries,
            killed,
            trace,
            unexpected: mesh.supervisor.unexpected(),
        })
    }

    /// Whether nobody noticed.
    pub(crate) fn is_good(&self) -> bool {
        self.summary.failed == 0
            && self.summary.done == self.requests
            && self.killed.iter().all(in_time)
            && self
                .trace
                .as_ref()
                .is_ok_and(|trace| trace.missing.is_empty())
            && self.unexpected.is_empty()
    }

    /// Prints the table.
    pub(crate) fn print(&self, ui: &Ui) {
        let summary = &self.summary;
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let row = |name: &str, text: &str| ui.line(format!("  {name:<22} {text}"));
        ui.line("");
        let seconds = self.duration.as_secs_f64();
        row("requests", &format!("{} in {seconds:.1} s", summary.done));
        row(
            "failed",
            &ui.verdict(summary.failed == 0, &summary.failed.to_string()),
        );
        row("retried in the mesh", &self.retries.to_string());
        let repeated = format!("{} (a gateway's connection broke)", summary.repeated);
        row("repeated by customers", &repeated);
        let latency = [summary.p50, summary.p90, summary.p99, summary.max].map(ms);
        row("p50, p90, p99, max", &latency.join(", "));
        for killed in &self.killed {
            let name = format!("killed {}", killed.name);
            row(&name, &ui.verdict(in_time(killed), &told(killed)));
        }
        match &self.trace {
            Ok(trace) if trace.missing.is_empty() => {
                row("one trace", &trace.id);
                row("", &trace.seen_by.join(" → "));
            }
            Ok(trace) => {
                let text = format!("{} was not seen by {}", trace.id, trace.missing.join(", "));
                row("one trace", &ui.verdict(false, &text));
            }
            Err(error) => row("one trace", &ui.verdict(false, error)),
        }
        for unexpected in &self.unexpected {
            row("unexpected", &ui.verdict(false, unexpected));
        }
        ui.line("");
        let verdict = if self.is_good() {
            "nobody noticed"
        } else {
            "somebody noticed"
        };
        ui.line(format!("  {}", ui.verdict(self.is_good(), verdict)));
    }
}

fn in_time(killed: &Killed) -> bool {
    match &killed.noticed {
        Some(noticed) => noticed.after.is_some_and(|after| after < NOTICE),
        None => true,
    }
}

fn told(killed: &Killed) -> String {
    let at = format!("at {:.1} s", killed.at.as_secs_f64());
    match &killed.noticed {
        None => format!("{at}; nobody balances over it"),
        Some(noticed) => match noticed.after {
            Some(after) => format!(
                "{at}; out of all {} balancers after {} ms",
                noticed.balancers,
                after.as_millis()
            ),
            None => format!("{at}; {} would still call it", noticed.late.join(", ")),
        },
    }
}

/// What a person may do with a mesh that stays up.
pub(crate) fn what_to_try(ui: &Ui, mesh: &Mesh, programs: &Programs) {
    let (Some(gateway), Some(registry)) = (mesh.gateways.first(), mesh.registries.first()) else {
        return;
    };
    ui.line("");
    ui.line("  The mesh stays up. To try:");
    ui.line(format!(
        "    curl -i -H 'Host: {HOST}' http://{gateway}/products/7"
    ));
    ui.line(format!(
        "    curl -i -H 'Host: {HOST}' -d '{{\"product\":7,\"count\":1}}' \\\n         \
         -H 'content-type: application/json' http://{gateway}/cart/me"
    ));
    ui.line(format!("    curl -i -H 'Host: nobody' http://{gateway}/"));
    ui.line(format!("    curl -s http://{registry}/v1/services"));
    ui.line(format!(
        "    curl -Ns http://{registry}/v1/watch?service=catalog"
    ));
    if let Some(balancer) = mesh.balancers.iter().find(|it| it.owner == "gateway-1") {
        ui.line(format!("    curl -s http://{}/clusters", balancer.admin));
        ui.line(format!("    curl -s http://{}/metrics", balancer.admin));
        ui.line(format!(
            "    curl -Ns http://{}/hystrix.stream",
            balancer.admin
        ));
        ui.line(format!("    curl -s http://{}/events", balancer.admin));
    }
    let command = programs.path("selvedge");
    let command = command.display();
    ui.line(format!("    {command} --registry http://{registry} status"));
    let alive = |it: &&Balancer| it.tells && it.process.state() == State::Running;
    let admins = mesh.balancers.iter().filter(alive);
    let admins = admins.map(|balancer| format!(" http://{}", balancer.admin));
    ui.line(format!(
        "    {command} events --follow{}",
        admins.collect::<String>()
    ));
    ui.line("  Kill any of these and watch nobody notice:");
    for child in mesh.supervisor.children() {
        if child.state() == State::Running {
            ui.line(format!("    kill -9 {:<8} # {}", child.pid, child.name));
        }
    }
    ui.line(format!("  Logs: {}", mesh.logs.display()));
    ui.line("  Ctrl-C ends it.");
}
