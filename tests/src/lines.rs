//! Lines that can be told apart, and what became of them.
//!
//! A line is `[head]{id} {seq:08} {payload}[tail]`. Behind the head, which is empty unless a test
//! wants a level or a mark there or a filter puts a stamp there, the line has a fixed length and can
//! be foretold from id and sequence, so a [`Tally`] needs to keep one byte a line: lost, repeated,
//! reordered and damaged lines are noticed among millions. The tail, the same in all lines, is
//! empty unless head and tail make something like JSON of it.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lock;

/// What payloads are cut from; a prime step apart, so that neighbours differ in every byte.
const ALPHABET: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
/// The longest line, without its head. Bytes.
const CORE_BYTES_MAX: usize = 16 * 1024;
/// Lines are handed to the kernel in pieces of about this size. Bytes.
const WRITE_BYTES: usize = 1 << 20;
/// Between two writes of a paced writer.
const PACE: Duration = Duration::from_millis(5);

/// A log file that is being written: line after line, numbered from 0, also across rotations.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    file: File,
    id: String,
    line_bytes: usize,
    next: u64,
    head: fn(u64) -> &'static str,
    tail: &'static str,
}

impl LineFile {
    /// A new empty file at `path` whose lines have `line_bytes` bytes, newline included.
    #[track_caller]
    pub fn create(path: impl Into<PathBuf>, id: &str, line_bytes: usize) -> Self {
        let path = path.into();
        assert!(line_bytes > id.len() + " 00000000 \n".len() && line_bytes <= CORE_BYTES_MAX);
        let file = open(&path);
        Self { path, file, id: id.into(), line_bytes, next: 0, head: |_| "", tail: "" }
    }

    /// Puts a head before each line from now on; it comes on top of the length.
    pub fn with_head(mut self, head: fn(u64) -> &'static str) -> Self {
        self.head = head;
        self
    }

    /// Puts a tail behind each line from now on; it comes on top of the length.
    pub fn with_tail(mut self, tail: &'static str) -> Self {
        self.tail = tail;
        self
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines written up to now.
    pub fn written(&self) -> u64 {
        self.next
    }

    /// Appends `count` lines.
    #[track_caller]
    pub fn write(&mut self, count: u64) {
        let bytes = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(self.line_bytes);
        let mut buffer = Vec::with_capacity(bytes.min(WRITE_BYTES) + 2 * self.line_bytes);
        let end = self.next + count;
        while self.next < end {
            buffer.clear();
            while self.next < end && buffer.len() < WRITE_BYTES {
                buffer.extend_from_slice((self.head)(self.next).as_bytes());
                push_core(&mut buffer, &self.id, self.next, self.line_bytes - 1);
                buffer.extend_from_slice(self.tail.as_bytes());
                buffer.push(b'\n');
                self.next += 1;
            }
            self.write_raw(&buffer);
        }
    }

    /// Appends bytes that are nobody's line: a half line, an empty one, garbage.
    #[track_caller]
    pub fn write_raw(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap_or_else(|e| panic!("write {}: {e}", self.path.display()));
    }

    /// Renames the file and goes on in a new one under the old name, as logrotate's `create` does.
    #[track_caller]
    pub fn rotate(&mut self, to: &Path) {
        std::fs::rename(&self.path, to).expect("rename a log file");
        self.file = open(&self.path);
    }

    /// Copies the file, then empties it, as logrotate's `copytruncate` does.
    #[track_caller]
    pub fn copytruncate(&mut self, to: &Path) {
        self.copytruncate_around(to, |_| ());
    }

    /// The same, with something done between copy and truncation: what is written then is not in the copy.
    #[track_caller]
    pub fn copytruncate_around(&mut self, to: &Path, between: impl FnOnce(&mut Self)) {
        std::fs::copy(&self.path, to).expect("copy a log file");
        between(self);
        self.file.set_len(0).expect("truncate a log file");
    }

    /// What a reader of the topic should find of it: all lines up to now.
    pub fn expected(&self) -> Expected {
        let wanted = vec![WANTED; usize::try_from(self.next).expect("lines fit memory")];
        Expected { id: self.id.clone(), core_bytes: self.line_bytes - 1, tail: self.tail, wanted }
    }

    /// Goes on writing `per_second` lines in a thread until it is stopped.
    pub fn paced(self, per_second: u64) -> Paced {
        let file = Arc::new(Mutex::new(self));
        let stop = Arc::new(AtomicBool::new(false));
        let (writer, stopped) = (file.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (begun, mut done) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_micros() as u64 * per_second / 1_000_000;
                lock(&writer).write(due - done);
                done = due;
                std::thread::sleep(PACE);
            }
        });
        Paced { file, stop, thread: Some(thread) }
    }
}

