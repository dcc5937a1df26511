//! One command beside a container, with a deadline: exec probes.

use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use crate::runtime::{ExecOutcome, ExecRequest, RuntimeError};

/// Kept of what the command prints; the rest is read and dropped, so that it never blocks.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

pub(super) async fn run(request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
    let program = request.argv.first().map_or("", String::as_str);
    let mut command = Command::new(program);
    command
        .args(request.argv.get(1..).unwrap_or_default())
        .env_clear()
        .envs(&request.env)
        .current_dir(&request.working_dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| RuntimeError::Exec { program: program.to_owned(), source })?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let outcome = tokio::time::timeout(request.timeout, finish(&mut child)).await;
    // The command's own children end with it, late or not: the leader is unreaped in one case, its group unused in the other.
    if outcome.is_err()
        && let Some(group) = group
    {
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL).ok();
        drop(child.wait().await);
    }
    match outcome {
        Ok(finished) => finished.map_err(|source| RuntimeError::Exec { program: program.to_owned(), source }),
        Err(_) => Ok(ExecOutcome::TimedOut),
    }
}

async fn finish(child: &mut Child) -> std::io::Result<ExecOutcome> {
    use std::os::unix::process::ExitStatusExt as _;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut printed, complained, status) = tokio::join!(head_of(stdout), head_of(stderr), child.wait());
    let status = status?;
    printed.extend_from_slice(&complained);
    printed.truncate(OUTPUT_BYTES_MAX);
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    Ok(ExecOutcome::Exited { code, output: String::from_utf8_lossy(&printed).into_owned() })
}

async fn head_of(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut head = Vec::new();
    let Some(mut pipe) = pipe else { return head };
    let mut buffer = [0_u8; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(head.len());
        head.extend_from_slice(&buffer[..length.min(room)]);
    }
    head
}
