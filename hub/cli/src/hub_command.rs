//! `flotilla hub` and `flotilla token`.

use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use flotilla_hub::{Hub, HubConfig};

use crate::recovery_command::{self, BackupArguments, FolderArguments, RestoreArguments};

/// `flotilla hub ...`
#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Run the hub until SIGTERM or Ctrl-C; prints one line when it is ready
    Run(HubArguments),
    /// Write a backup of a hub, which may run, to one file; or verify one with --check
    Backup(BackupArguments),
    /// Bring a hub back from a backup; it learns from its devices what the backup lacks
    Restore(RestoreArguments),
    /// Tell a hub that learns from its devices to go on without those it has not heard
    Resume(FolderArguments),
    /// Look for damage in a hub's database, and tell what it learned from its devices
    Check(FolderArguments),
    /// Write what a mosquitto needs to serve this fleet, and print the URL for `hub run --mqtt`
    Broker(BrokerArguments),
}

#[derive(Debug, Args)]
pub(crate) struct HubArguments {
    /// Folder for database, keys and admin.kubeconfig; the first start creates it
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where the Kubernetes API listens (TLS)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6443")]
    listen: String,
    /// Where devices reach the hub over QUIC (UDP)
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:6444")]
    quic: String,
    /// Address written into tokens; repeat it for more than one. Default: what --quic is bound to
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Name or address written into admin.kubeconfig and the API's certificate. Default: what --listen is bound to
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise_api: Option<flotilla_hub::ApiName>,
    /// Broker at which devices reach the hub too: `mqtt://host:1883`, or what `flotilla hub broker` prints
    #[arg(long, value_name = "URL")]
    mqtt: Option<String>,
    /// Records kept in one channel's log; a device further behind is caught up by a snapshot
    #[arg(long, value_name = "COUNT", default_value_t = 5_000)]
    log_records_max: u64,
    /// Their size in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    log_mib_max: u64,
    /// And their age: a number with s, m, h or d
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = parse_duration)]
    log_age_max: Duration,
    /// Age of changes a watch can still be told of
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = parse_duration)]
    watch_age_max: Duration,
    /// Age of audit entries
    #[arg(long, value_name = "AGE", default_value = "90d", value_parser = parse_duration)]
    audit_age_max: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct BrokerArguments {
    /// The hub's folder; the hub may run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Name or address under which hub and devices reach the broker; repeat it for more. The first stands in the URL
    #[arg(long = "name", value_name = "HOST", required = true)]
    names: Vec<String>,
    /// Port for the hub and for devices, which show certificates
    #[arg(long, default_value_t = 8883, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Port for devices that join, or whose certificate is over
    #[arg(long, default_value_t = 8884, value_parser = clap::value_parser!(u16).range(1..))]
    enrol_port: u16,
    /// Nobody joins by this broker, and a device that was away for a month does not come back by it
    #[arg(long, conflicts_with = "enrol_port")]
    no_enrol: bool,
    /// Where the files will lie on the broker's machine. Default: OUT
    #[arg(long, value_name = "DIR")]
    installed: Option<PathBuf>,
    /// Folder for the files; those of an earlier call are overwritten, and the broker's key is made anew
    out: PathBuf,
}

/// `flotilla token ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a new token, and nothing else; also while the hub runs
    Create(TokenArguments),
}

#[derive(Debug, Args)]
pub(crate) struct TokenArguments {
    /// The hub's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only the device of this name may use it
    #[arg(long)]
    node: Option<String>,
    /// Fleet the devices belong to
    #[arg(long, default_value = "default")]
    fleet: String,
    /// How long it may be used: a number with s, m, h or d
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// How many devices may use it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,
}

pub(crate) fn run(command: HubCommand) -> Result<()> {
    let arguments = match command {
        HubCommand::Run(arguments) => arguments,
        HubCommand::Backup(arguments) => return recovery_command::backup(&arguments),
        HubCommand::Restore(arguments) => return recovery_command::restore(&arguments),
        HubCommand::Resume(arguments) => return recovery_command::resume(&arguments),
        HubCommand::Check(arguments) => return recovery_command::check(&arguments),
        HubCommand::Broker(arguments) => return broker(arguments),
    };
    flotilla_agent::init_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let hub = Hub::start(config(&arguments)?).await.context("the hub did not start")?;
        let kubeconfig = arguments.data.join("admin.kubeconfig");
        say(&format!("ready: api https://{} quic {} kubeconfig {}", hub.api(), hub.quic(), kubeconfig.display()))?;
        flotilla_agent::until_told_to_end().await?;
        hub.stop().await;
        Ok(())
    })
}

pub(crate) fn token(command: &TokenCommand) -> Result<()> {
    let TokenCommand::Create(arguments) = command;
    let request = flotilla_hub::tokens::TokenRequest {
        node: arguments.node.clone(),
        fleet: arguments.fleet.clone(),
        ttl_ms: u64::try_from(arguments.ttl.as_millis()).unwrap_or(u64::MAX),
        uses: arguments.uses,
    };
    let token = flotilla_hub::tokens::create(&arguments.data, &request).context("no token was made")?;
    say(&token)
}

fn broker(arguments: BrokerArguments) -> Result<()> {
    let BrokerArguments { data, names, port, enrol_port, no_enrol, installed, out } = arguments;
    let request = flotilla_hub::broker::BrokerRequest { names, port, enrol_port: (!no_enrol).then_some(enrol_port) };
    let installed = match installed {
        Some(installed) => installed,
        None => std::path::absolute(&out).with_context(|| format!("{} is no path", out.display()))?,
    };
    let url = flotilla_hub::broker::prepare(&data, &out, &installed, &request)
        .context("the broker's files were not written")?;
    say(&url)
}

fn config(arguments: &HubArguments) -> Result<HubConfig> {
    let mut config = HubConfig::at(&arguments.data);
    config.listen = address("--listen", &arguments.listen)?;
    config.quic = address("--quic", &arguments.quic)?;
    config.advertise = arguments.advertise.clone();
    config.advertise_api = arguments.advertise_api.clone();
    config.mqtt = arguments.mqtt.clone();
    let retention = &mut config.retention;
    let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    retention.log_records_max = arguments.log_records_max;
    retention.log_bytes_max = arguments.log_mib_max << 20;
    retention.log_age_ms_max = ms(arguments.log_age_max);
    retention.events_age_ms_max = ms(arguments.watch_age_max);
    retention.audit_age_ms_max = ms(arguments.audit_age_max);
    Ok(config)
}

fn address(option: &str, text: &str) -> Result<SocketAddr> {
    let mut found = text.to_socket_addrs().with_context(|| format!("{option} {text:?} is no HOST:PORT"))?;
    found.next().with_context(|| format!("{option} {text:?}: the host has no address"))
}

fn parse_duration(text: &str) -> Result<Duration> {
    let (number, seconds) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => bail!("{text:?} is no duration: write a number with s, m, h or d, such as 30m"),
    };
    let number: u64 = number.parse().with_context(|| format!("{text:?} is no duration"))?;
    let seconds = number.checked_mul(seconds).filter(|seconds| (1..=315_360_000).contains(seconds));
    Ok(Duration::from_secs(seconds.with_context(|| format!("{text:?} is not between 1s and 3650d"))?))
}

pub(crate) fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_with_a_unit() {
        assert_eq!(parse_duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("2d").unwrap(), Duration::from_secs(172_800));
        for bad in ["", "h", "10", "1.5h", "-1h", "0s", "99999999999999999999d", "4000d"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was taken");
        }
    }
}
