//! The room as a whole, with real files. Time is what the tests say it is: nobody sleeps.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};

use super::*;
use crate::policy::Rules as PolicyRules;

mod copies;
mod model;
mod packed;
mod records;

const LIMITS: HeldLimits = HeldLimits { age: Duration::from_secs(3600), bytes: 1 << 30 };

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A directory of logs, the source that follows it, and the clock of both.
struct Place {
    dir: tempfile::TempDir,
    entry: Entry,
    policy: Arc<Policy>,
    limits: HeldLimits,
    checkpoints: Arc<Checkpoints>,
    source: Source,
    now: Instant,
    /// Bytes asked for at once.
    want: usize,
    next_id: u64,
    /// Chunks that were read and not finished.
    under_way: Vec<(u64, u64)>,
    read: Vec<Read>,
    _state: Option<tempfile::TempDir>,
}

/// A line that was read.
#[derive(Clone, Debug, PartialEq)]
struct Read {
    text: String,
    origin: PathBuf,
    chunk: u64,
}

impl Place {
    /// Follows `pattern` from the beginning.
    fn new(pattern: &str) -> Self {
        Self::with(pattern, |_| ())
    }

    fn with(pattern: &str, change: impl FnOnce(&mut Entry)) -> Self {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let checkpoints = Arc::new(Checkpoints::open(state.path()));
        Self { _state: Some(state), ..Self::at(dir, pattern, checkpoints, "entry", change) }
    }

    /// In a directory and with offsets that are there already.
    fn at(
        dir: tempfile::TempDir,
        pattern: &str,
        checkpoints: Arc<Checkpoints>,
        name: &str,
        change: impl FnOnce(&mut Entry),
    ) -> Self {
        let mut entry =
            Entry { line_bytes_max: 1000, ..Entry::plain(name, dir.path().join(pattern), "topic") };
        change(&mut entry);
        let policy = Arc::new(Policy::unbounded());
        let source = Source::new(&entry, policy.clone(), checkpoints.clone(), LIMITS).unwrap();
        Self {
            dir,
            entry,
            policy,
            limits: LIMITS,
            checkpoints,
            source,
            now: Instant::now() + seconds(1),
            want: 64 * 1024,
            next_id: 0,
            under_way: Vec::new(),
            read: Vec::new(),
            _state: None,
        }
    }

    /// The agent is killed and started again: what was not finished is forgotten.
    fn restart(&mut self) {
        self.under_way.clear();
        self.source =
            Source::new(&self.entry, self.policy.clone(), self.checkpoints.clone(), self.limits).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) -> File {
        let mut file = OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(text.as_ref()).unwrap();
        file
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Time goes by with nobody reading.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(300);
            self.source.tick(self.now);
        }
    }

    /// One read; returns whether it found a chunk.
    fn read_chunk(&mut self, lines_max: usize) -> bool {
        let (mut buffer, mut lines) = (Vec::new(), Lines::default());
        let want = self.want.max(self.source.need().unwrap_or(0));
        let Some(piece) = self.source.read(want, lines_max, &mut buffer, &mut lines, self.now) else {
            return self.source.need().is_some();
        };
        self.next_id += 1;
        self.source.take(&piece, self.next_id, &buffer, &lines, true);
        self.under_way.push((piece.incarnation, self.next_id));
        for (start, end) in lines.starts.iter().zip(&lines.ends) {
            let text = String::from_utf8_lossy(&buffer[*start as usize..*end as usize]).into();
            self.read.push(Read { text, origin: piece.origin.to_path_buf(), chunk: self.next_id });
        }
        true
    }

    /// Looks at all names and files once, and reads all there is.
    fn read_all(&mut self) {
        self.source.hint([], true, self.now);
        for _ in 0..3 {
            self.now += Duration::from_millis(300);
            self.source.tick(self.now);
            for _ in 0..100_000 {
                if !self.read_chunk(usize::MAX) {
                    break;
                }
            }
        }
    }

    fn finish_all(&mut self) {
        for (incarnation, id) in std::mem::take(&mut self.under_way) {
            self.source.finished(incarnation, id);
        }
    }

    /// What is new, read but not finished.
    fn unfinished_lines(&mut self) -> Vec<String> {
        self.read_all();
        std::mem::take(&mut self.read).into_iter().map(|read| read.text).collect()
    }

    /// What is new, read and finished.
    fn lines(&mut self) -> Vec<String> {
        let lines = self.unfinished_lines();
        self.finish_all();
        lines
    }

    /// What is new in the next `time`.
    fn lines_within(&mut self, time: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        let end = self.now + time;
        while self.now < end {
            lines.extend(self.lines());
        }
        lines
    }

    fn open_files(&self) -> usize {
        self.source.tails.values().filter(|tail| tail.is_open()).count()
    }

    fn records(&self) -> usize {
        self.checkpoints.load(&self.entry.name).records.len()
    }

    fn lost(&mut self) -> Vec<(&'static str, u64)> {
        self.source.take_lost().into_iter().collect()
    }
}

