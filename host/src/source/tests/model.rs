//! Random sequences of what happens to log files, against what has to be read of them: every line
//! that was complete when the source looked, at least once, in the order of its file and after the
//! files that had its name before; and once, unless the agent was killed with it under way.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LIVE: &str = "app.log";
/// Rotated files that are kept.
const KEPT: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    /// The writer appends whole lines, each so long.
    Lines(Vec<usize>),
    /// It begins a line, or goes on with it.
    Part,
    /// Rotation by renaming; the oldest file is deleted.
    Rotate,
    Truncate,
    /// The same, and so many lines at once.
    TruncateAndWrite(usize),
    Delete,
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

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => proptest::collection::vec(0..40usize, 1..6).prop_map(Op::Lines),
        1 => Just(Op::Part),
        2 => Just(Op::Rotate),
        1 => Just(Op::Truncate),
        1 => (1..8usize).prop_map(Op::TruncateAndWrite),
        1 => Just(Op::Delete),
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
    /// The source saw it under the live name.
    seen: bool,
    /// Nothing leads to it any more.
    gone: bool,
    /// An unfinished last line.
    part: String,
}

#[derive(Default)]
struct Line {
    /// No longer to be had when it was not yet read.
    excused: bool,
    read: bool,
    /// The chunk that it was last read with came back.
    finished: bool,
    /// One that it was read with did, whenever that was.
    acked: bool,
    /// It may be read again: it was under way when the agent was killed.
    again: bool,
}

struct Model {
    place: Place,
    glob: bool,
    contents: Vec<Content>,
    /// Which content each file has, live one first.
    files: Vec<Option<usize>>,
    /// The lines of chunks under way.
    chunks: HashMap<u64, Vec<(usize, usize)>>,
    written: u64,
}

impl Model {
    fn new(glob: bool) -> Self {
        let place = Place::new(if glob { "app.log*" } else { LIVE });
        let mut model = Self {
            place,
            glob,
            contents: Vec::new(),
            files: vec![None; KEPT + 1],
            chunks: HashMap::new(),
            written: 0,
        };
        model.place.source.tick(model.place.now);
        model
    }

    fn name(n: usize) -> String {
        if n == 0 { LIVE.into() } else { format!("{LIVE}.{n}") }
    }

    fn live(&mut self) -> usize {
        *self.files[0].get_or_insert_with(|| {
            self.contents.push(Content::default());
            self.contents.len() - 1
        })
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Lines(lengths) => lengths.iter().for_each(|length| self.write_line(*length)),
            Op::Part => {
                let live = self.live();
                self.contents[live].part.push('p');
                self.append("p");
            }
            Op::Rotate => self.rotate(),
            Op::Truncate => self.truncate(),
            Op::TruncateAndWrite(lines) => {
                self.truncate();
                (0..*lines).for_each(|n| self.write_line(n * 7));
            }
            Op::Delete => {
                if let Some(content) = self.files[0].take() {
                    self.excuse(content, 0);
                    fs::remove_file(self.place.path(LIVE)).unwrap();
                }
            }
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
                self.place.wait(seconds(*time));
                self.looked();
            }
            Op::Restart => self.restart(),
        }
    }

    fn write_line(&mut self, length: usize) {
        let live = self.live();
        let content = &mut self.contents[live];
        let text = format!("{}:{live}:{}:{}\n", content.part, content.lines.len(), "x".repeat(length));
        // What was begun is part of this line now.
        let rest = text[content.part.len()..].to_string();
        content.part.clear();
        content.lines.push(Line::default());
        self.append(&rest);
    }

    fn append(&mut self, text: &str) {
        let file = self.place.append(LIVE, text);
        // The kernel's clock for files may tick only every few milliseconds, within which no
        // writer truncates a file and writes exactly as much again.
        self.written += 1;
        file.set_modified(UNIX_EPOCH + seconds(self.written)).unwrap();
    }

    fn rotate(&mut self) {
        if self.files[0].is_none() {
            return;
        }
        if let Some(oldest) = self.files[KEPT] {
            self.excuse(oldest, KEPT);
            fs::remove_file(self.place.path(&Self::name(KEPT))).unwrap();
        }
        for n in (0..KEPT).rev() {
            self.files[n + 1] = self.files[n].take();
            if self.files[n + 1].is_some() {
                self.place.rename(&Self::name(n), &Self::name(n + 1));
            }
        }
        // A file that nobody saw under the followed name is not known to be one.
        if let Some(moved) = self.files[1].filter(|moved| !self.glob && !self.contents[*moved].seen) {
            self.contents[moved].gone = true;
            self.contents[moved].lines.iter_mut().for_each(|line| line.excused = true);
        }
    }

    fn truncate(&mut self) {
        if let Some(content) = self.files[0].take() {
            File::options().write(true).open(self.place.path(LIVE)).unwrap().set_len(0).unwrap();
            self.contents[content].gone = true;
            self.contents[content].lines.iter_mut().for_each(|line| line.excused |= !line.read);
        }
    }

    /// What is deleted can be read only while it is open.
    fn excuse(&mut self, content: usize, n: usize) {
        let id = Stat::at(&self.place.path(&Self::name(n))).unwrap().id;
        let source = &self.place.source;
        let open = source.by_id.get(&id).is_some_and(|key| source.tails[key].is_open());
        self.contents[content].gone = true;
        if !open {
            self.contents[content].lines.iter_mut().for_each(|line| line.excused |= !line.read);
        }
    }

    fn look(&mut self) {
        self.place.source.hint([], true, self.place.now);
        self.place.now += Duration::from_millis(300);
        self.place.source.tick(self.place.now);
        self.looked();
    }

    fn looked(&mut self) {
        if let Some(live) = self.files[0] {
            let id = Stat::at(&self.place.path(LIVE)).unwrap().id;
            self.contents[live].seen |= self.place.source.by_id.contains_key(&id);
        }
    }

    fn read(&mut self, lines_max: usize) -> bool {
        let more = self.place.read_chunk(lines_max);
        for read in std::mem::take(&mut self.place.read) {
            self.note(&read);
        }
        more
    }

    fn note(&mut self, read: &Read) {
        let parts: Vec<&str> = read.text.split(':').collect();
        let [_, content, number, _] = parts[..] else {
            assert!(
                self.contents.iter().any(|content| content.part == read.text),
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
        self.place.restart();
        self.chunks.clear();
        for content in &mut self.contents {
            let mut whole = true;
            for line in &mut content.lines {
                whole &= line.finished;
                line.again = line.read && !whole;
                line.excused |= content.gone && !line.acked;
                line.read &= line.acked;
                line.finished &= whole;
            }
        }
    }

    /// In the end all is read and finished, and a restart finds nothing to do.
    fn end(&mut self) {
        self.write_line(3);
        for _ in 0..30 {
            self.look();
            self.place.want = 4096;
            while self.read(usize::MAX) {}
            while !self.place.under_way.is_empty() {
                self.finish(0);
            }
        }
        for (n, content) in self.contents.iter().enumerate() {
            for (number, line) in content.lines.iter().enumerate() {
                assert!(line.acked || line.excused, "line {number} of {n} is missing");
            }
        }
        self.restart();
        self.look();
        assert!(!self.read(usize::MAX), "all was finished");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_files_their_lines_are_read(glob: bool, ops in proptest::collection::vec(op(), 1..60)) {
        let mut model = Model::new(glob);
        ops.iter().for_each(|op| model.step(op));
        model.end();
    }
}
