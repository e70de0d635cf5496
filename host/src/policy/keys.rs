//! The public keys of this host's policy, and whether one of them signed something.
//!
//! In: `[policy] keys`, bytes, the text of a minisign signature. Out: yes, with the signed comment,
//! or why not. The check itself is `minisign-verify`'s; signing is `sign`'s, and no agent does it.

use minisign_verify::{PublicKey, Signature};

/// Of the file beside a module that holds its signature: `redact.wasm.minisig`.
pub const SIGNATURE_EXTENSION: &str = "minisig";

/// The keys of a policy. Where there are none, nothing needs a signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    keys: Vec<PublicKey>,
    set: bool,
}

impl Keys {
    /// Keys as `minisign -G` prints them. A text that is no key signs nothing, and is a key that is
    /// set all the same: a slip of the pen must not switch the check off.
    pub fn new(texts: &[String]) -> Self {
        let keys = texts.iter().filter_map(|text| parse(text).ok()).collect();
        Self { keys, set: !texts.is_empty() }
    }

    /// Whether lists and modules must be signed.
    pub fn are_set(&self) -> bool {
        self.set
    }

    /// The comment that was signed along, where one of the keys signed `bytes`.
    pub fn verify(&self, bytes: &[u8], signature: &str) -> Result<String, String> {
        let signature = Signature::decode(signature)
            .map_err(|error| format!("its signature is not in minisign's format: {error}"))?;
        // Prehashed signatures alone: the older kind is weaker, and no tool makes it any more.
        let signed = |key: &PublicKey| key.verify(bytes, &signature, false).is_ok();
        if self.keys.iter().any(signed) {
            return Ok(signature.trusted_comment().into());
        }
        Err("its signature is by none of the keys of this host's policy, or it was changed since".into())
    }
}

/// Why a text is no key.
pub fn check(text: &str) -> Result<(), String> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_base64(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::sign::sign;
    use super::super::sign::tests::{PUBLIC, secret};
    use super::*;

    fn keys(texts: &[&str]) -> Keys {
        Keys::new(&texts.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn what_one_of_two_keys_signed_is_good() {
        let (old, new) = (secret(1), secret(2));
        let both = keys(&[&old.public_key(), &new.public_key()]);
        for key in [&old, &new] {
            let signature = sign(b"bytes", key, "serial: 7").unwrap();
            assert_eq!(both.verify(b"bytes", &signature).as_deref(), Ok("serial: 7"));
        }
        let only_new = keys(&[&new.public_key()]);
        assert!(only_new.verify(b"bytes", &sign(b"bytes", &old, "x").unwrap()).is_err());
    }

    #[test]
    fn any_change_of_bytes_comment_or_signature_is_seen() {
        let key = secret(1);
        let good = sign(b"bytes", &key, "serial: 7").unwrap();
        let keys = keys(&[&key.public_key()]);
        keys.verify(b"bytes", &good).unwrap();
        assert!(keys.verify(b"byteS", &good).is_err());
        assert!(keys.verify(b"bytes", &good.replace("serial: 7", "serial: 8")).is_err());
        // The line with the signature itself, one letter at a time.
        let line = good.lines().nth(1).unwrap();
        for at in 0..line.len() - 2 {
            let other = if &line[at..=at] == "A" { "B" } else { "A" };
            let changed = format!("{}{other}{}", &line[..at], &line[at + 1..]);
            assert!(keys.verify(b"bytes", &good.replace(line, &changed)).is_err(), "letter {at}");
        }
        for text in ["", "x", "untrusted comment: x\n", &good[..good.len() / 2]] {
            assert!(keys.verify(b"bytes", text).unwrap_err().contains("minisign's format"), "{text:?}");
        }
    }

    #[test]
    fn a_key_is_as_minisign_prints_it() {
        check(PUBLIC).unwrap();
        check("RWQ").unwrap_err();
        let none = keys(&["RWQ"]);
        assert!(none.are_set() && none.verify(b"x", &sign(b"x", &secret(1), "").unwrap()).is_err());
        assert!(!Keys::default().are_set());
    }
}
