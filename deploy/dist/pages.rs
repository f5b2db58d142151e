//! Writes shell completions and manual pages, generated from the command line's definition.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use wolkvox_task_worker::cli::{Cli, FAILED, INVALID_CONFIGURATION};
use wolkvox_task_worker::config::{KEYS, Preset};

/// Writes them into `completions` and `man` of a folder, which is created if it is missing.
pub(crate) fn write(folder: &Path, date: &str) -> Result<(), Box<dyn Error>> {
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &completions)?;
    }

    let pages = folder.join("man");
    fs::create_dir_all(&pages)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    page(&command, date, &pages)?;
    Ok(())
}

/// Writes the page of a command and the pages of its subcommands.
fn page(command: &Command, date: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    let title = command.get_display_name().unwrap_or_else(|| command.get_name()).to_uppercase();
    let page = Man::new(command.clone()).title(title).date(date);
    let mut file = File::create(folder.join(page.get_filename()))?;
    page.render_title(&mut file)?;
    page.render_name_section(&mut file)?;
    page.render_synopsis_section(&mut file)?;
    page.render_description_section(&mut file)?;
    page.render_options_section(&mut file)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut file)?;
    }
    if command.get_name() == env!("CARGO_PKG_NAME") {
        common(&mut file)?;
    }
    for inner in command.get_subcommands() {
        self::page(inner, date, folder)?;
    }
    Ok(())
}

/// Writes the sections of the main page that hold for every command.
fn common(page: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    let codes = [
        (0, "Done."),
        (FAILED, "Failed; also a second signal, an exceeded grace, a queue that exists with other arguments."),
        (2, "Wrong usage."),
        (INVALID_CONFIGURATION, "Invalid configuration."),
    ];
    for (code, meaning) in codes {
        roff.control("TP", []).text([bold(code.to_string())]).text([roman(meaning)]);
    }

    roff.control("SH", ["ENVIRONMENT"]);
    roff.control("TP", []).text([bold("WTW_CONFIG")]).text([roman("TOML file with the configuration.")]);
    for key in KEYS {
        let preset = match key.preset {
            Preset::Text(text) | Preset::Derived(text) => format!(" Default: {text}"),
            Preset::Required => " Required by the commands that use it.".to_owned(),
            Preset::Absent => String::new(),
        };
        let meaning = format!("{} Allowed: {}.{preset}", key.meaning, key.allowed());
        roff.control("TP", []).text([bold(key.variables().join(", "))]).text([roman(meaning)]);
    }
    roff.to_writer(page)?;
    Ok(())
}
