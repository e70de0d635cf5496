//! A certificate authority of one test, and what it signs for 127.0.0.1.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};
use tempfile::TempDir;

use crate::scratch;

/// Signs certificates; its files are gone when it is dropped.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
    key: PKey<Private>,
    cert: X509,
}

/// The files of one certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, PKCS#8.
    pub key: PathBuf,
    /// Both in one file, as Kafka takes them.
    pub both: PathBuf,
}

impl Authority {
    /// One that nobody else trusts.
    pub fn new() -> Self {
        let (dir, key, name) = (scratch::dir("tls"), new_key(), subject("weir tests"));
        let mut builder = begin(&name, &name, &key);
        builder.append_extension(BasicConstraints::new().critical().ca().build().expect("CA")).expect("CA");
        let usage = KeyUsage::new().critical().key_cert_sign().crl_sign().build().expect("its usage");
        builder.append_extension(usage).expect("its usage");
        builder.sign(&key, MessageDigest::sha256()).expect("sign itself");
        let authority = Self { dir, key, cert: builder.build() };
        write(&authority.ca(), &authority.cert.to_pem().expect("PEM"));
        authority
    }

    /// Its own certificate, PEM.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for 127.0.0.1, of a server or a client; `name` is its common name.
    pub fn issue(&self, name: &str) -> Issued {
        let key = new_key();
        let mut builder = begin(&subject(name), self.cert.subject_name(), &key);
        let context = builder.x509v3_context(Some(&self.cert), None);
        let address = SubjectAlternativeName::new().ip("127.0.0.1").build(&context).expect("an address");
        builder.append_extension(address).expect("an address");
        builder.sign(&self.key, MessageDigest::sha256()).expect("sign");
        let file = |suffix: &str| self.dir.path().join(format!("{name}.{suffix}"));
        let issued = Issued { cert: file("pem"), key: file("key"), both: file("both") };
        let (cert, key) =
            (builder.build().to_pem().expect("PEM"), key.private_key_to_pem_pkcs8().expect("PEM"));
        write(&issued.cert, &cert);
        write(&issued.key, &key);
        write(&issued.both, &[key, cert].concat());
        issued
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn new_key() -> PKey<Private> {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("P-256");
    PKey::from_ec_key(EcKey::generate(&curve).expect("a key")).expect("a key")
}

fn subject(name: &str) -> X509Name {
    let mut builder = X509NameBuilder::new().expect("a name");
    builder.append_entry_by_nid(Nid::COMMONNAME, name).expect("a name");
    builder.build()
}

/// Everything but extensions and signature; good for a day.
fn begin(subject: &X509Name, issuer: &openssl::x509::X509NameRef, key: &PKey<Private>) -> X509Builder {
    let mut builder = X509::builder().expect("a certificate");
    let mut serial = BigNum::new().expect("a number");
    serial.rand(127, MsbOption::MAYBE_ZERO, false).expect("a number");
    builder.set_version(2).expect("version 3");
    builder.set_serial_number(&serial.to_asn1_integer().expect("a number")).expect("its number");
    builder.set_subject_name(subject).expect("its subject");
    builder.set_issuer_name(issuer).expect("its issuer");
    builder.set_pubkey(key).expect("its key");
    builder.set_not_before(&Asn1Time::days_from_now(0).expect("now")).expect("its begin");
    builder.set_not_after(&Asn1Time::days_from_now(1).expect("tomorrow")).expect("its end");
    builder
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}
