//! The journal beside the file. Each batch of records is made durable by one short write to it, and the file takes many
//! batches in one commit, after which the journal is written from its start again.
//!
//! It is a row of frames: the length of the content, its checksum, and the content, which is the frame's number and the
//! histories that its batch led to. Numbers go up by one from what the file has taken (`applied`), so what an earlier use
//! left behind the latest frame is told from what follows it; the file's own `id` is part of the checksum, so what belongs
//! to another file is none. Each frame is on the disk before the next one is begun: only the last can be torn, and then
//! nobody was told that it is durable.

use redb::{Error, StorageBackend};
use sha2::{Digest as _, Sha256};

use crate::ledger::Key;
use crate::ledger::history::History;

/// What is allotted from the beginning, so that a frame need not wait for the file to grow, and the length at which the
/// journal has to be applied.
const ROOM: usize = 1 << 20;
/// The length of the content in four bytes, its checksum in eight.
const HEAD: usize = 4 + 8;

/// Bytes of a history with its key, about; more need more room.
const USUAL: usize = 160;

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
    /// Of the file.
    id: u64,
    end: u64,
    /// Of the frame before it.
    number: u64,
}

impl Place {
    /// The beginning of a journal whose file has taken everything up to `applied`.
    pub(super) const fn after(id: u64, applied: u64) -> Self {
        Self { id, end: 0, number: applied }
    }

    /// Takes the frames from here on, and moves behind them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn read(
        &mut self,
        storage: &dyn StorageBackend,
        mut take: impl FnMut(Key, History),
    ) -> Result<(), Error> {
        while let Some((number, content, end)) = frame(storage, self.id, self.end)? {
            if number != self.number + 1 {
                break;
            }
            histories(&content, &mut take).ok_or_else(|| damaged("a record that cannot be read"))?;
            (self.number, self.end) = (number, end);
        }
        Ok(())
    }
}

/// The whole frame at a place, if there is one: its number, the rest of its content, and where it ends.
fn frame(storage: &dyn StorageBackend, id: u64, at: u64) -> Result<Option<(u64, Vec<u8>, u64)>, Error> {
    let (length, start) = (storage.len()?, at + HEAD as u64);
    if start > length {
        return Ok(None);
    }
    let (mut size, mut sum) = ([0; 4], [0; 8]);
    storage.read(at, &mut size)?;
    storage.read(at + 4, &mut sum)?;
    let size = u32::from_be_bytes(size);
    let end = start + u64::from(size);
    if end > length {
        return Ok(None);
    }
    let mut content = vec![0; size as usize];
    storage.read(start, &mut content)?;
    let Some((number, rest)) = content.split_first_chunk().filter(|_| checksum(id, &content) == sum) else {
        return Ok(None);
    };
    Ok(Some((u64::from_be_bytes(*number), rest.to_vec(), end)))
}

/// Whether there is a frame behind a place that was written after what is before it. All of those are smaller whose numbers
/// the journal had before it began at its start again.
fn has_later(storage: &dyn StorageBackend, place: Place) -> Result<bool, Error> {
    let mut bytes = vec![0; usize::try_from(storage.len()?.saturating_sub(place.end)).unwrap_or_default()];
    storage.read(place.end, &mut bytes)?;
    let mut used = bytes.as_slice();
    while let Some(shorter) = used.strip_suffix(&[0; 4096]) {
        used = shorter;
    }
    let numbers = used.get(HEAD..).unwrap_or_default().windows(8);
    for (at, number) in (place.end..).zip(numbers) {
        let number = <[u8; 8]>::try_from(number).map_or(0, u64::from_be_bytes);
        // Nearly all bytes are ruled out by this, and need no checksum.
        let possible = number > place.number && number - place.number <= ROOM as u64;
        if possible && frame(storage, place.id, at)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn checksum(id: u64, content: &[u8]) -> [u8; 8] {
    let sum = Sha256::new().chain_update(id.to_be_bytes()).chain_update(content).finalize();
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(sum);
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

/// Takes bytes that are preceded by their length.
fn sized<'c>(content: &mut &'c [u8]) -> Option<&'c [u8]> {
    let (size, rest) = content.split_first_chunk()?;
    let (bytes, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
    *content = rest;
    Some(bytes)
}

/// Adds what [`histories`] reads.
fn put(content: &mut Vec<u8>, key: &Key, history: &History) -> Result<(), Error> {
    content.extend_from_slice(&size(key.as_bytes().len())?);
    content.extend_from_slice(key.as_bytes());
    content.extend_from_slice(&size(history.size())?);
    history.put(content);
    Ok(())
}

fn size(length: usize) -> Result<[u8; 4], Error> {
    u32::try_from(length).map(u32::to_be_bytes).map_err(|_| Error::ValueTooLarge(length))
}

impl Journal {
    /// Opens it, and takes what the file has not taken yet.
    ///
    /// # Errors
    /// When it cannot be read or written, or does not follow what is before it.
    pub(super) fn open(storage: Storage, mut place: Place, take: impl FnMut(Key, History)) -> Result<Self, Error> {
        if storage.len()? < ROOM as u64 {
            let length = storage.len()?;
            storage.set_len(ROOM as u64)?;
            let missing = ROOM - usize::try_from(length).unwrap_or(ROOM);
            storage.write(length, &vec![0; missing])?;
            storage.sync_data()?;
        }
        place.read(&*storage, take)?;
        if has_later(&*storage, place)? {
            return Err(damaged("records that do not follow what is before them"));
        }
        if place.end > 0 {
            // Where a sync failed, what was written is read back all the same, and no later sync puts it on the disk. The file
            // needs no such care: it waits for its pages before the header names them, and writes that when it is opened.
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
        let mut frame = Vec::with_capacity(HEAD + size_of_val(&number) + histories.size_hint().0 * USUAL);
        frame.extend_from_slice(&[0; HEAD]);
        frame.extend_from_slice(&number.to_be_bytes());
        for (key, history) in histories {
            put(&mut frame, key, history)?;
        }
        if let Some((head, content)) = frame.split_first_chunk_mut::<HEAD>() {
            let (length, sum) = head.split_at_mut(4);
            length.copy_from_slice(&size(content.len())?);
            sum.copy_from_slice(&checksum(self.place.id, content));
        }
        let end = self.place.end + frame.len() as u64;
        if end > self.storage.len()? {
            self.storage.set_len(end)?;
        }
        self.storage.write(self.place.end, &frame)?;
        self.storage.sync_data()?;
        (self.place.end, self.place.number) = (end, number);
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
