//! The quarantine's database: its tables and what they hold true.
//!
//! `ITEMS`, `LINES` and `PLACES` have one row for each line; the sum of [`cost`] over them stands
//! in `SUMS`. Every change is one transaction, fsynced before it returns.

// redb's error is large; it is boxed where it leaves the room.
#![allow(clippy::result_large_err)]

use std::fs::File;
use std::path::Path;

use redb::{Database, Error, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Item, SetAside};

/// What is known about a line, as JSON, by id.
const ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items");
/// The line, by id.
const LINES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lines");
/// The id of a line, by entry, incarnation of the file, and offset.
const PLACES: TableDefinition<'_, (&str, &str, u64), u64> = TableDefinition::new("places");
/// [`USED`] and [`NEXT`].
const SUMS: TableDefinition<'_, &str, u64> = TableDefinition::new("sums");

/// The sum of the costs of all lines.
const USED: &str = "used";
/// The next line's id; the first is 1.
const NEXT: &str = "next";

/// What redb may keep in memory: the quarantine is rarely used. Its own default is 1 GiB. Bytes.
const CACHE_BYTES: usize = 1024 * 1024;

/// redb's page. Bytes.
const PAGE_BYTES: u64 = 4096;
/// A row's key, and where redb notes its length. Bytes.
const ROW_BYTES: usize = 16;

/// An open database with all its tables.
#[derive(Debug)]
pub(super) struct Store(Database);

/// A line that has an id and is not written yet.
struct New<'a> {
    id: u64,
    item: Vec<u8>,
    line: &'a [u8],
}

/// What became of lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// All are on the disk.
    All,
    /// They need more than there is; none was taken.
    Full { used: u64, wanted: u64 },
}

/// Whether the file, and not the disk or the process, is at fault.
pub(super) fn is_damage(error: &Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        Error::Corrupted(_)
        | Error::UpgradeRequired(_)
        | Error::RepairAborted
        | Error::TableTypeMismatch { .. }
        | Error::TableIsMultimap(_)
        | Error::TypeDefinitionChanged { .. } => true,
        Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        _ => false,
    }
}

/// What a line takes on the disk. redb puts small rows together on pages and gives a larger one
/// pages of its own, a power of two. Half is added to small ones for pages that are not full and
/// for the line's row in `PLACES`: lines of 10 bytes to 256 KiB took 67 to 100 % of this.
pub(super) fn cost(item: &[u8], line: &[u8]) -> u64 {
    let row = |bytes: usize| {
        let bytes = (bytes + ROW_BYTES) as u64;
        if bytes > PAGE_BYTES / 2 { bytes.next_power_of_two().max(PAGE_BYTES) } else { bytes * 3 / 2 }
    };
    row(item.len()) + row(line.len())
}

impl Store {
    /// Opens or creates it. The whole file is checked: redb may panic on a damaged one that it
    /// was told to trust.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let created = !path.exists();
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)?;
        let store = Self(database);
        store.write(|transaction| {
            transaction.open_table(ITEMS)?;
            transaction.open_table(LINES)?;
            transaction.open_table(PLACES)?;
            transaction.open_table(SUMS)?;
            Ok(())
        })?;
        if created && let Some(dir) = path.parent() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::Io)?;
        }
        Ok(store)
    }

    /// Adds the lines that are not there yet, all or none.
    pub(super) fn append(&self, lines: &[SetAside<'_>], now: u64, limit: u64) -> Result<Appended, Error> {
        let transaction = self.0.begin_write()?;
        let new = register(&transaction, lines, now)?;
        let wanted = new.iter().map(|row| cost(&row.item, row.line)).sum();
        let used = total(&transaction)?;
        if used.saturating_add(wanted) > limit && wanted > 0 {
            transaction.abort()?;
            return Ok(Appended::Full { used, wanted });
        }
        store(&transaction, &new)?;
        transaction.open_table(SUMS)?.insert(USED, used + wanted)?;
        transaction.commit()?;
        Ok(Appended::All)
    }

    /// At most `most` items with an id above `after`.
    pub(super) fn list(&self, after: u64, most: usize) -> Result<Vec<Item>, Error> {
        let items = self.0.begin_read()?.open_table(ITEMS)?;
        items.range(after.saturating_add(1)..)?.take(most).map(|row| item(row?.1.value())).collect()
    }

    /// The line `id`.
    pub(super) fn read(&self, id: u64) -> Result<Option<Vec<u8>>, Error> {
        let lines = self.0.begin_read()?.open_table(LINES)?;
        Ok(lines.get(id)?.map(|line| line.value().to_vec()))
    }

    /// Removes lines and says how many were there.
    pub(super) fn remove(&self, ids: &[u64]) -> Result<usize, Error> {
        self.write(|transaction| {
            let mut items = transaction.open_table(ITEMS)?;
            let mut lines = transaction.open_table(LINES)?;
            let mut places = transaction.open_table(PLACES)?;
            let (mut freed, mut removed) = (0, 0);
            for id in ids {
                let (Some(known), Some(line)) = (items.remove(id)?, lines.remove(id)?) else { continue };
                let item = item(known.value())?;
                places.remove((item.entry.as_str(), item.file.as_str(), item.offset))?;
                freed += cost(known.value(), line.value());
                removed += 1;
            }
            let used = total(transaction)?;
            transaction.open_table(SUMS)?.insert(USED, used.saturating_sub(freed))?;
            Ok(removed)
        })
    }

    /// The sum of the costs.
    pub(super) fn used(&self) -> Result<u64, Error> {
        let sums = self.0.begin_read()?.open_table(SUMS)?;
        Ok(sums.get(USED)?.map_or(0, |used| used.value()))
    }

    /// One transaction, on the disk when this returns.
    fn write<T>(&self, what: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let transaction = self.0.begin_write()?;
        let value = what(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }
}

/// Gives ids to the lines that have none yet. Their content is not written before it is known
/// that there is room, so that a full quarantine does not grow.
fn register<'a>(
    transaction: &WriteTransaction,
    lines: &[SetAside<'a>],
    now: u64,
) -> Result<Vec<New<'a>>, Error> {
    let mut places = transaction.open_table(PLACES)?;
    let mut sums = transaction.open_table(SUMS)?;
    let mut next = sums.get(NEXT)?.map_or(1, |next| next.value());
    let mut new = Vec::new();
    for line in lines {
        let place = (line.entry.as_str(), line.file, line.offset);
        if places.get(place)?.is_some() {
            continue;
        }
        places.insert(place, next)?;
        let item = serde_json::to_vec(&Item::new(next, now, line)).expect("an item is text and numbers");
        new.push(New { id: next, item, line: line.line });
        next += 1;
    }
    sums.insert(NEXT, next)?;
    Ok(new)
}

/// Writes what [`register`] returned.
fn store(transaction: &WriteTransaction, new: &[New<'_>]) -> Result<(), Error> {
    let mut items = transaction.open_table(ITEMS)?;
    let mut lines = transaction.open_table(LINES)?;
    for row in new {
        items.insert(row.id, row.item.as_slice())?;
        lines.insert(row.id, row.line)?;
    }
    Ok(())
}

/// The sum of the costs, as it stands in a transaction.
fn total(transaction: &WriteTransaction) -> Result<u64, Error> {
    Ok(transaction.open_table(SUMS)?.get(USED)?.map_or(0, |used| used.value()))
}

/// Reads what [`register`] wrote.
fn item(json: &[u8]) -> Result<Item, Error> {
    serde_json::from_slice(json).map_err(|error| Error::Corrupted(format!("an item does not parse: {error}")))
}
