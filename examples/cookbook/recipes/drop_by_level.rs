//! Drops lines below a level: `"config": "warn"` keeps warnings and errors.
//!
//! The level is what stands behind `level=`. A line without a known one is kept.

use weir_guest::{Context, Filter, Output, Result, Verdict, config, logfmt};

const LEVELS: [&[u8]; 5] = [b"trace", b"debug", b"info", b"warn", b"error"];

struct DropByLevel {
    least: usize,
}

weir_guest::export!(DropByLevel);

fn rank(level: &[u8]) -> Option<usize> {
    LEVELS.iter().position(|known| known.eq_ignore_ascii_case(level))
}

impl Filter for DropByLevel {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        let least: String = config(text)?;
        let least = rank(least.as_bytes()).ok_or("config: trace, debug, info, warn or error")?;
        Ok(Self { least })
    }

    fn line(&mut self, line: &[u8], _out: &mut Output) -> Verdict<'_> {
        let level = logfmt::get(line, b"level").and_then(|level| rank(&level));
        level.is_none_or(|level| level >= self.least).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn what_is_below_goes_and_what_has_no_level_stays() {
        let lines = ["level=info a", "level=WARN b", "c", "level=odd d"];
        let found = run::<DropByLevel>(r#""warn""#, lines).unwrap().fates;
        assert_eq!(found, [Fate::Dropped, Fate::Kept, Fate::Kept, Fate::Kept]);
    }

    #[test]
    fn an_unknown_level_is_refused() {
        assert!(run::<DropByLevel>(r#""loud""#, [""; 0]).unwrap_err().contains("config: trace"));
    }
}