fn numbered(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("line {n:04}")).collect()
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn rotated_files_that_are_there_at_the_start_are_read_first_the_oldest_before_the_others() {
    let mut place = Place::new("a.log*");
    place.want = 100;
    let generations = [("a.log-20261101", 0), ("a.log.2", 20), ("a.log.1", 40), ("a.log", 60)];
    for (name, from) in generations {
        let file = place.append(name, text(&numbered(from, from + 20)));
        file.set_modified(UNIX_EPOCH + seconds(1000 + from as u64)).unwrap();
    }
    place.read_all();
    assert_eq!(place.read.iter().map(|read| read.text.clone()).collect::<Vec<_>>(), numbered(0, 80));
    assert!(place.read.iter().all(|read| read.origin == place.path("a.log")));
}

#[test]
fn a_file_that_is_written_anew_and_ends_in_the_same_hole_is_another_content() {
    let mut place = Place::new("a.log");
    place.append("a.log", [0; 98]);
    assert_eq!(place.lines(), [""; 0]);
    let line = numbered(0, 1);
    let text = text(&line);
    File::create(place.path("a.log")).unwrap();
    place.append("a.log", [text.as_bytes(), &vec![0; 98 - text.len()]].concat());
    assert_eq!(place.lines(), line);
}

#[test]
fn appended_lines_arrive_once_and_in_order() {
    let mut place = Place::new("a.log");
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    place.append("a.log", "two\nthree\n");
    assert_eq!(place.lines(), ["two", "three"]);
    assert_eq!(place.lines_within(seconds(100)), [""; 0]);
    place.append("a.log", "after a pause\n");
    assert_eq!(place.lines(), ["after a pause"]);
}

#[test]
fn a_hint_is_enough_to_read_what_is_new() {
    let mut place = Place::new("a.log");
    place.append("a.log", "one\n");
    place.lines();
    for wait in [0, 100] {
        place.wait(seconds(wait));
        place.append("a.log", "two\n");
        place.source.hint([place.path("a.log")], false, place.now);
        assert!(place.source.next_read().is_some_and(|read| read <= place.now + READ_SOON));
        place.now += READ_SOON;
        assert!(place.read_chunk(10));
    }
}

const READ_SOON: Duration = Duration::from_millis(5);

#[test]
fn a_file_that_appears_later_is_read_from_its_beginning() {
    let mut place = Place::with("*.log", |entry| entry.start_at = StartAt::End);
    place.append("old.log", "skipped\n");
    assert_eq!(place.lines(), [""; 0]);
    place.append("new.log", "one\ntwo\n");
    assert_eq!(place.lines(), ["one", "two"]);
}

#[test]
fn a_directory_that_appears_is_watched_and_looked_into_again() {
    let mut place = Place::new("*/a.log");
    place.read_all();
    fs::create_dir(place.path("x")).unwrap();
    place.source.hint([place.path("x")], true, place.now);
    place.now += seconds(1);
    let dirs = place.source.tick(place.now).unwrap();
    assert!(dirs.contains(&place.path("x")));
    // The pipeline says so when one of them is new.
    place.source.hint([], true, place.now);
    assert!(place.source.next_look() <= place.now + seconds(1), "soon, not with the next rescan");
}

#[test]
fn a_renamed_file_is_read_to_its_end_and_then_the_new_one() {
    for glob in [false, true] {
        let mut place = Place::new(if glob { "a.log*" } else { "a.log" });
        place.want = 64;
        place.append("a.log", text(&numbered(0, 100)));
        place.read_all();
        place.append("a.log", text(&numbered(100, 200)));
        place.rename("a.log", "a.log.1");
        place.append("a.log", text(&numbered(200, 300)));
        place.read_all();
        let origin = place.path("a.log");
        assert!(place.read.iter().all(|read| read.origin == origin), "one origin, so one partition");
        assert_eq!(place.lines(), numbered(0, 300));
    }
}

#[test]
fn files_renamed_while_the_agent_is_down_are_finished_first() {
    for glob in [false, true] {
        let mut place = Place::new(if glob { "a.log*" } else { "a.log" });
        place.want = 64;
        place.append("a.log", text(&numbered(0, 50)));
        assert_eq!(place.lines(), numbered(0, 50));
        place.append("a.log", text(&numbered(50, 60)));
        place.unfinished_lines();
        place.rename("a.log", "a.log.1");
        place.append("a.log", text(&numbered(60, 70)));
        place.append("unrelated", "x\n");
        place.restart();
        assert_eq!(place.unfinished_lines(), numbered(50, 70));
        // Once more, now that both are known.
        place.append("a.log", text(&numbered(70, 80)));
        place.restart();
        assert_eq!(place.unfinished_lines(), numbered(50, 80));
        place.rename("a.log.1", "a.log.2");
        place.rename("a.log", "a.log.1");
        place.append("a.log", text(&numbered(80, 90)));
        place.restart();
        assert_eq!(place.lines(), numbered(50, 90));
        place.restart();
        assert_eq!(place.lines(), [""; 0]);
    }
}

