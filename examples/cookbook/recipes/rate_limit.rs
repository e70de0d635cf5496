//! Lets so many lines a second pass, and counts the others as `limited`: `"config": 100`.
//!
//! The limit is for an entry on a host. A second is one of reading: a backlog is limited, too.

use weir_guest::{Context, Filter, Output, Result, Verdict, config, count};

struct RateLimit {
    limit: weir_guest::RateLimit,
}

weir_guest::export!(RateLimit);

impl Filter for RateLimit {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        Ok(Self { limit: weir_guest::RateLimit::per_second(config(text)?) })
    }

    fn line(&mut self, _line: &[u8], out: &mut Output) -> Verdict<'_> {
        let allowed = self.limit.allow(out.unix_ms());
        if !allowed {
            count("limited", 1);
        }
        allowed.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, Host};

    #[test]
    fn so_many_pass_a_second_and_the_others_are_counted() {
        let mut host = Host::<RateLimit>::new("2").unwrap();
        let first = host.run(["a", "b", "c"]);
        assert_eq!(first.fates, [Fate::Kept, Fate::Kept, Fate::Dropped]);
        assert_eq!(first.counts["limited"], 1);
        host.unix_ms += 500;
        assert_eq!(host.run(["d", "e"]).fates, [Fate::Kept, Fate::Dropped]);
    }
}
