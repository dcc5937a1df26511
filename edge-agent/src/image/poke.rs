//! How a command tells a running agent that images changed. A hint: the agent looks at the index at every pass anyway.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram as Sender;
use std::path::{Path, PathBuf};

use tokio::net::UnixDatagram;
use tokio::sync::watch;

use super::ImageStore;

const SOCKET: &str = "poke.sock";

/// The hints of commands, as a counter. Without the socket (a full disk) there are none, and the agent looks at its own pace.
pub fn listen(store: &ImageStore) -> watch::Receiver<u64> {
    let (told, hints) = watch::channel(0);
    match bind(store.folder()) {
        Ok(socket) => drop(tokio::spawn(async move {
            let mut one = [0_u8; 8];
            while socket.recv(&mut one).await.is_ok() {
                told.send_modify(|count| *count += 1);
                if told.is_closed() {
                    return;
                }
            }
        })),
        Err(error) => tracing::warn!(%error, "imports of images are noticed late: their socket cannot be opened"),
    }
    hints
}

/// Wakes the agent that uses this folder, if one runs.
pub fn poke(data: &Path) {
    let sent = address(&data.join("images")).and_then(|(folder, path)| {
        let sent = Sender::unbound()?.send_to(b"images", path);
        drop(folder);
        sent
    });
    if let Err(error) = sent {
        tracing::debug!(%error, "no agent runs here, or it looks by itself");
    }
}

fn bind(folder: &Path) -> std::io::Result<UnixDatagram> {
    let (folder, path) = address(folder)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    drop(folder);
    Ok(socket)
}

/// Through the folder's descriptor: its full path may be longer than a socket address may be.
fn address(folder: &Path) -> std::io::Result<(File, PathBuf)> {
    let folder = File::open(folder)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET);
    Ok((folder, path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_wakes_the_agent_of_a_new_folder() {
        let data = tempfile::tempdir().unwrap();
        // Longer than a socket's address may be.
        let data = data.path().join("a".repeat(120));
        poke(&data);
        let mut hints = listen(&ImageStore::open(&data).unwrap());
        poke(&data);
        hints.changed().await.unwrap();
        // A second life of the agent takes the socket over.
        let mut again = listen(&ImageStore::open(&data).unwrap());
        poke(&data);
        again.changed().await.unwrap();
    }
}
