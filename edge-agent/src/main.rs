//! The slim agent binary.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flotilla_agent::args::AgentCommand;
use flotilla_agent::bundle::command::{self as bundle_command, BundleCommand};

/// Makes one device run what its hub's fleet should, with or without the hub
#[derive(Debug, Parser)]
#[command(name = "flotilla-agent", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Agent(AgentCommand),
    /// Files on a stick between this device and its hub
    #[command(subcommand)]
    Bundle(BundleCommand),
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(code) = flotilla_agent::shim::main(&words) {
        return code;
    }
    let result = match Arguments::parse().command {
        Command::Agent(command) => flotilla_agent::run_command(command).map(|()| ExitCode::SUCCESS),
        Command::Bundle(command) => bundle_command::run(command, None).map(ExitCode::from),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the chain of an error is printed once, here")]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
