//! Opens the files that a list names.
//!
//! Symbolic links are followed here, in user space; what they lead to must lie below a root and is
//! then opened with the kernel told to follow none, so a link that is moved between the two steps
//! is refused, not followed. Only regular files are opened, and without waiting.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::{Errno, retry_on_intr};

use super::{Policy, Rule};
use crate::model::Problem;

/// How often a path is looked at again that changed between looking and opening, as it does when
/// it is rotated at that moment.
const ATTEMPTS: usize = 4;

/// A file that may be read.
#[derive(Debug)]
pub struct Opened {
    /// Regular, read-only, closed on exec.
    pub file: File,
    /// Where it lies, with every link followed.
    pub real: PathBuf,
    /// What the open file says of itself.
    pub meta: Metadata,
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there now.
    #[error("it is gone")]
    Gone,
    /// The policy says no.
    #[error("{1}")]
    Refused(Rule, Problem),
    /// It is something else, such as `a directory`.
    #[error("it is {0}, not a regular file")]
    NotRegular(&'static str),
    /// It cannot be opened.
    #[error("it cannot be opened: {0}")]
    Io(io::Error),
}

impl OpenError {
    /// The same for people: `place` is the entry, `path` what was to be opened.
    pub fn problem(&self, place: &str, path: &Path) -> Problem {
        let path = path.display();
        match self {
            Self::Refused(_, problem) => Problem { place: place.into(), ..problem.clone() },
            Self::Gone => Problem::new(place, format!("{path} is gone"), ""),
            Self::NotRegular(kind) => {
                Problem::new(place, format!("{path} is {kind}"), "name a regular file, or a glob of files")
            }
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let cause = format!("{path} may not be read by uid {}", rustix::process::geteuid().as_raw());
                let fix = "add the agent's user to the group that may read it (often adm), \
                           or give the agent CAP_DAC_READ_SEARCH; if a root was replaced by another directory \
                           since the agent started, restart it";
                Problem::new(place, cause, fix)
            }
            Self::Io(error) => Problem::new(place, format!("{path} cannot be opened: {error}"), ""),
        }
    }
}

impl Policy {
    /// Opens `path` for reading if the policy allows it, whatever it leads to at this moment.
    /// Never waits, not on a FIFO either.
    pub fn open(&self, path: &Path) -> Result<Opened, OpenError> {
        for _ in 0..ATTEMPTS {
            let real = fs::canonicalize(path).map_err(gone_or_io)?;
            if let Some(opened) = self.open_real(path, &real)? {
                return Ok(opened);
            }
        }
        Err(OpenError::Io(io::Error::other("it changed each time it was looked at")))
    }

    /// `real` had no link in it a moment ago; `None` if that has changed since.
    fn open_real(&self, path: &Path, real: &Path) -> Result<Option<Opened>, OpenError> {
        let place = path.display().to_string();
        if let Some((rule, cause)) = self.denied(path, real) {
            return Err(OpenError::Refused(rule, Problem::new(place, cause, self.deny_fix())));
        }
        if !self.reaches(real) {
            let what =
                if path == real { place.clone() } else { format!("{place}, a link to {},", real.display()) };
            let dir = real.parent().unwrap_or(real);
            return Err(OpenError::Refused(Rule::Roots, self.outside(&place, &what, dir)));
        }
        // Before it is opened: that alone would wake the writer of a FIFO, or rewind a tape.
        regular(&fs::symlink_metadata(real).map_err(gone_or_io)?)?;
        let file = match open_unlinked(real) {
            Ok(file) => file,
            Err(Errno::LOOP | Errno::XDEV | Errno::AGAIN | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(gone_or_io(errno.into())),
        };
        self.accept(file, real).map(Some)
    }

    /// Looks at what was really opened, which cannot change any more.
    fn accept(&self, file: File, real: &Path) -> Result<Opened, OpenError> {
        let meta = file.metadata().map_err(OpenError::Io)?;
        regular(&meta)?;
        let (links, owner) = (meta.nlink(), meta.uid());
        if self.roots.is_some() && !links_allowed(links, owner, rustix::process::geteuid().as_raw()) {
            let place = real.display().to_string();
            let cause = format!(
                "{place} has {links} hard links and belongs to uid {owner}, \
                 who could have linked it there from anywhere"
            );
            let fix = "let root or the agent's user own it, or keep its only name below the root";
            return Err(OpenError::Refused(Rule::HardLinks, Problem::new(place, cause, fix)));
        }
        Ok(Opened { file, real: real.to_path_buf(), meta })
    }

    fn reaches(&self, real: &Path) -> bool {
        self.roots.as_ref().is_none_or(|roots| roots.iter().any(|root| real.starts_with(&root.real)))
    }
}

/// Whether a file with so many names may be read below a root.
fn links_allowed(links: u64, owner: u32, agent: u32) -> bool {
    links < 2 || owner == 0 || owner == agent
}

fn regular(meta: &Metadata) -> Result<(), OpenError> {
    let kind = meta.file_type();
    Err(OpenError::NotRegular(match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_symlink() => "a symbolic link that just appeared",
        () => "a device",
    }))
}

