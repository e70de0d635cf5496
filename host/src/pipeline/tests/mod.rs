//! The pipeline on a thread of its own, with real files, offsets and quarantine, and a sink that
//! does what the test says.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::budget::{Budget, RECORD_BYTES};
use crate::filter::tests::guest;
use crate::filter::{Compiler, Engine, EngineLimits, FilterContext, ModuleCache};
use crate::model::{FilterSpec, LongLine, ModuleRef};
use crate::policy::Rules as PolicyRules;
use crate::quarantine::Replayed;
use crate::sink::{Failed, Pick, Refusal};
use crate::status::{EntryState, EntryStatus};

mod options;

const DEADLINE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// What becomes of a record: taken, or refused and why.
type Rule = Box<dyn FnMut(&Attempt<'_>) -> Option<Refusal> + Send>;

struct Attempt<'a> {
    text: &'a str,
    topic: &'a str,
    alone: bool,
    /// How often it was asked for this text before.
    tries: u32,
}

/// A sink that keeps what it was given until it is told to answer.
struct FakeSink(Arc<Mutex<Broker>>);

struct Broker {
    /// What was taken, in order: topic, partition and text.
    log: Vec<(String, Pick, String)>,
    rule: Rule,
    tries: HashMap<String, u32>,
    silent: bool,
    /// Alone, where the others are not.
    silent_topic: &'static str,
    held: Vec<Held>,
    partitions: Result<i32, SinkError>,
    /// The most that chunks here ever took.
    most_bytes: u64,
}

struct Held {
    chunk: Chunk,
    only: Option<Vec<u32>>,
    topic: Topic,
    route: Route,
    home: Arc<Home>,
}

struct Home {
    done: Done,
    closed: AtomicBool,
    under_way: AtomicU64,
}

struct FakeLane {
    broker: Arc<Mutex<Broker>>,
    topic: Topic,
    home: Arc<Home>,
    alone: bool,
}

impl Sink for FakeSink {
    fn open(&self, topic: &Topic, done: Done) -> Box<dyn Lane> {
        let home = Arc::new(Home { done, closed: AtomicBool::new(false), under_way: AtomicU64::new(0) });
        Box::new(FakeLane { broker: self.0.clone(), topic: topic.clone(), home, alone: false })
    }
}

impl Lane for FakeLane {
    fn partitions(&mut self) -> Result<i32, SinkError> {
        self.broker.lock().unwrap().partitions.clone()
    }

    fn send(&mut self, chunk: Chunk, only: Option<&[u32]>, route: &Route) {
        let busy = route.alone != self.alone && self.home.under_way.load(Ordering::Acquire) > 0;
        let held = Held {
            chunk,
            only: only.map(Into::into),
            topic: self.topic.clone(),
            route: route.clone(),
            home: self.home.clone(),
        };
        self.home.under_way.fetch_add(1, Ordering::AcqRel);
        if busy || self.home.closed.load(Ordering::Acquire) {
            return held.come_back(|_| Some(Refusal::Again));
        }
        self.alone = route.alone;
        let mut broker = self.broker.lock().unwrap();
        broker.held.push(held);
        broker.most_bytes = broker.most_bytes.max(broker.held.iter().map(Held::bytes).sum());
        if !broker.silent && broker.silent_topic != self.topic.as_str() {
            let last = broker.held.len() - 1;
            broker.answer(last);
        }
    }

    fn resume(&mut self) {
        assert_eq!(self.home.under_way.load(Ordering::Acquire), 0, "only when everything is back");
        self.home.closed.store(false, Ordering::Release);
    }
}

impl Held {
    fn records(&self) -> Vec<u32> {
        self.only.clone().unwrap_or_else(|| (0..self.chunk.records.len() as u32).collect())
    }

    fn text(&self, record: u32) -> String {
        String::from_utf8(self.chunk.bytes(&self.chunk.records[record as usize]).to_vec()).unwrap()
    }

    fn bytes(&self) -> u64 {
        let bytes = self.chunk.read.capacity() + self.chunk.written.capacity();
        bytes as u64 + 256 * self.chunk.records.len() as u64
    }

    fn come_back(self, mut verdict: impl FnMut(u32) -> Option<Refusal>) {
        let failed: Vec<Failed> = self
            .records()
            .into_iter()
            .filter_map(|record| Some(Failed { record, why: verdict(record)?, code: "CODE".into() }))
            .collect();
        if !failed.is_empty() {
            self.home.closed.store(true, Ordering::Release);
        }
        self.home.under_way.fetch_sub(1, Ordering::AcqRel);
        (self.home.done)(Finished { chunk: self.chunk, failed });
    }
}

impl Broker {
    fn answer_all(&mut self) {
        while !self.held.is_empty() {
            self.answer(0);
        }
    }

    /// Answers for one chunk as a broker does: behind a record that it does not take now it takes
    /// none, and one that it refuses for good spoils its whole batch.
    fn answer(&mut self, at: usize) {
        let held = self.held.remove(at);
        let mut verdicts: BTreeMap<u32, Refusal> = BTreeMap::new();
        let mut stopped = held.home.closed.load(Ordering::Acquire);
        for record in held.records() {
            let text = held.text(record);
            let tries = self.tries.entry(text.clone()).or_default();
            let attempt =
                Attempt { text: &text, topic: held.topic.as_str(), alone: held.route.alone, tries: *tries };
            *tries += 1;
            let verdict = if stopped { Some(Refusal::Again) } else { (self.rule)(&attempt) };
            if let Some(why) = verdict {
                verdicts.insert(record, why);
                stopped |= why != Refusal::Record;
            }
        }
        if !held.route.alone && verdicts.values().any(|why| *why == Refusal::Record) {
            held.records().into_iter().for_each(|record| _ = verdicts.insert(record, Refusal::Record));
        }
        for record in held.records().into_iter().filter(|record| !verdicts.contains_key(record)) {
            self.log.push((held.topic.as_str().into(), held.route.partition, held.text(record)));
        }
        held.come_back(|record| verdicts.get(&record).copied());
    }
}