#[test]
fn a_new_file_that_is_renamed_before_anything_is_acknowledged_survives_a_crash() {
    let mut place = Place::new("a.log");
    assert_eq!(place.lines(), [""; 0]);
    place.append("a.log", "one\n");
    assert_eq!(place.unfinished_lines(), ["one"]);
    place.rename("a.log", "a.log.1");
    place.append("a.log", "two\n");
    place.restart();
    assert_eq!(place.lines(), ["one", "two"]);
}

#[test]
fn what_is_written_to_a_renamed_file_is_read_however_idle_it_was() {
    let mut place = Place::new("a.log");
    let mut writer = place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    place.wait(seconds(70));
    assert_eq!(place.open_files(), 0);
    place.rename("a.log", "a.log.1");
    place.append("a.log", "new\n");
    assert_eq!(place.lines(), ["new"]);
    writer.write_all(b"late\n").unwrap();
    assert_eq!(place.lines(), ["late"]);
    // A writer that was never told of the rotation.
    place.wait(seconds(600));
    assert_eq!(place.open_files(), 0);
    place.rename("a.log.1", "a.log.2");
    writer.write_all(b"very late\n").unwrap();
    assert_eq!(place.lines(), ["very late"]);
    place.wait(FORGOTTEN_AFTER + seconds(20));
    assert_eq!((place.source.tails.values().count(), place.records()), (1, 1), "it is forgotten");
}

#[test]
fn a_file_renamed_twice_before_it_is_read_is_read() {
    let mut place = Place::new("a.log");
    place.append("a.log", "one\n");
    place.source.tick(place.now);
    place.append("a.log", "two\n");
    for n in (1..4).rev() {
        if place.path(&format!("a.log.{n}")).exists() {
            place.rename(&format!("a.log.{n}"), &format!("a.log.{}", n + 1));
        }
    }
    place.rename("a.log", "a.log.1");
    place.source.hint([], true, place.now);
    place.wait(seconds(1));
    place.rename("a.log.1", "a.log.2");
    place.append("a.log", "three\n");
    assert_eq!(place.lines(), ["one", "two", "three"]);
}

#[test]
fn a_renamed_file_with_unread_lines_survives_its_deletion() {
    let mut place = Place::new("a.log");
    place.append("a.log", "one\n");
    place.source.tick(place.now);
    place.rename("a.log", "a.log.1");
    place.wait(seconds(2));
    fs::remove_file(place.path("a.log.1")).unwrap();
    assert_eq!(place.lines(), ["one"]);
}

#[test]
fn a_file_renamed_to_a_name_the_glob_covers_is_not_read_again() {
    let mut place = Place::new("*.log");
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    place.rename("a.log", "b.log");
    place.append("b.log", "two\n");
    assert_eq!(place.lines(), ["two"]);
    assert_eq!(place.source.standing().files, 1);
}

#[test]
fn a_truncated_file_begins_again() {
    let mut place = Place::new("a.log");
    let file = place.append("a.log", "one\ntwo\n");
    assert_eq!(place.lines(), ["one", "two"]);
    file.set_len(0).unwrap();
    assert_eq!(place.lines(), [""; 0]);
    place.append("a.log", "three\n");
    assert_eq!(place.lines(), ["three"]);
    assert_eq!(place.lost(), []);
    assert_eq!((place.source.standing().files, place.records()), (1, 1));
    assert_eq!(place.source.take_rewinds(), [("truncated", 1)].into());
}

#[test]
fn bytes_that_a_truncation_took_unread_are_counted() {
    let mut place = Place::new("a.log");
    let file = place.append("a.log", "one\n");
    place.lines();
    place.append("a.log", "gone before it was read\n");
    place.wait(seconds(1));
    file.set_len(0).unwrap();
    place.append("a.log", "two\n");
    assert_eq!(place.lines(), ["two"]);
    assert_eq!(place.lost(), [("truncated", 24)]);
}

#[test]
fn a_file_truncated_and_written_beyond_the_old_place_begins_again() {
    for restart in [false, true] {
        let mut place = Place::new("a.log");
        let file = place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        file.set_len(0).unwrap();
        place.append("a.log", text(&numbered(10, 30)));
        if restart {
            place.restart();
        }
        assert_eq!(place.lines(), numbered(10, 30));
        place.restart();
        assert_eq!(place.lines(), [""; 0]);
    }
}

#[test]
fn a_file_rewritten_with_as_many_bytes_begins_again() {
    for (pause, restart) in [(0, false), (100, false), (0, true)] {
        let mut place = Place::new("a.log");
        let file = place.append("a.log", "one\n");
        assert_eq!(place.lines(), ["one"]);
        place.wait(seconds(pause));
        file.set_len(0).unwrap();
        place.append("a.log", "two\n");
        // The kernel's clock for files may tick only every few milliseconds.
        file.set_modified(SystemTime::now() + seconds(1)).unwrap();
        if restart {
            place.restart();
        }
        assert_eq!(place.lines(), ["two"]);
        place.restart();
        place.read_all();
        assert_eq!((place.lines(), place.open_files()), (vec![], 0), "as it was left");
    }
}

