//! Disk space set aside, while there is some, for a start on a full disk: pods need a few files to run again after a reboot.

use std::path::Path;

const RESERVE: &str = "reserve";
const RESERVE_BYTES: usize = 1024 * 1024;

/// Sets the space aside if it is not.
pub(crate) fn keep(folder: &Path) {
    let path = folder.join(RESERVE);
    if std::fs::metadata(&path).is_ok_and(|reserve| reserve.len() == RESERVE_BYTES as u64) {
        return;
    }
    if let Err(error) = std::fs::write(&path, vec![0_u8; RESERVE_BYTES]) {
        tracing::warn!(%error, "no disk space could be set aside: free some before this device restarts");
        // A part of it helps nobody.
        drop(std::fs::remove_file(&path));
    }
}

/// Gives the space back to what has to run; whether there was any.
pub(crate) fn give_up(folder: &Path) -> bool {
    match std::fs::remove_file(folder.join(RESERVE)) {
        Ok(()) => {
            tracing::error!("the disk is full: the space set aside is used up now; free some");
            true
        }
        Err(error) => {
            tracing::error!(%error, "the disk is full, and no space was set aside");
            false
        }
    }
}
