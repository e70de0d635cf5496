//! Holds the agent to what its settings let it touch: Landlock, the kernel's own sandbox.
//!
//! In: the settings. Out: a process that reads files below the roots of the policy and what it runs
//! on, and writes its state alone, whatever code gets to run in it; the compiler of modules, its
//! child, as well. It is a second wall: the policy decides in any case. On a kernel without it the
//! agent runs all the same, with one warning.
//!
//! A right belongs to the directory that has the name when the agent starts. So rules name
//! directories where files are replaced by renaming: a list, a certificate, `/etc/resolv.conf`.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, LandlockStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};

use crate::config::{ListSource, Settings};
use crate::control::list::{self, Origin};
use crate::model::{Entry, ModuleRef};

/// What is asked of the kernel; one that knows less gives what it knows.
const RIGHTS: ABI = ABI::V6;

/// What the C library, OpenSSL and librdkafka read: names of hosts and users, certificates, time
/// zones; and what tells how many cores there are.
const SYSTEM: [&str; 15] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/usr/lib/ssl",
    "/usr/lib/locale",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
    "/usr/share/zoneinfo",
    "/proc/self",
    "/proc/sys",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/dev/urandom",
];
/// Where OpenSSL looks for certificates if the environment says so.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What the agent may touch. Names of files can be seen everywhere: a glob begins above the roots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Files at or below these are read.
    pub read: BTreeSet<PathBuf>,
    /// Files at or below these are read and run: the agent itself, as the compiler of modules, and
    /// what it is linked with.
    pub run: BTreeSet<PathBuf>,
    /// Anything below these is made, written and removed.
    pub write: BTreeSet<PathBuf>,
    /// Sockets are made in these.
    pub sockets: BTreeSet<PathBuf>,
}

/// How far the kernel holds the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confined {
    /// In all that was asked for.
    Fully,
    /// The kernel is too old for a part of it; files are.
    Partly,
    /// Not at all, for this reason.
    Not(String),
}

impl Bounds {
    /// What the agent of these settings needs. `scratch` is where a run without state writes.
    pub fn of(settings: &Settings, scratch: Option<&Path>) -> Self {
        let mut bounds = Self::default();
        bounds.read.extend(SYSTEM.map(PathBuf::from));
        bounds.read.extend(CERTIFICATES.iter().filter_map(std::env::var_os).map(PathBuf::from));
        match settings.policy.real_roots() {
            None => drop(bounds.read.insert("/".into())),
            Some(roots) => bounds.read.extend(roots.into_iter().map(there)),
        }
        match &settings.list {
            ListSource::Etcd(etcd) => {
                let files = [&etcd.ca_file, &etcd.cert_file, &etcd.key_file];
                bounds.read.extend(files.into_iter().flatten().map(|file| directory(file)));
            }
            ListSource::File(file) => {
                bounds.read.insert(directory(file));
                bounds.read.extend(modules(file));
            }
            ListSource::Fixed { .. } => {}
        }
        // Certificates and keys of Kafka are read when a producer is made, and made anew.
        let files = settings.kafka.properties.values().map(Path::new).filter(|path| path.is_absolute());
        bounds.read.extend(files.map(directory));
        bounds.run.insert("/proc/self/exe".into());
        bounds.run.extend(linked().iter().map(|file| directory(file)));
        match scratch {
            // Such a run leaves nothing behind, and listens nowhere.
            Some(scratch) => drop(bounds.write.insert(scratch.into())),
            None => {
                bounds.write.insert(settings.state_dir.clone());
                bounds.sockets.insert(directory(&settings.admin.socket));
            }
        }
        bounds
    }
}

/// Confines this thread, and the threads and processes that it starts, for good.
pub fn confine(bounds: &Bounds) -> Confined {
    // A rule is about what is there.
    for dir in bounds.write.iter().chain(&bounds.sockets) {
        // What cannot be made is reported where it is needed.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    }
    try_to_confine(bounds)
}

/// The same without making a directory that is not there yet.
pub fn try_to_confine(bounds: &Bounds) -> Confined {
    match restrict(bounds) {
        Ok((RulesetStatus::FullyEnforced, _)) => Confined::Fully,
        Ok((RulesetStatus::PartiallyEnforced, _)) => Confined::Partly,
        Ok((RulesetStatus::NotEnforced, LandlockStatus::NotEnabled)) => {
            Confined::Not("Landlock is not switched on in this kernel (lsm=landlock,…)".into())
        }
        Ok((RulesetStatus::NotEnforced, _)) => {
            Confined::Not("this kernel has no Landlock (Linux 5.13)".into())
        }
        Err(error) => Confined::Not(chain(&error)),
    }
}

fn restrict(bounds: &Bounds) -> Result<(RulesetStatus, LandlockStatus), RulesetError> {
    let names = make_bitflags!(AccessFs::{ReadDir});
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let run = read | AccessFs::Execute;
    let null = make_bitflags!(AccessFs::{ReadFile | WriteFile});
    let sockets = make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
    let devices = make_bitflags!(AccessFs::{MakeChar | MakeBlock | Execute | IoctlDev});
    let write: BitFlags<AccessFs> = AccessFs::from_all(RIGHTS) & !devices;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(["/"], names))?
        .add_rules(path_beneath_rules(&bounds.read, read))?
        .add_rules(path_beneath_rules(&bounds.run, run))?
        .add_rules(path_beneath_rules(["/dev/null"], null))?
        .add_rules(path_beneath_rules(&bounds.sockets, sockets))?
        .add_rules(path_beneath_rules(&bounds.write, write))?
        .restrict_self()?;
    Ok((status.ruleset, status.landlock))
}

