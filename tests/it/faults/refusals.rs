//! Lines that a real broker does not want.

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;

use super::{Outcome, PATIENCE, Plan};
use crate::host;

/// The largest batch that the topic takes. Bytes.
const TAKEN: u64 = 200_000;
/// A line that is larger, however well it is compressed, and not so large that it is split. Bytes.
const REFUSED: usize = 250_000;

#[test]
fn lines_that_the_broker_refuses_are_set_aside_and_all_others_arrive() {
    let plan = Plan::of("lines refused by the broker", 3, 100);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic_with("refused", 1, &[("max.message.bytes", &TAKEN.to_string())]);
    // Batches of other lines stay below what the topic takes.
    let mut weir = host().setting("kafka.properties", "\"batch.size\" = \"100000\"");
    weir.list(&json!([{"name": "app", "path": weir.log("app.log"), "topic": topic.name()}]));
    weir.start();
    weir.await_state("app", "waiting");
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    for _ in 0..plan.rounds {
        file.write(dice.within(1..3_000));
        let noise: Vec<u8> = (0..REFUSED).map(|_| b' ' + dice.below(94) as u8).collect();
        file.write_raw(&noise);
        file.write_raw(b"\n");
    }
    file.write(1_000);
    let lines = weir.await_finished("app", file.written() + plan.rounds, PATIENCE);
    assert_eq!((lines.delivered, lines.quarantined), (file.written(), plan.rounds), "{lines:?}");
    assert!(weir.stderr().contains("MSG_SIZE_TOO_LARGE"), "it says why");
    assert!(weir.stop().success(), "{}", weir.stderr());
    let verdict = topic.verdict(&[file.expected()], PATIENCE);
    let facts = json!({"set_aside": lines.quarantined});
    Outcome::of(plan, verdict, Some(0), facts).report();
}
