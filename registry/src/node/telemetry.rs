//! Logs as JSON lines with trace ids; spans over OTLP where an endpoint is configured.
//!
//! Without an endpoint nothing of the tracing machinery exists: no exporter, no task, and
//! [`tracing_enabled`] is one relaxed load that says so to the hot path.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use selvedge_resilience::context::trace::TraceContext;
use serde::{Deserialize, Serialize};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use super::export::OnItsOwnThread;

/// What a process tells, and to whom.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// What is logged, in tracing's filter language. Default "info". The environment's `RUST_LOG`
    /// wins.
    pub log: String,
    /// `json` (default) or `text`.
    pub format: LogFormat,
    /// OTLP over HTTP, as "http://127.0.0.1:4318/v1/traces". Not set: no spans are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    /// Share of new traces that are recorded, 0 to 1; a caller's decision is kept. Default 1.
    pub sample: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: "info".into(),
            format: LogFormat::Json,
            otlp: None,
            sample: 1.0,
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Telemetry that cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// `log` is not a filter.
    #[error(
        "telemetry.log = {filter:?} is not a filter such as \"info\" or \"info,selvedge=debug\""
    )]
    Filter {
        /// What it says.
        filter: String,
        /// Why not.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// `otlp` cannot be exported to.
    #[error("telemetry.otlp = {endpoint:?} cannot be exported to: {reason}")]
    Otlp {
        /// What it says.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// Somebody has set up logging before.
    #[error("logging was already set up in this process")]
    Twice,
}

static TRACING: AtomicBool = AtomicBool::new(false);

/// Whether spans go anywhere. One relaxed load.
pub fn tracing_enabled() -> bool {
    TRACING.load(Ordering::Relaxed)
}

/// Sends what is still held when dropped.
#[derive(Debug, Default)]
pub struct TelemetryGuard(Option<SdkTracerProvider>);

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take()
            && let Err(error) = provider.shutdown_with_timeout(Duration::from_secs(2))
        {
            tracing::warn!(%error, "spans were lost at shutdown");
        }
    }
}

/// Sets up logs, and spans if an endpoint is configured, for this process as `service`.
///
/// # Errors
/// [`TelemetryError`]: which setting cannot be used, and why.
pub fn init(service: &str, config: &TelemetryConfig) -> Result<TelemetryGuard, TelemetryError> {
    #[expect(clippy::disallowed_methods, reason = "configuration is loaded here")]
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log.clone());
    let filter =
        EnvFilter::try_new(&filter).map_err(|source| TelemetryError::Filter { filter, source })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => lines.with_filter(filter).boxed(),
    };
    let provider = match &config.otlp {
        Some(endpoint) => Some(exporter(service, endpoint, config.sample)?),
        None => None,
    };
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("selvedge"))
            // Only what we mean as a span of a request: hyper's and h2's own stay out.
            .with_filter(EnvFilter::new("off,selvedge=trace,selvedge_span=trace"))
    });
    tracing_subscriber::registry()
        .with(lines)
        .with(spans)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    TRACING.store(provider.is_some(), Ordering::Relaxed);
    Ok(TelemetryGuard(provider))
}

fn exporter(
    service: &str,
    endpoint: &str,
    sample: f64,
) -> Result<SdkTracerProvider, TelemetryError> {
    let refuse = |reason: String| TelemetryError::Otlp {
        endpoint: endpoint.to_owned(),
        reason,
    };
    let uri: http::Uri = endpoint
        .parse()
        .map_err(|error| refuse(format!("{error}")))?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        return Err(refuse("allowed is http://host:port/v1/traces".into()));
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    let exporter = OnItsOwnThread::new(exporter)
        .map_err(|error| refuse(format!("start its thread: {error}")))?;
    let resource = Resource::builder()
        .with_service_name(service.to_owned())
        .with_attribute(KeyValue::new("service.namespace", "selvedge"))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            sample,
        ))))
        .with_resource(resource)
        .build())
}

/// Makes `span` a child of the span that `parent` names.
pub fn continue_trace(span: &tracing::Span, parent: TraceContext) {
    let parent = SpanContext::new(
        TraceId::from_bytes(parent.trace_id.to_be_bytes()),
        SpanId::from_bytes(parent.span_id.to_be_bytes()),
        TraceFlags::new(parent.flags),
        true,
        TraceState::default(),
    );
    let context = opentelemetry::Context::new().with_remote_span_context(parent);
    let _without_a_subscriber = span.set_parent(context);
}

/// The ids that `span` has in its trace; `None` where spans go nowhere.
pub fn context_of(span: &tracing::Span) -> Option<TraceContext> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| TraceContext {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        flags: context.trace_flags().to_u8(),
    })
}
