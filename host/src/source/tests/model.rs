//! Random sequences of what happens to log files, against what has to be read of them: every line
//! that was complete when the source looked, at least once, in the order of its file and after the
//! files that had its name before; and once, unless the agent was killed with it under way. A line
//! may be missing only where no file holds it any more, and its bytes are then counted as lost if the
//! source knew of it: it had seen the file with it (or what is stored says so, after a restart), and
//! could see that it is gone. It cannot where nothing of a content was read, and its file was never seen
//! to be shorter than before: neither when it took the place of another one of which something was read,
//! nor when it was truncated itself. Then no size tells, and bytes can be compared only with what was read.
//! Nor can it where another file was compressed to its name and `.gz` meanwhile.
//!
//! `make test` runs a slice, `make faults ONLY=files` a million cases, or as many as ROUNDS says. A
//! run is replayed with the seed that it prints.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::*;

const LIVE: &str = "app.log";
/// Rotated files that are kept.
const KEPT: usize = 3;
/// Each content begins so, and goes on with a letter of its own: what has nothing of its own in what was
/// read of it cannot be told apart.
const HEADER: &str = "# the same header in each file";

/// Cases in `make test`, and their seed: the same ones each time.
const SLICE: (u64, u64) = (6000, 100);

#[derive(Clone, Debug)]
enum Op {
    /// The writer appends whole lines, each so long.
    Lines(Vec<usize>),
    /// It begins a line, or goes on with it.
    Part,
    /// So many NULs, as a crash leaves them.
    Nuls(usize),
    /// Rotation by renaming; the oldest file is deleted. Where the name is a link, it leads elsewhere.
    Rotate,
    /// Rotation by copying; what happens before the truncation.
    CopyTruncate(Vec<Between>),
    /// A rotated file is compressed, as gzip does it.
    Compress(usize),
    Truncate,
    /// The same, and so many lines at once.
    TruncateAndWrite(usize),
    Delete,
    /// The live file has a second name; whether the pattern covers that. The one before is gone.
    HardLink(bool),
    /// The source looks at names and files.
    Look,
    /// It reads so many chunks: bytes asked for, and lines at most.
    Read(usize, usize, usize),
    /// Chunks come back, in an order of their own.
    Finish(Vec<usize>),
    /// Seconds go by.
    Wait(u64),
    /// The agent is killed and started again.
    Restart,
}

/// Between copy and truncation.
#[derive(Clone, Debug)]
enum Between {
    Look,
    Read(usize),
    Write,
    Restart,
}

/// How files are found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Names {
    Path,
    Glob,
    /// The path is a symbolic link to the live file.
    Link,
}

fn names() -> impl Strategy<Value = Names> {
    prop_oneof![Just(Names::Path), Just(Names::Glob), Just(Names::Link)]
}

fn op() -> impl Strategy<Value = Op> {
    let between = prop_oneof![
        2 => Just(Between::Look),
        2 => (1..4usize).prop_map(Between::Read),
        1 => Just(Between::Write),
        1 => Just(Between::Restart),
    ];
    prop_oneof![
        6 => proptest::collection::vec(0..40usize, 1..6).prop_map(Op::Lines),
        1 => Just(Op::Part),
        1 => (16..100usize).prop_map(Op::Nuls),
        2 => Just(Op::Rotate),
        2 => proptest::collection::vec(between, 0..4).prop_map(Op::CopyTruncate),
        2 => (1..=KEPT).prop_map(Op::Compress),
        1 => Just(Op::Truncate),
        1 => (1..8usize).prop_map(Op::TruncateAndWrite),
        1 => Just(Op::Delete),
        1 => any::<bool>().prop_map(Op::HardLink),
        5 => Just(Op::Look),
        6 => (1..4usize, 16..300usize, 1..8usize).prop_map(|(n, want, lines)| Op::Read(n, want, lines)),
        4 => proptest::collection::vec(0..100usize, 1..6).prop_map(Op::Finish),
        1 => (1..100u64).prop_map(Op::Wait),
        1 => Just(Op::Restart),
    ]
}

