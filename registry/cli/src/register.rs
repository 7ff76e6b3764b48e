//! `selvedge register`: a service that knows nothing of a registry is registered by whoever
//! starts it.
//!
//! ```text
//! start the command ─► it listens ─► register, renew … ─► it ends, or we are told to stop
//!                                                          └► deregister ─► linger ─► pass the signal on
//! ```
//!
//! # What it does not do
//! Judge its health after that: a sidecar does. A command that hangs stays registered.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use selvedge_registry::{
    Instance, Locality, Ownership, client::Registration, wire::RegisterRequest,
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Duration, sleep, timeout},
};

use crate::{args::Register, ask::Registry, failure::Failure, instances, print::Printer};

/// How often it is looked whether the command listens, and how long one look may take.
const LOOK: Duration = Duration::from_millis(100);

impl Register {
    fn instance(&self) -> Instance {
        let ownership = self.team.clone().map(|team| {
            Box::new(Ownership {
                team: Some(team),
                ..Ownership::default()
            })
        });
        let plain = Instance::new(self.service.clone(), self.id.clone(), self.addr);
        Instance {
            ttl: self.ttl,
            weight: self.weight,
            status: self.status,
            protocol: self.protocol,
            locality: Locality {
                region: self.region.clone(),
                zone: self.zone.clone(),
            },
            version: self.software.clone(),
            tags: self.tags.iter().cloned().collect(),
            ownership,
            metadata: self.metadata.iter().cloned().collect::<BTreeMap<_, _>>(),
            ..plain
        }
    }
}

/// What asks a process to stop.
struct Stop {
    term: Signals,
    interrupt: Signals,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|source| Failure::System {
                what: "listen to signals".to_owned(),
                source,
            })
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
        }
    }
}

/// What the process exits with.
pub(crate) async fn run(
    registry: &Registry,
    printer: Printer,
    order: &Register,
) -> Result<u8, Failure> {
    let instance = order.instance();
    RegisterRequest::of(&instance, 1)
        .validate()
        .map_err(|why| {
            Failure::Usage(format!("register {} of {}: {why}", order.id, order.service))
        })?;
    if order.once {
        return once(registry, printer, order).await.map(|()| 0);
    }
    // From here on nobody ends us in the middle of something.
    let mut stop = Stop::new()?;
    let Some((program, arguments)) = order.command.split_first() else {
        return hold(registry, printer, order, &mut stop).await.map(|()| 0);
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Failure::System {
            what: format!("start {program}"),
            source,
        })?;
    match beside(registry, order, &mut child, &mut stop).await {
        Ok(status) => Ok(exit_code(status)),
        Err(failure) => {
            pass_on(&child, Signal::TERM);
            let _it_ends_or_is_killed = timeout(Duration::from_secs(5), child.wait()).await;
            Err(failure)
        }
    }
}

async fn once(registry: &Registry, printer: Printer, order: &Register) -> Result<(), Failure> {
    let what = format!("register {} of {}", order.id, order.service);
    let path = format!("/v1/services/{}/instances/{}", order.service, order.id);
    let mut document = RegisterRequest::of(&order.instance(), 1);
    // The server's clock: whoever registers the same instance next has a later one.
    document.incarnation = None;
    registry.put(&what, "PUT", &path, &document).await?;
    instances::done(printer, &order.service, &order.id, "registered")
}

/// Keeps it registered until a signal.
async fn hold(
    registry: &Registry,
    printer: Printer,
    order: &Register,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let registration = tokio::select! {
        registration = register(registry, order) => registration?,
        _ = stop.next() => return Ok(()),
    };
    instances::done(printer, &order.service, &order.id, "registered")?;
    stop.next().await;
    registration.deregister().await;
    instances::done(printer, &order.service, &order.id, "deregistered")
}

async fn register(registry: &Registry, order: &Register) -> Result<Registration, Failure> {
    let mut registration = registry.client.register(order.instance());
    registration.answered().await?;
    Ok(registration)
}

/// Keeps it registered while `child` runs.
async fn beside(
    registry: &Registry,
    order: &Register,
    child: &mut Child,
    stop: &mut Stop,
) -> Result<ExitStatus, Failure> {
    let ready = async {
        listens(order).await?;
        register(registry, order).await
    };
    let registration = tokio::select! {
        registration = ready => registration?,
        ended = child.wait() => return status(ended),
        signal = stop.next() => {
            pass_on(child, signal);
            return wait_or_kill(child, stop).await;
        }
    };
    // To standard error: standard output is the command's.
    Printer::note(&format!("{} of {} is registered", order.id, order.service));
    let signal = tokio::select! {
        ended = child.wait() => {
            registration.deregister().await;
            return status(ended);
        }
        signal = stop.next() => signal,
    };
    registration.deregister().await;
    tokio::select! {
        ended = child.wait() => return status(ended),
        () = sleep(order.linger.0) => {}
        _ = stop.next() => {}
    }
    pass_on(child, signal);
    wait_or_kill(child, stop).await
}

/// Resolves once something listens on the address.
async fn listens(order: &Register) -> Result<(), Failure> {
    if order.wait.0.is_zero() {
        return Ok(());
    }
    let look = async {
        while !matches!(
            timeout(LOOK, TcpStream::connect(order.addr)).await,
            Ok(Ok(_))
        ) {
            sleep(LOOK).await;
        }
    };
    timeout(order.wait.0, look).await.map_err(|_| {
        Failure::No(format!(
            "register {} of {}: nothing listens on {} after {} (--wait 0s registers it all the same)",
            order.id, order.service, order.addr, order.wait
        ))
    })
}

/// Waits for its end; another signal does not wait.
async fn wait_or_kill(child: &mut Child, stop: &mut Stop) -> Result<ExitStatus, Failure> {
    tokio::select! {
        ended = child.wait() => return status(ended),
        _ = stop.next() => {}
    }
    pass_on(child, Signal::KILL);
    status(child.wait().await)
}

fn pass_on(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // One that has just ended needs none.
        let _gone = kill_process(pid, signal);
    }
}

fn status(ended: std::io::Result<ExitStatus>) -> Result<ExitStatus, Failure> {
    ended.map_err(|source| Failure::System {
        what: "wait for the command".to_owned(),
        source,
    })
}

/// As a shell would say it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
