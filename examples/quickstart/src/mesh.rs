//! The mesh: which processes there are, where they listen, who calls whom.
//!
//! ```text
//! customers ─► gateway ─► storefront ─┬─► catalog ─► pricing      catalog, pricing: plain services
//!                         (layers     └─► cart                    behind sidecars
//!                          inside)        (layers inside)
//! registry-1 ⇄ registry-2 ⇄ registry-3    know where everybody is
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::args::Options;
use crate::balancers::Balancer;
use crate::files::{self, Beside, Common, SidecarPorts};
use crate::http_client::Asker;
use crate::load::HOST;
use crate::ports::Ports;
use crate::process::{Process, Spec, Supervisor, wait_until};
use crate::programs::Programs;
use crate::ui::Ui;

/// How long anything may take to come up, on a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running mesh.
pub(crate) struct Mesh {
    pub(crate) supervisor: Supervisor,
    pub(crate) registries: Vec<SocketAddr>,
    pub(crate) gateways: Vec<SocketAddr>,
    pub(crate) balancers: Vec<Balancer>,
    /// By name: `catalog-2` is its app and its sidecar, `catalog-2.app` the one.
    targets: BTreeMap<String, Target>,
    pub(crate) logs: PathBuf,
}

/// Something that can be killed by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Target {
    pub(crate) processes: Vec<Arc<Process>>,
    /// The endpoint that balancers know it by; registries and gateways are none.
    pub(crate) endpoint: Option<SocketAddr>,
}

/// Builds the mesh up, a layer after the other.
struct Builder<'a> {
    programs: &'a Programs,
    ui: &'a Ui,
    dir: &'a Path,
    ports: Ports,
    supervisor: Supervisor,
    asker: Asker,
    common: Common,
    balancers: Vec<Balancer>,
    targets: BTreeMap<String, Target>,
}

/// Instances of each service.
#[derive(Debug, Clone, Copy)]
struct Counts {
    storefront: usize,
    catalog: usize,
    cart: usize,
    pricing: usize,
}

impl Mesh {
    /// Starts everything and waits until everybody knows everybody.
    ///
    /// `dir`: existing directory for configurations and logs.
    ///
    /// # Errors
    /// What did not come up, with the end of its log.
    pub(crate) async fn start(
        options: &Options,
        programs: &Programs,
        ui: &Ui,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let each = options.instances.map(usize::from);
        let counts = Counts {
            storefront: each.unwrap_or(3),
            catalog: each.unwrap_or(3),
            cart: each.unwrap_or(2),
            pricing: each.unwrap_or(2),
        };
        let mut builder = Builder {
            programs,
            ui,
            dir,
            ports: Ports::new(std::process::id().wrapping_mul(101)),
            supervisor: Supervisor::new(dir)?,
            asker: Asker::new(),
            common: Common {
                registry: Vec::new(),
                otlp: options.otlp.as_ref().map(|url| {
                    let base = url.trim_end_matches('/').trim_end_matches("/v1/traces");
                    format!("{base}/v1/traces")
                }),
            },
            balancers: Vec::new(),
            targets: BTreeMap::new(),
        };
        builder.registries().await?;
        builder
            .plain("pricing", counts.pricing, &[], counts)
            .await?;
        builder
            .plain("catalog", counts.catalog, &["pricing"], counts)
            .await?;
        builder.inside("cart", counts.cart, &[]).await?;
        let callees = [("catalog", counts.catalog), ("cart", counts.cart)];
        builder
            .inside("storefront", counts.storefront, &callees)
            .await?;
        let gateways = builder.gateways(counts.storefront).await?;
        builder.settle().await?;
        Ok(Self {
            registries: builder.common.registry,
            supervisor: builder.supervisor,
            gateways,
            balancers: builder.balancers,
            targets: builder.targets,
            logs: dir.to_owned(),
        })
    }

    /// What `name` stands for.
    ///
    /// # Errors
    /// If nothing does; says what there is.
    pub(crate) fn target(&self, name: &str) -> anyhow::Result<Target> {
        let Some(target) = self.targets.get(name) else {
            let known: Vec<_> = self.targets.keys().map(String::as_str).collect();
            bail!("kill {name}: there are only {}", known.join(", "));
        };
        Ok(target.clone())
    }
}

