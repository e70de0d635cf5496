//! One running entry: source, filter, sink, and the ledger between them.
//!
//! In: one inbox, of wake-ups, finished chunks and commands. Out: chunks to the sink, committed
//! offsets to the checkpoints, a report to the board. The only place that sees source, filter and
//! sink. Runs to completion on a thread of its own: nothing in it is allocated, locked or spawned
//! for a line.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::budget::{Charge, Share};
use crate::filter::Filter;
use crate::filter::shadow::Shadow;
use crate::model::{Entry, Lines as Counts, OnError, ShadowTally, Topic};
use crate::policy::Policy;
use crate::quarantine::{Quarantine, Replay};
use crate::sink::{Chunk, Done, Finished, Header, Lane, Route, Sink, SinkError};
use crate::source::checkpoint::Checkpoints;
use crate::source::lines::Lines;
use crate::source::watch::{Subscription, Watcher};
use crate::source::{HeldLimits, Piece, Source};
use crate::status::{EntryReport, Figures, Files, FilterStats, FilterStatus, ShadowStatus};
use crate::tap::Tap;
use crate::telemetry::Seldom;

mod filtering;
mod packing;
mod recovery;
mod replay;
mod report;
mod route;
mod shadowing;
mod sorting;
mod tapping;
#[cfg(test)]
mod tests;

use self::filtering::Health;
use self::recovery::Recovery;
use self::replay::UnderWay;

/// What is read at once. Large enough for the cost of a chunk to vanish beside that of its lines,
/// small enough for the cache.
pub const READ_BYTES: usize = 256 * 1024;

/// Lines in a chunk of [`READ_BYTES`]; shorter lines make smaller chunks.
pub const CHUNK_LINES: usize = 4096;

/// How long a report may be older than the truth.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// A report looks at each file: with very many of them it waits so many times as long as it took.
const REPORT_PART: u32 = 20;

/// But no longer than this.
const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// Files in one answer, those that lag most.
const FILES_SHOWN: usize = 1000;

/// Messages handled before the pipeline reads again.
const INBOX_BATCH: usize = 64;

/// How long to wait before asking again for a topic that could not be used.
const RETRY: Duration = Duration::from_secs(1);

/// How long to wait for memory where nothing is under way that would say when it is back.
const ROOM_RETRY: Duration = Duration::from_millis(100);

/// How long to wait for offsets to be written down.
const WRITE_RETRY: Duration = Duration::from_millis(10);

/// How often events are looked at. What happens meanwhile is one event, so that a writer that
/// writes a line at a time does not cost a wake a line.
const HINT_PAUSE: Duration = Duration::from_millis(5);

/// Memory beside the bytes of a line that is longer than what is usually read.
const LONG_LINE_RECORDS: u64 = 64;

/// Everything a pipeline is built from.
pub struct Setup {
    /// What to do.
    pub entry: Arc<Entry>,
    /// The agent's name.
    pub host: String,
    /// Which files may be opened.
    pub policy: Arc<Policy>,
    /// Where offsets are kept.
    pub checkpoints: Arc<Checkpoints>,
    /// Where lines are set aside; `None` with `--stdout`.
    pub quarantine: Option<Arc<Quarantine>>,
    /// The memory it may take.
    pub share: Arc<Share>,
    /// Where lines go.
    pub sink: Arc<dyn Sink>,
    /// File events.
    pub watcher: Watcher,
    /// Where its report stands.
    pub slot: Arc<Mutex<EntryReport>>,
    /// Who looks at its lines.
    pub tap: Arc<Tap>,
    /// What files without a name may pin.
    pub held_limits: HeldLimits,
    /// Who wants to know how its filter does.
    pub judge: Judge,
    /// Stop at the end of the files.
    pub once: bool,
}

