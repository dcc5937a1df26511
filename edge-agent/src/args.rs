//! The agent's command line, shared by `flotilla agent run` and the slim binary `flotilla-agent run`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use flotilla_sync::transport::BrokerUrl;

use crate::image::command::ImageCommand;

/// `flotilla agent ...`
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Run this device: start its workloads from disk, keep them running, and sync when there is a link
    Run(RunArguments),
    /// Container images on this device
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show what was damaged on this device's disk, and forget it once seen; also while the agent runs
    Damage(DamageArguments),
}

/// `flotilla agent damage`
#[derive(Debug, Clone, Args)]
pub struct DamageArguments {
    /// Folder of the agent
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Forget it, end the Node's condition, and remove the damaged files that were kept
    #[arg(long)]
    pub clear: bool,
}

/// `flotilla agent run`
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// Folder for identity, replica, pods and logs; the first start creates it
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Name of this device's Node (RFC 1123 subdomain); default: the host name
    #[arg(long)]
    pub name: Option<String>,
    /// Token from `flotilla token create`; needed once
    #[arg(long, value_name = "TOKEN")]
    pub join: Option<String>,
    /// Labels of the Node at enrolment, `site=hall-3,role=pump`
    #[arg(long, value_name = "K=V,...", value_parser = parse_labels, default_value = "")]
    pub labels: Labels,
    /// How to reach the hub; `auto` uses the best road that works
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    pub transport: Transport,
    /// Reach the hub here instead of at the addresses it advertises: a port forward, a relay; repeat it for more than one
    #[arg(long, value_name = "HOST:PORT")]
    pub hub: Vec<String>,
    /// Reach the hub through this broker instead of the one it names: with a user of this device's own; repeat it for more than one
    #[arg(long, value_name = "URL", value_parser = parse_broker)]
    pub broker: Vec<String>,
    /// Address of the local Kubernetes API; default: a free loopback port, kept once chosen
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// Program that makes OCI containers; default: crun, else runc, where PATH has one
    #[arg(long, value_name = "PATH")]
    pub oci_runtime: Option<PathBuf>,
    /// Look for no network: this device joins, is updated and reports by the files of `flotilla bundle` alone
    #[arg(long)]
    pub offline: bool,
    /// Stop all pods when the agent is told to end (SIGTERM); by default they go on running
    #[arg(long)]
    pub drain: bool,
}

/// Node labels as given on the command line.
pub type Labels = BTreeMap<String, String>;

/// Roads to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Auto,
    Quic,
    Mqtt,
}

fn parse_broker(text: &str) -> Result<String, String> {
    BrokerUrl::parse(text).map(|_url| text.to_owned()).map_err(|error| error.to_string())
}

pub(crate) fn parse_labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not of the form name=value"))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}
