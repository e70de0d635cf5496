//! Keeps a share of all requests, and of each that it keeps all lines.
//!
//! `"config": {"percent": 10, "by": "request"}`: the share goes by the value of `request=`, so each
//! host keeps the same requests. A line without it counts by its own bytes.

use serde::Deserialize;
use weir_guest::{Context, Filter, Output, Result, Verdict, config, logfmt};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    percent: f64,
    by: String,
}

struct Sample {
    share: weir_guest::Sample,
    by: String,
}

weir_guest::export!(Sample);

impl Filter for Sample {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        let Config { percent, by } = config(text)?;
        Ok(Self { share: weir_guest::Sample::percent(percent), by })
    }

    fn line(&mut self, line: &[u8], _out: &mut Output) -> Verdict<'_> {
        let key = logfmt::get(line, self.by.as_bytes());
        self.share.keeps(key.as_deref().unwrap_or(line)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn a_request_is_kept_whole_or_not_at_all() {
        let lines = (0..2000).map(|n| format!("line={n} request={}", n / 2));
        let fates = run::<Sample>(r#"{"percent": 20, "by": "request"}"#, lines).unwrap().fates;
        assert!(fates.chunks(2).all(|request| request[0] == request[1]));
        let kept = fates.iter().filter(|fate| **fate == Fate::Kept).count();
        assert!((300..500).contains(&kept), "{kept} of 2000");
    }
}