fn open(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Appends the line without head and newline: `length` bytes.
fn push_core(buffer: &mut Vec<u8>, id: &str, seq: u64, length: usize) {
    let begin = buffer.len();
    buffer.extend_from_slice(id.as_bytes());
    write!(buffer, " {seq:08} ").expect("memory takes every write");
    let used = buffer.len() - begin;
    buffer.extend_from_slice(payload(seq, length - used));
}

/// The payload of line `seq`: a window on the repeated alphabet.
fn payload(seq: u64, length: usize) -> &'static [u8] {
    static REPEATED: [u8; ALPHABET.len() + CORE_BYTES_MAX] = {
        let mut bytes = [0; ALPHABET.len() + CORE_BYTES_MAX];
        let mut i = 0;
        while i < bytes.len() {
            bytes[i] = ALPHABET[i % ALPHABET.len()];
            i += 1;
        }
        bytes
    };
    let begin = (seq.wrapping_mul(7) % ALPHABET.len() as u64) as usize;
    &REPEATED[begin..begin + length]
}

/// A file that a thread writes steadily.
#[derive(Debug)]
pub struct Paced {
    file: Arc<Mutex<LineFile>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Paced {
    /// Does something to the file between two writes: a rotation, for instance.
    pub fn with<T>(&self, act: impl FnOnce(&mut LineFile) -> T) -> T {
        act(&mut lock(&self.file))
    }

    /// Lines written up to now.
    pub fn written(&self) -> u64 {
        lock(&self.file).written()
    }

    /// Stops writing and returns what should be found.
    #[track_caller]
    pub fn stop(mut self) -> Expected {
        self.join().expect("the writer did not panic");
        lock(&self.file).expected()
    }

    fn join(&mut self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        // A writer that panicked has said so itself.
        let _ = self.join();
    }
}

const UNWANTED: u8 = 0;
const WANTED: u8 = 1;
const SEEN: u8 = 2;

/// The lines of one file that should be found.
#[derive(Clone, Debug)]
pub struct Expected {
    id: String,
    core_bytes: usize,
    tail: &'static str,
    wanted: Vec<u8>,
}

impl Expected {
    /// Leaves out lines that should not be found: what a filter drops, what was there before.
    pub fn only(mut self, keep: impl Fn(u64) -> bool) -> Self {
        for (seq, state) in (0..).zip(&mut self.wanted) {
            if !keep(seq) {
                *state = UNWANTED;
            }
        }
        self
    }

    /// Expects this behind each line: a sender that puts quotes around it, for instance.
    pub fn with_tail(self, tail: &'static str) -> Self {
        Self { tail, ..self }
    }

    /// How many lines.
    pub fn lines(&self) -> u64 {
        self.wanted.iter().filter(|state| **state == WANTED).count() as u64
    }
}

/// Counts what is found against what is expected.
#[derive(Debug)]
pub struct Tally {
    files: Vec<FileTally>,
    by_id: HashMap<String, usize>,
    core_bytes: usize,
    tail: &'static str,
    missing: u64,
    strangers: u64,
    example: Option<String>,
}

#[derive(Debug)]
struct FileTally {
    id: String,
    lines: Vec<u8>,
    found: FileVerdict,
    /// The highest sequence found on each partition.
    highest: Vec<Option<u64>>,
}

/// A line that the tally knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Which file, in the order in which they were expected.
    pub file: usize,
    /// Its number.
    pub seq: u64,
    /// What stands before it.
    pub head: &'a [u8],
    /// Whether it was found before.
    pub again: bool,
}

impl Tally {
    /// Expects the lines of some files, all of one length.
    #[track_caller]
    pub fn of(expected: &[Expected]) -> Self {
        let core_bytes = expected.first().map_or(0, |file| file.core_bytes);
        let tail = expected.first().map_or("", |file| file.tail);
        let alike = |file: &Expected| file.core_bytes == core_bytes && file.tail == tail;
        assert!(expected.iter().all(alike), "lines of one length and tail");
        let missing = expected.iter().map(Expected::lines).sum();
        let files = expected.iter().map(|file| FileTally {
            id: file.id.clone(),
            lines: file.wanted.clone(),
            found: FileVerdict { expected: file.lines(), ..FileVerdict::default() },
            highest: Vec::new(),
        });
        let by_id = expected.iter().enumerate().map(|(file, expected)| (expected.id.clone(), file));
        Self {
            files: files.collect(),
            by_id: by_id.collect(),
            core_bytes,
            tail,
            missing,
            strangers: 0,
            example: None,
        }
    }

