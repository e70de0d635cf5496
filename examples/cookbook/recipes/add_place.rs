//! Puts the host's name, the path of the file and the place in it before each line.
//!
//! The name is the agent's (`agent.name`). So who reads the topic finds a line on its host again.

use std::io::Write as _;

use weir_guest::{Context, Filter, Output, Result, Verdict};

struct AddPlace {
    host: String,
}

weir_guest::export!(AddPlace);

impl AddPlace {
    fn written(&self, line: &[u8], out: &mut Output) -> Result<Verdict<'static>> {
        let place = format!("{} {}:{} ", self.host, out.path(), out.offset());
        out.write_all(place.as_bytes())?;
        out.line(line);
        Ok(Verdict::Written)
    }
}

impl Filter for AddPlace {
    fn init(ctx: &Context, _config: &[u8]) -> Result<Self> {
        Ok(Self { host: ctx.host.clone() })
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        self.written(line, out).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn each_line_says_where_it_stands() {
        let found = run::<AddPlace>("", ["one", "two"]).unwrap().fates;
        let lines = ["test test.log:0 one", "test test.log:4 two"];
        assert_eq!(found, lines.map(|line| Fate::replaced([line])));
    }
}