/// A content that was written, from its beginning to its truncation or deletion.
#[derive(Default)]
struct Content {
    lines: Vec<Line>,
    /// The source saw it under the live name: it has its turn.
    seen: bool,
    /// An unfinished last line.
    part: String,
    /// Beginnings of lines that a hole ended.
    torn: HashSet<String>,
    /// Runs of NUL are in it.
    holes: bool,
    /// It is in a copy.
    copied: bool,
    bytes: u64,
    /// The number under which the source read it last.
    incarnation: Option<u64>,
}

#[derive(Default)]
struct Line {
    /// Bytes of its content up to its end, and of itself.
    end: u64,
    bytes: u64,
    /// The source knew the size of the file with it.
    sighted: bool,
    /// Nothing leads to it any more.
    gone: bool,
    /// No longer to be had when it was not yet read.
    excused: bool,
    /// So, and the source could know.
    counted: bool,
    read: bool,
    /// The chunk that it was last read with came back.
    finished: bool,
    /// One that it was read with did, whenever that was.
    acked: bool,
    /// It may be read again: it was under way when the agent was killed.
    again: bool,
}

/// A file under whatever names.
#[derive(Clone, Debug, PartialEq)]
struct Named {
    name: String,
    /// What it holds; `None`: nothing.
    content: Option<usize>,
}

struct Model {
    place: Place,
    names: Names,
    contents: Vec<Content>,
    /// The live one first.
    files: Vec<Option<Named>>,
    /// The second name of a file, and whether the pattern covers it.
    link: Option<(String, bool)>,
    /// What has only that name left.
    linked: Option<usize>,
    /// The lines of chunks under way.
    chunks: HashMap<u64, Vec<(usize, usize)>>,
    written: u64,
    lost: u64,
    /// A content of the live file that was truncated unread, and the size that the source had seen of it.
    truncated: Option<(usize, FileId, u64)>,
    /// Contents of which nothing was read and that are gone, and names of compressed files that may be them.
    unclear: Vec<(usize, PathBuf)>,
    /// Inodes of files that were deleted, and how often one of them came back.
    deleted: HashSet<u64>,
    reused: u64,
}

impl Model {
    fn new(names: Names, dir: tempfile::TempDir, checkpoints: Arc<Checkpoints>, entry: &str) -> Self {
        let pattern = if names == Names::Glob { "app.log*" } else { LIVE };
        let mut model = Self {
            place: Place::at(dir, pattern, checkpoints, entry, |_| ()),
            names,
            contents: Vec::new(),
            files: vec![None; KEPT + 1],
            link: None,
            linked: None,
            chunks: HashMap::new(),
            written: 0,
            lost: 0,
            truncated: None,
            unclear: Vec::new(),
            deleted: HashSet::new(),
            reused: 0,
        };
        model.place.source.tick(model.place.now);
        model
    }

    /// The content that is written to.
    fn live(&mut self) -> usize {
        if self.files[0].is_none() {
            let mut name = LIVE.to_string();
            if self.names == Names::Link {
                name = format!("gen.{}", self.contents.len());
                self.place.append(&name, "");
                symlink(self.place.path(&name), self.place.path("new")).unwrap();
                self.place.rename("new", LIVE);
            }
            self.files[0] = Some(Named { name, content: None });
        }
        if let Some(content) = self.files[0].as_ref().and_then(|file| file.content) {
            return content;
        }
        let content = self.contents.len();
        let begin = format!("{HEADER}{}", letter(content));
        self.contents.push(Content { part: begin.clone(), ..Content::default() });
        self.files[0].as_mut().unwrap().content = Some(content);
        self.append(&begin);
        self.appeared(LIVE);
        content
    }

    /// A file that perhaps is new.
    fn appeared(&mut self, name: &str) {
        let inode = Stat::at(&self.place.path(name)).unwrap().id.ino;
        self.reused += u64::from(self.deleted.remove(&inode));
    }