/// What is said to a running pipeline.
pub enum Message {
    /// Something happened to its files.
    Wake,
    /// A chunk came back.
    Done(Finished),
    /// The filter of its entry changes; all else in the entry is as it was.
    Filter(Arc<Entry>, Box<FilterChange>),
    /// Its filter has another shadow, or none.
    Shadow(Option<(ShadowStatus, Option<Shadow>)>),
    /// A line in quarantine is to be sent again.
    Replay(Replay),
    /// Somebody asks for its files.
    Files(Box<dyn FnOnce(Files) + Send>),
    /// Stop reading, and end when all is finished or at the deadline.
    Stop(Instant),
}

/// A change of the filter, adopted between two chunks.
pub enum FilterChange {
    /// No filter any more.
    Remove,
    /// Nothing is read until there is a filter.
    WaitFor(FilterStatus),
    /// From the next chunk on.
    Use {
        /// Ready for its first batch.
        filter: Box<Filter>,
        /// What is to be said of it.
        status: FilterStatus,
        /// By which a [`Judgement`] names it.
        ticket: u64,
    },
    /// The wanted one cannot be used: the running one goes on, or nothing is read where there is none.
    Refused(FilterStatus),
    /// The running filter is the wanted one; something else about it changed.
    Same(FilterStatus),
}

/// What a pipeline finds out about the filter it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Which filter.
    pub ticket: u64,
    /// What.
    pub verdict: Verdict,
}

/// See [`Judgement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Many lines went through it, and it did not fail too often.
    Proven,
    /// It fails too often, for this cause: the entry holds until it is given another.
    Failing(String),
}

/// Where a pipeline says it.
pub type Judge = Arc<dyn Fn(Judgement) + Send + Sync>;

/// How a pipeline ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Lines read and not finished: the next start repeats at most these.
    pub unfinished: u64,
}

/// One running entry.
pub struct Pipeline {
    entry: Arc<Entry>,
    host: String,
    source: Source,
    subscription: Subscription,
    checkpoints: Arc<Checkpoints>,
    quarantine: Option<Arc<Quarantine>>,
    share: Arc<Share>,
    sink: Arc<dyn Sink>,
    done: Done,
    lane: Box<dyn Lane>,
    dead_letters: Option<Box<dyn Lane>>,
    partitions: Partitions,
    /// The headers of all records, where they have some.
    headers: Option<Vec<Header>>,
    /// The memory that a record takes beside its bytes.
    record_bytes: u64,
    inbox: Receiver<Message>,
    filter: Option<Filter>,
    ticket: u64,
    judge: Judge,
    shadow: Option<(ShadowStatus, Option<Shadow>)>,
    /// Of shadows before it.
    shadow_lines: Option<ShadowTally>,
    filter_status: Option<FilterStatus>,
    /// Of the module that runs.
    stats: FilterStats,
    health: Health,
    gate: Gate,
    lines: Lines,
    flights: BTreeMap<u64, Flight>,
    ranges: HashMap<u64, Range>,
    recovery: Recovery,
    /// Lines from quarantine, by their chunk.
    replays: BTreeMap<u64, UnderWay>,
    next_id: u64,
    counts: Counts,
    figures: Figures,
    base_counts: BTreeMap<String, u64>,
    slot: Arc<Mutex<EntryReport>>,
    tap: Arc<Tap>,
    told: Told,
    report_due: Instant,
    /// Something happened since.
    stale: bool,
    /// There are events to look at, and when some were looked at last.
    woken: bool,
    hinted: Instant,
    /// Since when there is no memory to read into.
    cramped: Option<Instant>,
    pace: Pace,
    stop: Option<Instant>,
    once: bool,
}

/// What a turn of the pipeline came to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// A chunk was read; there may be more.
    Progress,
    /// There is nothing new.
    Idle,
    /// Nothing may be read until then.
    Blocked(Instant),
}

/// What was said lately of what may happen for each chunk.
#[derive(Default)]
struct Told {
    nul_runs: Seldom,
    resends: Seldom,
    refusals: Seldom,
}

/// Why nothing is read just now.
#[derive(Clone, Debug, PartialEq)]
enum Gate {
    Open,
    /// For a filter.
    Filter(String),
    /// Lines are held: until the filter changes, or with a time until then.
    Hold(String, Option<Instant>),
}

