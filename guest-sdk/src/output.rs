//! What a filter says about a line.

use std::borrow::Cow;
use std::{fmt, io};

use crate::{Level, log};

/// The most lines that can stand for one.
pub const LINES_MAX: usize = 253;

/// What becomes of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It goes on as it is.
    Keep,
    /// It goes no further, and is counted as filtered.
    Drop,
    /// These bytes go on in its place. They must not hold a newline that the line did not have.
    Replace(Cow<'a, [u8]>),
    /// The lines written to the [`Output`] go on in its place; none is as good as [`Verdict::Drop`].
    Written,
    /// It is treated as `on_error` of the entry says: by default set aside on the host.
    SetAside,
}

impl<'a> Verdict<'a> {
    /// These bytes go on in the line's place.
    ///
    /// ```
    /// use weir_guest::Verdict;
    /// fn without_level(line: &[u8]) -> Verdict<'_> {
    ///     line.strip_prefix(b"INFO ").map_or(Verdict::Keep, Verdict::replace)
    /// }
    /// ```
    pub fn replace(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self::Replace(bytes.into())
    }
}

/// A line on which a filter fails is set aside, and the error is logged. It stays on the host; let
/// it name the fault, not the line's content.
impl<'a, E: fmt::Display> From<Result<Verdict<'a>, E>> for Verdict<'a> {
    fn from(result: Result<Verdict<'a>, E>) -> Self {
        result.unwrap_or_else(|error| {
            log(Level::Warn, &error.to_string());
            Self::SetAside
        })
    }
}

/// Whether to keep it.
impl From<bool> for Verdict<'_> {
    fn from(keep: bool) -> Self {
        if keep { Self::Keep } else { Self::Drop }
    }
}

/// Takes the lines that stand for the one at hand, and knows where that one came from.
///
/// What is written counts only if the verdict is [`Verdict::Written`]. It implements
/// [`std::io::Write`], so that a line can be built in place; [`Output::end_line`] ends it.
///
/// ```
/// # use weir_guest::{Output, Verdict};
/// fn split(line: &[u8], out: &mut Output) -> Verdict<'static> {
///     for part in line.split(|byte| *byte == b';') {
///         out.line(part);
///     }
///     Verdict::Written
/// }
/// ```
#[derive(Debug)]
pub struct Output {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ends: Vec<u32>,
    /// Lengths of the two where the line at hand began.
    mark: (usize, usize),
    path: String,
    offset: u64,
    unix_ms: u64,
}

impl Output {
    pub(crate) fn new(path: String, unix_ms: u64) -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), mark: (0, 0), path, offset: 0, unix_ms }
    }

    /// Adds a whole line.
    pub fn line(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.end_line();
    }

    /// Ends the line that was written piece by piece.
    pub fn end_line(&mut self) {
        self.ends.push(self.bytes.len() as u32);
    }

    /// The path of the file that the line stands in, as lossy UTF-8.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where in the file the line begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When the line was read: milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    /// Begins the next line; what was written for the one before stays.
    pub(crate) fn next(&mut self, offset: u64) {
        self.mark = (self.bytes.len(), self.ends.len());
        self.offset = offset;
    }

    /// Ends the last line if it is not; says how many lines were written for the one at hand.
    pub(crate) fn commit(&mut self) -> usize {
        let ended = self.ends.get(self.mark.1..).and_then(|ends| ends.last());
        if self.bytes.len() > ended.map_or(self.mark.0, |end| *end as usize) {
            self.end_line();
        }
        self.ends.len() - self.mark.1
    }

    /// Forgets what was written for the line at hand.
    pub(crate) fn forget(&mut self) {
        self.bytes.truncate(self.mark.0);
        self.ends.truncate(self.mark.1);
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
