//! Pipes within one process: for tests, simulations and the demonstration of protocols. Identity is taken at its word.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{DuplexStream, duplex, split};
use tokio::sync::mpsc;

use super::{ConnectError, EnrolStream, Incoming, PeerIdentity, Pipe, Transport};
use crate::identity::{NodeName, random_bytes};

/// Bytes in flight each way.
const BUFFER_BYTES: usize = 64 * 1024;

/// What devices of the same process dial.
#[derive(Debug, Clone)]
pub struct MemoryDoor {
    sender: mpsc::Sender<Incoming>,
    fault: Arc<Mutex<Option<MemoryFault>>>,
}

/// What a [`MemoryDoor`] pretends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryFault {
    /// Nobody answers.
    Unreachable,
    /// Come back after so many milliseconds.
    Busy(u32),
}

impl MemoryDoor {
    pub(super) fn new(sender: mpsc::Sender<Incoming>) -> Self {
        Self { sender, fault: Arc::new(Mutex::new(None)) }
    }

    /// From now on, attempts fail like this; `None` heals the door.
    pub fn set_fault(&self, fault: Option<MemoryFault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Passes on an arrival made elsewhere, by whoever stands between devices and this door.
    ///
    /// # Errors
    /// When a fault was set, or nobody listens any more.
    pub async fn hand(&self, arrival: Incoming) -> Result<(), ConnectError> {
        self.send(arrival).await
    }

    pub(super) async fn connect(&self, node: &NodeName) -> Result<Pipe, ConnectError> {
        let (ours, theirs) = duplex(BUFFER_BYTES);
        let arrival = pipe(theirs, PeerIdentity::Device { node: node.clone() }, format!("memory/{node}"));
        self.send(Incoming::Session(arrival)).await?;
        Ok(pipe(ours, PeerIdentity::Hub, "memory/hub".to_owned()))
    }

    pub(super) async fn connect_enrol(&self) -> Result<EnrolStream, ConnectError> {
        let (ours, theirs) = duplex(BUFFER_BYTES);
        let binding = random_bytes::<32>().map_err(|error| unreachable(&error))?;
        self.send(Incoming::Enrol(enrol_stream(theirs, binding))).await?;
        Ok(enrol_stream(ours, binding))
    }

    async fn send(&self, arrival: Incoming) -> Result<(), ConnectError> {
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Some(MemoryFault::Unreachable) => Err(unreachable(&"a fault was set")),
            Some(MemoryFault::Busy(retry_after_ms)) => {
                Err(ConnectError::Busy { target: "memory".to_owned(), retry_after_ms: Some(retry_after_ms.into()) })
            }
            None => self.sender.send(arrival).await.map_err(|_closed| unreachable(&"the door is closed")),
        }
    }
}

fn unreachable(why: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Unreachable { target: "memory".to_owned(), why: why.to_string() }
}

fn pipe(stream: DuplexStream, peer: PeerIdentity, remote: String) -> Pipe {
    let (reader, writer) = split(stream);
    Pipe {
        reader: Box::new(reader),
        writer: Box::new(writer),
        peer,
        transport: Transport::Memory,
        remote,
        stalled: None,
    }
}

fn enrol_stream(stream: DuplexStream, binding: [u8; 32]) -> EnrolStream {
    let (reader, writer) = split(stream);
    EnrolStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        binding,
        transport: Transport::Memory,
        remote: "memory".to_owned(),
    }
}
