//! One agent's connection to the shim: lines in, lines out, never waiting for either.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::protocol::{Answer, LINE_BYTES_MAX, Request};

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Wants the state after every change.
    pub(super) watches: bool,
    /// The state changed since it was last put into `output`.
    pub(super) stale: bool,
    pub(super) closed: bool,
    /// The container whose launch is to be answered.
    pub(super) awaits: Option<String>,
}

impl Connection {
    pub(super) fn over(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            watches: false,
            stale: false,
            closed: false,
            awaits: None,
        })
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what there is and returns the requests that are complete.
    pub(super) fn read(&mut self) -> Vec<Result<Request, String>> {
        let mut buffer = [0_u8; 8 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.closed = true,
            }
            if self.closed || self.input.len() > LINE_BYTES_MAX || self.input.is_empty() {
                break;
            }
            if self.input.ends_with(b"\n") {
                break;
            }
            // A line may come in several pieces; the rest is read when the kernel has it.
            if !self.more_is_waiting() {
                break;
            }
        }
        let mut requests = Vec::new();
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            requests
                .push(serde_json::from_slice(&line).map_err(|error| format!("not a request this shim knows: {error}")));
        }
        if self.input.len() > LINE_BYTES_MAX {
            self.closed = true;
        }
        requests
    }

    fn more_is_waiting(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Puts an answer after those that wait; a peer that does not read its answers is dropped.
    pub(super) fn answer(&mut self, answer: &Answer) {
        match serde_json::to_vec(answer) {
            Ok(text) if self.output.len() + text.len() < LINE_BYTES_MAX => {
                self.output.extend_from_slice(&text);
                self.output.push(b'\n');
                self.flush();
            }
            _ => self.closed = true,
        }
    }

    /// Writes as much as the peer takes now.
    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => self.closed = true,
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
            if self.closed {
                return;
            }
        }
    }
}
