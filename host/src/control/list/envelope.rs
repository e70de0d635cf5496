//! A signed list: `{"list": […], "serial": 7, "key": "/weir/web1/collect", "signature": "…"}`.
//!
//! What is signed is the text of the array as it stands there, with its number and the key that it
//! is for before it. So a list cannot be changed, put under another key, or put back after a newer
//! one, by whoever may write to etcd. Where the host's policy has no keys the signature is not
//! looked at, and a plain array does as well.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Origin;
use crate::model::Problem;
use crate::policy::Keys;
use crate::policy::sign::{SecretKey, SignError, sign};

/// A list with its signature, as it stands in etcd or a file.
#[derive(Debug, Deserialize, Serialize)]
struct Envelope<'a> {
    /// The key that it is for; none in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Grows with each list.
    serial: u64,
    /// In minisign's format.
    signature: String,
    #[serde(borrow)]
    list: &'a RawValue,
}

/// What is signed.
fn signed_text(key: Option<&str>, serial: u64, list: &str) -> Vec<u8> {
    format!("weir list\nkey: {}\nserial: {serial}\n\n{list}", key.unwrap_or_default()).into_bytes()
}

/// The key under which the list of an origin stands.
fn key_of(origin: &Origin) -> Option<&str> {
    match origin {
        Origin::Key(key) => Some(key),
        Origin::File(_) | Origin::Settings => None,
    }
}

/// The array inside a signed list; a plain one as it is.
pub fn array(text: &str) -> &str {
    read(text).map_or(text, |envelope| envelope.list.get())
}

/// The number of a signed list, whoever signed it; `None` for a plain one.
pub fn serial(text: &[u8]) -> Option<u64> {
    read(std::str::from_utf8(text).ok()?).map(|envelope| envelope.serial)
}

fn read(text: &str) -> Option<Envelope<'_>> {
    serde_json::from_str(text).ok()
}

/// Signs the list in `text`, plain or signed before, for `origin`.
pub fn seal(text: &str, origin: &Origin, serial: u64, key: &SecretKey) -> Result<String, SignError> {
    let list = array(text).trim();
    let place = key_of(origin);
    let signature = sign(&signed_text(place, serial, list), key, &format!("weir list, serial {serial}"))?;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    // The array comes last and keeps its text, so that it can be read and compared line by line.
    let key = place.map(|key| format!("\"key\": {}, ", quoted(key))).unwrap_or_default();
    Ok(format!("{{{key}\"serial\": {serial},\n\"signature\": {},\n\"list\": {list}}}\n", quoted(&signature)))
}

/// The number of a list that one of `keys` signed for `origin`; or what is wrong with it.
pub fn verify(text: &[u8], origin: &Origin, keys: &Keys) -> Result<u64, Problem> {
    let refused = |cause: String, fix: &str| Err(Problem::new(origin.to_string(), cause, fix));
    const SIGN: &str =
        "sign it with one of the keys in [policy] of this host: weir list put FILE --sign-key KEY";
    let Some(envelope) = std::str::from_utf8(text).ok().and_then(read) else {
        return refused("the list is not signed, and the policy of this host has keys".into(), SIGN);
    };
    let Envelope { key, serial, signature, list } = envelope;
    if key.as_deref() != key_of(origin) && key_of(origin).is_some() {
        let cause = format!("the list was signed for {}", key.as_deref().unwrap_or("a file"));
        return refused(cause, SIGN);
    }
    let signed = signed_text(key.as_deref(), serial, list.get());
    match keys.verify(&signed, &signature) {
        Ok(_) => Ok(serial),
        Err(cause) => refused(format!("the list cannot be trusted: {cause}"), SIGN),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::policy::sign::tests::secret;

    const LIST: &str = "[\n  {\"path\": \"/a\", \"topic\": \"t\"}\n]\n";

    fn at(key: &str) -> Origin {
        Origin::Key(key.into())
    }

    fn keys(numbers: &[u8]) -> Keys {
        Keys::new(&numbers.iter().map(|number| secret(*number).public_key()).collect::<Vec<_>>())
    }

    fn sealed(serial: u64) -> String {
        seal(LIST, &at("/k"), serial, &secret(1)).unwrap()
    }

    fn refusal(text: &str, origin: &Origin, numbers: &[u8]) -> String {
        verify(text.as_bytes(), origin, &keys(numbers)).unwrap_err().cause
    }

    #[test]
    fn a_signed_list_is_the_list_and_its_number() {
        let text = sealed(7);
        assert_eq!(verify(text.as_bytes(), &at("/k"), &keys(&[2, 1])), Ok(7));
        let list = parse(text.as_bytes(), &at("/k")).unwrap();
        assert_eq!((list.items.len(), list.items[0].name()), (1, "/a"));
        assert_eq!((array(&text), serial(text.as_bytes())), (LIST.trim(), Some(7)));
        // Signed again it is not signed twice.
        let again = seal(&text, &at("/k"), 8, &secret(2)).unwrap();
        assert_eq!(again.matches("signature").count(), 2, "the member and minisign's comment");
        assert_eq!(verify(again.as_bytes(), &at("/k"), &keys(&[2])), Ok(8));
    }

    #[test]
    fn whatever_is_changed_is_refused() {
        let good = sealed(7);
        assert!(refusal(LIST, &at("/k"), &[1]).contains("not signed"));
        assert!(refusal("{\"list\": []}", &at("/k"), &[1]).contains("not signed"));
        for (from, to) in [("/a", "/b"), ("\"serial\": 7", "\"serial\": 8"), ("[\n", "[ \n")] {
            assert!(refusal(&good.replacen(from, to, 1), &at("/k"), &[1]).contains("changed"), "{from}");
        }
        assert!(refusal(&good, &at("/k"), &[2]).contains("by none of the keys"));
        assert!(refusal(&good, &at("/other"), &[1]).contains("signed for /k"));
        let moved = good.replacen("\"/k\"", "\"/other\"", 1);
        assert!(refusal(&moved, &at("/other"), &[1]).contains("changed"));
        let no_key = good.replacen("\"key\": \"/k\", ", "", 1);
        assert!(refusal(&no_key, &at("/k"), &[1]).contains("signed for a file"));
    }

    #[test]
    fn places_in_a_signed_list_are_places_in_its_text() {
        let text = seal("[{\"path\": \"a\", \"topic\": \"t\"}]", &at("/k"), 1, &secret(1)).unwrap();
        let list = parse(text.as_bytes(), &at("/k")).unwrap();
        let problem = &list.items[0].checked.as_ref().unwrap_err().problem;
        assert!(problem.place.starts_with("etcd key /k, line 3, column"), "{problem}");
    }
}
