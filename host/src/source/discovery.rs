//! Finds the files that an entry's path or glob names.
//!
//! In: a pattern and what to leave out. Out: matching paths, and the directories to watch. Absent
//! by design: opening anything.
//!
//! A directory has a time that moves when a name in it comes, goes or changes. While no directory of
//! a walk has a new one, the next walk would find the same names, and is spared.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

use super::identity::{FileId, Stat};

/// What changes so soon after another change may leave no new time: filesystems keep them in steps
/// of up to two seconds (FAT), most in steps of milliseconds.
pub const TIME_STEP: Duration = Duration::from_secs(2);

/// A checked path or glob with its excludes.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    glob: Option<Glob>,
    exclude: GlobSet,
}

#[derive(Debug)]
struct Glob {
    matcher: GlobMatcher,
    /// The directories before the first wildcard.
    base: PathBuf,
    /// How many levels below `base` a match can stand; `None` with `**`.
    depth: Option<usize>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Found {
    /// Matching paths, in no order.
    pub files: Vec<PathBuf>,
    /// Directories in which a matching file may appear, and those that links lead to.
    pub dirs: BTreeSet<PathBuf>,
    /// Of matching paths that are links: by where they lead to.
    pub links: HashMap<PathBuf, PathBuf>,
    /// Whether there were more files than asked for.
    pub too_many: bool,
    /// Of each directory, where they tell whether there are other names by now.
    stamps: Option<Vec<Stamp>>,
}

/// Which directory it is, and when it was changed last.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    id: FileId,
    modified: i64,
    changed: i64,
}

impl Pattern {
    /// Takes an absolute path or glob. `*` and `?` do not match `/`, `**` does.
    pub fn new(path: &str, exclude: &[String]) -> Result<Self, globset::Error> {
        let mut excluded = GlobSetBuilder::new();
        for pattern in exclude {
            excluded.add(glob(pattern)?);
        }
        let compiled = if is_glob(path) { Some(Glob::new(path)?) } else { None };
        Ok(Self { text: path.into(), glob: compiled, exclude: excluded.build()? })
    }

    /// As it stands in the list.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether there is one path only.
    pub fn is_literal(&self) -> bool {
        self.glob.is_none()
    }

    /// Whether `path` is meant.
    pub fn matches(&self, path: &Path) -> bool {
        let named = match &self.glob {
            Some(glob) => glob.matcher.is_match(path),
            None => path == Path::new(&self.text),
        };
        named && !self.excluded(path)
    }

    fn excluded(&self, path: &Path) -> bool {
        let is_name_excluded = || path.file_name().is_some_and(|name| self.exclude.is_match(Path::new(name)));
        // The matcher takes a path apart before it asks what for.
        !self.exclude.is_empty() && (self.exclude.is_match(path) || is_name_excluded())
    }

    /// Walks the tree until `files_max` files are found. What cannot be read is left out.
    pub fn scan(&self, files_max: usize) -> Found {
        let began = SystemTime::now();
        let mut found = Found::default();
        let is_whole = match &self.glob {
            Some(glob) => self.walk(glob, files_max, &mut found),
            None => self.look(&mut found),
        };
        if is_whole && found.links.is_empty() {
            found.stamps = found.stamps(began);
        }
        found
    }

    /// Looks for the one path. Returns whether it is there: what would make it appear may be behind a link.
    fn look(&self, found: &mut Found) -> bool {
        let path = PathBuf::from(&self.text);
        found.dirs.extend(path.parent().and_then(nearest_dir));
        let is_there = !self.excluded(&path) && path.exists();
        if is_there {
            if path.is_symlink() {
                found.leads_elsewhere(&path);
            }
            found.files.push(path);
        }
        is_there
    }

    /// Walks the directories of a glob. Returns whether all was seen.
    fn walk(&self, glob: &Glob, files_max: usize, found: &mut Found) -> bool {
        let mut is_whole = true;
        found.dirs.extend(nearest_dir(&glob.base));
        let walk = WalkDir::new(&glob.base).follow_links(true).max_depth(glob.depth.unwrap_or(usize::MAX));
        for item in walk {
            let Ok(item) = item else {
                is_whole = false;
                continue;
            };
            if item.file_type().is_dir() {
                if glob.depth.is_none_or(|depth| item.depth() < depth) {
                    found.dirs.insert(item.into_path());
                }
            } else if glob.matcher.is_match(item.path()) && !self.excluded(item.path()) {
                if found.files.len() >= files_max {
                    found.too_many = true;
                    return false;
                }
                if item.path_is_symlink() {
                    found.leads_elsewhere(item.path());
                }
                found.files.push(item.into_path());
            }
        }
        is_whole
    }
}

impl Found {
    /// Whether its directories will tell when there are other names.
    pub fn is_dated(&self) -> bool {
        self.stamps.is_some()
    }

