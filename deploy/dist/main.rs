//! Generates the other files of a release, for deploy/dist/dist.sh. They are not commands of the worker, to keep it small.

mod pages;
mod sbom;

use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;

use clap::Parser;

/// Generates completions, manual pages and the bill of materials of a release
#[derive(Debug, Parser)]
enum Arguments {
    /// Write completions and manual pages
    Pages {
        /// Target folder; created if it is missing
        folder: PathBuf,
        /// Date of the release, YYYY-MM-DD
        date: String,
    },
    /// Print a bill of materials that lists only what the program is built from
    Sbom {
        /// CycloneDX document, JSON
        document: PathBuf,
        /// The packages that the program is built from, one `name@version` a line
        tree: PathBuf,
    },
}

fn main() -> Result<(), Box<dyn Error>> {
    match Arguments::parse() {
        Arguments::Pages { folder, date } => pages::write(&folder, &date),
        Arguments::Sbom { document, tree } => {
            let document = serde_json::from_reader(File::open(document)?)?;
            let exact = sbom::exact(document, &fs::read_to_string(tree)?)?;
            println!("{}", serde_json::to_string_pretty(&exact)?);
            Ok(())
        }
    }
}
