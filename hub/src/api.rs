//! The threads of the API: its own, so that whoever asks there does not stand in one row with twenty thousand sessions that all have
//! something to do.
//!
//! Owns the runtime on which the API is served. The system shares the processors fairly among threads, and these mostly sleep: a
//! request is looked at soon, however busy the fleet keeps the others.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use crate::HubError;

/// Two: a list of many objects keeps one of them busy for a while.
const THREADS: usize = 2;

/// The threads on which the API is served; they end when this goes.
#[derive(Debug)]
pub(crate) struct ApiThreads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl ApiThreads {
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn start() -> Result<Self, HubError> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).thread_name("api").enable_all().build();
        let runtime = runtime.map_err(HubError::Threads)?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Listens at an address. Connections are served by whoever accepts them: on these threads.
    ///
    /// # Errors
    /// When the system refuses the address.
    pub(crate) async fn listen(&self, address: SocketAddr) -> Result<TcpListener, HubError> {
        let failed = |source| HubError::Listen { address, source };
        let bound = self.spawn(TcpListener::bind(address)).await.map_err(std::io::Error::other);
        bound.and_then(|listener| listener).map_err(failed)
    }

    /// Runs `work`, and what it spawns, on these threads.
    pub(crate) fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(work)
    }
}

impl Drop for ApiThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Within another runtime nobody may wait for them; what is served was told to end, and has, before a hub is dropped.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_served_here_goes_on_while_every_other_thread_is_busy() {
        let threads = ApiThreads::start().unwrap();
        let listener = threads.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = threads.spawn(async move { listener.accept().await.map(|_accepted| ()) });
        // The only thread of this runtime does not come back to its tasks before the connection was accepted.
        drop(std::net::TcpStream::connect(address).unwrap());
        while !served.is_finished() {
            std::thread::yield_now();
        }
        served.await.unwrap().unwrap();
    }
}
