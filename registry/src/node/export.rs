//! The exporter's own thread and reactor.
//!
//! OpenTelemetry's batch processor exports from a plain thread, where hyper has no reactor to wait
//! on; and a mesh process has several runtimes, none of which should carry this. So the exporter
//! brings one of its own.

use std::{fmt, future::Future, io, sync::Arc, time::Duration};

use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use tokio::runtime::Runtime;

/// Exports on a thread of its own.
pub(super) struct OnItsOwnThread {
    exporter: Arc<OtlpExporter>,
    runtime: Option<Runtime>,
}

impl OnItsOwnThread {
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn new(exporter: OtlpExporter) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()?;
        Ok(Self {
            exporter: Arc::new(exporter),
            runtime: Some(runtime),
        })
    }
}

impl SpanExporter for OnItsOwnThread {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let exporter = Arc::clone(&self.exporter);
        let task = self
            .runtime
            .as_ref()
            .map(|runtime| runtime.spawn(async move { exporter.export(batch).await }));
        async move {
            let failed = || OTelSdkError::InternalFailure("the exporter's thread is gone".into());
            task.ok_or_else(failed)?.await.map_err(|_| failed())?
        }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

impl Drop for OnItsOwnThread {
    fn drop(&mut self) {
        // Waiting for it would panic where this is dropped inside another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for OnItsOwnThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnItsOwnThread").finish_non_exhaustive()
    }
}
