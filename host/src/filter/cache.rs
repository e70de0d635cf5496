//! Modules and their compiled code on this host's disk, by digest.
//!
//! `HEX.wasm` is a module as it was pushed; `HEX.KEY.code` its machine code for one configuration
//! of the engine, and `HEX.KEY.code.sha256` that code's digest; `HEX.minisig` its signature. Whole files are renamed into
//! place, the digest last. Everything is verified when it is read, so what a crash or a bad disk
//! leaves is as good as absent. What is used gets a new modification time; what was not used for long
//! goes, see [`ModuleCache::tidy`].

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{FilterError, MODULE_BYTES_MAX};
use crate::model::Digest;

/// How long what nobody uses stays: a tag may be rolled back, an entry added again.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// What nobody uses may take so much; what was used longest ago goes first. Bytes.
const UNUSED_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What a tidying removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Files.
    pub files: usize,
    /// And their bytes.
    pub bytes: u64,
}

/// A directory of modules that belongs to the agent's user and is closed to all others.
#[derive(Clone, Debug)]
pub struct ModuleCache {
    dir: PathBuf,
}

impl ModuleCache {
    /// Opens the cache in `dir`, and makes it where there is none.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, FilterError> {
        let dir = dir.into();
        let failed = |operation| {
            let path = dir.clone();
            move |source| FilterError::Cache { operation, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed("make"))?;
        let metadata = fs::metadata(&dir).map_err(failed("look at"))?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(FilterError::CacheOwner { path: dir, owner: metadata.uid() });
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
                .map_err(failed("close to others"))?;
        }
        Ok(Self { dir })
    }

    /// Keeps a module; says what it is known by.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, FilterError> {
        if bytes.len() as u64 > MODULE_BYTES_MAX {
            return Err(FilterError::TooLarge { bytes: bytes.len() as u64 });
        }
        let digest = Digest::of(bytes);
        if self.get(&digest)?.is_none() {
            self.write(&self.module_path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// The module, if it is here and undamaged.
    pub fn get(&self, digest: &Digest) -> Result<Option<Vec<u8>>, FilterError> {
        let bytes = read(&self.module_path(digest))?;
        Ok(bytes.filter(|bytes| Digest::of(bytes) == *digest))
    }

    /// Keeps the signature of a module, in place of an older one.
    pub fn put_signature(&self, digest: &Digest, signature: &str) -> Result<(), FilterError> {
        self.write(&self.signature_path(digest), signature.as_bytes())
    }

    /// The signature of a module, if it is here. Who trusts it must have verified it.
    pub fn signature(&self, digest: &Digest) -> Result<Option<String>, FilterError> {
        let bytes = read(&self.signature_path(digest))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Removes what no entry has used for 7 days, or what is beyond 1 GiB of unused files: modules,
    /// their code, code for other versions of weir, and what a crash left. What is mapped stays
    /// mapped. `used` is what entries name now, `key` the engine's configuration.
    pub fn tidy(&self, used: &BTreeSet<Digest>, key: &str) -> Result<Tidied, FilterError> {
        self.tidy_at(used, key, SystemTime::now(), UNUSED_BYTES_MAX)
    }

    fn tidy_at(
        &self,
        used: &BTreeSet<Digest>,
        key: &str,
        now: SystemTime,
        bytes_max: u64,
    ) -> Result<Tidied, FilterError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| FilterError::Cache { operation, path, source }
        };
        let mut unused = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let path = file.map_err(failed("list", &self.dir))?.path();
            // Another thread may have renamed or removed it meanwhile.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_file() && !is_used(&path, used, key) {
                unused.push((meta.modified().unwrap_or(now), meta.len(), path));
            }
        }
        // The newest first; what is left when the bytes are used up is what was used longest ago.
        unused.sort_by(|one, other| other.cmp(one));
        let (mut kept, mut tidied) = (0, Tidied::default());
        for (modified, bytes, path) in unused {
            kept += bytes;
            // A time that is to come was written by a clock that was wrong.
            let is_old = now.duration_since(modified).is_ok_and(|age| age >= UNUSED);
            if kept <= bytes_max && !is_old {
                continue;
            }
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            tidied.files += 1;
            tidied.bytes += bytes;
        }
        Ok(tidied)
    }

    /// Where a module lies.
    pub(super) fn module_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.wasm", digest.hex()))
    }

    /// Verified code for the engine configuration `key`, if it is here and undamaged.
    pub(super) fn code(&self, digest: &Digest, key: &str) -> Result<Option<PathBuf>, FilterError> {
        let path = self.code_path(digest, key);
        let Some(code) = read(&path)? else { return Ok(None) };
        let written = read(&digest_path(&path))?;
        let intact = written.is_some_and(|written| written == Digest::of(&code).to_string().as_bytes());
        if intact {
            [&self.module_path(digest), &path, &digest_path(&path)].into_iter().for_each(|path| touch(path));
        }
        Ok(intact.then_some(path))
    }

    /// Keeps the code that the compiler wrote into `temporary`, a file in [`ModuleCache::scratch`].
    pub(super) fn keep_code(
        &self,
        digest: &Digest,
        key: &str,
        temporary: tempfile::NamedTempFile,
    ) -> Result<PathBuf, FilterError> {
        let code = read(temporary.path())?.unwrap_or_default();
        let path = self.code_path(digest, key);
        let failed = |operation, source| FilterError::Cache { operation, path: path.clone(), source };
        temporary.as_file().sync_all().map_err(|error| failed("write", error))?;
        temporary.persist(&path).map_err(|error| failed("rename into place", error.error))?;
        self.write(&digest_path(&path), Digest::of(&code).to_string().as_bytes())?;
        Ok(path)
    }

    /// An empty file, removed again unless it is kept.
    pub(super) fn scratch(&self) -> Result<tempfile::NamedTempFile, FilterError> {
        let made = tempfile::Builder::new().prefix("new.").tempfile_in(&self.dir);
        made.map_err(|source| FilterError::Cache {
            operation: "make a file in",
            path: self.dir.clone(),
            source,
        })
    }

    fn signature_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.minisig", digest.hex()))
    }

    fn code_path(&self, digest: &Digest, key: &str) -> PathBuf {
        self.dir.join(format!("{}.{key}.code", digest.hex()))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), FilterError> {
        let mut file = self.scratch()?;
        let written = file.write_all(bytes).and_then(|()| file.as_file().sync_all());
        let kept = written.and_then(|()| file.persist(path).map_err(|error| error.error));
        kept.map(drop).map_err(|source| FilterError::Cache {
            operation: "write",
            path: path.to_owned(),
            source,
        })
    }
}

