//! Where a report goes: its file, standard output, and what remains where one of them cannot be written.

use std::fs::File;
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write};
use std::path::Path;

use crate::crm_report::Report;
use crate::dead_letters::private_file;

/// A new file that its owner alone can read: with `--full` it has personal data. No link is followed.
pub(super) fn create(path: &Path) -> io::Result<File> {
    private_file::create_new(path)
}

/// Writes the JSON in the place of what the file has.
pub(super) fn write(mut file: &File, json: &str) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(json.as_bytes())?;
    file.write_all(b"\n")?;
    let end = file.stream_position()?;
    // A device has no length.
    let _ = file.set_len(end);
    file.sync_all()
}

/// Shows the summary, or with `as_json` the JSON. What cannot be written to the file or to standard output goes to the other one, or to
/// standard error.
///
/// # Errors
/// Why the file could not be written.
pub(super) fn deliver(
    report: &Report,
    saved: io::Result<()>,
    as_json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<()> {
    let shown = if as_json { report.json() } else { report.text() };
    let is_shown = match print(out, shown) {
        // A reader that has gone away is no failure where the file has the report.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => saved.is_ok(),
        printed => printed.is_ok(),
    };
    if !is_shown {
        let _ = print(err, report.text());
    }
    let is_kept = saved.is_ok() || (is_shown && as_json) || (is_shown && print(out, report.json()).is_ok());
    if !is_kept {
        let _ = print(err, report.json());
    }
    saved
}

fn print(to: &mut dyn Write, text: &str) -> io::Result<()> {
    writeln!(to, "{text}")?;
    to.flush()
}
