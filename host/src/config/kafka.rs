//! `[kafka]`: which librdkafka properties a host may set, and where its brokers are.

use crate::model::Problem;

use super::typed::At;

/// What a refused property would do.
const ACKS: &str = "an acknowledged line must be safe: weir sets it to all";
const IDEMPOTENCE: &str = "lines keep their order and are not repeated by retries: weir sets it to true";
const TIMEOUT: &str = "no line is dropped for being late: weir sets it to 0";
const RETRIES: &str = "a line is sent until it is acknowledged: weir does not bound the retries";
const QUEUE: &str = "a full queue stops reading, it drops nothing: limits.memory is the bound";
const REPORTS: &str = "weir reads the report of every line";
const TRANSACTION: &str = "weir does not use transactions";
const BROKERS: &str = "brokers under [kafka] says it";
const MOCK: &str = "brokers = \"mock\" under [kafka] gives an in-process broker";
const CODE: &str = "it loads or runs code from outside of weir";

/// Properties that nobody may set, with the reason.
const REFUSED: [(&str, &str); 30] = [
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("enable.idempotence", IDEMPOTENCE),
    ("enable.gapless.guarantee", "one refused line would stop all others"),
    ("queuing.strategy", "lines keep their order"),
    ("msg_order_cmp", "lines keep their order"),
    ("message.timeout.ms", TIMEOUT),
    ("delivery.timeout.ms", TIMEOUT),
    ("retries", RETRIES),
    ("message.send.max.retries", RETRIES),
    ("queue.buffering.max.messages", QUEUE),
    ("queue.buffering.max.kbytes", QUEUE),
    ("delivery.report.only.error", REPORTS),
    ("dr_cb", REPORTS),
    ("dr_msg_cb", REPORTS),
    ("enabled_events", REPORTS),
    ("transactional.id", TRANSACTION),
    ("transaction.timeout.ms", TRANSACTION),
    ("allow.auto.create.topics", "weir creates no topics"),
    ("bootstrap.servers", BROKERS),
    ("metadata.broker.list", BROKERS),
    ("test.mock.num.brokers", MOCK),
    ("test.mock.broker.rtt", MOCK),
    ("internal.termination.signal", "signals are weir's own"),
    ("plugin.library.paths", CODE),
    ("interceptors", CODE),
    ("ssl.engine.location", CODE),
    ("ssl.engine.id", CODE),
    ("ssl.providers", CODE),
    ("sasl.kerberos.kinit.cmd", CODE),
];

/// The most requests under way on a connection with which the idempotent producer keeps order.
const IN_FLIGHT_MAX: u32 = 5;

/// Whether a value of this property must never be shown.
pub(super) fn is_secret(name: &str) -> bool {
    ["password", "secret", "passphrase", "key.pem", "oauthbearer.config"]
        .iter()
        .any(|word| name.contains(word))
}

/// Why this property may not be set so.
pub(super) fn check_property(name: &str, value: &At<String>) -> Option<Problem> {
    let delete = "delete the line";
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Some(Problem::new(&*value.place, format!("not to be set: {why}"), delete));
    }
    if name.ends_with("_cb") {
        return Some(Problem::new(&*value.place, "not to be set: it is a pointer", delete));
    }
    let in_flight = matches!(name, "max.in.flight" | "max.in.flight.requests.per.connection");
    if in_flight && !value.value.parse().is_ok_and(|n: u32| (1..=IN_FLIGHT_MAX).contains(&n)) {
        let cause = format!("{}: lines keep their order with at most {IN_FLIGHT_MAX}", value.value);
        return Some(Problem::new(&*value.place, cause, format!("write a number from 1 to {IN_FLIGHT_MAX}")));
    }
    None
}

/// Why this is no address of a broker or an etcd member.
pub(super) fn check_address(address: &At<String>, needs_port: bool) -> Option<Problem> {
    let text = &address.value;
    let bare = text.split_once("://").map_or(text.as_str(), |(_, bare)| bare).trim_end_matches('/');
    let (host, number) = match bare.rsplit_once(':') {
        Some((host, number)) if !host.contains(':') || host.ends_with(']') => (host, Some(number)),
        _ => (bare, None),
    };
    let cause = match number {
        _ if text.is_empty() => "an empty address".to_string(),
        _ if text.contains(char::is_whitespace) => format!("{text:?} has a blank in it"),
        _ if host.is_empty() => format!("{text:?} names no host"),
        None if needs_port => format!("{text:?} names no port"),
        Some(number) if !number.parse().is_ok_and(|n: u16| n > 0) => format!("{number:?} is no port"),
        None | Some(_) => return None,
    };
    Some(Problem::new(&*address.place, cause, "write host:port, several separated by commas"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, value: &str) -> Option<String> {
        check_property(name, &At::new(value.into(), "P")).map(|problem| problem.to_string())
    }

    #[test]
    fn properties_that_break_a_promise_or_load_code_are_refused_by_name() {
        assert_eq!(
            refused("acks", "1").unwrap(),
            "P: not to be set: an acknowledged line must be safe: weir sets it to all; delete the line"
        );
        assert!(refused("plugin.library.paths", "x.so").unwrap().contains("code from outside"));
        assert!(refused("stats_cb", "0").unwrap().contains("pointer"));
        for name in ["linger.ms", "compression.type", "ssl.ca.location", "batch.size", "partitioner"] {
            assert_eq!(refused(name, "1"), None, "{name}");
        }
    }

    #[test]
    fn requests_under_way_are_bounded() {
        for name in ["max.in.flight", "max.in.flight.requests.per.connection"] {
            assert_eq!(refused(name, "5"), None);
            for bad in ["6", "0", "many"] {
                assert!(refused(name, bad).unwrap().contains("write a number from 1 to 5"), "{bad}");
            }
        }
    }

    #[test]
    fn secrets_are_known_by_name() {
        for name in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("ssl.key.location") && !is_secret("sasl.username"));
    }

    #[test]
    fn a_bad_address_says_what_is_wrong() {
        let cause = |text: &str| check_address(&At::new(text.into(), "P"), true).map(|problem| problem.cause);
        for good in ["kafka:9092", "127.0.0.1:2379", "[::1]:9092", "http://etcd:2379", "https://etcd:2379/"] {
            assert_eq!(cause(good), None, "{good}");
        }
        assert_eq!(cause("").unwrap(), "an empty address");
        assert_eq!(cause(":9092").unwrap(), "\":9092\" names no host");
        assert_eq!(cause("kafka").unwrap(), "\"kafka\" names no port");
        assert_eq!(cause("kafka:90920").unwrap(), "\"90920\" is no port");
        assert_eq!(cause("a b:1").unwrap(), "\"a b:1\" has a blank in it");
        assert_eq!(check_address(&At::new("kafka".into(), "P"), false), None);
    }
}