/// Whether a file is of a module that is used: the module, or code for this engine.
fn is_used(path: &Path, used: &BTreeSet<Digest>, key: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((hex, rest)) = name.split_once('.') else { return false };
    let of_used = format!("sha256:{hex}").parse().is_ok_and(|digest| used.contains(&digest));
    of_used && (matches!(rest, "wasm" | "minisig") || rest.split('.').next() == Some(key))
}

/// Notes that a file is used. Where that fails it is only forgotten sooner.
fn touch(path: &Path) {
    if let Ok(file) = fs::File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn digest_path(code: &Path) -> PathBuf {
    let mut path = code.as_os_str().to_owned();
    path.push(".sha256");
    path.into()
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, FilterError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FilterError::Cache { operation: "read", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, ModuleCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = ModuleCache::open(dir.path().join("modules")).unwrap();
        (dir, cache)
    }

    fn keep_code(cache: &ModuleCache, digest: &Digest, code: &[u8]) -> PathBuf {
        let mut file = cache.scratch().unwrap();
        file.write_all(code).unwrap();
        cache.keep_code(digest, "k", file).unwrap()
    }

    #[test]
    fn a_module_comes_back_by_its_digest() {
        let (_dir, cache) = cache();
        let digest = cache.put(b"module").unwrap();
        assert_eq!(digest, Digest::of(b"module"));
        assert_eq!(cache.get(&digest).unwrap().unwrap(), b"module");
        assert_eq!(cache.get(&Digest::of(b"other")).unwrap(), None);
    }

    #[test]
    fn a_damaged_module_is_as_good_as_absent_and_can_be_put_again() {
        let (_dir, cache) = cache();
        let digest = cache.put(b"module").unwrap();
        fs::write(cache.module_path(&digest), b"modulo").unwrap();
        assert_eq!(cache.get(&digest).unwrap(), None);
        cache.put(b"module").unwrap();
        assert!(cache.get(&digest).unwrap().is_some());
    }

    #[test]
    fn damaged_code_is_never_handed_out() {
        let (_dir, cache) = cache();
        let digest = cache.put(b"module").unwrap();
        let path = keep_code(&cache, &digest, b"code");
        assert_eq!(cache.code(&digest, "k").unwrap().unwrap(), path);
        assert_eq!(cache.code(&digest, "another engine").unwrap(), None);
        fs::write(&path, b"evil").unwrap();
        assert_eq!(cache.code(&digest, "k").unwrap(), None);
        fs::write(&path, b"code").unwrap();
        fs::remove_file(digest_path(&path)).unwrap();
        assert_eq!(cache.code(&digest, "k").unwrap(), None);
    }

    #[test]
    fn others_cannot_enter_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        ModuleCache::open(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }

    /// Of the files, by how they begin, those of which the last use is so many days ago.
    fn days_ago(cache: &ModuleCache, beginning: &str, days: u64) {
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        for file in fs::read_dir(&cache.dir).unwrap().flatten() {
            if file.file_name().to_str().unwrap().starts_with(beginning) {
                fs::File::open(file.path()).unwrap().set_modified(then).unwrap();
            }
        }
    }

    fn left(cache: &ModuleCache) -> BTreeSet<String> {
        let files = fs::read_dir(&cache.dir).unwrap().flatten();
        files.map(|file| file.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_was_not_used_for_a_week_goes_and_what_entries_name_stays() {
        let (_dir, cache) = cache();
        let [named, recent, old] = ["named", "recent", "old"].map(|text| cache.put(text.as_bytes()).unwrap());
        for digest in [&named, &recent, &old] {
            keep_code(&cache, digest, b"code");
        }
        fs::write(cache.dir.join(format!("{}.older.code", named.hex())), b"code").unwrap();
        fs::write(cache.dir.join("new.crash"), b"crash").unwrap();
        days_ago(&cache, "", 8);
        days_ago(&cache, &recent.hex(), 6);
        let tidied = cache.tidy(&[named].into(), "k").unwrap();
        let code_bytes = 4 + Digest::of(b"code").to_string().len() as u64;
        assert_eq!(tidied, Tidied { files: 5, bytes: 3 + code_bytes + 4 + 5 });
        let stay = |digest: &Digest| {
            ["wasm", "k.code", "k.code.sha256"].map(|end| format!("{}.{end}", digest.hex()))
        };
        assert_eq!(left(&cache), stay(&named).into_iter().chain(stay(&recent)).collect());
        assert_eq!(cache.tidy(&[named].into(), "k").unwrap(), Tidied::default());
    }

    #[test]
    fn a_use_counts_from_its_day() {
        let (_dir, cache) = cache();
        let digest = cache.put(b"module").unwrap();
        keep_code(&cache, &digest, b"code");
        days_ago(&cache, "", 8);
        assert!(cache.code(&digest, "k").unwrap().is_some());
        assert_eq!(cache.tidy(&BTreeSet::new(), "k").unwrap(), Tidied::default());
    }

    #[test]
    fn unused_files_are_bounded_and_the_longest_unused_go_first() {
        let (_dir, cache) = cache();
        let days = [3, 1, 2].map(|days| {
            let digest = cache.put(&[days; 100]).unwrap();
            days_ago(&cache, &digest.hex(), u64::from(days));
            digest
        });
        let tidied = cache.tidy_at(&[days[1]].into(), "k", SystemTime::now(), 150).unwrap();
        assert_eq!(tidied, Tidied { files: 1, bytes: 100 });
        assert_eq!(days.map(|digest| cache.get(&digest).unwrap().is_some()), [false, true, true]);
    }
}