/// A pipeline and all around it.
struct Rig {
    dir: tempfile::TempDir,
    _state: tempfile::TempDir,
    entry: Entry,
    policy: Arc<Policy>,
    checkpoints: Arc<Checkpoints>,
    quarantine: Arc<Quarantine>,
    budget: Arc<Budget>,
    broker: Arc<Mutex<Broker>>,
    slot: Arc<Mutex<EntryReport>>,
    judged: Arc<Mutex<Vec<Judgement>>>,
    once: bool,
    running: Option<Running>,
}

struct Running {
    inbox: Sender<Message>,
    thread: JoinHandle<Ended>,
    /// As the kernel names it.
    task: String,
}

impl Rig {
    fn new() -> Self {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let entry =
            Entry { line_bytes_max: 10_000, ..Entry::plain("entry", dir.path().join("a.log"), "topic") };
        let broker = Broker {
            log: Vec::new(),
            rule: Box::new(|_| None),
            tries: HashMap::new(),
            silent: false,
            silent_topic: "",
            held: Vec::new(),
            partitions: Ok(4),
            most_bytes: 0,
        };
        Self {
            slot: Arc::new(Mutex::new(EntryReport { status: blank(), figures: Figures::default() })),
            policy: Arc::new(Policy::unbounded()),
            checkpoints: Arc::new(Checkpoints::open(state.path())),
            quarantine: Quarantine::open(&state.path().join("quarantine"), 1 << 40).unwrap(),
            budget: Budget::new(16 * MIB),
            broker: Arc::new(Mutex::new(broker)),
            judged: Arc::default(),
            once: false,
            running: None,
            entry,
            dir,
            _state: state,
        }
    }

    fn start(&mut self) {
        let setup = Setup {
            entry: Arc::new(self.entry.clone()),
            host: "host".into(),
            policy: self.policy.clone(),
            checkpoints: self.checkpoints.clone(),
            quarantine: Some(self.quarantine.clone()),
            share: self.budget.share(),
            sink: Arc::new(FakeSink(self.broker.clone())),
            watcher: Watcher::start(),
            slot: self.slot.clone(),
            tap: Arc::default(),
            held_limits: HeldLimits { age: DEADLINE, bytes: MIB },
            judge: {
                let judged = self.judged.clone();
                Arc::new(move |judgement| judged.lock().unwrap().push(judgement))
            },
            once: self.once,
        };
        let (pipeline, inbox) = Pipeline::new(setup).unwrap();
        let (sender, task) = channel();
        let thread = std::thread::spawn(move || {
            let id = rustix::thread::gettid().as_raw_nonzero();
            sender.send(format!("/proc/self/task/{id}/status")).unwrap();
            pipeline.run()
        });
        self.running = Some(Running { inbox, thread, task: task.recv().unwrap() });
    }

    /// Stops; what is not finished then is as lost to it as by a kill.
    fn stop(&mut self, within: Duration) -> Ended {
        let running = self.running.take().unwrap();
        running.inbox.send(Message::Stop(Instant::now() + within)).unwrap();
        running.thread.join().unwrap()
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.dir.path().join(name);
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_ref()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn broker(&self) -> std::sync::MutexGuard<'_, Broker> {
        self.broker.lock().unwrap()
    }

    fn rule(&self, rule: impl FnMut(&Attempt<'_>) -> Option<Refusal> + Send + 'static) {
        self.broker().rule = Box::new(rule);
    }

    /// What the broker took.
    fn log(&self) -> Vec<String> {
        self.broker().log.iter().map(|(_, _, text)| text.clone()).collect()
    }

    /// The report as it is now; its sums hold at any time.
    fn status(&self) -> EntryStatus {
        let status = self.slot.lock().unwrap().status.clone();
        let l = status.lines;
        assert_eq!(
            l.read,
            l.delivered + l.filtered + l.skipped + l.quarantined + l.discarded + l.in_flight,
            "{l:?}"
        );
        status
    }

    #[track_caller]
    fn eventually(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}; {:?}", self.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn await_delivered(&self, lines: u64) {
        self.eventually("delivered", |rig| rig.status().lines.delivered >= lines);
    }

    #[track_caller]
    fn await_state(&self, state: EntryState) -> String {
        self.eventually("the state", |rig| rig.status().state == state);
        self.status().cause
    }

    /// The offsets a restart would begin from, one a file.
    fn committed(&self) -> Vec<u64> {
        self.checkpoints.load(&self.entry.name).records.iter().map(|record| record.committed).collect()
    }

    /// How often its thread waited in this time.
    fn turns_within(&self, time: Duration) -> u64 {
        let waits = || {
            let status = fs::read_to_string(&self.running.as_ref().unwrap().task).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
        };
        let before = waits();
        std::thread::sleep(time);
        waits() - before
    }

    #[track_caller]
    fn assert_idle(&self) {
        let turns = self.turns_within(Duration::from_secs(2));
        // Four polls of open files a second, one scan, one look at what is under way, one report.
        assert!(turns < 30, "{turns} turns in two seconds");
    }
}

/// Lines that come back from quarantine.
impl Rig {
    /// Asks for a line to be sent again; what became of it comes out of the receiver.
    fn replay(&self, id: u64) -> Receiver<Replayed> {
        let (tell, told) = channel();
        let item = self.quarantine.item(id).unwrap().unwrap();
        let answer = Box::new(move |replayed| drop(tell.send(replayed)));
        let inbox = &self.running.as_ref().unwrap().inbox;
        inbox.send(Message::Replay(Replay { item, answer })).unwrap();
        told
    }

    #[track_caller]
    fn await_replayed(&self, id: u64) -> Replayed {
        self.replay(id).recv_timeout(DEADLINE).expect("an answer")
    }

