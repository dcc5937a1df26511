//! The slim agent binary.

use std::process::ExitCode;

use clap::Parser;
use flotilla_agent::args::AgentCommand;

/// Makes one device run what its hub's fleet should, with or without the hub
#[derive(Debug, Parser)]
#[command(name = "flotilla-agent", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: AgentCommand,
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(code) = flotilla_agent::shim::main(&words) {
        return code;
    }
    match flotilla_agent::run_command(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
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
