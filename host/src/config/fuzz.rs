//! Fuzz targets: what anybody may write into a settings file.

use std::path::Path;

use super::host::Host;
use super::resolve::Instead;
use super::typed::{Typed, TypedEtcd};
use super::{ConfigError, ListSource, Settings, convert, ini as older, resolve, toml as newer};
use crate::fuzz::assert_within;
use crate::model::Problem;

const INI: &str = "config.ini";
const TOML: &str = "weir.toml";

/// Settings, or all that is wrong in them, each with its place.
pub fn toml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(place) = newer::place(text, TOML, "kafka.brokers") {
        assert_within(text, TOML, &place);
    }
    match newer::parse(text, TOML) {
        Err(problems) => check(text, TOML, &problems),
        Ok((typed, problems)) => {
            check_any(text, TOML, &problems);
            if !reads_files(&typed) {
                judge(text, TOML, meaning(TOML, typed, problems));
            }
        }
    }
    if let Err(problems) = newer::parse_policy(text, TOML) {
        check(text, TOML, &problems);
    }
}

/// The same, and what it is converted to says the same.
pub fn ini(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (typed, problems) = older::parse(text, INI);
    check_any(text, INI, &problems);
    let converted = convert::to_toml(&typed, Path::new(INI));
    let Some(before) = judge(text, INI, meaning(INI, typed, problems)) else { return };
    let (typed, problems) = newer::parse(&converted, TOML).expect("TOML");
    assert_eq!(problems, [], "{converted}");
    if reads_files(&typed) {
        return;
    }
    let after = meaning(TOML, typed, problems).unwrap_or_else(|error| panic!("{error}\n{converted}"));
    assert_eq!(after.kafka, before.kafka, "{converted}");
    match before.list {
        ListSource::Fixed { .. } => assert!(matches!(after.list, ListSource::File(_))),
        list => assert_eq!(after.list, list, "{converted}"),
    }
}

fn meaning(file: &str, typed: Typed, problems: Vec<Problem>) -> Result<Settings, ConfigError> {
    let host = Host {
        name: "web1".into(),
        ip: "10.0.0.7".into(),
        state_dir: Some("/var/lib/weir".into()),
        ..Host::default()
    };
    resolve(&host, &Instead::default(), Path::new(file), typed, problems)
}

/// Whether it names files that would be read: they are no part of the input.
fn reads_files(typed: &Typed) -> bool {
    let of_etcd = |etcd: &TypedEtcd| {
        let TypedEtcd { password_file, ca_file, cert_file, key_file, .. } = etcd;
        [password_file, ca_file, cert_file, key_file].iter().any(|file| file.is_some())
    };
    typed.sasl_password_file.is_some()
        || typed.etcd.as_ref().is_some_and(|etcd| of_etcd(&etcd.value))
        || typed.policy.as_ref().is_some_and(|policy| policy.file.is_some())
}

/// What is taken can be worked with.
fn judge(text: &str, file: &str, read: Result<Settings, ConfigError>) -> Option<Settings> {
    match read {
        Err(error) => {
            check(text, file, &error.problems);
            None
        }
        Ok(settings) => {
            assert!(!settings.kafka.brokers.is_empty(), "no broker: {text:?}");
            if let ListSource::Etcd(etcd) = &settings.list {
                assert!(!etcd.endpoints.is_empty(), "no endpoint: {text:?}");
                assert!(!etcd.collect_keys.is_empty(), "no key: {text:?}");
                assert!(etcd.collect_keys.iter().all(|key| !key.is_empty()), "an empty key: {text:?}");
            }
            Some(settings)
        }
    }
}

fn check(text: &str, file: &str, problems: &[Problem]) {
    assert!(!problems.is_empty(), "refused without a reason: {text:?}");
    check_any(text, file, problems);
}

fn check_any(text: &str, file: &str, problems: &[Problem]) {
    for problem in problems {
        assert!(!problem.cause.is_empty() && !problem.place.is_empty(), "{problem:?}");
        assert_within(text, file, &problem.place);
    }
}