    /// Expected lines that were not found yet.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Records up to now whose line was found before.
    pub fn repeated(&self) -> u64 {
        self.files.iter().map(|file| file.found.repeated).sum()
    }

    /// File `file` was written on: its lines below `count` are expected too.
    pub fn expect_below(&mut self, file: usize, count: u64) {
        let file = &mut self.files[file];
        let count = usize::try_from(count).expect("lines fit memory");
        let more = count.saturating_sub(file.lines.len());
        file.lines.resize(file.lines.len() + more, WANTED);
        file.found.expected += more as u64;
        self.missing += more as u64;
    }

    /// Whether no line of file `file` below `count` is missing.
    pub fn has_all_below(&self, file: usize, count: u64) -> bool {
        let count = usize::try_from(count).expect("lines fit memory");
        self.files[file].lines.get(..count).is_some_and(|lines| !lines.contains(&WANTED))
    }

    /// Lines of file `file` that were not found up to now are not expected any more; how many they are.
    pub fn excuse(&mut self, file: usize, lines: std::ops::Range<u64>) -> u64 {
        let file = &mut self.files[file];
        let lines = usize::try_from(lines.start).expect("fits")..usize::try_from(lines.end).expect("fits");
        let mut excused = 0;
        for state in file.lines[lines].iter_mut().filter(|state| **state == WANTED) {
            *state = UNWANTED;
            excused += 1;
        }
        file.found.expected -= excused;
        self.missing -= excused;
        excused
    }

    /// Counts a record; `None` where it is no line of these files.
    pub fn see<'a>(&mut self, partition: i32, value: &'a [u8]) -> Option<Found<'a>> {
        let found = self.find(value);
        let Some((file, seq, whole)) = found else {
            self.strangers += 1;
            self.example.get_or_insert_with(|| String::from_utf8_lossy(value).chars().take(200).collect());
            return None;
        };
        let tally = &mut self.files[file];
        tally.found.seen += 1;
        tally.found.damaged += u64::from(!whole);
        let again = tally.see(partition, seq, &mut self.missing);
        Some(Found { file, seq, head: &value[..value.len() - self.tail.len() - self.core_bytes], again })
    }

    /// Which file and line it is, and whether it is as it was written.
    fn find(&self, value: &[u8]) -> Option<(usize, u64, bool)> {
        let value = value.strip_suffix(self.tail.as_bytes())?;
        let core = &value[value.len().checked_sub(self.core_bytes)?..];
        let id = std::str::from_utf8(&core[..core.iter().position(|byte| *byte == b' ')?]).ok()?;
        let file = *self.by_id.get(id)?;
        let rest = &core[id.len() + 1..];
        let (digits, rest) = rest.split_at_checked(8)?;
        let seq = std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?;
        let body = rest.strip_prefix(b" ")?;
        Some((file, seq, body == payload(seq, body.len())))
    }

    /// What became of the lines.
    pub fn verdict(&self) -> Verdict {
        let files = self.files.iter().map(|file| {
            let lost = (0..).zip(&file.lines).filter(|(_, state)| **state == WANTED).map(|(seq, _)| seq);
            let lost: Vec<u64> = lost.collect();
            let verdict =
                FileVerdict { lost: lost.len() as u64, first_lost: runs(&lost), ..file.found.clone() };
            (file.id.clone(), verdict)
        });
        Verdict { files: files.collect(), strangers: self.strangers, example: self.example.clone() }
    }
}

impl FileTally {
    /// Counts line `seq`; whether it was found before.
    fn see(&mut self, partition: i32, seq: u64, missing: &mut u64) -> bool {
        let state = usize::try_from(seq).ok().and_then(|seq| self.lines.get_mut(seq));
        match state {
            Some(state) if *state == SEEN => {
                self.found.repeated += 1;
                return true;
            }
            Some(state) if *state == WANTED => {
                *state = SEEN;
                *missing -= 1;
            }
            _ => self.found.unwanted += 1,
        }
        let partition = usize::try_from(partition).expect("partitions count from 0");
        if self.highest.len() <= partition {
            self.highest.resize(partition + 1, None);
        }
        let highest = &mut self.highest[partition];
        if let Some(highest) = highest.filter(|highest| seq < *highest) {
            if self.found.reordered == 0 {
                self.found.first_reordered = format!("{seq} behind {highest}");
            }
            self.found.reordered += 1;
        }
        *highest = (*highest).max(Some(seq));
        false
    }
}