#[test]
fn a_rewrite_that_was_seen_and_not_looked_into_is_one_after_a_crash() {
    let mut place = Place::new("a.log");
    let file = place.append("a.log", "one\n");
    assert_eq!(place.unfinished_lines(), ["one"]);
    file.set_len(0).unwrap();
    place.append("a.log", "two\n");
    file.set_modified(SystemTime::now() + seconds(1)).unwrap();
    place.wait(seconds(1));
    place.finish_all();
    place.restart();
    assert_eq!(place.lines(), ["two"]);
}

#[test]
fn a_truncated_content_still_under_way_does_not_touch_the_new_one() {
    let mut place = Place::new("a.log");
    let file = place.append("a.log", "one\ntwo\n");
    place.unfinished_lines();
    file.set_len(0).unwrap();
    place.append("a.log", "a\nb\n");
    assert_eq!(place.unfinished_lines(), ["a", "b"]);
    let (old, id) = place.under_way.remove(0);
    place.source.finished(old, id);
    place.restart();
    assert_eq!(place.lines(), ["a", "b"]);
}

#[test]
fn a_deleted_file_is_read_to_its_end_while_it_is_open() {
    let mut place = Place::new("a.log");
    let mut writer = place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    writer.write_all(b"two\n").unwrap();
    fs::remove_file(place.path("a.log")).unwrap();
    assert_eq!(place.lines(), ["two"]);
    writer.write_all(b"three\n").unwrap();
    assert_eq!(place.lines(), ["three"]);
    // Also when it is truncated meanwhile.
    writer.set_len(0).unwrap();
    writer.write_all_at(b"4\n", 0).unwrap();
    assert_eq!(place.lines(), ["4"]);
    place.wait(seconds(4));
    assert_eq!((place.open_files(), place.source.standing().files, place.records()), (0, 0, 0));
}

#[test]
fn a_deleted_file_that_was_closed_is_forgotten_and_what_is_missing_counted() {
    let mut place = Place::new("a.log");
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    place.wait(seconds(70));
    place.append("a.log", "unread\n");
    place.source.hint([place.path("a.log")], false, place.now);
    fs::remove_file(place.path("a.log")).unwrap();
    assert_eq!(place.lines(), [""; 0]);
    assert_eq!(place.lost(), [("deleted", 7)]);
    assert_eq!((place.source.tails.values().count(), place.records()), (0, 0));
}

/// Files of a filesystem without birth times: an inode is given to the next file at once.
#[test]
fn without_birth_times_a_reused_inode_under_another_name_is_another_file() {
    let mut place = Place::new("*.log");
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    place.checkpoints.flush();
    let record = place.checkpoints.load(&place.entry.name).records.remove(0);
    // As if the deleted file had had the inode that the new one has.
    fs::remove_file(place.path("a.log")).unwrap();
    place.append("b.log", "two\n");
    let stat = Stat::at(&place.path("b.log")).unwrap();
    let id = FileId { birth: None, ..stat.id };
    let record = checkpoint::Record { id, ..record };
    let other = |name: &str| place.source.is_other(&record, &place.path(name));
    assert_eq!(other("b.log"), Some(true), "it has another name and begins otherwise");
    let born = checkpoint::Record { id: stat.id, ..record.clone() };
    assert_eq!(place.source.is_other(&born, &place.path("b.log")), Some(false));
    let unread = checkpoint::Record { head: Default::default(), ..record.clone() };
    assert_eq!(place.source.is_other(&unread, &place.path("b.log")), None);
    place.rename("b.log", "c.log");
    place.append("b.log", "one\nmore\n");
    assert_eq!(other("b.log"), Some(false), "it was renamed");
    let same_name = checkpoint::Record { path: place.path("c.log").into(), ..record.clone() };
    assert_eq!(place.source.is_other(&same_name, &place.path("c.log")), Some(false), "it was rewritten");
}

#[test]
fn without_birth_times_an_inode_that_is_reused_while_it_is_followed_is_another_file() {
    let mut place = Place::new("*.log");
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    let key = place.source.tails.values().next().unwrap().incarnation;
    fs::remove_file(place.path("a.log")).unwrap();
    place.append("b.log", "two\n");
    let mut stat = Stat::at(&place.path("b.log")).unwrap();
    stat.id.birth = None;
    // As if the deleted file had had this inode, on such a filesystem.
    place.source.tails.get_mut(&key).unwrap().id = stat.id;
    place.source.by_id = [(stat.id, key)].into();
    assert!(place.source.was_reused(key, &place.path("b.log")));
    assert!(!place.source.was_reused(key, &place.path("a.log")), "it was rewritten");
    place.source.still_there(key, &place.path("b.log"), &stat, place.now);
    let tails: Vec<_> = place.source.tails.values().collect();
    assert_eq!((tails.len(), tails[0].read_to()), (1, 0));
    assert_eq!(*tails[0].origin, place.path("b.log"), "which decides partition and order");
    // One that was renamed goes on.
    let key = tails[0].incarnation;
    place.rename("b.log", "c.log");
    place.source.still_there(key, &place.path("c.log"), &stat, place.now);
    assert!(place.source.tails.values().map(|tail| tail.incarnation).eq([key]));
}