    fn set_aside(&self) -> Vec<u64> {
        self.quarantine.list(0, 100).unwrap().iter().map(|item| item.id).collect()
    }

    fn replayed(&self) -> u64 {
        self.slot.lock().unwrap().figures.replayed
    }
}

/// With a filter that sets aside what contains `bad`, or with `{"do": "nothing"}` keeps it.
impl Rig {
    fn wants_filter(&mut self, on_error: OnError) {
        self.entry.filter = Some(FilterSpec {
            module: ModuleRef::Tag("misbehave".into()),
            config: Vec::new(),
            on_error,
            timeout: Duration::from_secs(10),
            memory: 32 * MIB,
            shadow: None,
            rollout: 100,
        });
    }

    fn give_filter(&self, config: &str) {
        let engine = Engine::with_compiler(EngineLimits { memory: 1 << 30 }, Compiler::InProcess).unwrap();
        let cache = ModuleCache::open(self._state.path().join("modules")).unwrap();
        let digest = cache.put(guest("guest_misbehave")).unwrap();
        let context = FilterContext {
            entry: self.entry.name.clone(),
            topic: self.entry.topic.clone(),
            host: "host".into(),
            config: config.into(),
            timeout: Duration::from_secs(10),
            memory: 32 * MIB,
            aside: false,
        };
        let filter = engine.load(&cache, &digest).unwrap().prepare(context).unwrap();
        let change =
            FilterChange::Use { filter: Box::new(filter), status: FilterStatus::default(), ticket: 7 };
        let inbox = &self.running.as_ref().unwrap().inbox;
        inbox.send(Message::Filter(Arc::new(self.entry.clone()), Box::new(change))).unwrap();
    }
}

const SETS_BAD_ASIDE: &str = r#"{"do": "set-aside"}"#;

fn dead_letter() -> OnError {
    OnError::DeadLetter(Topic::parse("dead").unwrap())
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.inbox.send(Message::Stop(Instant::now()));
            let _ = running.thread.join();
        }
    }
}

fn blank() -> EntryStatus {
    EntryStatus { name: "entry".into(), ..EntryStatus::default() }
}

fn numbered(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("line {n:06}")).collect()
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn lines_are_delivered_in_order_and_the_sums_hold_at_every_moment() {
    let mut rig = Rig::new();
    rig.start();
    let lines = numbered(0, 20_000);
    for part in lines.chunks(500) {
        rig.append("a.log", format!("{}\n\r\n", text(part)));
        rig.status();
    }
    rig.await_delivered(20_000);
    rig.eventually("nothing under way", |rig| rig.status().lag_bytes == 0);
    let counts = rig.status().lines;
    assert_eq!((counts.read, counts.skipped, counts.in_flight), (20_080, 80, 0));
    assert_eq!(rig.log(), lines);
    let partition = rig.broker().log[0].1;
    assert!(matches!(partition, Pick::Fixed(0..4)));
    assert!(rig.broker().log.iter().all(|(_, other, _)| *other == partition));
    assert_eq!(rig.stop(DEADLINE).unfinished, 0);
    assert_eq!(rig.committed(), [fs::metadata(rig.path("a.log")).unwrap().len()]);
}

#[test]
fn what_a_stopped_pipeline_finished_is_not_read_again_and_its_sums_go_on() {
    let mut rig = Rig::new();
    rig.append("a.log", text(&numbered(0, 100)));
    rig.start();
    rig.await_delivered(100);
    rig.broker().silent = true;
    rig.append("a.log", text(&numbered(100, 200)));
    rig.eventually("under way", |rig| rig.status().lines.in_flight == 100);
    assert_eq!(rig.stop(Duration::ZERO).unfinished, 100);
    (rig.broker().silent, _) = (false, rig.broker().held.drain(..).count());
    rig.start();
    rig.await_delivered(200);
    assert_eq!((rig.log(), rig.status().lines.read), (numbered(0, 200), 200));
}

#[test]
fn runs_of_nul_are_skipped_and_counted_also_as_discarded_lines() {
    let mut rig = Rig::new();
    let hole = [0; 4096];
    rig.append("a.log", [b"one\ntw", &hole[..], b"two\n", &hole[..100], b"three\n"].concat());
    rig.start();
    rig.await_delivered(4);
    assert_eq!(rig.log(), ["one", "tw", "two", "three"]);
    assert_eq!(rig.status().lines.discarded, 2);
    assert_eq!(rig.slot.lock().unwrap().figures.nul_runs, 2);
    rig.stop(DEADLINE);
}

#[test]
fn failed_records_are_sent_again_in_order() {
    let mut rig = Rig::new();
    rig.entry.read_bytes_per_second = Some(1_000_000);
    rig.append("a.log", text(&numbered(0, 30_000)));
    rig.rule(|attempt| {
        let number: u32 = attempt.text[5..].parse().unwrap();
        (number % 5_000 == 4_321 && attempt.tries < 1 + number / 10_000).then_some(Refusal::Again)
    });
    rig.start();
    rig.await_delivered(30_000);
    assert_eq!(rig.log(), numbered(0, 30_000), "each once, and in order");
    assert_eq!(rig.stop(DEADLINE).unfinished, 0);
    assert!(rig.slot.lock().unwrap().figures.resends > 0);
}

#[test]
fn chunks_that_come_back_in_another_order_are_committed_as_a_prefix() {
    let mut rig = Rig::new();
    rig.broker().silent = true;
    rig.start();
    for n in 0..4 {
        rig.append("a.log", text(&numbered(n * 10, n * 10 + 10)));
        rig.eventually("the chunk", |rig| rig.broker().held.len() == n + 1);
    }
    rig.broker().answer(3);
    rig.broker().answer(1);
    rig.eventually("two are back", |rig| rig.status().lines.delivered == 20);
    assert_eq!(rig.committed(), [0]);
    rig.broker().answer(0);
    rig.eventually("three are back", |rig| rig.status().lines.delivered == 30);
    rig.eventually("the prefix", |rig| rig.committed() == [20 * 12]);
    assert_eq!(rig.stop(Duration::ZERO).unfinished, 10);
    (rig.broker().silent, _) = (false, rig.broker().held.drain(..).count());
    rig.start();
    rig.eventually("all", |rig| rig.log().len() == 50);
    assert_eq!(rig.log()[30..], numbered(20, 40), "from the first that was not acknowledged");
}

