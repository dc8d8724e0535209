//! The exporter of spans. In builds without the feature `otel` it does nothing.

use std::sync::Arc;

use super::error::Error;
use crate::config::Config;
#[cfg(feature = "otel")]
use crate::otel::Exporter;
use crate::trace::Recorder;

/// Sends spans to `log.otel_endpoint`, if that is set.
pub(super) struct SpanExporter {
    #[cfg(feature = "otel")]
    exporter: Option<Arc<Exporter>>,
}

#[cfg(feature = "otel")]
impl SpanExporter {
    /// Creates the exporter. Fails if the collector's client can't be created.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { exporter: config.log.otel_endpoint.as_ref().map(Exporter::new).transpose()?.map(Arc::new) })
    }

    /// Returns the recorder that passes spans to this exporter; `None` if no collector is
    /// configured.
    pub fn recorder(&self) -> Option<Arc<dyn Recorder>> {
        self.exporter.clone().map(|exporter| exporter as Arc<dyn Recorder>)
    }

    /// Sends the spans that are still queued.
    pub async fn stop(&self) {
        if let Some(exporter) = self.exporter.clone() {
            exporter.stop().await;
        }
    }
}

#[cfg(not(feature = "otel"))]
impl SpanExporter {
    pub fn new(_: &Config) -> Result<Self, Error> {
        Ok(Self {})
    }

    pub fn recorder(&self) -> Option<Arc<dyn Recorder>> {
        None
    }

    pub async fn stop(&self) {}
}
