//! Signs lists and modules with a minisign secret key, as `minisign -S` does.
//!
//! In: the text of a key file and, where it is encrypted, its password; bytes. Out: the text of a
//! signature that any minisign verifies. Ed25519, BLAKE2b and scrypt are OpenSSL's; here is the
//! format alone. No agent calls this: only commands of people do.

use std::fmt;

use openssl::base64::{decode_block, encode_block};
use openssl::error::ErrorStack;
use openssl::hash::{MessageDigest, hash};
use openssl::pkey::{Id, PKey, Private};
use openssl::sign::Signer;

/// Of a key: `Ed`; of a signature over the BLAKE2b of a file: `ED`.
const KEY_ALGORITHM: &[u8] = b"Ed";
const SIGNATURE_ALGORITHM: &[u8] = b"ED";
/// How a key is encrypted: scrypt, or not at all.
const SCRYPT: &[u8] = b"Sc";
const PLAIN: &[u8] = &[0, 0];
/// `Ed`, `Sc`, `B2`, salt, operations, memory; then what may be encrypted: key id, key, check.
const KEY_BYTES: usize = 2 + 2 + 2 + 32 + 8 + 8 + SECRET_BYTES;
const SECRET_BYTES: usize = 8 + 64 + 32;
/// Bytes. minisign's own keys ask for 1 GiB.
const SCRYPT_MEMORY_MAX: u64 = 2 << 30;
/// scrypt's block size, as libsodium has it.
const SCRYPT_R: u64 = 8;