/// A chunk under way.
struct Flight {
    /// The range of the file that is finished with it.
    range: u64,
    /// Lines of the source that have records in it and are not finished otherwise.
    lines: u64,
    /// Where the line of each record in `written` stands in what was read; in a dead-letter chunk,
    /// of each record.
    sources: Vec<(u32, u32)>,
    origin: Arc<Origin>,
    route: Route,
    /// Lines of it, as they stand in `read`, that the broker refused for good.
    refused: BTreeSet<(u32, u32)>,
    dead_letter: bool,
    /// Its records have several lines each.
    packed: bool,
    sent: Instant,
}

/// Where a chunk's lines come from.
struct Origin {
    path: Arc<std::path::Path>,
    incarnation: u64,
    offset: u64,
    /// Where each line stands in its chunk, and how far behind `offset` in the file, where these differ.
    places: Vec<(u32, u32)>,
}

impl Origin {
    /// Where the line stands in the file that stands at `start` in its chunk.
    fn offset_of(&self, start: u32) -> u64 {
        let line = self.places.partition_point(|(at, _)| *at <= start).checked_sub(1);
        self.offset + u64::from(line.map_or(start, |line| self.places[line].1))
    }
}

/// A range of a file and the chunks it waits for.
struct Range {
    incarnation: u64,
    parts: u8,
}

/// How many partitions the topic has, once it has said so.
struct Partitions {
    count: Option<i32>,
    ask_again: Instant,
    trouble: Option<String>,
    /// It is the topic that cannot be used, not Kafka that does not answer.
    is_topic: bool,
}

/// Bytes that may be read: `read_bytes_per_second` of the entry or of the host's policy.
struct Pace {
    rate: Option<u64>,
    left: f64,
    at: Instant,
}

impl Pipeline {
    /// Builds it; `run` starts it. The sender is its inbox.
    pub fn new(setup: Setup) -> Result<(Self, Sender<Message>), globset::Error> {
        let Setup {
            entry,
            host,
            policy,
            checkpoints,
            quarantine,
            share,
            sink,
            watcher,
            slot,
            tap,
            held_limits,
            judge,
            once,
        } = setup;
        let (sender, inbox) = channel();
        let rate = policy.pace(entry.read_bytes_per_second);
        let mut source = Source::new(&entry, policy, checkpoints.clone(), held_limits)?;
        if once {
            source.end();
        }
        let waker = sender.clone();
        let subscription = watcher.subscribe(move || drop(waker.send(Message::Wake)));
        let done = sender.clone();
        // A pipeline that has ended needs no answers.
        let done: Done = Arc::new(move |finished| drop(done.send(Message::Done(finished))));
        let dead_letters = dead_letters(&entry).map(|topic| sink.open(topic, done.clone()));
        let headers = route::headers(&entry, &host);
        let now = Instant::now();
        // The board keeps the sums of an entry whose pipeline was replaced.
        let EntryReport { status, figures } = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pipeline = Self {
            lane: sink.open(&entry.topic, done.clone()),
            gate: if entry.filter.is_some() {
                Gate::Filter("its filter is being loaded".into())
            } else {
                Gate::Open
            },
            pace: Pace { rate, left: 0.0, at: now },
            counts: Counts { read: status.lines.read - status.lines.in_flight, in_flight: 0, ..status.lines },
            base_counts: figures.module_counts.clone(),
            entry,
            host,
            source,
            subscription,
            checkpoints,
            quarantine,
            share,
            sink,
            done,
            dead_letters,
            partitions: Partitions { count: None, ask_again: now, trouble: None, is_topic: false },
            record_bytes: route::record_bytes(headers.as_deref()),
            headers,
            inbox,
            filter: None,
            ticket: 0,
            judge,
            shadow: None,
            shadow_lines: figures.shadow,
            filter_status: None,
            stats: FilterStats::default(),
            health: Health::default(),
            lines: Lines::default(),
            flights: BTreeMap::new(),
            ranges: HashMap::new(),
            recovery: Recovery::new(now),
            replays: BTreeMap::new(),
            next_id: 0,
            figures,
            told: Told::default(),
            slot,
            tap,
            report_due: now + REPORT_INTERVAL,
            stale: true,
            woken: false,
            hinted: now,
            cramped: None,
            stop: None,
            once,
        };
        Ok((pipeline, sender))
    }

