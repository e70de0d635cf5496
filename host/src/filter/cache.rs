//! Modules and their compiled code on this host's disk, by digest.
//!
//! `HEX.wasm` is a module as it was pushed; `HEX.KEY.code` its machine code for one configuration
//! of the engine, and `HEX.KEY.code.sha256` that code's digest. Whole files are renamed into
//! place, the digest last. Everything is verified when it is read, so what a crash or a bad disk
//! leaves is as good as absent.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{FilterError, MODULE_BYTES_MAX};
use crate::model::Digest;

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

    /// Whether a file of that name is here; [`ModuleCache::get`] says whether it is undamaged.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.module_path(digest).exists()
    }

    /// Forgets every module that `keep` does not want, its code, and what a crash left.
    pub fn retain(&self, keep: impl Fn(&Digest) -> bool) -> Result<(), FilterError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| FilterError::Cache { operation, path, source }
        };
        for file in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let file = file.map_err(failed("list", &self.dir))?;
            let name = file.file_name();
            let digest = name.to_str().and_then(|name| name.split('.').next());
            let digest = digest.and_then(|hex| format!("sha256:{hex}").parse().ok());
            if !digest.is_some_and(|digest| keep(&digest)) {
                fs::remove_file(file.path()).map_err(failed("remove", &file.path()))?;
            }
        }
        Ok(())
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

    #[test]
    fn what_is_not_wanted_is_forgotten() {
        let (_dir, cache) = cache();
        let (kept, gone) = (cache.put(b"kept").unwrap(), cache.put(b"gone").unwrap());
        keep_code(&cache, &kept, b"code");
        keep_code(&cache, &gone, b"code");
        fs::write(cache.dir.join("new.crash"), b"").unwrap();
        cache.retain(|digest| *digest == kept).unwrap();
        let left = fs::read_dir(&cache.dir).unwrap().count();
        assert_eq!(left, 3, "the module, its code, its code's digest");
        assert!(cache.code(&kept, "k").unwrap().is_some());
    }
}