/// A key that signs.
pub struct SecretKey {
    id: [u8; 8],
    key: PKey<Private>,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The file is something else.
    #[error("it is no minisign secret key; `minisign -G` makes one")]
    NotAKey,
    /// What was typed does not open it.
    #[error("the password does not open it")]
    Password,
    /// It could not be asked for.
    #[error("its password cannot be asked for")]
    Ask(#[source] std::io::Error),
    /// OpenSSL.
    #[error("OpenSSL refuses")]
    OpenSsl(#[from] ErrorStack),
}

impl SecretKey {
    /// Reads a key file; asks for the password where it has one.
    pub fn parse(text: &str, password: impl FnOnce() -> std::io::Result<String>) -> Result<Self, SignError> {
        let line = text.lines().nth(1).ok_or(SignError::NotAKey)?;
        let bytes = decode_block(line.trim()).map_err(|_| SignError::NotAKey)?;
        if bytes.len() != KEY_BYTES || !bytes.starts_with(KEY_ALGORITHM) {
            return Err(SignError::NotAKey);
        }
        let (head, secret) = bytes.split_at(KEY_BYTES - SECRET_BYTES);
        let mut secret = secret.to_vec();
        match &head[2..4] {
            PLAIN => {}
            SCRYPT => decrypt(&mut secret, head, &password().map_err(SignError::Ask)?)?,
            _ => return Err(SignError::NotAKey),
        }
        let (id, keys) = secret.split_at(8);
        let (seed, public) = keys[..64].split_at(32);
        let key = PKey::private_key_from_raw_bytes(seed, Id::ED25519)?;
        // A wrong password gives a key as well, but not with this public half.
        if key.raw_public_key()? != public {
            return Err(SignError::Password);
        }
        Ok(Self { id: id.try_into().map_err(|_| SignError::NotAKey)?, key })
    }

    /// Its public half, as `[policy] keys` takes it.
    pub fn public_key(&self) -> String {
        let public = self.key.raw_public_key().unwrap_or_default();
        encode_block(&[KEY_ALGORITHM, &self.id, &public].concat())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The signature of `bytes`, and of a comment along with it.
pub fn sign(bytes: &[u8], key: &SecretKey, comment: &str) -> Result<String, SignError> {
    let blake = MessageDigest::from_name("blake2b512").ok_or_else(ErrorStack::get)?;
    let signature = key.raw_sign(&hash(blake, bytes)?)?;
    let global = key.raw_sign(&[&signature, comment.as_bytes()].concat())?;
    let first = encode_block(&[SIGNATURE_ALGORITHM, &key.id, &signature].concat());
    Ok(format!(
        "untrusted comment: signature made by weir\n{first}\ntrusted comment: {comment}\n{}\n",
        encode_block(&global)
    ))
}

impl SecretKey {
    fn raw_sign(&self, bytes: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        Signer::new_without_digest(&self.key)?.sign_oneshot_to_vec(bytes)
    }
}

fn decrypt(secret: &mut [u8], head: &[u8], password: &str) -> Result<(), SignError> {
    let salt = &head[6..38];
    let number = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
    let (n, p) = scrypt_parameters(number(38), number(46));
    let mut stream = vec![0; SECRET_BYTES];
    openssl::pkcs5::scrypt(password.as_bytes(), salt, n, SCRYPT_R, p, SCRYPT_MEMORY_MAX, &mut stream)?;
    secret.iter_mut().zip(stream).for_each(|(byte, mask)| *byte ^= mask);
    Ok(())
}

/// What libsodium's two limits mean as scrypt's N and p.
fn scrypt_parameters(operations: u64, memory: u64) -> (u64, u64) {
    let operations = operations.max(32_768);
    let n_for = |most: u64| (1..63).map(|log| 1u64 << log).find(|n| *n > most / 2).unwrap_or(2);
    if operations < memory / 32 {
        return (n_for(operations / (SCRYPT_R * 4)), 1);
    }
    let n = n_for(memory / (SCRYPT_R * 128));
    (n, ((operations / 4) / n).min(0x3fff_ffff) / SCRYPT_R)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Made by `minisign -G -W` (0.11) for these tests.
    pub(crate) const SECRET: &str = "untrusted comment: minisign encrypted secret key\n\
        RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAFaa/YJxZo6DZPPrvf/6wG8LXj9LwyHq3WEr2umKyATynk26aennjglGbswCeKDTtI86DT1uIFqf/qPsllUquuYJ3sP2rZO3GAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    pub(crate) const PUBLIC: &str = "RWQVpr9gnFmjoFGbswCeKDTtI86DT1uIFqf/qPsllUquuYJ3sP2rZO3G";
    /// The same with the password `open sesame`, and cheap limits.
    const ENCRYPTED: &str = "untrusted comment: minisign encrypted secret key\n\
        RWRTY0IyAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AgAAAAAAAAAAAEAAAAAAAZ1WhvAxg9Wa7yTV9IaWqHHqbrn9yRF/eTTuM60srGujH8vHTx/c2fOs54GxhqI1uiACPXqwi1L2xsxFoEJ9h8tcqv3PA104JSjy888CZJuPkXUQToF847F73mwLkAatagjueuVbzjuo=";

    /// What `minisign -S -t 'serial: 7'` made of `hello` with it, without the first line.
    const SIGNATURE: &str = "\
        RUQVpr9gnFmjoMVPpRWvw4sNC0FC/ml1q+AFR9okJQw0OZESFXTm7L2GMdz5jWLITNjPik1E25xVDBMijTQakVivYp9R4SMt2wc=\n\
        trusted comment: serial: 7\n\
        4JNf5avBSWd16bHv0fN4hRHu3dsOcDMkkgt6tfwQew8+LzVz+THVnvHRJSmKUvC+2ZLtkathgc2ZU7y3ciizBQ==\n\
";

    /// A key of this number.
    pub(crate) fn secret(number: u8) -> SecretKey {
        let key = PKey::private_key_from_raw_bytes(&[number; 32], Id::ED25519).unwrap();
        SecretKey { id: [number; 8], key }
    }

    /// What stands in the file of such a key.
    pub(crate) fn file_of(number: u8) -> String {
        let key = secret(number);
        let public = key.key.raw_public_key().unwrap();
        let bytes = [b"Ed\0\0B2", [0; 48].as_slice(), &key.id, &[number; 32], &public, &[0; 32]].concat();
        format!("untrusted comment: a key for tests\n{}\n", encode_block(&bytes))
    }

    #[test]
    fn a_key_without_a_password_asks_for_none() {
        let key = SecretKey::parse(&file_of(3), || unreachable!("it has none")).unwrap();
        assert_eq!(key.public_key(), secret(3).public_key());
    }

    #[test]
    fn an_encrypted_key_opens_with_its_password_alone() {
        let open = |password: &str| SecretKey::parse(ENCRYPTED, || Ok(password.into()));
        assert_eq!(open("open sesame").unwrap().public_key(), PUBLIC);
        assert!(matches!(open("open says me"), Err(SignError::Password)));
    }

    #[test]
    fn a_key_of_minisign_signs_as_minisign_does() {
        let key = SecretKey::parse(SECRET, || unreachable!("it has none")).unwrap();
        assert_eq!(key.public_key(), PUBLIC);
        // Ed25519 has no chance in it, so the lines are minisign's own, after the first.
        let signature = sign(b"hello", &key, "serial: 7").unwrap();
        assert_eq!(signature.split_once('\n').unwrap().1, SIGNATURE);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let public = format!("untrusted comment: x\n{PUBLIC}\n");
        for text in ["", "one line", "untrusted comment: x\n!!!\n", &public] {
            let read = SecretKey::parse(text, || unreachable!());
            assert!(matches!(read, Err(SignError::NotAKey)), "{text:?}");
        }
    }

    #[test]
    fn limits_mean_what_libsodium_means_by_them() {
        // minisign's own keys: operations 2^25, memory 2^30; and libsodium's interactive ones.
        assert_eq!(scrypt_parameters(33_554_432, 1 << 30), (1 << 20, 1));
        assert_eq!(scrypt_parameters(524_288, 16 << 20), (1 << 14, 1));
    }
}
