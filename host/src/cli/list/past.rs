//! `weir list history` and `watch`: what stood there before, and what comes.
//!
//! In: the editions of a list. Out: for each of them who, when, the difference to the one before, and what
//! agents did about it.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::change::{Effects, difference};
use super::{HistoryArgs, WatchArgs};
use crate::cli::visible::plain;
use crate::control::history::{Edition, History};
use crate::control::list::{self, Origin};
use crate::control::lists::Lists;

/// After an error of etcd.
const TRY_AGAIN: Duration = Duration::from_secs(2);

pub(super) async fn history(lists: &mut Lists, args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let origin = lists.origin();
    // One more, to compare the oldest with.
    let history = lists.history(args.most + 1).await?;
    let mut steps: Vec<_> = steps(&origin, &history).collect();
    steps.reverse();
    steps.truncate(args.most);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&steps)?);
        return Ok(ExitCode::SUCCESS);
    }
    for step in &steps {
        print!("{}", if args.patch { step.full() } else { step.line() });
    }
    let shown = steps.len() >= args.most && !history.whole;
    match (steps.is_empty(), history.compacted) {
        (true, 0) => println!("{origin}: nothing was ever written there"),
        (true, compacted) => {
            println!("{origin}: nothing since revision {compacted}; etcd forgot what was before")
        }
        (false, compacted) if compacted > 0 && !shown => {
            println!("what was before revision {compacted} is forgotten: etcd was compacted");
        }
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn watch(mut lists: Lists, args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let origin = lists.origin();
    let now = lists.read().await?;
    let mut before = Edition { revision: now.modified, text: now.text.clone(), ..Edition::default() };
    eprintln!("{origin}: watching, from {}; Ctrl-C ends it", place(&before));
    let mut follow = lists.follow(&now);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        match follow.next().await {
            Ok(edition) => {
                let step = Step::new(&origin, Some(&before), &edition);
                if args.json {
                    println!("{}", serde_json::to_string(&step)?)
                } else {
                    print!("{}", step.full())
                }
                before = edition;
                left -= 1;
            }
            Err(error) => {
                eprintln!("note: {}; trying again", error.chain());
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// From one edition to the next. Where history is cut off, the first one has nothing to be compared with:
/// it is left out, unless it is all there is.
fn steps<'a>(origin: &'a Origin, history: &'a History) -> impl Iterator<Item = Step> + 'a {
    let editions = &history.editions;
    let before = |i: usize| i.checked_sub(1).and_then(|i| editions.get(i));
    let known = move |i: &usize| *i > 0 || history.whole || editions.len() == 1;
    let step = move |i| match before(i) {
        None if !history.whole => {
            Step { what: "stands", ..Step::new(origin, Some(&editions[i]), &editions[i]) }
        }
        before => Step::new(origin, before, &editions[i]),
    };
    (0..editions.len()).filter(known).map(step)
}

/// An edition, and how it came about.
#[derive(Debug, Serialize)]
struct Step {
    #[serde(flatten)]
    edition: Edition,
    /// `written`, `deleted` or `not valid`; `stands` where what was before is forgotten.
    what: &'static str,
    effects: Effects,
    #[serde(skip)]
    difference: String,
}

impl Step {
    fn new(origin: &Origin, before: Option<&Edition>, edition: &Edition) -> Self {
        let old = before.and_then(|before| before.text.as_deref());
        let new = edition.text.as_deref();
        let from = before.map_or_else(|| origin.to_string(), |before| format!("{origin}, {}", place(before)));
        let parsed = |text: Option<&[u8]>| text.and_then(|text| list::parse(text, origin).ok());
        let (what, effects) = match (new, parsed(new)) {
            (None, _) => ("deleted", Effects::default()),
            (Some(_), None) => ("not valid", Effects::default()),
            (Some(_), Some(list)) => ("written", Effects::of(&parsed(old).unwrap_or_default(), &list)),
        };
        let difference = difference(old, new.unwrap_or_default(), &from, &place(edition));
        Self { edition: edition.clone(), what, effects, difference }
    }

    fn head(&self) -> String {
        let Edition { revision, writer, .. } = &self.edition;
        let known = |text: &str| if text.is_empty() { "unknown".into() } else { plain(text) };
        format!("{revision:>9}  {:<20}  {:<24}", known(&writer.when), known(&writer.who))
    }

    fn line(&self) -> String {
        format!("{}  {}\n", self.head(), self.said())
    }

    /// What agents did: they keep what runs where there is no list, or none that is valid.
    fn said(&self) -> String {
        match self.what {
            "written" => self.effects.short(),
            "stands" => "stands there; what was before is forgotten".into(),
            what => format!("{what}: what ran went on"),
        }
    }

    fn full(&self) -> String {
        let effects = if self.what == "written" { self.effects.to_string() } else { self.said() + "\n" };
        format!("{}\n{}{effects}\n", self.head().trim_end(), self.difference)
    }
}

fn place(edition: &Edition) -> String {
    match (&edition.text, edition.revision) {
        (None, _) => "nothing".into(),
        (Some(_), 0) => "as it is".into(),
        (Some(_), revision) => format!("revision {revision}"),
    }
}
