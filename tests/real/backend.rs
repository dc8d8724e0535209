//! The backend for load tests, on the gateway's host.

use std::sync::Arc;
use std::thread::JoinHandle;

use loopgate_test_support::backend::Backend;
use loopgate_test_support::network::{Host, Network};
use tokio::sync::{mpsc, oneshot};

/// A [`Backend`] on 127.0.0.1:18789 of the gateway's host. Dropping it ends it.
pub struct HostedBackend {
    backend: Arc<Backend>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostedBackend {
    /// Starts the backend, and returns when it listens.
    pub fn start(network: &Network) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (listens, ready) = std::sync::mpsc::channel();
        let thread = network.run_on(Host::Gateway, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let backend = Arc::new(Backend::start_on("127.0.0.1:18789".parse().expect("an address")));
                listens.send(backend).expect("the test waits");
                let _ = stopped.await;
            });
        });
        Self { backend: ready.recv().expect("the backend listens"), stop: Some(stop), thread: Some(thread) }
    }

    /// Returns the sender of the events that the next request for `/events` receives.
    pub fn events(&self) -> mpsc::UnboundedSender<String> {
        self.backend.events()
    }
}

impl Drop for HostedBackend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
