//! A log writer that never blocks. A thread writes the lines. If nobody reads the log, lines are lost and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::visible;

/// The most lines in the queue.
const MAX_QUEUED_LINES: usize = 2_048;
/// The longest line, in bytes. With [`MAX_QUEUED_LINES`] this limits the memory to 16 MiB.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Time limit of [`Lines::flush`] when nobody reads the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The sending side.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes to `out`. After a loss it calls `on_loss` with the number of lost lines as soon as it
    /// can write again.
    pub(super) fn start(out: impl Write + Send + 'static, on_loss: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        Self::with_capacity(MAX_QUEUED_LINES, out, on_loss)
    }

    fn with_capacity(
        capacity: usize,
        out: impl Write + Send + 'static,
        on_loss: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(capacity);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&waiting, out, &counted, on_loss))?;
        Ok(Self { queue, lost })
    }

    /// The number of lost lines so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, at most a second.
    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        let mut item = Item::Flush(done);
        // A full queue does not take the flush request either.
        for _ in 0..20 {
            item = match self.queue.try_send(item) {
                Ok(()) => break,
                Err(error) => match error {
                    std::sync::mpsc::TrySendError::Full(item) => item,
                    std::sync::mpsc::TrySendError::Disconnected(_) => return,
                },
            };
            std::thread::sleep(FLUSH_TIMEOUT / 20);
        }
        let _: Result<(), RecvTimeoutError> = wait.recv_timeout(FLUSH_TIMEOUT);
    }

    fn push(&self, line: &[u8]) {
        if self.queue.try_send(Item::Line(cut(line))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A line of limited length, without characters that change how a terminal shows it.
fn cut(line: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(line) else {
        return line.get(..MAX_LINE_BYTES).unwrap_or(line).to_vec();
    };
    // The escape of JSON is readable in text, too.
    let mut visible = visible::log_line(text);
    if visible.len() > MAX_LINE_BYTES {
        // A JSON object that is cut is not JSON any more. Collectors read the line as text, and people see the reason.
        visible.truncate(visible.floor_char_boundary(MAX_LINE_BYTES));
        visible.push_str("… (cut off)\n");
    }
    visible.into_bytes()
}

fn write(waiting: &Receiver<Item>, mut out: impl Write, lost: &AtomicU64, on_loss: impl Fn(u64)) {
    let mut reported = 0;
    while let Ok(item) = waiting.recv() {
        match item {
            Item::Line(line) => {
                // A closed log must not end the process.
                let _ = out.write_all(&line).and_then(|()| out.flush());
                let now = lost.load(Ordering::Relaxed);
                if now > reported {
                    on_loss(now - reported);
                    reported = now;
                }
            }
            Item::Flush(done) => drop(done.try_send(())),
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { lines: self, bytes: Vec::new() }
    }
}

/// One line; it is sent when it is dropped.
pub(super) struct Line<'a> {
    lines: &'a Lines,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.lines.push(&self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Mutex;

    use super::*;

    fn write_line(lines: &Lines, text: &str) {
        lines.make_writer().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn unread_log_loses_lines_without_blocking() {
        let (mut reader, writer) = io::pipe().unwrap();
        let losses = Arc::new(Mutex::new(Vec::new()));
        let reported = Arc::clone(&losses);
        let lines = Lines::with_capacity(8, writer, move |lost| reported.lock().unwrap().push(lost)).unwrap();
        // More than pipe and queue can hold: a writer that blocks never gets past this.
        let line = format!("{}\n", "x".repeat(1_023));
        let written = 1_000;
        for _ in 0..written {
            write_line(&lines, &line);
        }
        lines.flush();
        let lost = lines.lost();
        assert!(lost > 0 && lost < written, "{lost}");
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        lines.flush();
        write_line(&lines, "last\n");
        lines.flush();
        drop(lines);
        let text = reading.join().unwrap();
        assert_eq!(text.lines().count() as u64, written - lost + 1, "each line is whole, or lost");
        assert!(text.ends_with("x\nlast\n") && text.lines().all(|line| line.len() == 1_023 || line == "last"));
        assert_eq!(losses.lock().unwrap().iter().sum::<u64>(), lost, "the loss is reported");
    }

    #[test]
    fn closed_log_blocks_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let lines = Lines::start(writer, |_| {}).unwrap();
        for _ in 0..10 {
            write_line(&lines, "x\n");
        }
        lines.flush();
        assert_eq!(lines.lost(), 0);
    }

    #[test]
    fn lines_are_cut_and_deceptive_characters_escaped() {
        let line = "{\"id\":\"a\u{202e}gnp.exe\u{9b}2J\u{200b}\u{2066}\u{feff}\u{e0041}\u{180e}ñ👩\"}\n";
        let written = String::from_utf8(cut(line.as_bytes())).unwrap();
        assert_eq!(written, "{\"id\":\"a\\u202egnp.exe\\u009b2J\\u200b\\u2066\\ufeff\\udb40\\udc41\\u180eñ👩\"}\n");
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read, serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(cut(b"\x1b[32mINFO\x1b[0m\ta\n"), b"\x1b[32mINFO\x1b[0m\ta\n", "the colours of a terminal");
        let long = String::from_utf8(cut("€".repeat(MAX_LINE_BYTES).as_bytes())).unwrap();
        assert!(long.len() < MAX_LINE_BYTES + 32 && long.ends_with("… (cut off)\n"));
    }
}
