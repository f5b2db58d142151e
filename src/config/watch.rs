//! Files of secrets that are read again when they change.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Problems;

/// How often a file is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// Reads a file again whenever it has changed, until `stop`. What cannot be read is told once and changes nothing.
pub async fn watch<T: Send + 'static>(
    path: PathBuf,
    read: impl Fn(&Path) -> Result<T, Problems> + Clone + Send + 'static,
    stop: CancellationToken,
    mut on_change: impl FnMut(Result<T, Problems>),
) {
    let mut last = None;
    let mut is_first = true;
    loop {
        let path = path.clone();
        let read = read.clone();
        // Looking may hang as well as reading does; there is one such thread at a time.
        let looking = tokio::task::spawn_blocking(move || {
            let stamp = stamp(&path);
            let read = (!is_first && stamp != last).then(|| read(&path));
            (stamp, read)
        });
        let Some(Ok((stamp, read))) = stop.run_until_cancelled(looking).await else { return };
        last = stamp;
        is_first = false;
        if let Some(read) = read {
            on_change(read);
        }
        if stop.run_until_cancelled(sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// What changes when a file is written or replaced; Kubernetes replaces mounted secrets through a link.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    let (modified, changed) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
    Some((file.dev(), file.ino(), file.len(), modified, changed))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::read_tokens;

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_once_for_each_change() {
        let path = std::env::temp_dir().join(format!("wtw-watch-{}", std::process::id()));
        std::fs::write(&path, "a").unwrap();
        let stop = CancellationToken::new();
        let (sender, mut changes) = mpsc::channel(10);
        let told = move |read: Result<Vec<_>, Problems>| {
            sender.try_send(read.map(|tokens| tokens.len()).map_err(|problems| problems.to_string())).unwrap();
        };
        let watching = watch(path.clone(), read_tokens, stop.clone(), told);
        let changing = async {
            let beyond = EVERY * 3;
            sleep(beyond).await;
            assert!(changes.try_recv().is_err(), "it has not changed");
            std::fs::write(&path, "b").unwrap();
            assert_eq!(changes.recv().await, Some(Ok(1)), "of the same length");
            std::fs::write(&path, "").unwrap();
            assert!(changes.recv().await.unwrap().unwrap_err().contains("is empty"));
            sleep(beyond).await;
            assert!(changes.try_recv().is_err(), "told once");
            let next = path.with_extension("next");
            std::fs::write(&next, "b,c").unwrap();
            std::fs::rename(&next, &path).unwrap();
            assert_eq!(changes.recv().await, Some(Ok(2)), "replaced");
            std::fs::remove_file(&path).unwrap();
            assert!(changes.recv().await.unwrap().unwrap_err().contains("there is no such file"));
            stop.cancel();
        };
        tokio::join!(watching, changing);
    }
}