impl Builder<'_> {
    fn spawn(
        &mut self,
        name: &str,
        program: &str,
        args: Vec<std::ffi::OsString>,
        env: Vec<(&'static str, std::ffi::OsString)>,
    ) -> anyhow::Result<Arc<Process>> {
        self.supervisor.spawn(&Spec {
            name: name.to_owned(),
            program: self.programs.path(program),
            args,
            env,
        })
    }

    /// Starts a daemon with `text` as its configuration.
    fn daemon(&mut self, name: &str, program: &str, text: &str) -> anyhow::Result<Arc<Process>> {
        let file = self.dir.join(format!("{name}.toml"));
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        self.spawn(
            name,
            program,
            vec!["--config".into(), file.into()],
            Vec::new(),
        )
    }

    fn add(&mut self, name: &str, process: &Arc<Process>, endpoint: Option<SocketAddr>) {
        let target = self.targets.entry(name.to_owned()).or_default();
        target.processes.push(Arc::clone(process));
        target.endpoint = endpoint;
    }

    async fn ready(&self, process: &Process, admin: SocketAddr) -> anyhow::Result<()> {
        let asker = &self.asker;
        wait_until(process, "is ready", PATIENCE, || {
            asker.is_ok(admin, "/readyz")
        })
        .await
    }

    async fn registries(&mut self) -> anyhow::Result<()> {
        let mut seeds = Vec::new();
        let mut started = Vec::new();
        for n in 1..=3 {
            let name = format!("registry-{n}");
            let http = self.ports.take()?;
            let (gossip, admin) = (self.ports.take()?, self.ports.take()?);
            let text = files::registry(&name, http, gossip, admin, &seeds, &self.common);
            let process = self.daemon(&name, "selvedge-registry", &text)?;
            self.add(&name, &process, None);
            if n == 1 {
                // The others join it; alone it need not wait for them.
                self.ready(&process, admin).await?;
            }
            seeds.push(gossip);
            self.common.registry.push(http);
            started.push((process, admin));
        }
        for (process, admin) in started {
            self.ready(&process, admin).await?;
        }
        self.ui.step("registry", "3 servers gossip with each other");
        Ok(())
    }

    /// Services that know nothing of the mesh, each behind a sidecar.
    async fn plain(
        &mut self,
        service: &'static str,
        count: usize,
        calls: &[&'static str],
        counts: Counts,
    ) -> anyhow::Result<()> {
        let mut started = Vec::new();
        for n in 1..=count {
            let instance = format!("{service}-{n}");
            let app = self.ports.take()?;
            let ports = SidecarPorts {
                inbound: self.ports.take()?,
                outbound: self.ports.take()?,
                admin: self.ports.take()?,
            };
            let app_name = format!("{instance}.app");
            let env = vec![
                ("INSTANCE", app_name.clone().into()),
                ("PRICING_URL", format!("http://{}", ports.outbound).into()),
                ("PRICING_HOST", "pricing".into()),
            ];
            let args = vec![service.into(), app.to_string().into()];
            let plain = self.spawn(&app_name, "shop-plain", args, env)?;
            let beside = Beside {
                service,
                instance: &instance,
                app,
                calls,
            };
            let sidecar_name = format!("{instance}.sidecar");
            let access_log = self.dir.join(format!("{sidecar_name}.access.log"));
            let text = files::sidecar(&beside, ports, &access_log, &self.common);
            let sidecar = self.daemon(&sidecar_name, "selvedge-sidecar", &text)?;
            for (name, process) in [
                (&instance, &plain),
                (&instance, &sidecar),
                (&app_name, &plain),
                (&sidecar_name, &sidecar),
            ] {
                self.add(name, process, Some(ports.inbound));
            }
            let expects = calls.iter().map(|callee| (*callee, counts.pricing));
            self.balancers.push(Balancer {
                owner: sidecar_name,
                process: Arc::clone(&sidecar),
                admin: ports.admin,
                tells: true,
                expects: expects.collect(),
            });
            started.push((sidecar, ports.admin));
        }
        for (sidecar, admin) in started {
            self.ready(&sidecar, admin).await?;
        }
        let text = format!("{count} × {service}, plain, behind sidecars");
        self.ui.step("service", &text);
        Ok(())
    }

    /// Services with the layers inside.
    async fn inside(
        &mut self,
        service: &'static str,
        count: usize,
        callees: &[(&'static str, usize)],
    ) -> anyhow::Result<()> {
        let servers: Vec<_> = self
            .common
            .registry
            .iter()
            .map(ToString::to_string)
            .collect();
        let mut started = Vec::new();
        for n in 1..=count {
            let instance = format!("{service}-{n}");
            let (addr, admin) = (self.ports.take()?, self.ports.take()?);
            let mut env = vec![
                ("INSTANCE", instance.clone().into()),
                ("REGISTRY", servers.join(",").into()),
            ];
            if let Some(otlp) = &self.common.otlp {
                env.push(("OTLP", otlp.into()));
            }
            let args = vec![
                service.into(),
                addr.to_string().into(),
                admin.to_string().into(),
            ];
            let process = self.spawn(&instance, "shop-inside", args, env)?;
            self.add(&instance, &process, Some(addr));
            self.balancers.push(Balancer {
                owner: instance,
                process: Arc::clone(&process),
                admin,
                tells: false,
                expects: callees.to_vec(),
            });
            started.push((process, admin));
        }
        for (process, admin) in started {
            self.ready(&process, admin).await?;
        }
        let text = format!("{count} × {service}, with the layers inside");
        self.ui.step("service", &text);
        Ok(())
    }

    async fn gateways(&mut self, storefronts: usize) -> anyhow::Result<Vec<SocketAddr>> {
        let mut started = Vec::new();
        let mut addrs = Vec::new();
        for n in 1..=2 {
            let name = format!("gateway-{n}");
            let (http, admin) = (self.ports.take()?, self.ports.take()?);
            let access_log = self.dir.join(format!("{name}.access.log"));
            let text = files::gateway(http, admin, HOST, &access_log, &self.common);
            let process = self.daemon(&name, "selvedge-gateway", &text)?;
            self.add(&name, &process, None);
            self.balancers.push(Balancer {
                owner: name,
                process: Arc::clone(&process),
                admin,
                tells: true,
                expects: vec![("storefront", storefronts)],
            });
            addrs.push(http);
            started.push((process, admin));
        }
        for (process, admin) in started {
            self.ready(&process, admin).await?;
        }
        self.ui.step("gateway", "2 at the edge");
        Ok(addrs)
    }

    /// Waits until every balancer knows every instance that it calls.
    async fn settle(&self) -> anyhow::Result<()> {
        for balancer in &self.balancers {
            let what = "knows every instance that it calls";
            let asker = &self.asker;
            wait_until(&balancer.process, what, PATIENCE, || {
                balancer.is_complete(asker)
            })
            .await?;
        }
        Ok(())
    }
}