#[test]
fn a_file_that_one_look_at_the_names_missed_is_not_taken_for_deleted() {
    let mut place = Place::new("**/*.log");
    fs::create_dir(place.path("tree")).unwrap();
    place.append("tree/a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    place.wait(seconds(70));
    // As if the directory were renamed while its parent is walked: it is seen under neither name.
    let hidden = tempfile::tempdir().unwrap();
    fs::rename(place.path("tree"), hidden.path().join("tree")).unwrap();
    fs::create_dir(place.path("tree")).unwrap();
    place.source.hint([], true, place.now);
    place.now += seconds(1);
    place.source.tick(place.now);
    fs::rename(hidden.path().join("tree"), place.path("moved")).unwrap();
    assert_eq!(place.lines(), [""; 0]);
    place.append("moved/a.log", "two\n");
    assert_eq!(place.lines(), ["two"]);
}

#[test]
fn where_directories_do_not_tell_a_name_is_found_a_few_looks_later() {
    let mut place = Place::new("*.log");
    place.append("a.log", "one\n");
    let deadline = Instant::now() + seconds(20);
    while place.source.found.is_none() {
        assert!(Instant::now() < deadline, "the walk was never kept");
        std::thread::sleep(Duration::from_millis(20));
        place.read_all();
    }
    assert_eq!(place.lines(), ["one"]);
    place.append("b.log", "two\n");
    place.source.found.as_mut().unwrap().redate();
    place.source.scans = WALK_EVERY;
    assert_eq!(place.lines(), [""; 0], "the walk was not spared");
    for _ in 0..WALK_EVERY {
        place.source.found.as_mut().into_iter().for_each(Found::redate);
        place.read_all();
    }
    assert_eq!(place.lines(), ["two"]);
}

#[test]
fn a_file_deleted_while_the_agent_is_down_is_counted() {
    let mut place = Place::new("a.log");
    place.append("a.log", "one\n");
    place.lines();
    place.append("a.log", "acknowledged!!\n");
    place.append("a.log", "more\n");
    place.want = 15;
    place.source.hint([], true, place.now);
    place.now += seconds(1);
    place.source.tick(place.now);
    assert!(place.read_chunk(1));
    place.finish_all();
    assert_eq!(place.read.remove(0).text, "acknowledged!!");
    fs::remove_file(place.path("a.log")).unwrap();
    place.restart();
    assert_eq!(place.lines(), [""; 0]);
    assert_eq!(place.lost(), [("deleted", 5)]);
    assert_eq!(place.records(), 0);
}

#[test]
fn deleted_files_are_held_only_up_to_the_limits() {
    let by_age = HeldLimits { age: seconds(10), ..LIMITS };
    let by_bytes = HeldLimits { bytes: 9, ..LIMITS };
    for limits in [by_age, by_bytes] {
        let mut place = Place::new("*.log");
        place.limits = limits;
        place.restart();
        for name in ["a.log", "b.log"] {
            place.append(name, "12345\n");
        }
        place.unfinished_lines();
        for name in ["a.log", "b.log"] {
            place.append(name, "unread\n");
            fs::remove_file(place.path(name)).unwrap();
        }
        place.source.hint([], true, place.now);
        place.wait(seconds(9));
        // Together they are too much, and the older goes; neither was old enough.
        let is_held = limits.bytes > 9;
        assert_eq!(place.open_files(), if is_held { 2 } else { 0 });
        assert_eq!(place.source.standing().held_bytes, if is_held { 26 } else { 0 });
        place.wait(seconds(5));
        assert_eq!(place.open_files(), 0);
        assert_eq!(place.lost(), [("held_limit", 14)]);
        place.finish_all();
        assert_eq!((place.source.tails.values().count(), place.records()), (0, 0));
    }
}

#[test]
fn a_renamed_file_waits_for_as_long_as_it_is_there() {
    let mut place = Place::new("a.log");
    place.limits = HeldLimits { age: seconds(10), bytes: 1 };
    place.restart();
    place.append("a.log", "one\n");
    place.unfinished_lines();
    place.append("a.log", "unread\n");
    place.rename("a.log", "a.log.1");
    place.wait(seconds(3 * 3600));
    assert_eq!(place.lines(), ["unread"]);
}

#[test]
fn a_last_line_without_newline_is_held_until_its_file_is_rotated_away() {
    for idle in [0, 100] {
        let mut place = Place::new("a.log");
        place.append("a.log", "whole\nunended");
        assert_eq!(place.lines(), ["whole"]);
        place.wait(seconds(idle));
        assert_eq!(place.source.standing().lag_bytes, 0, "what is held is not lag");
        place.rename("a.log", "a.log.1");
        place.append("a.log", "new\n");
        assert_eq!(place.lines(), ["new"]);
        assert_eq!(place.lines_within(seconds(5)), ["unended"]);
        assert_eq!(place.lines_within(seconds(100)), [""; 0]);
    }
}

#[test]
fn a_last_line_without_newline_of_a_deleted_file_is_sent() {
    let mut place = Place::new("a.log");
    place.append("a.log", "unended");
    place.lines();
    fs::remove_file(place.path("a.log")).unwrap();
    assert_eq!(place.lines_within(seconds(5)), ["unended"]);
    assert_eq!(place.open_files(), 0);
}

#[test]
fn an_unfinished_line_that_is_completed_later_arrives_once_and_whole() {
    for idle in [0, 100] {
        let mut place = Place::new("a.log");
        place.append("a.log", "wh");
        assert_eq!(place.lines(), [""; 0]);
        place.append("a.log", "ol");
        assert_eq!(place.lines_within(seconds(idle + 1)), [""; 0]);
        place.append("a.log", "e\nnext");
        let before = place.now;
        assert_eq!(place.unfinished_lines(), ["whole"]);
        assert!(
            place.source.standing().lag_since.is_some_and(|since| since >= before),
            "its lag begins with its end"
        );
        place.finish_all();
        place.restart();
        place.append("a.log", "\n");
        assert_eq!(place.lines(), ["next"]);
    }
}

#[test]
fn at_the_end_is_after_the_last_complete_line() {
    for before in [0, 10, 5000] {
        let mut place = Place::with("a.log", |entry| {
            entry.start_at = StartAt::End;
            entry.line_bytes_max = 100_000;
        });
        place.append("a.log", format!("{}part", text(&numbered(0, before))));
        assert_eq!(place.lines(), [""; 0]);
        place.append("a.log", "ial\nnext\n");
        place.restart();
        assert_eq!(place.unfinished_lines(), ["partial", "next"], "that place survives a crash");
    }
    let mut place = Place::with("a.log", |entry| {
        entry.start_at = StartAt::End;
        entry.line_bytes_max = 100_000;
    });
    let long = "x".repeat(40_000);
    place.append("a.log", format!("skipped\n{long}"));
    assert_eq!(place.lines(), [""; 0]);
    place.append("a.log", "\n");
    assert_eq!(place.lines(), [long]);
}

#[test]
fn at_the_end_holds_only_when_the_entry_is_new_or_its_path_changes() {
    let mut place = Place::with("a.log", |entry| entry.start_at = StartAt::End);
    place.append("a.log", "skipped\n");
    place.append("b.log", "skipped\n");
    assert_eq!(place.lines(), [""; 0]);
    place.append("a.log", "one\n");
    place.entry.path = place.path("*.log").display().to_string();
    place.restart();
    assert_eq!(place.lines(), ["one"]);
    place.append("b.log", "two\n");
    place.append("c.log", "three\n");
    place.restart();
    assert_eq!(place.lines(), ["two", "three"]);
    // A file that the entry does not want any more is left alone, though it has its name.
    place.append("b.log", "unwanted\n");
    place.entry.exclude = vec!["b.log".into()];
    place.restart();
    assert_eq!(place.lines_within(seconds(5)), [""; 0]);
}

#[test]
fn two_names_of_one_file_are_one_file() {
    let mut place = Place::new("*.log");
    place.append("a.log", "one\n");
    fs::hard_link(place.path("a.log"), place.path("b.log")).unwrap();
    symlink(place.path("a.log"), place.path("0.log")).unwrap();
    assert_eq!(place.lines(), ["one"]);
    place.append("b.log", "two\n");
    assert_eq!(place.lines(), ["two"]);
    fs::remove_file(place.path("0.log")).unwrap();
    fs::remove_file(place.path("a.log")).unwrap();
    place.append("b.log", "three\n");
    assert_eq!(place.lines(), ["three"]);
    assert_eq!(place.source.standing().files, 1);
}

#[test]
fn a_link_that_leads_to_another_file_now_is_followed_there() {
    let mut place = Place::new("current");
    let mut old = place.append("1.log", "one\n");
    symlink("1.log", place.path("current")).unwrap();
    assert_eq!(place.lines(), ["one"]);
    old.write_all(b"two\n").unwrap();
    place.append("2.log", "three\n");
    symlink("2.log", place.path("next")).unwrap();
    place.rename("next", "current");
    assert_eq!(place.lines(), ["two", "three"]);
}

#[test]
fn a_file_renamed_behind_a_link_is_found() {
    for restart in [false, true] {
        let mut place = Place::new("link.log");
        fs::create_dir(place.path("pod")).unwrap();
        place.append("pod/0.log", "one\n");
        symlink("pod/0.log", place.path("link.log")).unwrap();
        assert_eq!(place.lines(), ["one"]);
        place.wait(seconds(70));
        place.append("pod/0.log", "two\n");
        place.rename("pod/0.log", "pod/0.log.1");
        place.append("pod/0.log", "three\n");
        if restart {
            place.restart();
        }
        assert_eq!(place.lines(), ["two", "three"]);
    }
}

#[test]
fn what_is_written_behind_a_link_is_noticed_without_a_look_at_all_names() {
    for pattern in ["link.log", "*.log"] {
        let mut place = Place::new(pattern);
        fs::create_dir(place.path("elsewhere")).unwrap();
        place.append("elsewhere/real", "one\n");
        symlink("elsewhere/real", place.path("link.log")).unwrap();
        let dirs = place.source.tick(place.now).unwrap();
        let (sender, woken) = std::sync::mpsc::channel();
        let mut subscription = watch::Watcher::start().subscribe(move || sender.send(()).unwrap_or_default());
        subscription.watch(dirs);
        assert_eq!(place.lines(), ["one"]);
        // It is closed, and nobody looks at it but once in a while.
        place.wait(seconds(70));
        assert_eq!(place.open_files(), 0);
        while subscription.take().is_some() {}
        place.append("elsewhere/real", "two\n");
        let (deadline, is_found) = (Instant::now() + seconds(10), |place: &Place| {
            place.source.next_read().is_some_and(|read| read <= place.now + READ_SOON)
        });
        while !is_found(&place) {
            match subscription.take() {
                Some(hints) => place.source.hint(hints.paths, hints.names_changed, place.now),
                None => woken.recv_timeout(deadline - Instant::now()).expect("a hint about it"),
            }
        }
        place.now += READ_SOON;
        assert!(place.read_chunk(10));
        assert_eq!(place.read.pop().unwrap().text, "two");
    }
}

#[test]
fn a_long_line_is_read_whole_however_little_is_asked_for() {
    let mut place = Place::new("*.log");
    place.want = 16;
    let long = "x".repeat(999);
    place.append("a.log", format!("{long}\nshort\n"));
    place.append("b.log", text(&numbered(0, 100)));
    let mut lines = place.lines();
    // The other file has more to read all the time, and does not keep it from its turn.
    assert!(lines.iter().position(|line| *line == long).is_some_and(|at| at < 3), "{lines:?}");
    lines.retain(|line| line.starts_with("line"));
    assert_eq!(lines, numbered(0, 100));
}

#[test]
fn a_line_longer_than_allowed_is_cut_the_same_across_reads_and_restarts() {
    let long: String = (0..500).map(|n| format!("{n:04}")).collect();
    for (long_line, expected) in
        [(LongLine::Split, vec![&long[..1000], &long[1000..]]), (LongLine::Truncate, vec![&long[..1000]])]
    {
        let mut place = Place::with("a.log", |entry| entry.long_line = long_line);
        place.want = 100;
        place.append("a.log", &long[..1200]);
        let mut lines = place.lines();
        place.restart();
        place.append("a.log", &long[1200..]);
        lines.extend(place.lines());
        place.restart();
        place.append("a.log", "\nnext\n");
        lines.extend(place.lines());
        let expected: Vec<&str> = expected.into_iter().chain(["next"]).collect();
        assert_eq!(lines, expected);
    }
}

#[test]
fn a_hole_is_skipped_also_across_a_restart() {
    let mut place = Place::new("a.log");
    place.want = 100;
    place.append("a.log", "one\n");
    let file = place.append("a.log", "two\n");
    file.set_len(5_003).unwrap();
    assert_eq!(place.lines(), ["one", "two"]);
    place.restart();
    place.append("a.log", "three\n");
    assert_eq!(place.lines(), ["three"]);
}

#[test]
fn a_file_that_may_not_be_read_is_told_and_read_when_it_may() {
    let mut place = Place::new("*.log");
    let outside = tempfile::tempdir().unwrap();
    let rules =
        PolicyRules { roots: Some(vec![place.dir.path().into()]), max_files: 10, ..PolicyRules::default() };
    place.policy = Arc::new(Policy::new(rules).unwrap());
    place.restart();
    fs::write(outside.path().join("secret"), "secret\n").unwrap();
    symlink(outside.path().join("secret"), place.path("a.log")).unwrap();
    place.append("b.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    assert_eq!(place.source.troubles().len(), 1);
    assert_eq!(place.lines_within(seconds(30)), [""; 0]);
    assert_eq!(place.source.troubles().len(), 1, "for as long as it lasts");
    // Its rename does not keep the next file of that name waiting.
    place.rename("a.log", "a.old");
    place.append("a.log", "two\n");
    assert_eq!(place.lines(), ["two"]);
    assert_eq!(place.source.troubles().len(), 0);
}

#[test]
fn files_that_are_followed_keep_their_place_when_there_are_too_many() {
    let mut place = Place::new("*.log");
    let rules = PolicyRules { max_files: 2, ..PolicyRules::default() };
    place.policy = Arc::new(Policy::new(rules).unwrap());
    place.restart();
    place.append("b.log", "one\n");
    place.append("c.log", "two\n");
    assert_eq!(place.lines(), ["one", "two"]);
    place.append("a.log", "three\n");
    place.append("c.log", "four\n");
    assert_eq!(place.lines_within(seconds(30)), ["four"]);
    let told: Vec<_> = place.source.troubles().values().cloned().collect();
    assert!(
        told.len() == 1 && told[0].starts_with("2 of 3 or more files") && told[0].contains("max_files"),
        "{told:?}"
    );
    fs::remove_file(place.path("b.log")).unwrap();
    assert_eq!(place.lines_within(seconds(30)), ["three"]);
    assert_eq!(place.source.troubles().len(), 0);
}

#[test]
fn a_file_that_cannot_be_read_is_tried_seldom_and_soon_after_a_hint() {
    let mut place = Place::new("a.log");
    let rules = PolicyRules { roots: Some(vec!["/nowhere".into()]), max_files: 10, ..PolicyRules::default() };
    let allowed = std::mem::replace(&mut place.policy, Arc::new(Policy::new(rules).unwrap()));
    place.restart();
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), [""; 0]);
    place.wait(seconds(1));
    assert!(place.source.next_read().is_some_and(|read| read > place.now + seconds(5)));
    place.source.policy = allowed;
    place.source.hint([place.path("a.log")], false, place.now);
    assert!(place.source.next_read().is_some_and(|read| read <= place.now + seconds(1)));
    place.now += seconds(1);
    assert_eq!(place.lines(), ["one"]);
}

