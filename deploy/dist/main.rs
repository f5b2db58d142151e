//! What a release has beside the program, for deploy/dist/dist.sh. Not commands of the worker, which would carry them about.

mod pages;
mod sbom;

use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;

use clap::Parser;

/// Makes what a release has beside the program
#[derive(Debug, Parser)]
enum Arguments {
    /// Write completions and manual pages
    Pages {
        /// Where to; made if it is missing
        folder: PathBuf,
        /// Date of the release, YYYY-MM-DD
        date: String,
    },
    /// Print a bill of materials with nothing in it that the program is not built from
    Sbom {
        /// CycloneDX document, JSON
        document: PathBuf,
        /// What the program is built from, one `name@version` a line
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
