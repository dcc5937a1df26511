//! The one binary: hub, agent, demo, and the commands of operators and technicians.
//!
//! Owns the command line, logging set-up and signals. Refuses everything else: the crates it wires have it.

mod demo;
mod hub_command;
mod recovery_command;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flotilla_agent::args::AgentCommand;
use flotilla_agent::bundle::command::{self as bundle_command, BundleCommand, HubSide};
use flotilla_hub::bundle::StoppedHub;

/// Kubernetes for fleets that lose the network
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The hub: holds what the fleet should run
    #[command(subcommand)]
    Hub(hub_command::HubCommand),
    /// Tokens with which devices join
    #[command(subcommand)]
    Token(hub_command::TokenCommand),
    /// The agent: makes one device run what it should
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Files on a stick between a hub and devices that no network reaches
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Show it: a hub and three devices on this machine, one of them cut off and edited on both sides
    Demo(demo::DemoArguments),
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(code) = flotilla_agent::shim::main(&words) {
        return code;
    }
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Hub(command) => hub_command::run(command),
        Command::Token(command) => hub_command::token(&command),
        Command::Agent(command) => flotilla_agent::run_command(command),
        Command::Bundle(command) => match bundle_command::run(command, Some(HUB_SIDE)) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        Command::Demo(arguments) => demo::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// How bundles of a hub that does not run are served.
const HUB_SIDE: HubSide = HubSide {
    is_at: StoppedHub::is_at,
    converse: |folder, stream| {
        Box::pin(async move {
            StoppedHub::open(&folder).await?.converse(stream).await;
            Ok(())
        })
    },
};

#[expect(clippy::print_stderr, reason = "the chain of an error is printed once, here")]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
