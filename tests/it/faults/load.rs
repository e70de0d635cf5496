//! Files that are written and rotated all the time, and what was found of their lines so far.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use serde_json::{Value, json};
use weir_tests::lines::{LineFile, Paced, Tally, Verdict};
use weir_tests::topic::{Consumer, Topic};
use weir_tests::weir::Weir;

use super::Dice;

/// Bytes of a line, newline included.
pub(super) const LINE_BYTES: usize = 200;
/// Files under load.
const FILES: usize = 20;
/// Entries that share them.
const ENTRIES: [&str; 2] = ["load-0", "load-1"];
/// Until an agent that runs has seen a new file and written down that it knows it. A file that
/// appears and loses its name before that, all while no agent runs, is nobody's: it is not rotated.
const NOTICED: Duration = Duration::from_secs(1);

/// Twenty files of two entries, their topic, and the tally.
pub(super) struct Load {
    writers: Vec<Paced>,
    /// For each file since when it has been there, where the agent may not know it yet.
    unnoticed: Vec<Option<Instant>>,
    rotated: Vec<Rotated>,
    pub(super) rotations: u64,
    consumer: Consumer,
    tally: Tally,
}

/// A file that was renamed, and how many lines of its writer it ends.
struct Rotated {
    file: usize,
    path: PathBuf,
    lines: u64,
}

impl Load {
    /// The list of its entries. They begin at the end of what is there when they are new, so that
    /// an agent that forgot them loses lines.
    fn list(weir: &Weir, topic: &Topic) -> Value {
        let entry = |name: &str| json!({"name": name, "path": weir.log(&format!("{name}*.log")), "topic": topic.name()});
        json!(ENTRIES.map(entry))
    }

    /// Starts the agent on its empty directory, then begins to write `per_second` lines in all.
    #[track_caller]
    pub(super) fn begin(weir: &mut Weir, topic: &Topic, per_second: u64) -> Self {
        weir.list(&Self::list(weir, topic));
        weir.start();
        for name in ENTRIES {
            weir.await_state(name, "waiting");
        }
        let file = |n: usize| {
            let name = format!("{}{}.log", ENTRIES[n % 2], n / 2);
            LineFile::create(weir.log(&name), &format!("f{n:02}"), LINE_BYTES)
        };
        let files: Vec<_> = (0..FILES).map(file).collect();
        let expected: Vec<_> = files.iter().map(LineFile::expected).collect();
        Self {
            writers: files.into_iter().map(|file| file.paced(per_second / FILES as u64)).collect(),
            unnoticed: vec![Some(Instant::now()); FILES],
            rotated: Vec::new(),
            rotations: 0,
            consumer: topic.consumer(),
            tally: Tally::of(&expected),
        }
    }

    /// An agent has been answering since `started` and still does: it knows what was there long
    /// enough.
    pub(super) fn agent_runs(&mut self, started: Instant) {
        for since in &mut self.unnoticed {
            if since.is_some_and(|since| since.max(started).elapsed() >= NOTICED) {
                *since = None;
            }
        }
    }

    /// Renames one of the files, where the agent knows it; its writer goes on in a new one.
    pub(super) fn rotate(&mut self, dice: &mut Dice) {
        let file = dice.below(FILES as u64) as usize;
        if self.unnoticed[file].is_some() {
            return;
        }
        self.unnoticed[file] = Some(Instant::now());
        self.rotations += 1;
        let to = |path: &std::path::Path| format!("{}.{}", path.display(), self.rotations);
        let (path, lines) = self.writers[file].with(|file| {
            let path = PathBuf::from(to(file.path()));
            file.rotate(&path);
            (path, file.written())
        });
        self.rotated.push(Rotated { file, path, lines });
    }

    /// Writes `lines` at once to one of the files.
    pub(super) fn burst(&self, dice: &mut Dice, lines: u64) {
        self.writers[dice.below(FILES as u64) as usize].with(|file| file.write(lines));
    }

    /// Looks at what is on the topic by now; how many records came again since the last look. The
    /// agent must not run: what it delivers while this looks would count as nobody's.
    pub(super) fn look(&mut self) -> u64 {
        for (file, writer) in self.writers.iter().enumerate() {
            self.tally.expect_below(file, writer.written());
        }
        let (before, tally) = (self.tally.repeated(), &mut self.tally);
        self.consumer.to_end(|message| {
            tally.see(message.partition(), message.payload().unwrap_or_default());
        });
        self.delete_delivered();
        self.tally.repeated() - before
    }

    /// A rotated file that is found whole is deleted, so that its inode is given to another one.
    fn delete_delivered(&mut self) {
        let tally = &self.tally;
        self.rotated.retain(|rotated| {
            let delivered = tally.has_all_below(rotated.file, rotated.lines);
            if delivered {
                std::fs::remove_file(&rotated.path).expect("delete a rotated file");
            }
            !delivered
        });
    }

    /// Writes no more.
    pub(super) fn end(&mut self) {
        for (file, writer) in self.writers.drain(..).enumerate() {
            self.tally.expect_below(file, writer.stop().lines());
        }
    }

    /// Waits until every line was found; whether that is so. Nothing may be written any more.
    pub(super) fn await_all(&mut self, within: Duration) -> bool {
        assert!(self.writers.is_empty(), "the load was ended");
        let tally = &mut self.tally;
        tally.missing() == 0
            || self.consumer.each(within, |message| {
                tally.see(message.partition(), message.payload().unwrap_or_default());
                if tally.missing() == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
    }

    /// What became of the lines.
    pub(super) fn verdict(&self) -> Verdict {
        self.tally.verdict()
    }
}