    /// Whether they say that another walk would find the same.
    pub fn is_current(&self) -> bool {
        let are_same = |stamps: &Vec<Stamp>| {
            self.dirs.iter().zip(stamps).all(|(dir, stamp)| Stamp::of(dir).as_ref() == Some(stamp))
        };
        self.stamps.as_ref().is_some_and(are_same)
    }

    /// Those of the directories, if none of them was changed during the walk or shortly before.
    fn stamps(&self, began: SystemTime) -> Option<Vec<Stamp>> {
        let began = began.duration_since(UNIX_EPOCH).ok()?;
        let calm = i64::try_from(began.checked_sub(TIME_STEP)?.as_nanos()).ok()?;
        let stamps = self.dirs.iter().map(|dir| Stamp::of(dir));
        stamps.map(|stamp| stamp.filter(|stamp| stamp.modified.max(stamp.changed) < calm)).collect()
    }

    /// As if no directory had got a new time since.
    #[cfg(test)]
    pub(super) fn redate(&mut self) {
        self.stamps = self.dirs.iter().map(|dir| Stamp::of(dir)).collect();
    }

    /// What is written to the file behind a link happens in the directory of that file.
    fn leads_elsewhere(&mut self, link: &Path) {
        if let Ok(real) = link.canonicalize() {
            self.dirs.extend(real.parent().map(Path::to_path_buf));
            self.links.insert(real, link.into());
        }
    }
}

impl Stamp {
    fn of(dir: &Path) -> Option<Self> {
        let Stat { id, modified, changed, .. } = Stat::at(dir).ok()?;
        Some(Self { id, modified, changed })
    }
}

impl Glob {
    fn new(path: &str) -> Result<Self, globset::Error> {
        let parts: Vec<&str> = path.split('/').collect();
        let first = parts.iter().position(|part| is_glob(part)).unwrap_or(parts.len());
        let base: PathBuf = if first <= 1 { "/".into() } else { parts[..first].join("/").into() };
        let depth = (!path.contains("**")).then_some(parts.len() - first);
        Ok(Self { matcher: glob(path)?.compile_matcher(), base, depth })
    }
}

fn glob(pattern: &str) -> Result<globset::Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).build()
}

/// Whether a path holds a wildcard.
pub fn is_glob(path: &str) -> bool {
    path.contains(['*', '?', '[', '{'])
}