/// The nearest directory that is there: what appears in it may be the root.
fn there(root: &Path) -> PathBuf {
    root.ancestors().find(|dir| dir.exists()).unwrap_or(root).to_path_buf()
}

/// Where the modules lie that a list in a file names now. One that is named later must lie in one of
/// these, beside or below the list, or below a root.
fn modules(file: &Path) -> Vec<PathBuf> {
    let list = fs::read(file).ok().and_then(|text| list::parse(&text, &Origin::File(file.into())).ok());
    let entries = list.into_iter().flat_map(|list| list.items).filter_map(|item| item.checked.ok());
    let module = |entry: Arc<Entry>| match &entry.filter.as_ref()?.module {
        ModuleRef::File(path) if path.exists() => Some(directory(path)),
        _ => None,
    };
    entries.filter_map(module).collect()
}

/// Where a file lies, with links followed.
fn directory(file: &Path) -> PathBuf {
    let real = fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    if real.is_dir() {
        return real;
    }
    real.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
}

/// The libraries that are mapped now, and what loaded them.
fn linked() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let file = |line: &str| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}")));
    let exe = fs::read_link("/proc/self/exe").unwrap_or_default();
    maps.lines().filter_map(file).filter(|file| *file != exe && file.is_file()).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", source.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    /// Runs `work` on a thread that is confined, where the kernel can do that.
    fn confined(bounds: &Bounds, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| match confine(bounds) {
                Confined::Not(why) => eprintln!("not tested: {why}"),
                Confined::Fully | Confined::Partly => work(),
            });
            thread.join().unwrap();
        });
    }

    #[test]
    fn files_outside_are_neither_read_nor_written_and_those_inside_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["log", "state", "run", "home"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("old"), "text").unwrap();
        }
        let set = |name: &str| BTreeSet::from([path(name)]);
        let bounds =
            Bounds { read: set("log"), write: set("state"), sockets: set("run"), ..Bounds::default() };
        confined(&bounds, || {
            let denied = |result: std::io::Result<()>| {
                result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            };
            assert_eq!(fs::read_to_string(path("log/old")).unwrap(), "text");
            assert!(denied(fs::write(path("log/old"), "")));
            assert!(denied(fs::write(path("log/new"), "")));
            assert!(denied(fs::remove_file(path("log/old"))));
            assert!(denied(fs::read(path("home/old")).map(drop)));
            assert!(denied(fs::read("/etc/hostname").map(drop)));
            // Names are seen: a glob begins above the roots.
            assert_eq!(fs::read_dir(path("home")).unwrap().count(), 1);

            fs::write(path("state/new"), "new").unwrap();
            fs::create_dir(path("state/dir")).unwrap();
            fs::rename(path("state/new"), path("state/dir/new")).unwrap();
            fs::remove_file(path("state/dir/new")).unwrap();
            let socket = UnixListener::bind(path("run/new")).unwrap();
            fs::rename(path("run/new"), path("run/socket")).unwrap();
            drop(socket);
            fs::remove_file(path("run/socket")).unwrap();
            assert!(denied(fs::write(path("run/file"), "")));
            // No way out by a rename, a link or a program.
            assert!(fs::rename(path("state/old"), path("home/moved")).is_err());
            assert!(fs::hard_link(path("home/old"), path("state/link")).is_err());
            std::os::unix::fs::symlink(path("home/old"), path("state/link")).unwrap();
            assert!(denied(fs::read(path("state/link")).map(drop)));
            assert!(denied(Command::new("/bin/sh").spawn().map(drop)));
        });
    }

    #[test]
    fn a_root_that_is_not_there_yet_is_read_when_it_appears() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("not/yet");
        assert_eq!(there(&root), dir.path());
        let bounds = Bounds {
            read: [there(&root)].into(),
            write: [dir.path().join("state")].into(),
            ..Bounds::default()
        };
        let (confined_now, made) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let confined = confine(&bounds);
                confined_now.wait();
                made.wait();
                assert_eq!(fs::read_to_string(root.join("a.log")).unwrap(), "text");
                let denied = fs::write(root.join("a.log"), "").is_err();
                assert!(denied || matches!(confined, Confined::Not(_)), "it is read, not written");
            });
            confined_now.wait();
            fs::create_dir_all(&root).unwrap();
            fs::write(root.join("a.log"), "text").unwrap();
            made.wait();
            reader.join().unwrap();
        });
    }

    #[test]
    fn what_is_linked_is_found() {
        assert!(linked().iter().any(|file| file.to_string_lossy().contains("libc.so")), "{:?}", linked());
    }
}