/// The first few runs of consecutive numbers, for people: `17, 400-420`.
fn runs(numbers: &[u64]) -> String {
    let mut runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        _ => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    let first: Vec<_> = runs.by_ref().take(5).collect();
    let more = if runs.next().is_some() { ", …" } else { "" };
    first.join(", ") + more
}

/// What became of the lines of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileVerdict {
    /// Lines that should be found.
    pub expected: u64,
    /// Records that are lines of the file.
    pub seen: u64,
    /// Lines that were not found.
    pub lost: u64,
    /// Records whose line was found before.
    pub repeated: u64,
    /// Lines first found behind a later one on the same partition.
    pub reordered: u64,
    /// Lines that should not be found.
    pub unwanted: u64,
    /// Records with the wrong bytes in them.
    pub damaged: u64,
    /// Which are lost: the first few.
    pub first_lost: String,
    /// The first line that was reordered, and the highest before it.
    pub first_reordered: String,
}

/// What became of all lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// By id, in the order in which they were expected.
    pub files: Vec<(String, FileVerdict)>,
    /// Records that are no line of any of the files.
    pub strangers: u64,
    /// The first of them.
    pub example: Option<String>,
}

impl Verdict {
    /// Lines that were not found, of all files.
    pub fn lost(&self) -> u64 {
        self.files.iter().map(|(_, file)| file.lost).sum()
    }

    /// Records whose line was found before, of all files.
    pub fn repeated(&self) -> u64 {
        self.files.iter().map(|(_, file)| file.repeated).sum()
    }

    /// Lines first found behind a later one of their file, of all files.
    pub fn reordered(&self) -> u64 {
        self.files.iter().map(|(_, file)| file.reordered).sum()
    }

    /// Lines that should be found, of all files.
    pub fn expected(&self) -> u64 {
        self.files.iter().map(|(_, file)| file.expected).sum()
    }

    /// Records that nobody wrote so: damaged, not wanted, or no line of these files.
    pub fn foreign(&self) -> u64 {
        let of_files = self.files.iter().map(|(_, file)| file.unwanted + file.damaged);
        self.strangers + of_files.sum::<u64>()
    }

    /// Every line once, in order, as it was written, and nothing else.
    #[track_caller]
    pub fn assert_exact(&self) {
        self.assert_at_least_once();
        assert!(self.repeated() == 0, "lines were repeated\n{self}");
    }

