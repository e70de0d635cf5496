//! Finds the files that an entry's path or glob names.
//!
//! In: a pattern and what to leave out. Out: matching paths, and the directories to watch. Absent
//! by design: opening anything.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

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
        let mut found = Found::default();
        let Some(glob) = &self.glob else {
            let path = PathBuf::from(&self.text);
            found.dirs.extend(path.parent().and_then(nearest_dir));
            if !self.excluded(&path) && path.exists() {
                if path.is_symlink() {
                    found.leads_elsewhere(&path);
                }
                found.files.push(path);
            }
            return found;
        };
        found.dirs.extend(nearest_dir(&glob.base));
        let walk = WalkDir::new(&glob.base).follow_links(true).max_depth(glob.depth.unwrap_or(usize::MAX));
        for item in walk.into_iter().filter_map(Result::ok) {
            if item.file_type().is_dir() {
                if glob.depth.is_none_or(|depth| item.depth() < depth) {
                    found.dirs.insert(item.into_path());
                }
            } else if glob.matcher.is_match(item.path()) && !self.excluded(item.path()) {
                if found.files.len() >= files_max {
                    found.too_many = true;
                    break;
                }
                if item.path_is_symlink() {
                    found.leads_elsewhere(item.path());
                }
                found.files.push(item.into_path());
            }
        }
        found
    }
}

impl Found {
    /// What is written to the file behind a link happens in the directory of that file.
    fn leads_elsewhere(&mut self, link: &Path) {
        if let Ok(real) = link.canonicalize() {
            self.dirs.extend(real.parent().map(Path::to_path_buf));
            self.links.insert(real, link.into());
        }
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
}
