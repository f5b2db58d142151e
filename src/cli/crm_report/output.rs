//! Writes a report to its file and to standard output. If one of them fails, the report goes to the other one.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::crm_report::Report;
use crate::dead_letters::private_file::{self, PrivateFile};

/// Makes the file, which its owner alone can read: with `--full` it has personal data. No file is replaced, and no link followed.
///
/// # Errors
/// Why it cannot be made or written.
pub(super) fn create(path: &Path, json: &str) -> Result<(), String> {
    private_file::create_new(path).map_err(|error| private_file::explain(path, &error))?;
    write(path, json).inspect_err(|_| {
        // It is empty.
        let _ = std::fs::remove_file(path);
    })
}

/// Replaces the file by one with this JSON. If that fails, the file stays as it was.
///
/// # Errors
/// Why it cannot be written.
pub(super) fn write(path: &Path, json: &str) -> Result<(), String> {
    let mut file = PrivateFile::create(path)?;
    file.line(json)?;
    file.finish()
}

/// Shows the summary, or with `as_json` the JSON. What cannot be written to the file or to standard output goes to the other one, or to
/// standard error.
///
/// # Errors
/// Why the file could not be written.
pub(super) fn deliver(
    report: &Report,
    saved: Result<(), String>,
    as_json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), String> {
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
    use crate::crm_report::{ReportOptions, ReportPlan, Run};
    use crate::message::task::decode;

    fn report() -> Report {
        let environment = [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", "acme"), ("WTW_CRM_TOKENS", "alpha")];
        let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
        let config = Config::load(&Sources { environment, ..Sources::default() }, &["crm.tokens"]).unwrap().config;
        let message = br#"{"name_module": "cases", "id_record": "1", "wolkvox_owner": "a"}"#;
        let options = ReportOptions { search_for: Duration::ZERO, try_missing_field: false };
        let decoded = decode(message, config.task.unknown_fields).unwrap();
        let plan = ReportPlan::new(&config, decoded, "ABC", "id-1", jiff::Timestamp::UNIX_EPOCH, options).unwrap();
        Report::new(&plan, &Run::default(), &config.crm, jiff::Timestamp::UNIX_EPOCH, false)
    }

    #[test]
    fn file_keeps_its_report_where_the_next_one_cannot_be_written() {
        let folder = std::env::temp_dir().join(format!("wtw-crm-report-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("report.json");
        assert!(create(&folder, "one").is_err(), "a folder is there");
        assert_eq!(create(&path, "one"), Ok(()));
        assert!(create(&path, "two").unwrap_err().contains("exists"));
        assert_eq!(write(&path, "two"), Ok(()));
        std::fs::rename(&folder, folder.with_extension("moved")).unwrap();
        assert!(write(&path, "three").unwrap_err().contains("the folder does not exist"));
        let folder = folder.with_extension("moved");
        assert_eq!(std::fs::read_to_string(folder.join("report.json")).unwrap(), "two\n");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn report_goes_where_it_can_be_written() {
        let report = report();
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let failed = || Err("full".to_owned());
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
