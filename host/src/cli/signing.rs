//! Signing lists and modules with a minisign secret key.
//!
//! In: a key file, whose password is asked for on the terminal where it has one. Out: a signed list,
//! or the signature of a module beside it. Agents never sign: they know public keys alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::control::list::{Origin, envelope};
use crate::model::Digest;
use crate::policy::keys::SIGNATURE_EXTENSION;
use crate::policy::sign::{SecretKey, sign};

/// How a list that is written is signed.
#[derive(Clone, Debug, Default, Args)]
pub struct Signing {
    /// Sign the list with this minisign secret key, for hosts whose policy has keys
    #[arg(long, value_name = "KEY")]
    sign_key: Option<PathBuf>,
    /// The number of the signed list, which must grow [default: one more than the last, or the time]
    #[arg(long, value_name = "NUMBER", requires = "sign_key")]
    serial: Option<u64>,
}

impl Signing {
    /// `new` as it is to be written in place of `old`.
    pub(super) fn seal(&self, new: Vec<u8>, old: Option<&[u8]>, origin: &Origin) -> anyhow::Result<Vec<u8>> {
        let before = old.and_then(envelope::serial);
        let Some(file) = &self.sign_key else {
            if before.is_some() && envelope::serial(&new).is_none() {
                bail!(
                    "{origin}: the list that stands there is signed, and hosts whose policy has keys would refuse \
                     this one; name the key with --sign-key"
                );
            }
            if let (Some(serial), Some(before)) = (envelope::serial(&new), before)
                && serial <= before
                && old != Some(new.as_slice())
            {
                bail!("{origin}: {}", not_larger(serial, before));
            }
            return Ok(new);
        };
        let text = String::from_utf8(new).context("the list is not UTF-8")?;
        // Whoever signs the next list may not have seen this one: the time grows anywhere.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let serial = self.serial.unwrap_or_else(|| before.map_or(now, |before| now.max(before + 1)));
        if let Some(before) = before.filter(|before| serial <= *before) {
            bail!("{origin}: {}", not_larger(serial, before));
        }
        let sealed =
            envelope::seal(&text, origin, serial, &secret_key(file)?).context("cannot sign the list")?;
        Ok(sealed.into_bytes())
    }

    pub(super) fn has_key(&self) -> bool {
        self.sign_key.is_some()
    }
}

/// Arguments of `module sign`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  minisign -G -p weir.pub -s weir.key          once; the second line of weir.pub goes into [policy] keys
  weir module sign redact.wasm --sign-key weir.key
  weir module push redact.wasm --tag redact

The signature is written to redact.wasm.minisig, is pushed with the module, and is the same that
`minisign -S` makes.")]
pub struct SignArgs {
    /// The module
    wasm: PathBuf,
    /// A minisign secret key
    #[arg(long, value_name = "KEY", alias = "key")]
    sign_key: PathBuf,
}

/// `weir module sign`.
pub(super) fn sign_module(args: &SignArgs) -> anyhow::Result<ExitCode> {
    let wasm = args.wasm.display();
    let bytes = std::fs::read(&args.wasm).with_context(|| format!("cannot read {wasm}"))?;
    // A signature says that somebody looked at it.
    crate::filter::inspect::inspect(&bytes).with_context(|| format!("{wasm} cannot be a filter"))?;
    let key = secret_key(&args.sign_key)?;
    let signature = sign(&bytes, &key, &format!("weir module {}", Digest::of(&bytes)))?;
    let out = signature_file(&args.wasm);
    std::fs::write(&out, signature).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: signed by {}", out.display(), key.public_key());
    Ok(ExitCode::SUCCESS)
}

/// The signature beside a module, if it has one.
pub(super) fn signature_beside(wasm: &Path) -> anyhow::Result<Option<String>> {
    let file = signature_file(wasm);
    match std::fs::read_to_string(&file) {
        Ok(signature) => Ok(Some(signature)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn not_larger(serial: u64, before: u64) -> String {
    format!(
        "number {serial} is not larger than {before}, the number of the list that stands there; sign it again"
    )
}

fn signature_file(wasm: &Path) -> PathBuf {
    wasm.with_added_extension(SIGNATURE_EXTENSION)
}

fn secret_key(file: &Path) -> anyhow::Result<SecretKey> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let ask = || rpassword::prompt_password(format!("Password of {}: ", file.display()));
    SecretKey::parse(&text, ask).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::tests::file_of;

    fn signing(dir: &tempfile::TempDir, serial: Option<u64>) -> Signing {
        let file = dir.path().join("key");
        std::fs::write(&file, file_of(1)).unwrap();
        Signing { sign_key: Some(file), serial }
    }

    #[test]
    fn numbers_grow_from_one_list_to_the_next() {
        let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::Key("/k".into()));
        let seal = |serial, old: Option<&[u8]>| signing(&dir, serial).seal(b"[]".to_vec(), old, &origin);
        let first = seal(None, None).unwrap();
        let number = envelope::serial(&first).unwrap();
        assert!(number > 1_700_000_000, "the time");
        assert!(envelope::serial(&seal(None, Some(&first)).unwrap()).unwrap() > number);
        let far = seal(Some(number + 1_000_000), Some(&first)).unwrap();
        assert_eq!(envelope::serial(&seal(None, Some(&far)).unwrap()), Some(number + 1_000_001));
        let refused = seal(Some(number), Some(&far)).unwrap_err().to_string();
        assert!(refused.contains("is not larger than"), "{refused}");
    }

    #[test]
    fn a_signed_list_is_not_replaced_by_a_plain_one_by_mistake() {
        let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::Key("/k".into()));
        let signed = signing(&dir, None).seal(b"[]".to_vec(), None, &origin).unwrap();
        let plain = Signing::default();
        let refused = plain.seal(b"[]".to_vec(), Some(&signed), &origin).unwrap_err().to_string();
        assert!(refused.contains("--sign-key"), "{refused}");
        assert_eq!(plain.seal(b"[]".to_vec(), Some(b"[ ]"), &origin).unwrap(), b"[]");
        assert_eq!(plain.seal(signed.clone(), Some(&signed), &origin).unwrap(), signed);
    }
}
