//! The page of the admin address in a real browser: Chromium without a screen.
//!
//! Where there is none (Debian: `chromium`), the test says so and passes. With `WEIR_PAGE_DIR` the
//! screenshots are kept there: `make page`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use weir_tests::guests;
use weir_tests::mock::MockKafka;
use weir_tests::process::Process;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::unconnected;

/// In a name, a path and a cause it would run if any of them were taken as markup.
const EVIL: &str = "<img src=x onerror=document.title='taken'>'\"&\n\u{1b}";

/// Chromium with a profile of its own, on the page of `weir`.
struct Browser<'a> {
    binary: PathBuf,
    weir: &'a Weir,
}

impl Browser<'_> {
    /// Opens the page with the entry `app` open, gives it so long to look at the agent, and says what `args`
    /// ask for.
    fn open(&self, name: &str, milliseconds: u32, args: &[&str]) -> String {
        let profile = self.weir.file(&format!("profile-{name}"));
        let mut command = Command::new(&self.binary);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.arg(format!("--user-data-dir={}", profile.display()));
        command.arg(format!("--virtual-time-budget={milliseconds}"));
        command.args(args).arg(format!("http://{}/#app", self.weir.admin()));
        let (out, err) = (self.weir.file(&format!("{name}.out")), self.weir.file(&format!("{name}.err")));
        let mut process = Process::start_split("chromium", command, &out, &err);
        let status = eventually(SOON, "chromium to end", || process.ended(), Option::is_some);
        assert!(status.is_some_and(|status| status.success()), "{}", process.tail());
        std::fs::read_to_string(out).expect("what it printed")
    }

    fn dom(&self, name: &str, milliseconds: u32) -> String {
        self.open(name, milliseconds, &["--dump-dom"])
    }

    /// A screenshot; `scheme` 0 is dark, 1 is light.
    fn shoot(&self, file: &Path, scheme: u8) {
        let args = [
            format!("--screenshot={}", file.display()),
            "--window-size=1400,1000".into(),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        ];
        self.open(&format!("shot-{scheme}"), 9_000, &args.each_ref().map(String::as_str));
    }
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

#[test]
fn the_page_shows_the_agent_in_a_browser_and_takes_no_name_for_markup() {
    let Some(binary) = chromium() else {
        eprintln!("SKIPPED: chromium is not here; the page was not tried");
        return;
    };
    let kafka = MockKafka::new(1);
    let _topic = kafka.topic("page", 1);
    let mut weir = unconnected().kafka(&kafka.brokers());
    let wasm = weir.file("drop_debug.wasm");
    std::fs::write(&wasm, guests::bytes("drop_debug")).expect("write a module");
    let log = weir.log("app.log");
    weir.list(&json!([
        {"name": "app", "path": log, "topic": "page", "start_at": "beginning", "filter": wasm},
        {"name": "nowhere", "path": weir.log("no/*.log"), "topic": "page"},
        {"name": "evil", "path": weir.log("e.log"), "topic": EVIL},
        {"name": format!("named {}", EVIL.replace(char::is_control, "")), "path": log, "topic": "page"},
    ]));
    std::fs::write(&log, "INFO a\nDEBUG b\nINFO c\n".repeat(1_000)).expect("write a log");
    weir.start();
    weir.await_finished("app", 3_000, SOON);
    let browser = Browser { binary, weir: &weir };

    let dom = browser.dom("first", 7_000);
    for part in [
        "2 of 4 entries follow",
        ">app</button>",
        "state good\">following",
        "state busy\">waiting",
        "state bad\">refused",
        ">2,000</td>",
        "no file matches yet",
        "quarantine ",
        "class=\"spark rate\"",
        "<path d=\"M0.00 ",
        "Problems</h2>",
        ">dropped by it</dt>",
        ">33.3 %</dd>",
        ">batches</dt>",
        ">Lines a second, at most ",
    ] {
        assert!(dom.contains(part), "no {part:?} in\n{dom}");
    }
    assert!(dom.contains("&lt;img src=x onerror") && !dom.contains("<img"), "{dom}");
    assert!(!dom.contains("<title>taken"), "{dom}");

    if let Some(dir) = std::env::var_os("WEIR_PAGE_DIR").map(PathBuf::from) {
        std::fs::create_dir_all(&dir).expect("a directory for screenshots");
        for (name, scheme) in [("dark.png", 0), ("light.png", 1)] {
            browser.shoot(&dir.join(name), scheme);
        }
    }
}