/// The directory itself, or while it does not exist the nearest one above: what appears in it is
/// the way to the files.
fn nearest_dir(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|dir| dir.is_dir()).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Instant;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/log/x.log", "a/log/x.log.gz", "a/log/deep/y.log", "b/log/z.log", "c.log"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    fn scan(dir: &Path, pattern: &str, exclude: &[&str]) -> Vec<String> {
        let exclude: Vec<String> = exclude.iter().map(|e| e.to_string()).collect();
        let pattern = Pattern::new(&format!("{}/{pattern}", dir.display()), &exclude).unwrap();
        let mut found = pattern.scan(1000).files;
        found.sort();
        found.iter().map(|path| path.strip_prefix(dir).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_star_stays_in_one_directory_and_two_do_not() {
        let dir = tree();
        assert_eq!(scan(dir.path(), "*/log/*.log", &[]), ["a/log/x.log", "b/log/z.log"]);
        assert_eq!(scan(dir.path(), "a/**/*.log", &[]), ["a/log/deep/y.log", "a/log/x.log"]);
        assert_eq!(scan(dir.path(), "c.log", &[]), ["c.log"]);
        assert_eq!(scan(dir.path(), "missing.log", &[]), [""; 0]);
    }

    #[test]
    fn excludes_match_the_name_or_the_whole_path() {
        let dir = tree();
        assert_eq!(scan(dir.path(), "a/log/*", &["*.gz"]), ["a/log/x.log"]);
        let whole = format!("{}/a/**", dir.path().display());
        assert_eq!(scan(dir.path(), "*/log/*.log", &[&whole]), ["b/log/z.log"]);
    }

    #[test]
    fn the_directories_that_links_lead_to_are_watched_too() {
        let dir = tree();
        let real = dir.path().canonicalize().unwrap().join("elsewhere/real.log");
        std::fs::create_dir(real.parent().unwrap()).unwrap();
        std::fs::write(&real, "").unwrap();
        for (link, pattern) in [("link", "link"), ("a/log/link.log", "*/log/*.log")] {
            let link = dir.path().join(link);
            std::os::unix::fs::symlink(&real, &link).unwrap();
            let pattern = Pattern::new(&format!("{}/{pattern}", dir.path().display()), &[]).unwrap();
            let found = pattern.scan(1000);
            assert!(found.dirs.contains(real.parent().unwrap()), "{:?}", found.dirs);
            assert_eq!(found.links, [(real.clone(), link)].into());
        }
    }

    #[test]
    fn the_directories_to_watch_lead_to_every_match() {
        let dir = tree();
        let pattern = Pattern::new(&format!("{}/*/log/*.log", dir.path().display()), &[]).unwrap();
        let dirs = pattern.scan(1000).dirs;
        for expected in ["", "a", "a/log", "b/log"] {
            assert!(
                dirs.contains(&dir.path().join(expected).components().collect::<PathBuf>()),
                "{expected}"
            );
        }
        let later = Pattern::new(&format!("{}/not/yet/*.log", dir.path().display()), &[]).unwrap();
        assert_eq!(later.scan(1000).dirs.into_iter().collect::<Vec<_>>(), [dir.path()]);
    }

    /// A walk that will tell when there are other names: of directories that were made long enough ago.
    fn dated(pattern: &Pattern) -> Found {
        let deadline = Instant::now() + 10 * TIME_STEP;
        loop {
            let found = pattern.scan(1000);
            if found.is_dated() {
                return found;
            }
            assert!(Instant::now() < deadline, "its directories seem to change all the time");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_walk_is_current_until_a_name_comes_goes_or_changes() {
        type Change = (&'static str, bool, fn(&Path));
        let changes: [Change; 10] = [
            ("a line is written", true, |dir| std::fs::write(dir.join("a/log/x.log"), "line\n").unwrap()),
            ("a file that is not meant, where none is", true, |dir| {
                std::fs::write(dir.join("a/log/deep/z.log"), "").unwrap();
            }),
            ("a file comes", false, |dir| std::fs::write(dir.join("a/log/new.log"), "").unwrap()),
            ("a file goes", false, |dir| std::fs::remove_file(dir.join("a/log/x.log")).unwrap()),
            ("a file is renamed", false, |dir| {
                std::fs::rename(dir.join("b/log/z.log"), dir.join("b/log/y.log")).unwrap();
            }),
            ("a file takes the place of another", false, |dir| {
                std::fs::rename(dir.join("a/log/x.log.gz"), dir.join("a/log/x.log")).unwrap();
            }),
            ("a directory comes", false, |dir| std::fs::create_dir(dir.join("c")).unwrap()),
            ("a directory is made where none was", false, |dir| {
                std::fs::create_dir(dir.join("empty/log")).unwrap();
            }),
            ("two directories are exchanged", false, |dir| {
                std::fs::rename(dir.join("a/log"), dir.join("log")).unwrap();
                std::fs::rename(dir.join("b/log"), dir.join("a/log")).unwrap();
                std::fs::rename(dir.join("log"), dir.join("b/log")).unwrap();
            }),
            ("the whole tree is another", false, |dir| {
                std::fs::rename(dir, dir.with_extension("old")).unwrap();
                std::fs::create_dir_all(dir.join("a/log")).unwrap();
            }),
        ];
        let above = tempfile::tempdir().unwrap();
        let patterns = changes.each_ref().map(|(what, ..)| {
            let dir = above.path().join(what);
            std::fs::rename(tree().keep(), &dir).unwrap();
            std::fs::create_dir(dir.join("empty")).unwrap();
            (Pattern::new(&format!("{}/*/log/*.log", dir.display()), &[]).unwrap(), dir)
        });
        let walks = patterns.each_ref().map(|(pattern, _)| dated(pattern));
        for ((walk, (_, dir)), (what, stays, change)) in walks.iter().zip(&patterns).zip(changes) {
            assert!(walk.is_current(), "before {what}");
            change(dir);
            assert_eq!(walk.is_current(), stays, "{what}");
        }
    }

    #[test]
    fn a_walk_of_what_changed_a_moment_ago_is_current_for_nobody() {
        let dir = tree();
        let pattern = Pattern::new(&format!("{}/*/log/*.log", dir.path().display()), &[]).unwrap();
        dated(&pattern);
        // What comes next may be in the same step of the filesystem's clock.
        std::fs::write(dir.path().join("b/log/new.log"), "").unwrap();
        let found = pattern.scan(1000);
        assert_eq!(found.files.len(), 3);
        assert!(!found.is_dated() && !found.is_current());
    }

    #[test]
    fn a_walk_through_links_or_with_errors_is_current_for_nobody() {
        let dir = tree();
        std::os::unix::fs::symlink(dir.path().join("c.log"), dir.path().join("b/log/link.log")).unwrap();
        std::os::unix::fs::symlink("missing", dir.path().join("nowhere")).unwrap();
        let pattern = |text| Pattern::new(&format!("{}/{text}", dir.path().display()), &[]).unwrap();
        // That of which a name was changed last, so that all are old enough.
        assert!(!dated(&pattern("c.log")).too_many);
        assert!(pattern("a/log/*.log").scan(1000).is_dated());
        assert!(!pattern("nowhere").scan(1000).is_dated(), "the path may lead somewhere one day");
        assert!(!pattern("b/log/*.log").scan(1000).is_dated(), "what the link leads to may change");
        assert!(!pattern("*/log/x.log").scan(1000).is_dated(), "the link may lead somewhere one day");
        assert!(!pattern("a/log/*").scan(1).is_dated(), "another walk may find others first");
    }
}