    fn live_content(&self) -> Option<usize> {
        self.files[0].as_ref().and_then(|file| file.content)
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Lines(lengths) => lengths.iter().for_each(|length| self.write_line(*length)),
            Op::Part => {
                let live = self.live();
                self.contents[live].part.push('p');
                self.append("p");
            }
            Op::Nuls(count) => {
                let live = self.live();
                let part = std::mem::take(&mut self.contents[live].part);
                self.contents[live].torn.insert(part);
                self.contents[live].holes = true;
                self.append(&"\0".repeat(*count));
            }
            Op::Rotate => self.rotate(),
            Op::CopyTruncate(between) => self.copy_truncate(between),
            Op::Compress(n) => self.compress(*n),
            Op::Truncate => self.truncate(0),
            Op::TruncateAndWrite(lines) => {
                self.truncate(0);
                (0..*lines).for_each(|n| self.write_line(n * 7));
            }
            Op::Delete => {
                if let Some(file) = self.files[0].take() {
                    self.remove(&file);
                    if self.names == Names::Link {
                        fs::remove_file(self.place.path(LIVE)).unwrap();
                    }
                }
            }
            Op::HardLink(covered) => self.hard_link(*covered),
            Op::Look => self.look(),
            Op::Read(times, want, lines_max) => {
                self.place.want = *want;
                for _ in 0..*times {
                    self.place.now += READ_SOON;
                    self.read(*lines_max);
                }
            }
            Op::Finish(order) => order.iter().for_each(|at| self.finish(*at)),
            Op::Wait(time) => {
                let size = self.size_to_see();
                self.place.wait(seconds(*time));
                self.saw(size);
                self.looked();
            }
            Op::Restart => self.restart(),
        }
    }

    fn write_line(&mut self, length: usize) {
        let live = self.live();
        let content = &mut self.contents[live];
        // As a time stamp does, all of a line tells contents apart: 64 bytes of it are compared.
        let filling = letter(live).repeat(length + 12);
        let text = format!("{}:{live}:{}:{filling}\n", content.part, content.lines.len());
        // What was begun is part of this line now.
        let rest = text[content.part.len()..].to_string();
        content.part.clear();
        let end = content.bytes + rest.len() as u64;
        content.lines.push(Line { end, bytes: rest.len() as u64, ..Line::default() });
        self.append(&rest);
    }

    fn append(&mut self, text: &str) {
        let file = self.place.append(LIVE, text);
        if let Some(live) = self.live_content() {
            self.contents[live].bytes += text.len() as u64;
        }
        // The kernel's clock for files may tick only every few milliseconds, within which no
        // writer truncates a file and writes exactly as much again.
        self.touch(&file);
    }

    fn touch(&mut self, file: &File) {
        self.written += 1;
        file.set_modified(UNIX_EPOCH + seconds(self.written)).unwrap();
    }

    /// The oldest file is deleted, the others move on by one name.
    fn shift(&mut self, from: usize) {
        if let Some(oldest) = self.files[KEPT].take() {
            self.remove(&oldest);
        }
        for n in (from..KEPT).rev() {
            self.files[n + 1] = self.files[n].take();
            if let Some(file) = self.files[n + 1].as_mut().filter(|_| self.names != Names::Link) {
                let packed = if file.name.ends_with(".gz") { ".gz" } else { "" };
                let name = format!("{LIVE}.{}{packed}", n + 1);
                self.place.rename(&file.name, &name);
                file.name = name;
            }
        }
    }

    fn rotate(&mut self) {
        if self.files[0].is_none() {
            return;
        }
        self.shift(0);
        if self.names == Names::Link {
            // The link leads nowhere until the writer makes the next file.
            fs::remove_file(self.place.path(LIVE)).unwrap();
        }
        self.excuse_unseen();
    }

    /// A file that nobody saw under the followed name is not known to be one.
    fn excuse_unseen(&mut self) {
        let moved = self.files[1].as_ref().and_then(|file| file.content);
        if let Some(moved) = moved.filter(|moved| self.names != Names::Glob && !self.contents[*moved].seen) {
            for line in &mut self.contents[moved].lines {
                (line.gone, line.excused) = (true, true);
            }
        }
    }

    fn copy_truncate(&mut self, between: &[Between]) {
        let Some(content) = self.live_content().filter(|_| self.names != Names::Link) else {
            return self.truncate(0);
        };
        self.shift(1);
        // In the copy it may be the end.
        let part = self.contents[content].part.clone();
        self.contents[content].torn.insert(part);
        let name = format!("{LIVE}.1");
        fs::copy(self.place.path(LIVE), self.place.path(&name)).unwrap();
        let copy = File::options().write(true).open(self.place.path(&name)).unwrap();
        self.touch(&copy);
        self.appeared(&name);
        self.files[1] = Some(Named { name, content: Some(content) });
        // A copy of what nothing was read of is a file like any other.
        let is_known = self.is_known(content);
        let copied = self.contents[content].lines.len();
        for what in between.iter().filter(|_| is_known) {
            match what {
                Between::Look => self.look(),
                Between::Read(lines) => {
                    self.place.now += READ_SOON;
                    self.place.want = 200;
                    self.read(*lines);
                }
                Between::Write => self.write_line(5),
                // Again a file of which nothing is known.
                Between::Restart if !self.contents[content].lines[0].finished => {}
                Between::Restart => self.restart(),
            }
        }
        if is_known || self.names == Names::Glob {
            self.contents[content].copied = true;
            self.contents[content].seen &= is_known;
            self.truncate(copied);
        } else {
            self.truncate(0);
        }
    }

    /// Nobody writes to it any more: where a part of a line is left, that is its last one.
    fn compress(&mut self, n: usize) {
        let Some(file) = self.files[n].clone().filter(|file| !file.name.ends_with(".gz")) else { return };
        let Some(content) = file.content else { return };
        let stat = Stat::at(&self.place.path(&file.name)).unwrap();
        // gzip refuses others.
        if stat.links > 1 {
            return;
        }
        let part = self.contents[content].part.clone();
        self.contents[content].torn.insert(part);
        packed::gzip(&self.place, &file.name);
        self.deleted.insert(stat.id.ino);
        self.appeared(&format!("{}.gz", file.name));
        self.files[n] = Some(Named { name: format!("{}.gz", file.name), content: Some(content) });
        let tail = self.tail(stat.id);
        let (is_open, is_told_apart) = (tail.is_some_and(Tail::is_open), tail.is_some_and(is_told_apart));
        // One that nothing was read of may not be recognised: covered by the pattern it is a file like any
        // other, else it is gone.
        if !is_open && !self.is_known(content) {
            let is_covered = self.names == Names::Glob;
            self.contents[content].seen = false;
            for line in &mut self.contents[content].lines {
                line.excused |= !line.read && !is_covered;
                line.counted |= !line.read && !is_covered && line.sighted && is_told_apart;
            }
        }
    }

    /// Whether enough of it was read to know its copy.
    fn is_known(&self, content: usize) -> bool {
        self.contents[content].lines.first().is_some_and(|line| line.read)
    }

    /// All lines but the first `kept` are gone.
    fn truncate(&mut self, kept: usize) {
        let Some(content) = self.files[0].as_mut().and_then(|file| file.content.take()) else { return };
        let id = Stat::at(&self.place.path(LIVE)).unwrap().id;
        File::options().write(true).open(self.place.path(LIVE)).unwrap().set_len(0).unwrap();
        let is_known = self.is_known(content);
        if !is_known && self.contents[content].seen && self.tail(id).is_some_and(is_told_apart) {
            self.truncated = self.tail(id).map(|tail| (content, id, tail.size()));
        }
        let content = &mut self.contents[content];
        let part = std::mem::take(&mut content.part);
        content.torn.insert(part);
        for line in content.lines.iter_mut().skip(kept) {
            line.gone = true;
            line.counted |= !line.read && line.sighted && is_known;
            line.excused |= !line.read;
        }
    }

    /// What is deleted can be read only while it is open, or under its other name.
    fn remove(&mut self, file: &Named) {
        let path = self.place.path(&file.name);
        let stat = Stat::at(&path).unwrap();
        fs::remove_file(path).unwrap();
        if stat.links == 1 {
            self.deleted.insert(stat.id.ino);
        }
        let Some(content) = file.content else { return };
        if stat.links > 1 {
            self.linked = Some(content);
            let is_covered = self.link.as_ref().is_some_and(|(_, covered)| *covered);
            let is_found = self.names == Names::Glob && is_covered;
            if is_found || self.place.source.by_id.contains_key(&stat.id) {
                return;
            }
        }
        self.excuse(content, stat.id);
    }

    fn tail(&self, id: FileId) -> Option<&Tail> {
        let source = &self.place.source;
        source.by_id.get(&id).and_then(|key| source.tails.get(key))
    }

    /// Before the source looks: whether that tells it that a content is gone that it saw and did not read.
    fn size_to_see(&self) -> Option<u64> {
        let (_, id, _) = self.truncated?;
        let stat = Stat::at(&self.place.path(LIVE)).ok()?;
        (stat.id == id).then_some(stat.size)
    }

    /// After it looked, at a file of so many bytes.
    fn saw(&mut self, size: Option<u64>) {
        let (Some((content, id, was)), Some(size)) = (self.truncated, size) else { return };
        if self.tail(id).is_some_and(|tail| tail.size() == size) {
            self.truncated = None;
            if size < was {
                for line in &mut self.contents[content].lines {
                    line.counted |= line.gone && !line.read && line.sighted;
                }
            }
        }
    }

    fn excuse(&mut self, content: usize, id: FileId) {
        let tail = self.tail(id);
        let (is_open, is_followed) = (tail.is_some_and(Tail::is_open), tail.is_some());
        let is_known = self.is_known(content) || tail.is_some_and(is_told_apart);
        let unread = tail.filter(|tail| tail.head().len == 0).map(|tail| gzip::name_of(&tail.path));
        self.unclear.extend(unread.map(|name| (content, name)));
        for line in &mut self.contents[content].lines {
            line.gone = true;
            if !is_open {
                line.counted |= !line.read && line.sighted && is_followed && is_known;
                line.excused |= !line.read;
            }
        }
    }

    fn hard_link(&mut self, covered: bool) {
        if let Some((link, _)) = self.link.take() {
            let path = self.place.path(&link);
            let stat = Stat::at(&path).unwrap();
            fs::remove_file(&path).unwrap();
            if stat.links == 1
                && let Some(content) = self.linked.take()
            {
                self.excuse(content, stat.id);
            }
        }
        if let Some(live) = &self.files[0] {
            let name = if covered { "app.log.second" } else { "second" };
            fs::hard_link(self.place.path(&live.name), self.place.path(name)).unwrap();
            self.link = Some((name.into(), covered));
        }
    }

    fn look(&mut self) {
        let size = self.size_to_see();
        self.place.source.hint([], true, self.place.now);
        self.place.now += Duration::from_millis(300);
        self.place.source.tick(self.place.now);
        self.saw(size);
        self.looked();
    }

    fn looked(&mut self) {
        self.take_lost();
        for (content, _) in self.unclear.iter().filter(|(_, name)| name.exists()) {
            self.contents[*content].lines.iter_mut().for_each(|line| line.counted = false);
        }
        let Some(live) = self.live_content() else { return };
        let stat = Stat::at(&self.place.path(LIVE)).unwrap();
        let Some(size) = self.tail(stat.id).map(Tail::size) else { return };
        self.contents[live].seen = true;
        if size == stat.size {
            self.contents[live].lines.iter_mut().for_each(|line| line.sighted = true);
        }
    }

    fn read(&mut self, lines_max: usize) -> bool {
        let size = self.size_to_see();
        let more = self.place.read_chunk(lines_max);
        self.saw(size);
        for read in std::mem::take(&mut self.place.read) {
            self.note(&read);
        }
        more
    }

    fn note(&mut self, read: &Read) {
        let parts: Vec<&str> = read.text.split(':').collect();
        let [_, content, number, _] = parts[..] else {
            // Too few NULs for a hole, where another content that begins alike was longer.
            let is_rest = read.text.bytes().all(|byte| byte == 0);
            assert!(
                is_rest || self.contents.iter().any(|c| c.part == read.text || c.torn.contains(&read.text)),
                "no such line: {}",
                read.text
            );
            return;
        };
        let (content, number): (usize, usize) = (content.parse().unwrap(), number.parse().unwrap());
        let lines = &self.contents[content].lines;
        let line = &lines[number];
        assert!(!line.read || line.again, "again: {}", read.text);
        if !line.read {
            let later = lines[number + 1..].iter().any(|line| line.read && !line.again);
            assert!(!later, "out of order: {}", read.text);
            let earlier = lines[..number].iter().all(|line| line.read || line.excused);
            assert!(earlier, "left something out before {}", read.text);
            if self.contents[content].seen {
                let mut before = self.contents[..content]
                    .iter()
                    .filter(|content| content.seen)
                    .flat_map(|content| &content.lines);
                assert!(before.all(|line| line.read || line.excused), "before its turn: {}", read.text);
            }
        }
        self.contents[content].incarnation = self.place.under_way.last().map(|(incarnation, _)| *incarnation);
        let line = &mut self.contents[content].lines[number];
        (line.read, line.again, line.finished) = (true, false, false);
        self.chunks.entry(read.chunk).or_default().push((content, number));
    }

    fn finish(&mut self, at: usize) {
        if self.place.under_way.is_empty() {
            return;
        }
        let (incarnation, id) = self.place.under_way.remove(at % self.place.under_way.len());
        self.place.source.finished(incarnation, id);
        for (content, number) in self.chunks.remove(&id).unwrap_or_default() {
            let line = &mut self.contents[content].lines[number];
            (line.finished, line.acked) = (true, true);
        }
    }

    /// What was not finished is read again, and what was finished behind it may be.
    fn restart(&mut self) {
        let unknown = self.copies_unknown_after_a_restart();
        self.place.restart();
        self.chunks.clear();
        (self.lost, self.truncated) = (0, None);
        let saved = self.place.checkpoints.load(&self.place.entry.name).records;
        for (n, content) in self.contents.iter_mut().enumerate() {
            let is_unknown = unknown.contains(&n);
            content.seen &= !is_unknown;
            let is_out_of_reach = is_unknown && self.names != Names::Glob;
            let mut whole = true;
            let stored = saved.iter().find(|record| Some(record.incarnation) == content.incarnation);
            // Nobody keeps count of their chunks.
            let has_torn = content.holes || content.torn.iter().any(|torn| !torn.is_empty());
            for line in &mut content.lines {
                whole &= line.finished;
                line.again = line.read && (has_torn || !whole);
                line.excused |= (line.gone || is_out_of_reach) && !line.acked;
                line.read &= line.acked;
                line.finished &= whole;
                // So much of it is on the disk: it is known what cannot be read again.
                let is_stored =
                    stored.is_some_and(|record| record.committed < line.end && line.end <= record.size);
                line.counted = line.gone && !line.acked && is_stored;
                line.sighted = false;
            }
        }
    }

    /// Copies of contents of which nothing was finished, and compressed ones: what is on the disk says nothing of them.
    fn copies_unknown_after_a_restart(&self) -> HashSet<usize> {
        let copies = self.files.iter().flatten().filter_map(|file| Some((file, file.content?)));
        let unknown = copies.filter(|(file, content)| {
            let content = &self.contents[*content];
            let id = Stat::at(&self.place.path(&file.name)).unwrap().id;
            let is_followed = self.names != Names::Glob && self.place.source.by_id.contains_key(&id);
            let is_known = content.lines.first().is_some_and(|line| line.finished);
            (content.copied || file.name.ends_with(".gz")) && !is_known && !is_followed
        });
        unknown.map(|(_, content)| content).collect()
    }

    fn take_lost(&mut self) {
        self.lost += self.place.source.take_lost().values().sum::<u64>();
    }

    /// In the end all is read and finished, and a restart finds nothing to do.
    fn end(&mut self) -> Ended {
        self.write_line(3);
        // Longer than anything waits, in steps that are longer than the pauses between two looks.
        for _ in 0..12 {
            self.place.now += seconds(1);
            self.look();
            self.place.want = 4096;
            while self.read(usize::MAX) {}
            while !self.place.under_way.is_empty() {
                self.finish(0);
            }
        }
        self.take_lost();
        let counted = self.contents.iter().flat_map(|c| &c.lines).filter(|line| line.counted && !line.read);
        let counted: u64 = counted.map(|line| line.bytes).sum();
        assert!(self.lost > 0 || counted == 0, "{counted} bytes were lost, and none are counted");
        for (n, content) in self.contents.iter().enumerate() {
            for (number, line) in content.lines.iter().enumerate() {
                assert!(line.acked || line.excused, "line {number} of {n} is missing");
            }
        }
        self.restart();
        self.look();
        assert!(!self.read(usize::MAX), "all was finished");
        let lines = self.contents.iter().flat_map(|content| &content.lines);
        lines.fold(Ended { reused: self.reused, ..Ended::default() }, |ended, line| Ended {
            lines: ended.lines + 1,
            gone: ended.gone + u64::from(!line.acked),
            ..ended
        })
    }
}

