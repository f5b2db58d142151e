//! The journal beside the file. Each batch of records is made durable by one short write to it, and the file takes many
//! batches in one commit, after which the journal is written from its start again.
//!
//! It is a row of frames: the length of the content, its checksum, and the content, which is the frame's number and the
//! histories that its batch led to. Numbers go up by one from what the file has taken (`applied`), so what an earlier use
//! left behind the latest frame is told from what follows it. Each frame is on the disk before the next one is begun:
//! only the last can be torn, and then nobody was told that it is durable.

use redb::{Error, StorageBackend};
use sha2::{Digest as _, Sha256};

use crate::ledger::Key;
use crate::ledger::history::History;

/// What is allotted from the beginning, so that a frame need not wait for the file to grow, and the length at which the
/// journal has to be applied.
const ROOM: usize = 1 << 20;
/// The length of the content in four bytes, its checksum in eight.
const HEAD: u64 = 4 + 8;

/// Where it is kept.
pub(super) type Storage = Box<dyn StorageBackend>;

/// See the module's documentation.
pub(super) struct Journal {
    storage: Storage,
    place: Place,
}

/// Between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    end: u64,
    /// Of the frame before it.
    number: u64,
}

impl Place {
    /// The beginning of a journal whose file has taken everything up to `applied`.
    pub(super) const fn after(applied: u64) -> Self {
        Self { end: 0, number: applied }
    }

    /// Takes what there is from here on, and moves behind it.
    ///
    /// # Errors
    /// When it cannot be read, or a frame before the last one is damaged.
    pub(super) fn read(
        &mut self,
        storage: &dyn StorageBackend,
        mut take: impl FnMut(Key, History),
    ) -> Result<(), Error> {
        loop {
            match frame(storage, *self)? {
                Frame::Whole(content, next) => {
                    histories(&content, &mut take).ok_or_else(|| damaged("a record that cannot be read"))?;
                    *self = next;
                }
                Frame::Torn(next) if matches!(frame(storage, next)?, Frame::Whole(..)) => {
                    return Err(damaged("a record in the middle"));
                }
                Frame::Torn(_) | Frame::None => return Ok(()),
            }
        }
    }
}

enum Frame {
    /// The content without its number, and the place behind it.
    Whole(Vec<u8>, Place),
    /// Something of a possible length, and the place behind it.
    Torn(Place),
    None,
}

/// The frame at a place.
fn frame(storage: &dyn StorageBackend, place: Place) -> Result<Frame, Error> {
    let (length, start) = (storage.len()?, place.end + HEAD);
    if start > length {
        return Ok(Frame::None);
    }
    let (mut size, mut sum) = ([0; 4], [0; 8]);
    storage.read(place.end, &mut size)?;
    storage.read(place.end + 4, &mut sum)?;
    let size = u32::from_be_bytes(size);
    let next = Place { end: start + u64::from(size), number: place.number + 1 };
    if size < 8 || next.end > length {
        return Ok(Frame::None);
    }
    let mut content = vec![0; size as usize];
    storage.read(start, &mut content)?;
    let whole = checksum(&content) == sum && content.starts_with(&next.number.to_be_bytes());
    Ok(if whole { Frame::Whole(content.split_off(8), next) } else { Frame::Torn(next) })
}

fn checksum(content: &[u8]) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(content));
    [a, b, c, d, e, f, g, h]
}

fn damaged(what: &str) -> Error {
    Error::Corrupted(format!("its journal has {what}"))
}

fn histories(mut content: &[u8], take: &mut impl FnMut(Key, History)) -> Option<()> {
    while !content.is_empty() {
        let key = Key::from_bytes(sized(&mut content)?);
        take(key, History::from_bytes(sized(&mut content)?)?);
    }
    Some(())
}

/// Takes what was put by [`put`].
fn sized<'c>(content: &mut &'c [u8]) -> Option<&'c [u8]> {
    let (size, rest) = content.split_first_chunk()?;
    let (bytes, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
    *content = rest;
    Some(bytes)
}

fn put(content: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Error> {
    content.extend_from_slice(&u32::try_from(bytes.len()).map_err(|_| too_long())?.to_be_bytes());
    content.extend_from_slice(bytes);
    Ok(())
}

fn too_long() -> Error {
    Error::ValueTooLarge(u32::MAX as usize)
}

impl Journal {
    /// Opens it, and takes what the file has not taken yet.
    ///
    /// # Errors
    /// When it cannot be read or written, or is damaged.
    pub(super) fn open(storage: Storage, applied: u64, take: impl FnMut(Key, History)) -> Result<Self, Error> {
        if storage.len()? < ROOM as u64 {
            let length = storage.len()?;
            storage.set_len(ROOM as u64)?;
            let missing = ROOM - usize::try_from(length).unwrap_or(ROOM);
            storage.write(length, &vec![0; missing])?;
            storage.sync_data()?;
        }
        let mut place = Place::after(applied);
        place.read(&*storage, take)?;
        if place.end > 0 {
            // What was read need not be on the disk, where writing it had failed.
            let mut bytes = vec![0; usize::try_from(place.end).unwrap_or_default()];
            storage.read(0, &mut bytes)?;
            storage.write(0, &bytes)?;
            storage.sync_data()?;
        }
        Ok(Self { storage, place })
    }

    /// Adds a frame, which is durable then.
    ///
    /// # Errors
    /// When it cannot be written; whether it is there then is not known, and the journal has to be opened anew.
    pub(super) fn append<'h>(&mut self, histories: impl Iterator<Item = (&'h Key, &'h History)>) -> Result<(), Error> {
        let number = self.place.number + 1;
        let mut content = number.to_be_bytes().to_vec();
        for (key, history) in histories {
            put(&mut content, key.as_bytes())?;
            put(&mut content, &history.to_bytes())?;
        }
        let size = u32::try_from(content.len()).map_err(|_| too_long())?;
        let bytes = [&size.to_be_bytes()[..], &checksum(&content), &content].concat();
        let end = self.place.end + bytes.len() as u64;
        if end > self.storage.len()? {
            self.storage.set_len(end)?;
        }
        self.storage.write(self.place.end, &bytes)?;
        self.storage.sync_data()?;
        self.place = Place { end, number };
        Ok(())
    }

    /// Whether it is so long that it has to be applied.
    pub(super) const fn is_full(&self) -> bool {
        self.place.end >= ROOM as u64
    }

    /// The latest frame's number.
    pub(super) const fn number(&self) -> u64 {
        self.place.number
    }

    /// Begins at its start again, all of it being applied.
    pub(super) const fn restart(&mut self) {
        self.place.end = 0;
    }
}