#[test]
fn a_kill_at_any_moment_loses_nothing() {
    let mut rig = Rig::new();
    let lines = numbered(0, 3_000);
    rig.entry.read_bytes_per_second = Some(100_000);
    rig.broker().silent = true;
    for (turn, part) in lines.chunks(300).enumerate() {
        rig.start();
        rig.append("a.log", text(part));
        rig.eventually("something under way", |rig| !rig.broker().held.is_empty());
        // Some are acknowledged, in another order; the others are lost with their producer.
        for n in 0..turn % 4 {
            let mut broker = rig.broker();
            let at = (n * 7 + turn) % broker.held.len().max(1);
            if at < broker.held.len() {
                broker.answer(at);
            }
        }
        rig.stop(Duration::ZERO);
        let offset = rig.committed().first().copied().unwrap_or_default();
        let log: BTreeSet<String> = rig.log().into_iter().collect();
        let finished = numbered(0, (offset / 12) as usize);
        assert!(offset % 12 == 0 && finished.iter().all(|line| log.contains(line)), "only what was taken");
        rig.broker().held.clear();
    }
    rig.broker().silent = false;
    rig.start();
    rig.eventually("all", |rig| rig.log().into_iter().collect::<BTreeSet<_>>().len() == 3_000);
}

#[test]
fn a_line_the_broker_refuses_goes_to_quarantine_with_place_and_cause() {
    let mut rig = Rig::new();
    let batches = Arc::new(AtomicU64::new(0));
    let spoilt = batches.clone();
    let mut lines = numbered(0, 30);
    lines[7] = "poison 1".into();
    lines[20] = "poison 2".into();
    rig.rule(move |attempt| {
        let refused = attempt.text.starts_with("poison");
        spoilt.fetch_add(u64::from(refused && !attempt.alone), Ordering::Relaxed);
        refused.then_some(Refusal::Record)
    });
    rig.append("a.log", text(&lines));
    rig.start();
    rig.await_delivered(28);
    rig.append("a.log", "after\n");
    rig.await_delivered(29);
    assert_eq!(rig.status().lines.quarantined, 2);
    assert_eq!(batches.load(Ordering::Relaxed), 2, "tried in a batch once, then alone");
    let expected: Vec<String> =
        lines.iter().filter(|line| line.starts_with("line")).cloned().chain(["after".into()]).collect();
    assert_eq!(rig.log(), expected);
    let items = rig.quarantine.list(0, 10).unwrap();
    let found: Vec<_> = items
        .iter()
        .map(|item| (item.offset, item.kind.as_str(), item.message.as_str(), item.topic.as_str()))
        .collect();
    assert_eq!(found, [(7 * 12, "refused", "CODE", "topic"), (19 * 12 + 9, "refused", "CODE", "topic")]);
    assert_eq!(rig.quarantine.read(items[1].id).unwrap().unwrap(), b"poison 2");
    assert_eq!(rig.stop(DEADLINE).unfinished, 0);
}

#[test]
fn a_replayed_line_leaves_the_quarantine_only_when_it_is_acknowledged() {
    let mut rig = Rig::new();
    rig.rule(|attempt| (attempt.text == "poison").then_some(Refusal::Record));
    rig.append("a.log", "one\npoison\ntwo\n");
    rig.start();
    rig.await_delivered(2);
    rig.eventually("set aside", |rig| rig.set_aside() == [1]);
    // It is still refused.
    assert_eq!(rig.await_replayed(1), Replayed::Kept("Kafka does not take it: CODE".into()));
    assert_eq!((rig.set_aside(), rig.replayed()), (vec![1], 0));
    // The broker takes it, and says nothing yet; meanwhile other lines go on.
    rig.rule(|_| None);
    rig.broker().silent = true;
    let told = rig.replay(1);
    rig.eventually("under way", |rig| rig.broker().held.len() == 1);
    assert!(rig.broker().held[0].route.alone, "the verdict is about it alone");
    assert_eq!(rig.await_replayed(1), Replayed::Kept("it is under way already".into()));
    assert_eq!(rig.set_aside(), [1], "not before it is acknowledged");
    rig.broker().silent = false;
    rig.append("a.log", "three\n");
    rig.await_delivered(3);
    rig.broker().answer_all();
    assert_eq!(told.recv_timeout(DEADLINE), Ok(Replayed::Delivered));
    assert!(rig.set_aside().is_empty());
    assert_eq!(rig.log(), ["one", "two", "three", "poison"]);
    rig.eventually("counted", |rig| rig.replayed() == 1);
    let lines = rig.status().lines;
    assert_eq!((lines.read, lines.delivered, lines.quarantined), (4, 3, 1), "beside the sums");
    assert_eq!(rig.stop(DEADLINE).unfinished, 0);
}

#[test]
fn a_line_whose_acknowledgement_never_came_is_still_in_quarantine_after_a_stop() {
    let mut rig = Rig::new();
    rig.rule(|attempt| (attempt.text == "poison").then_some(Refusal::Record));
    rig.append("a.log", "poison\n");
    rig.start();
    rig.eventually("set aside", |rig| rig.set_aside() == [1]);
    rig.broker().silent = true;
    let told = rig.replay(1);
    rig.eventually("under way", |rig| rig.broker().held.len() == 1);
    assert_eq!(rig.stop(DEADLINE).unfinished, 0);
    rig.rule(|_| None);
    rig.broker().answer_all();
    assert!(told.recv_timeout(DEADLINE).is_err(), "nobody can say what became of it");
    assert_eq!(rig.set_aside(), [1]);
}