fn gone_or_io(error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::Gone,
        _ => OpenError::Io(error),
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// Opens an absolute path in which nothing is a link and nothing is `..`: what is opened lies where
/// its name says, so below the root it was compared with.
fn open_unlinked(real: &Path) -> Result<File, Errno> {
    let follow_none = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match retry_on_intr(|| openat2(CWD, real, READ, Mode::empty(), follow_none)) {
        // An old kernel, or a sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => walk(real),
        opened => Ok(File::from(opened?)),
    }
}

/// The same without openat2: one directory after the other.
fn walk(real: &Path) -> Result<File, Errno> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = openat(CWD, "/", step, Mode::empty())?;
    let mut parts = real.components().filter(|part| *part != Component::RootDir).peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() { step } else { READ | OFlags::NOFOLLOW };
        dir = retry_on_intr(|| openat(&dir, part.as_os_str(), flags, Mode::empty()))?;
    }
    Ok(File::from(dir))
}

#[cfg(test)]
mod tests {
    use super::super::Rules;
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A directory with a root `log`, a file `log/app.log` in it, and `secret` beside it.
    struct Place(tempfile::TempDir, Policy);

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("log")).unwrap();
            fs::write(dir.path().join("log/app.log"), "line\n").unwrap();
            fs::write(dir.path().join("secret"), "secret\n").unwrap();
            let roots = Some(vec![dir.path().join("log")]);
            let policy = Policy::new(Rules { roots, file: "weir.toml".into(), ..Rules::default() }).unwrap();
            Self(dir, policy)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn read(&self, name: &str) -> Result<String, OpenError> {
            let mut text = String::new();
            self.1.open(&self.path(name))?.file.read_to_string(&mut text).unwrap();
            Ok(text)
        }

        fn refusal(&self, name: &str) -> Problem {
            match self.read(name) {
                Err(OpenError::Refused(_, problem)) => problem,
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_regular_file_below_a_root_is_opened() {
        let place = Place::new();
        let opened = place.1.open(&place.path("log/app.log")).unwrap();
        assert_eq!(opened.real, fs::canonicalize(place.path("log/app.log")).unwrap());
        assert_eq!(opened.meta.len(), 5);
    }

    #[test]
    fn a_file_outside_every_root_is_refused_with_the_line_to_write() {
        let place = Place::new();
        let (secret, dir) = (place.path("secret"), place.path("").components().as_path().to_path_buf());
        let (secret, dir) = (secret.display(), dir.display());
        assert_eq!(
            place.refusal("secret").to_string(),
            format!(
                "{secret}: {secret} lies below no root of this host's policy (\"{dir}/log\"); \
                 write roots = [\"{dir}/log\", \"{dir}\"] under [policy] in weir.toml, or start with --allow {dir}"
            )
        );
    }

    #[test]
    fn a_link_out_of_the_root_is_refused_and_says_where_it_leads() {
        let place = Place::new();
        symlink("../secret", place.path("log/link")).unwrap();
        symlink("..", place.path("log/up")).unwrap();
        assert!(place.refusal("log/link").cause.contains("secret, lies below no root"));
        place.refusal("log/up/secret");
        place.refusal("log/../secret");
    }

    #[test]
    fn links_to_allowed_files_are_followed_from_wherever_they_stand() {
        let place = Place::new();
        symlink(place.path("log/app.log"), place.path("log/absolute")).unwrap();
        symlink("log/app.log", place.path("outside")).unwrap();
        for name in ["log/absolute", "outside"] {
            assert_eq!(place.read(name).unwrap(), "line\n", "{name}");
        }
    }

    #[test]
    fn a_root_may_be_a_link_when_the_agent_starts() {
        let place = Place::new();
        symlink("log", place.path("logs")).unwrap();
        let policy =
            Policy::new(Rules { roots: Some(vec![place.path("logs")]), ..Rules::default() }).unwrap();
        assert!(policy.open(&place.path("logs/app.log")).is_ok());
        assert!(policy.open(&place.path("secret")).is_err());
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let place = Place::new();
        symlink("loop", place.path("log/loop")).unwrap();
        assert!(matches!(place.read("log/loop"), Err(OpenError::Io(_))));
    }

    #[test]
    fn a_link_switched_between_look_and_open_is_not_followed() {
        let place = Place::new();
        fs::create_dir(place.path("log/dir")).unwrap();
        fs::create_dir(place.path("elsewhere")).unwrap();
        fs::write(place.path("log/dir/x"), "line\n").unwrap();
        fs::write(place.path("elsewhere/x"), "secret\n").unwrap();
        let real = fs::canonicalize(place.path("log/dir/x")).unwrap();
        fs::rename(place.path("log/dir"), place.path("log/old")).unwrap();
        symlink(place.path("elsewhere"), place.path("log/dir")).unwrap();

        assert!(matches!(open_unlinked(&real), Err(Errno::LOOP)));
        assert!(matches!(walk(&real), Err(Errno::LOOP | Errno::NOTDIR)));
        assert!(matches!(place.1.open_real(&real, &real), Ok(None)));
    }

    #[test]
    fn a_link_that_flips_all_the_time_never_gives_the_secret() {
        let place = Place::new();
        symlink(place.path("log/app.log"), place.path("log/flip")).unwrap();
        let (stop, mut texts) = (AtomicBool::new(false), Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (next, flip) = (place.path("next"), place.path("log/flip"));
                let targets = [place.path("secret"), place.path("log/app.log")];
                for target in targets.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                    symlink(target, &next).unwrap();
                    fs::rename(&next, &flip).unwrap();
                }
            });
            texts.extend((0..20_000).filter_map(|_| place.read("log/flip").ok()));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!texts.is_empty() && texts.iter().all(|text| text == "line\n"));
    }

    #[test]
    fn a_directory_that_turns_into_a_link_all_the_time_never_gives_the_secret() {
        let place = Place::new();
        fs::create_dir(place.path("log/dir")).unwrap();
        fs::create_dir(place.path("outside")).unwrap();
        fs::write(place.path("log/dir/file"), "line\n").unwrap();
        fs::write(place.path("outside/file"), "secret\n").unwrap();
        symlink(place.path("outside"), place.path("link")).unwrap();
        let (stop, mut texts, mut refusals) = (AtomicBool::new(false), Vec::new(), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Directory and link change places in one step, as nothing but an attacker does.
                let (dir, link) = (place.path("log/dir"), place.path("link"));
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, &dir, CWD, &link, rustix::fs::RenameFlags::EXCHANGE)
                        .unwrap();
                }
            });
            for _ in 0..20_000 {
                match place.read("log/dir/file") {
                    Ok(text) => texts.push(text),
                    Err(_) => refusals += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!texts.is_empty() && texts.iter().all(|text| text == "line\n"), "{refusals} refusals");
        assert!(refusals > 0, "it was never caught outside");
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened_and_does_not_block() {
        let place = Place::new();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, place.path("log/fifo"), fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place.path("log/socket")).unwrap();
        fs::create_dir(place.path("log/dir")).unwrap();
        for (name, kind) in [("fifo", "a FIFO"), ("socket", "a socket"), ("dir", "a directory")] {
            let error = place.read(&format!("log/{name}")).unwrap_err();
            assert!(matches!(error, OpenError::NotRegular(k) if k == kind), "{error}");
            let error = Policy::unbounded().open(&place.path(&format!("log/{name}"))).unwrap_err();
            assert!(matches!(error, OpenError::NotRegular(k) if k == kind), "{error}");
        }
        let device = Policy::unbounded().open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(device.to_string(), "it is a device, not a regular file");
    }

    #[test]
    fn a_fifo_that_takes_the_place_of_a_file_does_not_block() {
        let place = Place::new();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, place.path("log/fifo"), fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let real = fs::canonicalize(place.path("log/fifo")).unwrap();
        for file in [open_unlinked(&real), walk(&real)] {
            assert!(matches!(place.1.accept(file.unwrap(), &real), Err(OpenError::NotRegular("a FIFO"))));
        }
    }

    #[test]
    fn the_way_without_openat2_opens_the_same_file() {
        let place = Place::new();
        let real = fs::canonicalize(place.path("log/app.log")).unwrap();
        let (new, old) = (open_unlinked(&real).unwrap(), walk(&real).unwrap());
        assert_eq!(new.metadata().unwrap().ino(), old.metadata().unwrap().ino());
    }

    #[test]
    fn hard_links_are_for_files_of_root_or_the_agent() {
        assert!(links_allowed(1, 1000, 500));
        assert!(links_allowed(2, 0, 500) && links_allowed(2, 500, 500));
        assert!(!links_allowed(2, 1000, 500));
    }

    #[test]
    fn a_hard_link_of_somebody_else_is_refused_below_a_root_only() {
        let place = Place::new();
        let link = place.path("log/hard");
        fs::hard_link(place.path("secret"), &link).unwrap();
        assert_eq!(place.read("log/hard").unwrap(), "secret\n");
        // Only root may give a file away.
        if std::os::unix::fs::chown(&link, Some(12345), None).is_ok() {
            let problem = place.refusal("log/hard");
            assert!(problem.cause.contains("has 2 hard links and belongs to uid 12345"), "{problem}");
            assert!(Policy::unbounded().open(&link).is_ok());
        }
    }

    #[test]
    fn a_missing_file_is_gone() {
        let place = Place::new();
        for name in ["log/none", "log/none/none", "log/app.log/x"] {
            assert!(matches!(place.read(name), Err(OpenError::Gone)), "{name}");
        }
    }

    #[test]
    fn an_unreadable_file_says_who_may_not_read_it() {
        let place = Place::new();
        fs::set_permissions(place.path("log/app.log"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let path = place.path("log/app.log");
        let problem = std::thread::scope(|scope| {
            let open = || {
                if rustix::process::geteuid().is_root() {
                    // Root reads everything, so this thread alone becomes somebody else.
                    rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
                }
                place.1.open(&path).unwrap_err().problem("app", &path)
            };
            scope.spawn(open).join().unwrap()
        });
        assert!(problem.cause.contains("may not be read by uid"), "{problem}");
        assert!(problem.fix.contains("CAP_DAC_READ_SEARCH"));
    }

    #[test]
    fn a_root_that_becomes_a_link_after_the_start_leads_nowhere() {
        let place = Place::new();
        fs::create_dir(place.path("etc")).unwrap();
        fs::write(place.path("etc/app.log"), "secret\n").unwrap();
        fs::rename(place.path("log"), place.path("old")).unwrap();
        symlink("etc", place.path("log")).unwrap();
        place.refusal("log/app.log");
    }

    #[test]
    fn denied_files_are_refused_behind_links_and_globs() {
        let place = Place::new();
        fs::write(place.path("log/wtmp"), "").unwrap();
        symlink("wtmp", place.path("log/harmless.log")).unwrap();
        assert!(place.refusal("log/harmless.log").cause.contains("**/wtmp"));
    }
}
