//! Who may change a file: root and the agent's user alone, or others too.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_READ: u32 = 0o004;
/// In such a directory only the owner of a file may replace it.
const STICKY: u32 = 0o1000;

/// Why others than root and the agent's user may change what stands at `path`, now or by putting
/// another file in its place; `None` if they may not. A file that is not there yet is as safe as its
/// directory.
pub(super) fn others_may_change(path: &Path) -> Option<String> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let dir = real.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(dir) {
        Ok(meta) if meta.mode() & STICKY == 0 => {
            if let Some(why) = writable_by_others(&meta) {
                return Some(format!("its directory {} {why}", dir.display()));
            }
        }
        Ok(_) => {}
        Err(error) => return Some(format!("its directory {} cannot be looked at: {error}", dir.display())),
    }
    match fs::metadata(&real) {
        Ok(meta) => writable_by_others(&meta).map(|why| format!("it {why}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("it cannot be looked at: {error}")),
    }
}

/// Whether everybody on the host may read it.
pub(super) fn everybody_reads(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.mode() & OTHERS_READ != 0)
}

fn writable_by_others(meta: &Metadata) -> Option<String> {
    why_writable(meta.uid(), meta.gid(), meta.mode(), geteuid().as_raw())
}

/// A group with the number of the owner is the owner's own: such hosts give new files mode 0664.
fn why_writable(uid: u32, gid: u32, mode: u32, agent: u32) -> Option<String> {
    let bits = mode & 0o7777;
    if uid != 0 && uid != agent {
        return Some(format!("belongs to uid {uid}"));
    }
    if mode & OTHERS_WRITE != 0 {
        return Some(format!("is writable by everybody (mode {bits:04o})"));
    }
    (mode & GROUP_WRITES != 0 && gid != uid).then(|| format!("is writable by group {gid} (mode {bits:04o})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn owner_and_mode_say_who_may_write() {
        assert_eq!(why_writable(0, 0, 0o100644, 500), None);
        assert_eq!(why_writable(500, 100, 0o100644, 500), None);
        assert_eq!(why_writable(500, 500, 0o100664, 500), None);
        assert_eq!(why_writable(1000, 500, 0o100644, 500).unwrap(), "belongs to uid 1000");
        assert_eq!(why_writable(0, 0, 0o100666, 0).unwrap(), "is writable by everybody (mode 0666)");
        assert_eq!(why_writable(0, 4, 0o100664, 0).unwrap(), "is writable by group 4 (mode 0664)");
    }

    #[test]
    fn a_file_is_as_safe_as_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list.json");
        assert_eq!(others_may_change(&file), None);
        fs::write(&file, "[]").unwrap();
        assert_eq!(others_may_change(&file), None);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(others_may_change(&file).unwrap().starts_with("its directory "));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(others_may_change(&file), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(others_may_change(&file).unwrap(), "it is writable by everybody (mode 0666)");
        assert!(
            others_may_change(&dir.path().join("none/list.json")).unwrap().contains("cannot be looked at")
        );
    }
}