    /// Runs until it is stopped, or with `once` until the end of the files.
    pub fn run(mut self) -> Ended {
        loop {
            let now = Instant::now();
            self.look(now);
            self.recover(now);
            let step = self.step(now);
            self.stale |= step == Step::Progress;
            let over = self.is_over(now);
            if over || now >= self.report_due {
                self.report(now);
            }
            if over {
                return Ended { unfinished: self.counts.in_flight };
            }
            let wait = self.wait(step, now);
            if self.listen(step, wait).is_err() {
                return Ended { unfinished: self.counts.in_flight };
            }
        }
    }

    /// Takes what it is told, and waits for it so long when there is nothing else to do. An error when
    /// nobody is left to tell it anything.
    fn listen(&mut self, step: Step, wait: Duration) -> Result<(), RecvTimeoutError> {
        if step == Step::Idle && self.woken {
            // It looks again in a moment. An acknowledgement that came first would only wake it twice.
            thread::sleep(wait);
        } else {
            match self.inbox.recv_timeout(wait) {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(error) => return Err(error),
            }
        }
        for _ in 0..INBOX_BATCH {
            let Ok(message) = self.inbox.try_recv() else { break };
            self.handle(message);
        }
        Ok(())
    }

    /// Looks at names and files as far as that is due.
    fn look(&mut self, now: Instant) {
        if self.woken && now >= self.hinted + HINT_PAUSE {
            self.hinted = now;
            match self.subscription.take() {
                Some(hints) => self.source.hint(hints.paths, hints.names_changed, now),
                None => self.woken = false,
            }
        }
        if let Some(dirs) = self.source.tick(now) {
            self.share.hold(self.source.memory());
            if self.subscription.watch(dirs) {
                self.source.hint([], true, now);
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Wake => return self.woken = true,
            Message::Done(finished) => self.done(finished),
            Message::Replay(replay) => self.replay(replay),
            Message::Files(answer) => return answer(self.source.list(FILES_SHOWN)),
            Message::Filter(entry, change) => self.change_filter(entry, *change),
            Message::Shadow(shadow) => self.change_shadow(shadow),
            Message::Stop(deadline) => self.stop = Some(deadline),
        }
        self.stale = true;
    }

    fn is_over(&self, now: Instant) -> bool {
        if let Some(deadline) = self.stop {
            return self.flights.is_empty() || now >= deadline;
        }
        self.once && self.gate == Gate::Open && self.flights.is_empty() && self.source.is_drained()
    }

    /// How long to wait for a message when there is nothing else to do.
    fn wait(&self, step: Step, now: Instant) -> Duration {
        let next = match step {
            Step::Progress => return Duration::ZERO,
            Step::Idle => self.source.next_read(),
            Step::Blocked(until) => Some(until),
        };
        let dues = [
            next,
            self.recovery.due(self.flights.len()),
            self.stop,
            (!self.flights.is_empty()).then_some(now + RETRY),
            self.woken.then_some(self.hinted + HINT_PAUSE),
            self.stale.then_some(self.report_due),
        ];
        let due = dues.into_iter().flatten().fold(self.source.next_look(), Instant::min);
        due.saturating_duration_since(now).max(Duration::from_millis(1))
    }

    /// Reads, filters and sends one chunk, if there is one and room for it.
    fn step(&mut self, now: Instant) -> Step {
        if let Some(until) = self.blocked_until(now) {
            return Step::Blocked(until);
        }
        let Some((want, charge)) = self.room() else {
            self.cramped.get_or_insert(now);
            self.share.tidy(now);
            // What is under way says when it is back.
            return Step::Blocked(now + if self.flights.is_empty() { ROOM_RETRY } else { RETRY });
        };
        self.cramped = None;
        let lines_max = (charge.bytes() / (2 * self.record_bytes)).clamp(1, CHUNK_LINES as u64) as usize;
        let mut buffer = if want < READ_BYTES { Vec::new() } else { self.share.buffer() };
        let mut lines = std::mem::take(&mut self.lines);
        let want = if self.source.need().is_some() { want } else { self.pace.clamp(want) };
        let piece = self.source.read(want, lines_max, &mut buffer, &mut lines, now);
        let step = match piece {
            Some(piece) => {
                if lines.raw.is_none() && lines.used < buffer.capacity() / 4 {
                    // Few lines travel in a buffer of their size.
                    let few = buffer[..lines.used].to_vec();
                    self.keep(std::mem::replace(&mut buffer, few));
                }
                let chunk = Chunk { read: buffer, charge: Some(charge), ..Chunk::default() };
                self.process(&piece, chunk, &mut lines, now);
                lines.raw.take().into_iter().for_each(|raw| self.keep(raw));
                Step::Progress
            }
            None => {
                self.keep(buffer);
                if self.source.need().is_some() {
                    Step::Progress
                } else {
                    // An idle agent keeps little memory.
                    self.share.tidy(now);
                    Step::Idle
                }
            }
        };
        self.lines = lines;
        step
    }

    /// Why nothing may be read, as the time at which to look again.
    fn blocked_until(&mut self, now: Instant) -> Option<Instant> {
        match self.gate {
            Gate::Hold(_, Some(until)) if now >= until => self.gate = Gate::Open,
            Gate::Hold(_, Some(until)) => return Some(until),
            Gate::Filter(_) | Gate::Hold(_, None) => return Some(now + RETRY),
            Gate::Open => {}
        }
        if self.stop.is_some() || self.recovery.is_running() {
            return Some(now + RETRY);
        }
        if self.checkpoints.is_behind() {
            return Some(now + WRITE_RETRY);
        }
        self.pace.until(now).or_else(|| self.wait_for_partitions(now))
    }

    /// Memory for a chunk: of the usual size from what is shared, or what the reserve carries.
    fn room(&mut self) -> Option<(usize, Charge)> {
        // What is transcoded can take three times as much.
        let text = if self.entry.encoding.is_some() { 3 } else { 0 };
        let copies = if self.filter.is_some() { 2 } else { 1 } + text;
        let (want, records) = match self.source.need() {
            Some(need) => (need, LONG_LINE_RECORDS),
            None => (READ_BYTES, CHUNK_LINES as u64),
        };
        let cost = (want as u64 * copies + records * self.record_bytes).min(self.share.largest());
        if let Some(charge) = self.share.take(cost) {
            return Some((want, charge));
        }
        // A quarter of the reserve for bytes, the rest for what its records cost. A line that does
        // not fit waits for shared room.
        let want = (self.share.reserve() / 4 / copies) as usize;
        if self.source.need().is_some_and(|need| need > want) {
            return None;
        }
        self.share.take(self.share.reserve()).map(|charge| (want, charge))
    }

    fn wait_for_partitions(&mut self, now: Instant) -> Option<Instant> {
        if self.partitions.count.is_some() {
            return None;
        }
        if now < self.partitions.ask_again {
            return Some(self.partitions.ask_again);
        }
        match self.lane.partitions() {
            Ok(count) => {
                self.partitions.count = Some(count.max(1));
                self.partitions.trouble = None;
            }
            Err(error) => {
                self.partitions.is_topic = matches!(error, SinkError::Topic { .. });
                let advice =
                    if self.partitions.is_topic { "; create it, allow it, or change the entry" } else { "" };
                let error = format!("{error}{advice}");
                if self.partitions.trouble.as_ref() != Some(&error) {
                    warn!(entry = %self.entry.name, topic = %self.entry.topic, error, "waits for the topic");
                }
                self.partitions.trouble = Some(error);
                self.partitions.ask_again = Instant::now() + RETRY;
            }
        }
        self.partitions.count.is_none().then_some(self.partitions.ask_again)
    }

    /// The chunk's range is begun: what stands in `lines` is no longer read again.
    fn take(&mut self, piece: &Piece, chunk: &Chunk, lines: &Lines, whole: bool) -> u64 {
        let id = self.new_id();
        self.source.take(piece, id, &chunk.read, lines, whole);
        self.pace.left -= lines.used as f64;
        self.figures.bytes_read += lines.used as u64;
        self.counts.read += lines.read();
        self.counts.skipped += lines.skipped;
        self.counts.discarded += lines.discarded;
        self.figures.malformed += lines.malformed;
        if lines.holes > 0 {
            self.figures.nul_runs += lines.holes;
            if let Some(held_back) = self.told.nul_runs.tell(Instant::now()) {
                warn!(entry = %self.entry.name, path = %piece.path.display(), offset = piece.offset, held_back,
                    runs = lines.holes, "runs of NUL were skipped: a crash or a truncation left a hole");
            }
        }
        id
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Hands a chunk to the sink.
    fn send(&mut self, mut chunk: Chunk, flight: Flight, only: Option<&[u32]>) {
        chunk.id = if only.is_some() { chunk.id } else { self.new_id() };
        chunk.offsets = flight.offsets(&chunk);
        let lane = if flight.dead_letter { self.dead_letters.as_mut() } else { Some(&mut self.lane) };
        let route = flight.route.clone();
        self.flights.insert(chunk.id, flight);
        if let Some(lane) = lane {
            lane.send(chunk, only, &route);
        }
    }

    /// A chunk came back.
    fn done(&mut self, finished: Finished) {
        if let Some(under_way) = self.replays.remove(&finished.chunk.id) {
            self.replayed(under_way, &finished);
        } else if finished.failed.is_empty() {
            self.complete(finished.chunk);
        } else {
            self.park(finished);
        }
    }

    /// All of a chunk is delivered or set aside.
    fn complete(&mut self, chunk: Chunk) {
        let Some(flight) = self.flights.remove(&chunk.id) else { return };
        self.counts.delivered += flight.lines;
        self.counts.in_flight -= flight.lines;
        self.recycle(chunk);
        self.finish_part(flight.range);
    }

    fn finish_part(&mut self, id: u64) {
        let Some(range) = self.ranges.get_mut(&id) else { return };
        range.parts -= 1;
        if range.parts == 0 {
            let incarnation = range.incarnation;
            self.ranges.remove(&id);
            self.source.finished(incarnation, id);
        }
    }

    fn recycle(&self, chunk: Chunk) {
        self.keep(chunk.read);
    }

    /// A buffer of the usual size is used again.
    fn keep(&self, buffer: Vec<u8>) {
        if (READ_BYTES..READ_BYTES * 2).contains(&buffer.capacity()) {
            self.share.keep(buffer);
        }
    }
}

impl Pace {
    /// When the next read is due, where that is later than now. A read may be larger than what is
    /// left; the next one waits for it.
    fn until(&mut self, now: Instant) -> Option<Instant> {
        let rate = self.rate? as f64;
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.at = now;
        // A tenth of a second in hand, so that there is no burst after a pause.
        self.left = (self.left + earned).min(rate / 10.0);
        (self.left < 0.0).then(|| now + Duration::from_secs_f64((-self.left / rate).min(60.0)))
    }

    /// Small reads at a small rate.
    fn clamp(&self, want: usize) -> usize {
        self.rate.map_or(want, |rate| want.min((rate / 10).max(4096) as usize))
    }
}

/// The topic for lines the filter fails on, where the entry has one.
fn dead_letters(entry: &Entry) -> Option<&Topic> {
    match &entry.filter.as_ref()?.on_error {
        OnError::DeadLetter(topic) => Some(topic),
        _ => None,
    }
}