fn letter(content: usize) -> String {
    char::from(b'a' + (content % 26) as u8).to_string()
}

/// Whether what is seen of a file is known not to be the content of which something was read.
fn is_told_apart(tail: &Tail) -> bool {
    (tail.read_to() == 0 && tail.head().len == 0) || tail.next_content() > 0
}

/// What came of a case.
#[derive(Default)]
struct Ended {
    lines: u64,
    /// Lines that no file held any more when they could have been read.
    gone: u64,
    /// Files that had the inode of one that was deleted before.
    reused: u64,
}

/// Cases with one seed and one store.
const BLOCK: u32 = 200;

/// One block in so many has its files on the disk: inodes come back at once on ext4, and never in
/// memory.
const ON_DISK: u64 = 8;

#[derive(Default)]
struct Total {
    block: AtomicU64,
    lines: AtomicU64,
    gone: AtomicU64,
    reused: AtomicU64,
}

impl Total {
    /// Takes blocks until there are none.
    fn run(&self, seed: u64, blocks: u64) {
        loop {
            let block = self.block.fetch_add(1, Ordering::Relaxed);
            if block >= blocks {
                return;
            }
            self.run_block(seed + block);
        }
    }

    fn run_block(&self, seed: u64) {
        let config = ProptestConfig {
            cases: BLOCK,
            failure_persistence: None,
            max_shrink_iters: 3000,
            ..ProptestConfig::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let checkpoints = Arc::new(Checkpoints::in_memory());
        let case = AtomicU64::new(0);
        let result = runner.run(&(names(), proptest::collection::vec(op(), 1..60)), |(names, ops)| {
            let entry = format!("entry-{}", case.fetch_add(1, Ordering::Relaxed));
            let mut model = Model::new(names, directory(seed), checkpoints.clone(), &entry);
            ops.iter().for_each(|op| model.step(op));
            let ended = model.end();
            self.lines.fetch_add(ended.lines, Ordering::Relaxed);
            self.gone.fetch_add(ended.gone, Ordering::Relaxed);
            self.reused.fetch_add(ended.reused, Ordering::Relaxed);
            Ok::<_, TestCaseError>(())
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(why, case)) => {
                panic!("{why}\nreplay: WEIR_FAULTS_SEED={seed} WEIR_FAULTS_ROUNDS={BLOCK}\n{case:#?}")
            }
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }
}

fn directory(seed: u64) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if seed.is_multiple_of(ON_DISK) || !memory.is_dir() {
        return on_disk();
    }
    tempfile::tempdir_in(memory).unwrap()
}

/// Where this was built: what is temporary may lie in memory.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

/// Whether a filesystem gives the inode of a deleted file to the next one.
fn inodes_come_back(dir: &Path) -> bool {
    let inode = |name| {
        fs::write(dir.join(name), "").unwrap();
        Stat::at(&dir.join(name)).unwrap().id.ino
    };
    let first = inode("first");
    fs::remove_file(dir.join("first")).unwrap();
    inode("second") == first
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn files_are_read_whatever_happens_to_them() {
    let is_long = std::env::var_os("WEIR_FAULTS_LONG").is_some();
    let cases = number("WEIR_FAULTS_ROUNDS").unwrap_or(if is_long { 1_000_000 } else { SLICE.0 });
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000;
    let seed = number("WEIR_FAULTS_SEED").unwrap_or_else(|| if is_long { fresh() } else { SLICE.1 });
    eprintln!("random file operations: SEED={seed} ROUNDS={cases}");
    let (total, began) = (Total::default(), Instant::now());
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| total.run(seed, cases.div_ceil(BLOCK.into())));
        }
    });
    let (lines, gone) = (total.lines.into_inner(), total.gone.into_inner());
    let reused = total.reused.into_inner();
    let is_on_disk = (seed..seed + cases.div_ceil(BLOCK.into())).any(|block| block.is_multiple_of(ON_DISK));
    assert!(reused > 0 || !is_on_disk || !inodes_come_back(on_disk().path()), "no inode came back");
    report(&format!(
        "| holds | random file operations | {seed} | {cases} | {lines} | 0 | 0 of 0 | 0 | lines that no file held any more {gone}, inodes that came back {reused}, seconds {} |",
        began.elapsed().as_secs()
    ));
}

/// A row of the table of `make faults`.
fn report(row: &str) {
    println!("{row}");
    if let Some(dir) = std::env::var_os("WEIR_FAULTS_DIR") {
        let table = OpenOptions::new().create(true).append(true).open(Path::new(&dir).join("table.md"));
        writeln!(table.unwrap(), "{row}").unwrap();
    }
}
