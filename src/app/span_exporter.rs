//! The exporter of spans, which only builds with the feature `otel` have.

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
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { exporter: config.log.otel_endpoint.as_ref().map(Exporter::new).transpose()?.map(Arc::new) })
    }

    pub fn recorder(&self) -> Option<Arc<dyn Recorder>> {
        self.exporter.clone().map(|exporter| exporter as Arc<dyn Recorder>)
    }

    /// Sends what is left.
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
