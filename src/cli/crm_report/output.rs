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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Sources};
    use crate::crm_report::{Choices, Plan, Run};
    use crate::message::task::decode;

    fn report() -> Report {
        let environment = [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", "acme"), ("WTW_CRM_TOKENS", "alpha")];
        let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
        let config = Config::load(&Sources { environment, ..Sources::default() }, &["crm.tokens"]).unwrap().config;
        let message = br#"{"name_module": "cases", "id_record": "1", "wolkvox_owner": "a"}"#;
        let choices = Choices { search_for: Duration::ZERO, try_missing_field: false };
        let decoded = decode(message, config.task.unknown_fields).unwrap();
        let plan = Plan::new(&config, decoded, "ABC", jiff::Timestamp::UNIX_EPOCH, choices).unwrap();
        Report::new(&plan, &Run::default(), &config.crm, jiff::Timestamp::UNIX_EPOCH, false)
    }

    #[test]
    fn report_goes_where_it_can_be_written() {
        let report = report();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let failed = || write(&full(), report.json());
        assert_eq!(failed().unwrap_err().kind(), ErrorKind::StorageFull);
        for (saved, as_json, out_is_full, out_has, err_has) in [
            (Ok(()), false, false, "Report on", ""),
            (Ok(()), false, true, "", "Report on"),
            (failed(), false, false, "wolkvox-crm-report", ""),
            (failed(), true, false, "wolkvox-crm-report", ""),
            (failed(), false, true, "", "wolkvox-crm-report"),
        ] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let is_saved = saved.is_ok();
            let mut device = full();
            let to: &mut dyn Write = if out_is_full { &mut device } else { &mut out };
            assert_eq!(deliver(&report, saved, as_json, to, &mut err).is_ok(), is_saved);
            let (out, err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
            assert!(out.contains(out_has) && err.contains(err_has), "{out}\n{err}");
            assert_eq!((out.is_empty(), err.is_empty()), (out_has.is_empty(), err_has.is_empty()));
        }
    }
}
