//! Which lists are taken, where the host's policy has keys: those that one of them signed, for this
//! place, and that are no older than the last that was taken there.
//!
//! The numbers are kept in the state directory beside the lists. A host that has none yet, or whose
//! state was removed, takes the first signed list whatever its number.

use std::collections::BTreeMap;

use super::list::{Origin, envelope};
use crate::model::Problem;
use crate::policy::Keys;

/// The keys, and the number of the last list of each place.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    keys: Keys,
    serials: BTreeMap<String, u64>,
}

impl Trust {
    pub(super) fn new(keys: Keys, serials: BTreeMap<String, u64>) -> Self {
        Self { keys, serials }
    }

    /// To be remembered.
    pub(super) fn serials(&self) -> &BTreeMap<String, u64> {
        &self.serials
    }

    /// The number of a list that may take the place of `known`; `None` where there are no keys.
    pub(super) fn check(
        &self,
        text: &[u8],
        origin: &Origin,
        known: Option<&str>,
    ) -> Result<Option<u64>, Problem> {
        if !self.keys.are_set() {
            return Ok(None);
        }
        let serial = envelope::verify(text, origin, &self.keys)?;
        let last = self.serials.get(&origin.to_string()).copied().unwrap_or_default();
        let is_other = known.is_some_and(|known| known.as_bytes() != text);
        if serial < last || serial == last && is_other {
            let cause = format!("the list has number {serial}, and one with number {last} was taken before");
            let fix = "sign it again with a larger number: weir list put FILE --sign-key KEY";
            return Err(Problem::new(origin.to_string(), cause, fix));
        }
        Ok(Some(serial))
    }

    /// A list was taken.
    pub(super) fn taken(&mut self, origin: &Origin, serial: Option<u64>) {
        if let Some(serial) = serial {
            self.serials.insert(origin.to_string(), serial);
        }
    }

    /// Whether a list that was kept is still one to run: a key may have been taken out of the policy.
    pub(super) fn still_good(&self, text: &str) -> bool {
        // Its place was looked at when it was taken.
        !self.keys.are_set() || envelope::verify(text.as_bytes(), &Origin::Settings, &self.keys).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnDelete;
    use crate::control::ListState;
    use crate::control::kept::{Collector, Found, Reading};
    use crate::policy::sign::tests::secret;

    const KEY: &str = "/k";

    fn origin() -> Origin {
        Origin::Key(KEY.into())
    }

    fn list(name: &str, serial: u64, key: u8) -> String {
        let list = format!(r#"[{{"path": "/{name}", "topic": "t"}}]"#);
        envelope::seal(&list, &origin(), serial, &secret(key)).unwrap()
    }

    /// Keys of these numbers, and the same numbers and lists as the last agent left.
    fn agent(numbers: &[u8], before: Option<&Collector>) -> Collector {
        let keys = Keys::new(&numbers.iter().map(|number| secret(*number).public_key()).collect::<Vec<_>>());
        let (kept, serials) = match before {
            Some(before) => (before.lists().to_vec(), before.serials().clone()),
            None => (vec![], BTreeMap::new()),
        };
        Collector::new(vec![origin()], OnDelete::Keep, kept).with_trust(Trust::new(keys, serials))
    }

    /// What runs after `text` was read, and what is said.
    fn read(agent: &mut Collector, text: &str) -> (Vec<String>, ListState, String) {
        let found = vec![Found::Text { bytes: text.into(), modified: 1 }];
        let merged = agent.read(&Reading { cluster: 1, revision: 1, found });
        let said = merged.problems.first().map(ToString::to_string).unwrap_or_default();
        (merged.entries.iter().map(|entry| entry.path.clone()).collect(), merged.state, said)
    }

    fn runs(path: &str) -> (Vec<String>, ListState, String) {
        (vec![path.into()], ListState::Current, String::new())
    }

    #[track_caller]
    fn stays(read: (Vec<String>, ListState, String), path: &str, said: &str) {
        assert_eq!((read.0, read.1), (vec![path.to_string()], ListState::Invalid));
        assert!(read.2.contains(said) && read.2.contains("the last good list stays"), "{}", read.2);
    }

    #[test]
    fn a_list_that_fails_the_check_leaves_the_last_good_one() {
        let mut agent = agent(&[1], None);
        assert_eq!(read(&mut agent, &list("a", 5, 1)), runs("/a"));
        stays(read(&mut agent, "[]"), "/a", "not signed");
        stays(read(&mut agent, &list("b", 6, 2)), "/a", "by none of the keys");
        stays(read(&mut agent, &list("b", 6, 1).replace("/b", "/c")), "/a", "changed since");
        assert_eq!(read(&mut agent, &list("b", 6, 1)), runs("/b"));
    }

    #[test]
    fn an_older_list_is_not_taken_again_and_not_after_a_restart() {
        let (old, new) = (list("a", 5, 1), list("b", 6, 1));
        let mut first = agent(&[1], None);
        read(&mut first, &old);
        assert_eq!(read(&mut first, &new), runs("/b"));
        stays(read(&mut first, &old), "/b", "number 5, and one with number 6");
        let mut second = agent(&[1], Some(&first));
        stays(read(&mut second, &old), "/b", "number 5, and one with number 6");
        assert_eq!(read(&mut second, &new), runs("/b"), "the same list is no replay");
        stays(read(&mut second, &list("c", 6, 1)), "/b", "number 6, and one with number 6");
    }

    #[test]
    fn a_key_is_replaced_by_having_both_for_a_while() {
        let mut agent_1 = agent(&[1], None);
        read(&mut agent_1, &list("a", 1, 1));
        let mut both = agent(&[1, 2], Some(&agent_1));
        assert_eq!(read(&mut both, &list("b", 2, 2)), runs("/b"));
        let mut only_new = agent(&[2], Some(&both));
        assert_eq!(only_new.remembered().unwrap().entries.len(), 1);
        stays(read(&mut only_new, &list("c", 3, 1)), "/b", "by none of the keys");
    }

    #[test]
    fn a_kept_list_of_a_key_that_is_gone_is_not_run() {
        let mut before = agent(&[1], None);
        read(&mut before, &list("a", 1, 1));
        assert!(agent(&[2], Some(&before)).remembered().is_none());
        let mut unsigned = agent(&[], None);
        read(&mut unsigned, r#"[{"path": "/a", "topic": "t"}]"#);
        assert!(agent(&[1], Some(&unsigned)).remembered().is_none());
    }

    #[test]
    fn without_keys_signed_lists_run_as_plain_ones_do() {
        let mut agent = agent(&[], None);
        assert_eq!(read(&mut agent, &list("a", 5, 1)), runs("/a"));
        assert_eq!(read(&mut agent, &list("b", 4, 1)), runs("/b"));
    }
}
