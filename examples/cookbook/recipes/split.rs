//! Makes several lines of one: `"config": ";"` cuts at each `;`. Empty parts are left out.
//!
//! A line stands for at most 253 lines; one with more parts is set aside.

use weir_guest::memchr::memmem::Finder;
use weir_guest::{Context, Filter, LINES_MAX, Output, Result, Verdict, config};

struct Split {
    at: Finder<'static>,
}

weir_guest::export!(Split);

impl Filter for Split {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        let at: String = config(text)?;
        if at.is_empty() {
            return Err("config: the text to cut at".into());
        }
        Ok(Self { at: Finder::new(at.as_bytes()).into_owned() })
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        let (mut begin, mut parts) = (0, 0);
        let cuts = self.at.find_iter(line).map(|at| (at, at + self.at.needle().len()));
        for (end, next) in cuts.chain([(line.len(), line.len())]) {
            if end > begin {
                parts += 1;
                if parts > LINES_MAX {
                    return Verdict::SetAside;
                }
                out.line(&line[begin..end]);
            }
            begin = next;
        }
        Verdict::Written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn parts_become_lines_and_empty_ones_nothing() {
        let found = run::<Split>(r#"", ""#, ["a, b, , c", "a", ", "]).unwrap().fates;
        assert_eq!(found, [Fate::replaced(["a", "b", "c"]), Fate::replaced(["a"]), Fate::Dropped]);
    }

    #[test]
    fn more_parts_than_a_line_may_have_are_set_aside() {
        let parts = |count| vec!["x"; count].join(";");
        let found = run::<Split>(r#"";""#, [parts(LINES_MAX), parts(LINES_MAX + 1)]).unwrap().fates;
        assert_eq!(found, [Fate::replaced(vec!["x"; LINES_MAX]), Fate::SetAside]);
    }

    #[test]
    fn nothing_to_cut_at_is_refused() {
        assert!(run::<Split>(r#""""#, [""; 0]).unwrap_err().contains("text to cut at"));
    }
}