#[test]
fn a_replayed_line_goes_through_the_filter_as_it_is_now() {
    let mut rig = Rig::new();
    rig.wants_filter(OnError::Quarantine);
    rig.append("a.log", "one\nbad two\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    rig.eventually("set aside", |rig| rig.set_aside() == [1]);
    let Replayed::Kept(cause) = rig.await_replayed(1) else { panic!("the filter still refuses it") };
    assert!(cause.starts_with("the filter refuses it: "), "{cause}");
    rig.give_filter(r#"{"do": "nothing"}"#);
    assert_eq!(rig.await_replayed(1), Replayed::Delivered);
    assert_eq!(rig.log(), ["one", "bad two"]);
    assert!(rig.set_aside().is_empty());
}

#[test]
fn nothing_is_replayed_past_a_filter_that_is_not_there_yet() {
    let mut rig = Rig::new();
    rig.wants_filter(OnError::Quarantine);
    let (entry, topic) = (rig.entry.name.clone(), rig.entry.topic.clone());
    let line = crate::quarantine::SetAside {
        entry: &entry,
        topic: &topic,
        path: "",
        file: "",
        offset: 0,
        kind: "",
        message: "",
        digest: None,
        line: b"secret",
    };
    rig.quarantine.append(&[line]).unwrap();
    rig.start();
    assert_eq!(rig.await_replayed(1), Replayed::Kept("its entry waits for its filter".into()));
    assert!(rig.log().is_empty());
    assert_eq!(rig.set_aside(), [1]);
}

#[test]
fn a_full_quarantine_holds_and_goes_on_when_there_is_room() {
    for by_broker in [true, false] {
        let mut rig = Rig::new();
        rig.entry.long_line = LongLine::Quarantine;
        let long = "x".repeat(10_001);
        let state = tempfile::tempdir().unwrap();
        rig.quarantine = Quarantine::open(&state.path().join("small"), 64 * 1024).unwrap();
        let (entry, topic) = (rig.entry.name.clone(), rig.entry.topic.clone());
        let filler = |offset| crate::quarantine::SetAside {
            entry: &entry,
            topic: &topic,
            path: "",
            file: "",
            offset,
            kind: "",
            message: "",
            digest: None,
            line: &[b'f'; 5_000],
        };
        while rig.quarantine.append(&[filler(rig.quarantine.used().unwrap())]).is_ok() {}
        rig.rule(|attempt| attempt.text.starts_with('p').then_some(Refusal::Record));
        let poison = if by_broker { "p".repeat(10_000) } else { long };
        rig.append("a.log", format!("before\n{poison}\nafter\n"));
        rig.start();
        let cause = rig.await_state(EntryState::Holding);
        assert!(cause.contains("full"), "{cause}");
        assert_eq!(rig.status().lines.quarantined, 0);
        rig.assert_idle();
        assert!(!rig.log().contains(&"after".to_string()) || by_broker);
        rig.quarantine.remove(&[1, 2, 3, 4, 5]).unwrap();
        rig.eventually("after", |rig| rig.log().contains(&"after".to_string()));
        rig.eventually("set aside", |rig| rig.status().lines.quarantined == 1);
        assert_eq!(rig.log(), ["before", "after"]);
        assert_eq!(rig.quarantine.list(0, 100).unwrap().last().unwrap().offset, 7);
        assert_eq!(rig.stop(DEADLINE).unfinished, 0);
    }
}

#[test]
fn a_stop_waits_for_what_is_under_way_and_says_what_it_gave_up() {
    let mut rig = Rig::new();
    rig.broker().silent = true;
    rig.append("a.log", text(&numbered(0, 100)));
    rig.start();
    rig.eventually("under way", |rig| rig.status().lines.in_flight == 100);
    rig.running.as_ref().unwrap().inbox.send(Message::Stop(Instant::now() + DEADLINE)).unwrap();
    rig.append("a.log", "not read any more\n");
    rig.assert_idle();
    rig.broker().answer_all();
    let running = rig.running.take().unwrap();
    assert_eq!(running.thread.join().unwrap().unfinished, 0);
    assert_eq!(rig.log(), numbered(0, 100));
    rig.start();
    rig.eventually("under way", |rig| rig.status().lines.in_flight == 1);
    let began = Instant::now();
    assert_eq!(rig.stop(Duration::from_millis(200)).unfinished, 1);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn memory_stays_within_the_budget_while_the_sink_says_nothing() {
    let mut rig = Rig::new();
    rig.budget = Budget::new(4 * MIB);
    rig.broker().silent = true;
    let lines = numbered(0, 500_000);
    rig.append("a.log", text(&lines));
    rig.start();
    rig.eventually("as much as there is room for", |rig| rig.status().lines.in_flight > 0);
    rig.assert_idle();
    let most = rig.broker().most_bytes;
    assert!(most > MIB / 2 && most <= 4 * MIB, "{most}");
    rig.broker().silent = false;
    rig.broker().answer_all();
    rig.await_delivered(500_000);
    assert_eq!(rig.log(), lines);
    assert!(rig.broker().most_bytes <= 4 * MIB);
    rig.stop(DEADLINE);
    assert_eq!(rig.budget.used(), 0, "all of it was given back");
}

#[test]
fn a_line_longer_than_the_reserve_waits_for_shared_room_and_says_so() {
    let mut rig = Rig::new();
    rig.budget = Budget::new(MIB);
    let neighbours: Vec<_> = (0..31).map(|_| rig.budget.share()).collect();
    let mut taken = Vec::new();
    for neighbour in &neighbours {
        taken.extend(std::iter::from_fn(|| neighbour.take(8 * 1024)).take(100));
    }
    let long = "x".repeat(9_000);
    rig.append("a.log", format!("before\n{long}\nafter\n"));
    rig.start();
    rig.await_delivered(1);
    let cause = rig.await_state(EntryState::Waiting);
    assert!(cause.contains("memory"), "{cause}");
    rig.assert_idle();
    taken.clear();
    rig.await_delivered(3);
    assert_eq!(rig.log(), ["before", &long, "after"]);
}

#[test]
fn a_topic_that_cannot_be_used_stalls_its_entry_and_says_so() {
    let mut rig = Rig::new();
    let missing = SinkError::Topic { topic: rig.entry.topic.clone(), code: "UNKNOWN_TOPIC".into() };
    rig.broker().partitions = Err(missing);
    rig.append("a.log", text(&numbered(0, 10)));
    rig.start();
    assert!(rig.await_state(EntryState::Stalled).contains("UNKNOWN_TOPIC"));
    rig.assert_idle();
    rig.broker().partitions = Ok(1);
    rig.await_delivered(10);
    // And when it becomes so later.
    rig.rule(|_| Some(Refusal::Topic));
    rig.append("a.log", text(&numbered(10, 20)));
    let cause = rig.await_state(EntryState::Stalled);
    assert!(cause.contains("topic topic: CODE"), "{cause}");
    rig.rule(|_| None);
    rig.await_delivered(20);
    rig.eventually("following", |rig| rig.status().state == EntryState::Following);
    assert_eq!(rig.log(), numbered(0, 20));
}

#[test]
fn what_comes_back_untried_does_not_hide_the_cause() {
    let mut rig = Rig::new();
    rig.broker().silent = true;
    rig.start();
    for n in 0..3 {
        rig.append("a.log", text(&numbered(n * 10, n * 10 + 10)));
        rig.eventually("the chunk", |rig| rig.broker().held.len() == n + 1);
    }
    rig.rule(|_| Some(Refusal::Topic));
    rig.broker().answer_all();
    let cause = rig.await_state(EntryState::Stalled);
    assert!(cause.contains("refuses topic topic"), "{cause}");
    rig.rule(|_| None);
    rig.eventually("delivered", |rig| {
        rig.broker().answer_all();
        rig.status().lines.delivered == 30
    });
    assert_eq!(rig.log(), numbered(0, 30));
}

#[test]
fn the_end_of_the_files_is_the_end_with_once() {
    let mut rig = Rig::new();
    rig.once = true;
    rig.append("a.log", format!("{}unended", text(&numbered(0, 10_000))));
    rig.start();
    let running = rig.running.take().unwrap();
    assert_eq!(running.thread.join().unwrap().unfinished, 0);
    assert_eq!(rig.log().len(), 10_001);
    assert_eq!(rig.status().lines.delivered, 10_001, "the last report is the whole truth");
    // Also when a file cannot be read.
    let rules = PolicyRules { roots: Some(vec!["/nowhere".into()]), max_files: 9, ..PolicyRules::default() };
    rig.policy = Arc::new(Policy::new(rules).unwrap());
    rig.append("a.log", "more\n");
    rig.start();
    let running = rig.running.take().unwrap();
    assert_eq!(running.thread.join().unwrap().unfinished, 0);
}

#[test]
fn an_entry_reads_no_faster_than_it_may() {
    let mut rig = Rig::new();
    rig.entry.read_bytes_per_second = Some(120_000);
    rig.append("a.log", text(&numbered(0, 20_000)));
    let began = Instant::now();
    rig.start();
    rig.await_delivered(15_000);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_300), "{took:?} for 180 kB, less a tenth of a second in hand");
    rig.assert_idle_share();
}

impl Rig {
    /// A paced entry waits between its reads.
    #[track_caller]
    fn assert_idle_share(&self) {
        let turns = self.turns_within(Duration::from_secs(1));
        assert!(turns < 100, "{turns}");
    }
}

#[test]
fn a_pipeline_with_nothing_to_do_sleeps() {
    let mut rig = Rig::new();
    rig.start();
    rig.await_state(EntryState::Waiting);
    rig.assert_idle();
    rig.append("a.log", "one\nunfinished");
    rig.await_delivered(1);
    rig.assert_idle();
    // The rotated file waits for its writer, then gives up its last line.
    fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
    rig.append("a.log", "two\n");
    rig.await_delivered(2);
    rig.assert_idle();
    rig.await_delivered(3);
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.assert_idle();
}

#[test]
fn a_pipeline_whose_sink_is_silent_sleeps_also_in_the_middle_of_a_recovery() {
    let mut rig = Rig::new();
    rig.broker().silent = true;
    rig.start();
    for n in 0..2 {
        rig.append("a.log", text(&numbered(n * 10, n * 10 + 10)));
        rig.eventually("the chunk", |rig| rig.broker().held.len() == n + 1);
    }
    rig.assert_idle();
    rig.rule(|_| Some(Refusal::Again));
    rig.broker().answer(0);
    rig.eventually("the failure", |rig| !rig.slot.lock().unwrap().figures.delivery_errors.is_empty());
    rig.assert_idle();
    rig.rule(|_| None);
    rig.broker().silent = false;
    rig.broker().answer_all();
    rig.await_delivered(20);
    assert_eq!(rig.log(), numbered(0, 20));
}

#[test]
fn a_pipeline_that_waits_for_its_filter_reads_nothing_and_sleeps() {
    let mut rig = Rig::new();
    rig.append("a.log", "one\n");
    rig.wants_filter(OnError::Quarantine);
    rig.start();
    rig.eventually("the cause", |rig| rig.status().cause.contains("filter"));
    rig.assert_idle();
    assert_eq!(rig.status().lines.read, 0);
    let entry = Entry { filter: None, ..rig.entry.clone() };
    rig.running
        .as_ref()
        .unwrap()
        .inbox
        .send(Message::Filter(Arc::new(entry), Box::new(FilterChange::Remove)))
        .unwrap();
    rig.await_delivered(1);
}

#[test]
fn a_filter_goes_on_while_another_one_is_being_loaded() {
    let mut rig = Rig::new();
    rig.append("a.log", "one\n");
    rig.wants_filter(OnError::Quarantine);
    rig.start();
    rig.give_filter(r#"{"do": "nothing"}"#);
    rig.await_delivered(1);
    let wait = FilterChange::WaitFor(FilterStatus {
        cause: "its filter is being loaded".into(),
        ..FilterStatus::default()
    });
    let inbox = &rig.running.as_ref().unwrap().inbox;
    inbox.send(Message::Filter(Arc::new(rig.entry.clone()), Box::new(wait))).unwrap();
    rig.append("a.log", "two\n");
    rig.await_delivered(2);
    assert_eq!(rig.log(), ["one", "two"]);
}

#[test]
fn a_file_that_cannot_be_opened_costs_nothing_and_is_told() {
    let mut rig = Rig::new();
    let rules = PolicyRules { roots: Some(vec!["/nowhere".into()]), max_files: 9, ..PolicyRules::default() };
    rig.policy = Arc::new(Policy::new(rules).unwrap());
    rig.append("a.log", "one\n");
    rig.start();
    rig.eventually("the cause", |rig| rig.status().cause.contains("roots"));
    rig.assert_idle();
}

#[test]
fn a_writer_that_writes_a_line_at_a_time_does_not_cost_a_turn_a_line() {
    for silent in [false, true] {
        let mut rig = Rig::new();
        rig.budget = Budget::new(MIB);
        rig.broker().silent = silent;
        rig.append("a.log", text(&numbered(0, if silent { 100_000 } else { 1 })));
        rig.start();
        rig.eventually("something", |rig| rig.status().lines.read > 0);
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (rig.path("a.log"), stop.clone());
        let writer = std::thread::spawn(move || {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            let mut lines = 0;
            while !stopped.load(Ordering::Relaxed) {
                file.write_all(b"one more line\n").unwrap();
                std::thread::sleep(Duration::from_micros(100));
                lines += 1;
            }
            lines
        });
        let turns = rig.turns_within(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let lines: u64 = writer.join().unwrap();
        // One to look, one for the answer, each 5 ms at most; where nothing can be read, less.
        assert!(lines > 1_000 && turns < if silent { 400 } else { 800 }, "{turns} turns for {lines} lines");
    }
}

#[test]
fn a_line_that_is_held_holds_its_entry_until_the_filter_changes() {
    let mut rig = Rig::new();
    rig.wants_filter(OnError::Hold);
    rig.append("a.log", "one\n\nbad\ntwo\nbad\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    assert!(rig.await_state(EntryState::Holding).contains("hold"));
    rig.await_delivered(1);
    rig.assert_idle();
    assert_eq!(rig.log(), ["one"]);
    rig.give_filter(r#"{"do": "nothing"}"#);
    rig.await_delivered(4);
    assert_eq!(rig.log(), ["one", "bad", "two", "bad"]);
    let lines = rig.status().lines;
    assert_eq!((lines.read, lines.skipped), (5, 1));
}

#[test]
fn a_piece_of_a_long_line_that_is_held_is_not_passed_by() {
    let mut rig = Rig::new();
    rig.entry.line_bytes_max = 16;
    rig.wants_filter(OnError::Hold);
    rig.append("a.log", "sixteen of these bad sixteen of the rest\nnext\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    assert!(rig.await_state(EntryState::Holding).contains("hold"));
    rig.await_delivered(1);
    rig.give_filter(r#"{"do": "nothing"}"#);
    rig.await_delivered(4);
    assert_eq!(rig.log(), ["sixteen of these", " bad sixteen of ", "the rest", "next"]);
}

#[test]
fn each_record_comes_from_one_filter_and_none_is_lost_by_the_change() {
    let mut rig = Rig::new();
    rig.wants_filter(OnError::Quarantine);
    rig.entry.read_bytes_per_second = Some(200_000);
    rig.append("a.log", text(&numbered(0, 10_000)));
    rig.start();
    for version in ["1 ", "2 "] {
        rig.give_filter(&format!(r#"{{"do": "nothing", "prefix": "{version}"}}"#));
        rig.eventually("the version", |rig| rig.log().last().is_some_and(|line| line.starts_with(version)));
    }
    rig.await_delivered(10_000);
    let log = rig.log();
    let lines: Vec<String> = log.iter().map(|line| line[2..].to_string()).collect();
    assert_eq!(lines, numbered(0, 10_000));
    assert!(log.is_sorted_by_key(|line| line[..1].to_string()), "first the one, then the other");
}

#[test]
fn dead_letters_are_within_the_budget_while_only_their_topic_is_silent() {
    let mut rig = Rig::new();
    rig.budget = Budget::new(4 * MIB);
    rig.wants_filter(dead_letter());
    rig.broker().silent_topic = "dead";
    let lines: Vec<String> = (0..100_000).map(|n| format!("{} {n:060}", ["bad", "good"][n % 2])).collect();
    rig.append("a.log", text(&lines));
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    rig.eventually("some under way", |rig| rig.status().lines.in_flight > 1_000);
    rig.assert_idle();
    let most = rig.broker().most_bytes;
    assert!(most < 5 * MIB, "{most}");
    rig.broker().silent_topic = "";
    rig.broker().answer_all();
    rig.await_delivered(100_000);
    let taken =
        |rig: &Rig, wanted: &str| rig.broker().log.iter().filter(|(topic, ..)| topic == wanted).count();
    assert_eq!((taken(&rig, "dead"), taken(&rig, "topic")), (50_000, 50_000));
    rig.stop(DEADLINE);
    assert_eq!(rig.budget.used(), 0);
}

#[test]
fn a_dead_letter_that_the_broker_refuses_is_set_aside_with_its_own_place() {
    let mut rig = Rig::new();
    rig.wants_filter(dead_letter());
    rig.rule(|attempt| {
        let refused = attempt.topic == "dead" && attempt.text.ends_with('2');
        refused.then_some(Refusal::Record)
    });
    rig.append("a.log", "good\nbad 1\nbad 2\ngood\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    rig.await_delivered(3);
    rig.eventually("set aside", |rig| rig.status().lines.quarantined == 1);
    let items = rig.quarantine.list(0, 10).unwrap();
    let places: Vec<_> = items.iter().map(|item| (item.offset, item.topic.as_str())).collect();
    assert_eq!(places, [(11, "dead")]);
    assert_eq!(rig.quarantine.read(items[0].id).unwrap().unwrap(), b"bad 2");
}

#[test]
fn dead_letters_whose_topic_is_not_wanted_any_more_are_set_aside() {
    let mut rig = Rig::new();
    rig.wants_filter(dead_letter());
    rig.rule(|attempt| (attempt.topic == "dead").then_some(Refusal::Topic));
    rig.append("a.log", "good\nbad 1\nbad 2\ngood\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    let cause = rig.await_state(EntryState::Stalled);
    assert!(cause.contains("topic dead"), "{cause}");
    rig.wants_filter(OnError::Drop);
    rig.give_filter(SETS_BAD_ASIDE);
    rig.append("a.log", "bad 3\nlast\n");
    rig.eventually("the last", |rig| rig.log().contains(&"last".to_string()));
    rig.eventually("set aside", |rig| rig.status().lines.quarantined == 2);
    assert_eq!(rig.log(), ["good", "good", "last"]);
    assert_eq!(rig.stop(DEADLINE).unfinished, 0);
}

#[test]
fn records_a_filter_wrote_are_set_aside_as_the_lines_they_came_from() {
    let mut rig = Rig::new();
    rig.wants_filter(OnError::Quarantine);
    rig.rule(|attempt| attempt.text.contains("poison").then_some(Refusal::Record));
    rig.append("a.log", "one\npoison\ntwo\n");
    rig.start();
    rig.give_filter(r#"{"do": "nothing", "prefix": "> "}"#);
    rig.await_delivered(2);
    rig.eventually("set aside", |rig| rig.status().lines.quarantined == 1);
    assert_eq!(rig.log(), ["> one", "> two"]);
    let items = rig.quarantine.list(0, 10).unwrap();
    assert_eq!(
        (items[0].offset, rig.quarantine.read(items[0].id).unwrap().unwrap()),
        (4, b"poison".to_vec())
    );
}

#[test]
fn what_a_filter_makes_of_its_lines_stays_within_the_budget() {
    let mut rig = Rig::new();
    rig.budget = Budget::new(2 * MIB);
    rig.broker().silent = true;
    rig.wants_filter(OnError::Quarantine);
    rig.append("a.log", text(&(0..400).map(|n| format!("bad {n}")).collect::<Vec<_>>()));
    rig.start();
    rig.give_filter(r#"{"do": "multiply"}"#);
    rig.eventually("as much as there is room for", |rig| rig.status().lines.in_flight > 0);
    rig.assert_idle();
    rig.broker().silent = false;
    rig.broker().answer_all();
    rig.await_delivered(400);
    assert_eq!(rig.log().len(), 400 * 253);
    let (most, a_line) = (rig.broker().most_bytes, 253 * (RECORD_BYTES + 1));
    assert!(most > MIB / 2 && most <= 2 * MIB + a_line, "{most}");
    assert_eq!(rig.status().lines.read, 400);
    rig.stop(DEADLINE);
    assert_eq!(rig.budget.used(), 0, "all of it was given back");
}

#[test]
fn its_files_are_told_one_by_one_also_while_it_is_held_up() {
    let mut rig = Rig::new();
    rig.entry.path = rig.path("*.log").display().to_string();
    rig.append("a.log", "one\n");
    rig.append("b.log", "three\nfour\n");
    rig.broker().silent = true;
    rig.start();
    rig.eventually("all to be read", |rig| rig.status().lines.read == 3);
    let (sender, told) = channel();
    let ask = Message::Files(Box::new(move |files| sender.send(files).unwrap()));
    rig.running.as_ref().unwrap().inbox.send(ask).unwrap();
    let files = told.recv_timeout(DEADLINE).unwrap();
    let shown: Vec<_> =
        files.files.iter().map(|file| (file.path.clone(), file.size, file.read_to, file.lag_bytes)).collect();
    let path = |name| rig.path(name).display().to_string();
    assert_eq!((files.total, shown), (2, vec![(path("b.log"), 11, 11, 11), (path("a.log"), 4, 4, 4)]));
}

#[test]
fn a_filter_is_proven_or_found_to_fail_and_then_its_entry_holds_until_it_is_given_another() {
    let mut rig = Rig::new();
    rig.wants_filter(OnError::Quarantine);
    rig.append("a.log", text(&numbered(0, 6_000)));
    rig.start();
    rig.give_filter(r#"{"do": "trap"}"#);
    rig.await_delivered(6_000);
    assert_eq!(*rig.judged.lock().unwrap(), [Judgement { ticket: 7, verdict: Verdict::Proven }]);
    rig.append("a.log", "bad\n".repeat(300));
    let cause = rig.await_state(EntryState::Holding);
    assert!(cause.contains("(trap)"), "{cause}");
    let failing = Judgement { ticket: 7, verdict: Verdict::Failing(cause) };
    assert_eq!(rig.judged.lock().unwrap().last(), Some(&failing));
    rig.give_filter(r#"{"do": "nothing"}"#);
    rig.await_delivered(6_300);
    let stats = rig.slot.lock().unwrap().figures.filter.clone();
    assert_eq!((stats.kept, stats.refused["trap"]), (6_300, 300), "{stats:?}");
    assert!(stats.restarts > 0 && stats.memory_max > 0 && stats.cpu_seconds > 0.0, "{stats:?}");
    let module = rig.status().filter.unwrap().stats;
    assert_eq!(
        (module.lines, module.line_seconds.iter().sum()),
        (300, 300),
        "since the last change: {module:?}"
    );
}
