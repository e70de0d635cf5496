//! The agent as a service of systemd: what it tells it, and what it is told.

use std::fs::FileTimes;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, SystemTime};

use serde_json::json;
use weir_tests::mock::MockKafka;
use weir_tests::wait::SOON;
use weir_tests::wait::eventually;

use crate::unconnected;

#[test]
fn a_service_manager_is_told_when_it_is_ready_alive_and_stopping() {
    let mock = MockKafka::new(1);
    let weir = unconnected().kafka(&mock.brokers());
    let path = weir.file("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a deadline");
    let mut weir = weir.env("NOTIFY_SOCKET", path.to_str().expect("text")).env("WATCHDOG_USEC", "200000");
    weir.list(&json!([{"name": "app", "path": weir.log("app.log"), "topic": "app"}]));
    weir.launch();
    let mut heard = Vec::new();
    let mut until = |word: &str| {
        while !heard.iter().any(|line: &String| line.starts_with(word)) {
            let mut buffer = [0; 1024];
            let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{word}: {e}; heard {heard:?}"));
            heard.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        std::mem::take(&mut heard)
    };
    until("READY=1");
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    let file = weir.list_file();
    weir.put_list(&json!([{"name": "app", "path": weir.log("app.log"), "topic": "app"}, {"name": "bad"}]));
    let wanted = format!("STATUS=file {} at revision 2: 1 entries, 1 refused", file.display());
    until(&wanted);
    assert!(weir.stop().success());
    until("STOPPING=1");
}

#[test]
fn sighup_reads_a_list_again_whose_time_stamp_says_that_it_is_the_same() {
    let mock = MockKafka::new(1);
    let mut weir = unconnected().kafka(&mock.brokers());
    let (first, second) = (weir.log("1.log"), weir.log("2.log"));
    weir.list(&json!([{"name": "app", "path": first, "topic": "app"}]));
    // Long ago, so that the agent takes the time stamp at its word.
    let long_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(3600));
    let write = |path: &std::path::Path| {
        let file = std::fs::File::options().write(true).open(path).expect("the list");
        file.set_times(long_ago).expect("set its time");
    };
    write(&weir.list_file());
    weir.start();
    let path = || weir.entry("app")["path"].clone();
    eventually(SOON, "the list", path, |path| *path == json!(first));
    let text = std::fs::read_to_string(weir.list_file()).expect("the list");
    let in_place = std::fs::File::options().write(true).open(weir.list_file()).expect("the list");
    std::os::unix::fs::FileExt::write_all_at(&in_place, text.replace("1.log", "2.log").as_bytes(), 0)
        .expect("write the list");
    in_place.set_times(long_ago).expect("set its time");
    weir.hang_up();
    eventually(SOON, "the list", || weir.entry("app")["path"].clone(), |path| *path == json!(second));
    assert!(weir.runs());
    assert!(weir.stop().success());
}
