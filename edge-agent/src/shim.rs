//! The shim: a small single-threaded process per pod that is the parent of its containers and survives the agent.
//!
//! Owns the containers' processes, their output and their exit records. Refuses policy (it never restarts anything) and
//! threads. Both binaries call [`main`] first thing when their first argument is `shim`. Start reading at [`main`], then [`files`].

use std::process::ExitCode;

pub mod files;

/// The word that makes either binary a shim: `/proc/self/exe shim --dir DIR`, DIR being one pod's directory.
pub const ARGUMENT: &str = "shim";

/// Runs the shim when that is what this process was started as; call it first in `main`, before anything starts a thread.
pub fn main(arguments: &[std::ffi::OsString]) -> Option<ExitCode> {
    let _ = arguments;
    unimplemented!("bodies follow")
}
