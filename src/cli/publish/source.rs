//! The input of `publish`. It is read twice: to validate it, and to publish it.

use std::fs::File;
use std::io::{self, Cursor, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use crate::cli::open_file;
use crate::message::export::input::{Ids, Input};

/// The largest input that is kept in memory, in bytes (64 MiB).
const MAX_HELD: u64 = 64 << 20;

/// Where messages come from.
pub(super) enum Source {
    /// A file, which can be read again.
    File(File),
    /// The content of a pipe.
    Held(Arc<[u8]>),
}

/// A reader of either kind.
pub(super) type Reader = Box<dyn io::Read + Send>;

impl Source {
    /// Opens a file. Standard input and pipes are read into memory.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, String> {
        let named = path.filter(|path| *path != Path::new("-"));
        let (name, reader): (String, Reader) = match named {
            None => ("standard input".to_owned(), Box::new(io::stdin())),
            Some(path) => match open_file(path).map_err(|error| error.message)? {
                (file, metadata) if metadata.is_file() => return Ok(Self::File(file)),
                // A pipe is opened once: what writes to it ends with its first reader.
                (pipe, _) => (path.display().to_string(), Box::new(pipe)),
            },
        };
        let mut held = Vec::new();
        reader.take(MAX_HELD + 1).read_to_end(&mut held).map_err(|error| format!("{name}: {error}"))?;
        if u64::try_from(held.len()).is_ok_and(|bytes| bytes > MAX_HELD) {
            return Err(format!("{name} holds more than 64 MiB; write it to a file and name the file"));
        }
        Ok(Self::Held(held.into()))
    }

    /// A reader that begins at the first message.
    pub(super) fn messages(&self, ids: Ids) -> Result<Input<Reader>, String> {
        let reader: Reader = match self {
            Self::Held(bytes) => Box::new(Cursor::new(Arc::clone(bytes))),
            Self::File(file) => {
                let again = file.try_clone().and_then(|mut file| file.seek(SeekFrom::Start(0)).map(|_| file));
                Box::new(again.map_err(|error| format!("the input cannot be read again: {error}"))?)
            }
        };
        Ok(Input::new(reader, ids))
    }
}
