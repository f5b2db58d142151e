//! Describes the machine of a run.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::broker::output;

/// The properties of a machine that influence the figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The date of the run in UTC.
    pub day: String,
    /// The processor's name.
    pub processor: String,
    /// Its cores.
    pub cores: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The median time of one small synchronous write in the folder of the ledger, in milliseconds.
    pub sync_ms: f64,
    /// The same in the folder of the broker's data.
    pub broker_sync_ms: f64,
    /// Kernel, compiler, broker and so on, with their versions.
    pub versions: Vec<String>,
}

impl Machine {
    /// Describes this machine.
    pub fn here(site: &crate::site::Site) -> Result<Self, String> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        let python = site.folder.join("venv/bin/python");
        let run = |program: &str, argument: &str| output_or_none(Command::new(program).arg(argument));
        let versions = [
            Some(format!("Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim())),
            run("rustc", "--version").map(|line| words(&line, 2)),
            site.broker.version().ok().map(|version| format!("RabbitMQ {version}")),
            run("redis-server", "--version").and_then(|line| {
                line.split_whitespace()
                    .find_map(|word| word.strip_prefix("v="))
                    .map(|version| format!("Redis {version}"))
            }),
            run(&python.display().to_string(), "--version"),
            run("curl", "--version").map(|line| words(&line, 2)),
        ];
        Ok(Self {
            day: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            processor: name.map(|(_, name)| name.trim().to_owned()).unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kilobytes.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default() * 1_024,
            sync_ms: sync_ms(&site.folder.join("sync"))?,
            broker_sync_ms: sync_ms(&Path::new(&site.broker.folder).join("sync"))?,
            versions: versions.into_iter().flatten().collect(),
        })
    }

    /// The description in one sentence.
    pub fn sentence(&self) -> String {
        format!(
            "{}, {} cores, {:.0} GiB, a synchronous write takes {:.2} ms (the broker's {:.2} ms); {}",
            self.processor,
            self.cores,
            self.memory as f64 / f64::from(1 << 30),
            self.sync_ms,
            self.broker_sync_ms,
            self.versions.join(", ")
        )
    }
}

fn output_or_none(command: &mut Command) -> Option<String> {
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    output(&mut owned).ok().and_then(|text| text.lines().next().map(str::to_owned))
}

fn words(line: &str, count: usize) -> String {
    line.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

fn sync_ms(path: &Path) -> Result<f64, String> {
    use std::io::Write as _;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = fs::File::create(path).map_err(failed)?;
    let mut times = crate::results::Series::default();
    for _ in 0..50 {
        let began = std::time::Instant::now();
        file.write_all(&[0; 4_096]).and_then(|()| file.sync_data()).map_err(failed)?;
        times.0.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    fs::remove_file(path).map_err(failed)?;
    Ok(times.median())
}