#[test]
fn what_is_no_regular_file_is_told_and_waited_for_by_nobody() {
    let mut place = Place::new("*.log");
    rustix::fs::mknodat(rustix::fs::CWD, place.path("fifo.log"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    fs::create_dir(place.path("dir.log")).unwrap();
    place.append("a.log", "one\n");
    assert_eq!(place.lines(), ["one"]);
    let told: Vec<_> = place.source.troubles().keys().cloned().collect();
    assert_eq!((told, place.source.standing().files), (vec![place.path("fifo.log").into()], 1));
}

#[test]
fn a_file_made_in_place_of_a_deleted_one_is_another_though_it_has_its_inode() {
    for idle in [0, 100] {
        let mut place = Place::new("a.log");
        place.append("a.log", "one\n");
        assert_eq!(place.lines(), ["one"]);
        place.wait(seconds(idle));
        fs::remove_file(place.path("a.log")).unwrap();
        place.append("a.log", "two\n");
        assert_eq!(place.lines(), ["two"]);
        fs::remove_file(place.path("a.log")).unwrap();
        place.append("a.log", "three\n");
        place.restart();
        assert_eq!(place.lines(), ["three"]);
    }
}

#[test]
fn a_directory_that_cannot_be_read_says_nothing_about_its_files() {
    for pattern in ["logs/a.log", "*/a.log"] {
        let mut place = Place::new(pattern);
        fs::create_dir(place.path("logs")).unwrap();
        place.append("logs/a.log", "one\n");
        assert_eq!(place.lines(), ["one"]);
        place.wait(seconds(70));
        // As when a mount comes and goes: looking into it fails, and not because nothing is there.
        place.rename("logs", "away");
        symlink("logs", place.path("logs")).unwrap();
        place.wait(seconds(5));
        fs::remove_file(place.path("logs")).unwrap();
        if pattern.starts_with('*') {
            fs::rename(place.path("away"), place.path("logs")).unwrap();
        } else {
            place.rename("away", "logs");
        }
        place.append("logs/a.log", "two\n");
        assert_eq!(place.lines(), ["two"]);
    }
}

#[test]
fn the_end_of_the_files_is_an_end_with_once() {
    let mut place = Place::new("*.log");
    place.source.end();
    assert!(!place.source.is_drained(), "nothing was looked at yet");
    place.append("a.log", "one\nunended");
    place.append("empty.log", "");
    place.source.tick(place.now);
    assert!(!place.source.is_drained());
    assert_eq!(place.lines(), ["one", "unended"]);
    assert!(place.source.is_drained());
}

#[test]
fn ten_thousand_files_are_read_with_few_open_and_cost_nothing_when_idle() {
    let mut place = Place::new("*/*.log");
    for dir in 0..10 {
        fs::create_dir(place.path(&dir.to_string())).unwrap();
        for n in 0..1000 {
            fs::write(place.path(&format!("{dir}/{n}.log")), format!("{dir} {n}\n")).unwrap();
        }
    }
    place.source.tick(place.now);
    let mut most_open = 0;
    for _ in 0..10_000 {
        assert!(place.read_chunk(10));
        most_open = most_open.max(place.source.awake.len());
    }
    assert!(most_open <= OPEN_MAX + 1, "{most_open}");
    place.finish_all();
    let lines: BTreeSet<String> = std::mem::take(&mut place.read).into_iter().map(|read| read.text).collect();
    assert_eq!(lines.len(), 10_000);
    place.wait(seconds(100));
    assert!(!place.read_chunk(1));
    assert_eq!((place.open_files(), place.source.awake.len(), place.source.turns.len()), (0, 0, 0));
    assert!(place.source.next_look() > place.now + seconds(1));
    place.restart();
    place.read_all();
    assert_eq!((place.lines(), place.open_files()), (vec![], 0), "nor does a restart open them");
}
