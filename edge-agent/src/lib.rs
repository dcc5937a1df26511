//! The hands of Flotilla: a device's own copy of what it should run, and what makes that true, with or without a hub.
//!
//! Start reading at [`reconcile`] (what to do, pure), then [`runtime`] (how it is done).

pub mod cgroup;
pub mod events;
pub mod executor;
pub mod host;
pub mod image;
pub mod logs;
pub mod probe;
pub mod reconcile;
pub mod runtime;
pub mod shim;
pub mod stage;

pub mod agent;
pub mod args;
pub mod backend;
pub mod bundle;
pub mod clock;
pub mod device;
pub mod effective;
pub mod enrolment;
pub mod knowledge;
pub mod local_write;
pub mod replica;
pub mod start;
pub mod store;
pub mod uplink;
pub mod view;
pub mod volume;

use anyhow::Context as _;

/// Runs `flotilla agent ...` to its end.
///
/// # Errors
/// Whatever ends the agent other than being told to.
pub fn run_command(command: args::AgentCommand) -> anyhow::Result<()> {
    init_logging();
    let arguments = match command {
        args::AgentCommand::Run(arguments) => arguments,
        args::AgentCommand::Damage(arguments) => return store::damage::run(&arguments),
        args::AgentCommand::Image(command) => return image::command::run(&command, clock::Clock::default().now().0),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    runtime.block_on(start::run(arguments))
}

/// Logs to standard error: `FLOTILLA_LOG` chooses what (`info` by default), colours only on a terminal.
pub fn init_logging() {
    use std::io::IsTerminal as _;
    let filter = std::env::var("FLOTILLA_LOG").unwrap_or_else(|_absent| "info".to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_invalid| "info".into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only the first of several calls has an effect.
    drop(subscriber.with_ansi(std::io::stderr().is_terminal()).try_init());
}

/// Returns at SIGTERM or Ctrl-C.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn until_told_to_end() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for Ctrl-C")?;
    tokio::select! {
        _received = terminate.recv() => {}
        _received = interrupt.recv() => {}
    }
    Ok(())
}
