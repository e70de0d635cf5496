//! Asks Kafka once whether it is there and which topics it has, for `weir check`.
//!
//! In: the settings. Out: the topics, or which property or broker is at fault. Nothing is produced.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};

use crate::config::KafkaSettings;

/// A topic that Kafka has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: usize,
}

/// Why Kafka cannot be used as it is set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// librdkafka does not take a property.
    #[error("property {name}: {cause}")]
    Property {
        /// Which.
        name: String,
        /// Its words.
        cause: String,
    },
    /// The properties do not go together.
    #[error("librdkafka cannot be set up: {0}")]
    Setup(String),
    /// No broker answered in time.
    #[error("no broker of {brokers} answers ({code})")]
    Unreachable {
        /// Where it was asked.
        brokers: String,
        /// librdkafka's name of the error.
        code: String,
    },
}

/// Whether librdkafka takes the properties. Touches no network.
pub fn check_properties(kafka: &KafkaSettings) -> Result<(), ProbeError> {
    config(kafka).create_native_config().map(|_| ()).map_err(|error| refused(&error))
}

/// All topics. Waits for `timeout` at most.
pub fn probe(kafka: &KafkaSettings, timeout: Duration) -> Result<Vec<KnownTopic>, ProbeError> {
    let producer: BaseProducer<DefaultProducerContext> =
        config(kafka).create().map_err(|error| refused(&error))?;
    let metadata = producer.client().fetch_metadata(None, timeout).map_err(|error| {
        let code = error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| format!("{code:?}"));
        ProbeError::Unreachable { brokers: kafka.brokers.clone(), code }
    })?;
    let known = |topic: &rdkafka::metadata::MetadataTopic| KnownTopic {
        name: topic.name().into(),
        partitions: topic.partitions().len(),
    };
    Ok(metadata.topics().iter().filter(|topic| topic.error().is_none()).map(known).collect())
}

fn config(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    if kafka.brokers == "mock" {
        config.set("test.mock.num.brokers", "1");
    } else {
        config.set("bootstrap.servers", &kafka.brokers);
    }
    config
}

fn refused(error: &KafkaError) -> ProbeError {
    match error {
        KafkaError::ClientConfig(_, cause, name, _) => {
            ProbeError::Property { name: name.clone(), cause: cause.clone() }
        }
        KafkaError::ClientCreation(cause) => ProbeError::Setup(cause.clone()),
        other => ProbeError::Setup(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kafka(brokers: &str, property: Option<(&str, &str)>) -> KafkaSettings {
        let properties = property.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        KafkaSettings { brokers: brokers.into(), properties }
    }

    #[test]
    fn a_broker_that_is_there_answers() {
        assert_eq!(probe(&kafka("mock", None), Duration::from_secs(10)), Ok(vec![]));
    }

    #[test]
    fn a_broker_that_is_not_there_is_named() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let brokers = format!("127.0.0.1:{port}");
        let error = probe(&kafka(&brokers, None), Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("no broker of {brokers} answers")), "{error}");
    }

    #[test]
    fn a_property_that_librdkafka_does_not_take_is_named() {
        let error = check_properties(&kafka("mock", Some(("batch.sise", "1")))).unwrap_err();
        assert!(matches!(error, ProbeError::Property { name, .. } if name == "batch.sise"));
        let error = check_properties(&kafka("mock", Some(("compression.type", "lzma")))).unwrap_err();
        assert!(error.to_string().contains("compression.type"), "{error}");
    }
}