    /// Every line, in order, as it was written, and nothing else; repeats are allowed.
    #[track_caller]
    pub fn assert_at_least_once(&self) {
        let any = |count: fn(&FileVerdict) -> u64| self.files.iter().any(|(_, file)| count(file) > 0);
        assert!(self.lost() == 0, "lines were lost\n{self}");
        assert!(!any(|file| file.damaged), "lines were damaged\n{self}");
        assert!(!any(|file| file.reordered), "lines were reordered\n{self}");
        assert!(!any(|file| file.unwanted), "lines came that should not\n{self}");
        assert!(self.strangers == 0, "records came that are no lines of these files\n{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, file) in &self.files {
            let FileVerdict { expected, seen, lost, repeated, reordered, unwanted, damaged, .. } = file;
            write!(f, "{id}: expected {expected}, seen {seen}, lost {lost}")?;
            if *lost > 0 {
                write!(f, " ({})", file.first_lost)?;
            }
            write!(f, ", repeated {repeated}, reordered {reordered}")?;
            if *reordered > 0 {
                write!(f, " ({})", file.first_reordered)?;
            }
            writeln!(f, ", unwanted {unwanted}, damaged {damaged}")?;
        }
        match &self.example {
            Some(example) => writeln!(f, "strangers: {}, the first of them {example:?}", self.strangers),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(seq: u64) -> Vec<u8> {
        let mut line = Vec::new();
        push_core(&mut line, "app", seq, 49);
        line
    }

    fn tally(lines: u64) -> Tally {
        Tally::of(&[Expected {
            id: "app".into(),
            core_bytes: 49,
            tail: "",
            wanted: vec![WANTED; lines as usize],
        }])
    }

    fn verdict_of(seqs: &[u64], lines: u64) -> FileVerdict {
        let mut tally = tally(lines);
        for seq in seqs {
            tally.see(0, &core(*seq));
        }
        tally.verdict().files.remove(0).1
    }

    #[test]
    fn a_file_holds_what_its_tally_expects() {
        let dir = crate::scratch::dir("lines");
        let mut file = LineFile::create(dir.path().join("a.log"), "app", 50).with_head(|seq| match seq {
            1 => "DEBUG ",
            _ => "",
        });
        file.write(3);
        let text = std::fs::read(file.path()).unwrap();
        assert_eq!(text.len(), 3 * 50 + "DEBUG ".len());
        let mut tally = Tally::of(&[file.expected()]);
        let heads: Vec<_> = text.lines_of().map(|line| tally.see(0, line).unwrap().head.to_vec()).collect();
        assert_eq!(heads, [&b""[..], b"DEBUG ", b""]);
        tally.verdict().assert_exact();
    }

    #[test]
    fn a_tail_is_expected_where_the_lines_have_it() {
        let dir = crate::scratch::dir("lines");
        let mut file =
            LineFile::create(dir.path().join("a.log"), "app", 50).with_head(|_| "{").with_tail("}");
        file.write(1);
        let text = std::fs::read(file.path()).unwrap();
        let mut tally = Tally::of(&[file.expected()]);
        assert_eq!(tally.see(0, &text[..text.len() - 2]), None, "the tail is missing");
        assert_eq!(tally.see(0, &text[..text.len() - 1]).unwrap().head, b"{");
        let verdict = tally.verdict();
        assert_eq!((verdict.lost(), verdict.strangers), (0, 1));
    }

    trait LinesOf {
        fn lines_of(&self) -> impl Iterator<Item = &[u8]>;
    }

    impl LinesOf for Vec<u8> {
        fn lines_of(&self) -> impl Iterator<Item = &[u8]> {
            self.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        }
    }

    #[test]
    fn lost_lines_are_counted_and_named() {
        let verdict = verdict_of(&[0, 2, 5], 7);
        assert_eq!((verdict.lost, verdict.first_lost.as_str()), (4, "1, 3-4, 6"));
    }

    #[test]
    fn a_repeated_run_is_repeated_and_not_reordered() {
        let verdict = verdict_of(&[0, 1, 2, 1, 2, 3], 4);
        assert_eq!((verdict.lost, verdict.repeated, verdict.reordered), (0, 2, 0));
    }

    #[test]
    fn two_lines_that_changed_places_are_one_reordered() {
        let verdict = verdict_of(&[0, 2, 1, 3], 4);
        assert_eq!((verdict.lost, verdict.repeated, verdict.reordered), (0, 0, 1));
    }

    #[test]
    fn order_holds_for_each_partition_alone() {
        let mut tally = tally(3);
        for (partition, seq) in [(0, 0), (1, 2), (0, 1)] {
            tally.see(partition, &core(seq));
        }
        tally.verdict().assert_exact();
    }

    #[test]
    fn a_changed_byte_and_a_strange_record_are_noticed() {
        let mut tally = tally(1);
        let mut line = core(0);
        line[30] ^= 1;
        assert!(tally.see(0, &line).is_some());
        assert!(tally.see(0, b"something else").is_none());
        let verdict = tally.verdict();
        assert_eq!((verdict.files[0].1.damaged, verdict.strangers), (1, 1));
        assert!(std::panic::catch_unwind(|| verdict.assert_exact()).is_err());
    }

    #[test]
    fn a_file_that_is_written_on_has_more_to_be_found() {
        let mut tally = tally(2);
        for seq in [0, 1, 2] {
            tally.see(0, &core(seq));
        }
        assert_eq!((tally.missing(), tally.has_all_below(0, 2)), (0, true));
        tally.expect_below(0, 4);
        assert_eq!((tally.missing(), tally.has_all_below(0, 2), tally.has_all_below(0, 3)), (2, true, false));
        let verdict = tally.verdict();
        assert_eq!((verdict.expected(), verdict.lost(), verdict.foreign()), (4, 2, 1));
    }

    #[test]
    fn an_unwanted_line_is_noticed() {
        let expected = Expected { id: "app".into(), core_bytes: 49, tail: "", wanted: vec![WANTED; 4] };
        let mut tally = Tally::of(&[expected.only(|seq| seq % 2 == 0)]);
        for seq in [0, 1, 2] {
            tally.see(0, &core(seq));
        }
        assert_eq!(tally.missing(), 0);
        assert_eq!(tally.verdict().files[0].1.unwanted, 1);
    }
}
