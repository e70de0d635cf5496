//! What `docs` and `conf` show is what the sources are and what the commands do.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use weir_tests::kafka::Kafka;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;
use weir_tests::{guests, workspace};

use crate::{LONG, put_list, steered, unconnected};

fn page(name: &str) -> String {
    let path = workspace().join("docs/filters").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// What stands in the first block of `text` that is fenced as `fence` says.
#[track_caller]
fn block<'a>(text: &'a str, fence: &str) -> &'a str {
    let (_, behind) =
        text.split_once(&format!("```{fence}\n")).unwrap_or_else(|| panic!("no {fence} in {text}"));
    behind.split_once("```\n").expect("the end of a block").0
}

/// A filter of the cookbook.
struct Recipe<'a> {
    name: &'a str,
    config: Option<&'a str>,
    source: &'a str,
    /// What `weir module test` prints.
    shown: &'a str,
}

impl Recipe<'_> {
    /// The lines that it was shown with.
    fn lines(&self) -> Vec<&str> {
        let lines = self.shown.lines().take_while(|line| !line.is_empty());
        let before = lines.filter(|line| !line.starts_with('+') && !line.starts_with("!  "));
        before.map(|line| &line[2..]).collect()
    }
}

fn recipes(page: &str) -> Vec<Recipe<'_>> {
    let sections = page.split("\n## ").skip(1);
    let recipe = |section| {
        let head = str::split_once(section, "[`").expect("a link to the source").1;
        let (name, rest) = head.split_once(".rs`]").expect("a link to the source");
        let config = rest.split_once("\"config\": ").and_then(|(before, rest)| {
            (!before.contains('\n')).then(|| rest.split_once("`:\n").expect("a config in a line").0)
        });
        Recipe { name, config, source: block(section, "rust"), shown: block(section, "text") }
    };
    sections.map(recipe).collect()
}

#[test]
fn the_cookbook_shows_every_recipe_as_it_is() {
    let page = page("cookbook.md");
    let recipes = recipes(&page);
    let dir = workspace().join("examples/cookbook/recipes");
    for Recipe { name, source, .. } in &recipes {
        let file = std::fs::read_to_string(dir.join(name).with_extension("rs")).expect("a recipe");
        let (code, _) = file.split_once("\n#[cfg(test)]\n").expect("a recipe has tests");
        assert_eq!(source.trim_end(), code.trim_end(), "{name}: the page and the source differ");
    }
    let shown: BTreeSet<_> = recipes.iter().map(|recipe| format!("{}.rs", recipe.name)).collect();
    let files = std::fs::read_dir(dir).expect("the recipes").flatten();
    let there: BTreeSet<_> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
    assert_eq!(shown, there);
    assert_eq!(shown.len(), 12);
}

#[test]
fn the_recipes_do_in_webassembly_what_the_cookbook_shows() {
    let page = page("cookbook.md");
    let weir = unconnected();
    for recipe in recipes(&page) {
        write(&weir.file("sample.log"), &(recipe.lines().join("\n") + "\n"));
        write(&weir.file("sample.expected"), recipe.shown);
        let wasm = guests::recipe(recipe.name);
        let mut args = vec!["module", "test", wasm.to_str().expect("text"), "sample.log"];
        args.extend(["--expect", "sample.expected"]);
        args.extend(recipe.config.into_iter().flat_map(|config| ["--with-config", config]));
        let said = weir.bare(&args);
        assert_eq!(said.code(), 0, "{}: {}{}", recipe.name, said.stdout, said.stderr);
    }
}

#[track_caller]
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

/// What the tutorial has one do.
enum Step<'a> {
    /// Write this text to a file.
    File(&'a str, &'a str),
    /// Run a command; these lines are printed.
    Command(&'a str, Vec<&'a str>),
}

fn steps(page: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    // Text and blocks take turns.
    for block in page.split("```").skip(1).step_by(2) {
        let (info, text) = block.split_once('\n').expect("a block of lines");
        match info.split_once(' ') {
            Some((_, file)) => steps.push(Step::File(file, text)),
            None => steps.extend(text.split_terminator("$ ").skip(1).map(|step| {
                let mut lines = step.lines().filter(|line| !line.is_empty());
                Step::Command(lines.next().expect("a command"), lines.collect())
            })),
        }
    }
    steps
}

#[test]
fn the_tutorial_goes_from_nothing_to_a_swap_and_back_as_it_says() {
    let page = page("tutorial.md");
    let topic = Kafka::shared().topic("shop", 1);
    let mut weir = steered("/tutorial/collect");
    put_list("/tutorial/collect", &json!([]));
    weir.start();
    let (mut dir, mut swaps) = (weir.file(""), 0);
    for step in steps(&page) {
        let (command, printed) = match step {
            Step::File(file, text) => {
                write(&dir.join(file), text);
                continue;
            }
            Step::Command(command, printed) => (command, printed),
        };
        if let Some(to) = command.strip_prefix("cd ") {
            dir.push(to);
            continue;
        }
        // Where things are on this host.
        let here = command
            .replace("/var/log/", &format!("{}/", weir.log("").to_string_lossy().trim_end_matches('/')))
            .replace("127.0.0.1:9092", &Kafka::shared().brokers())
            .replace("\"topic\": \"shop\"", &format!("\"topic\": {:?}", topic.name()))
            .replace("-t shop", &format!("-t {}", topic.name()));
        let said = shell(&weir, &dir, &here);
        for line in printed {
            assert!(said.lines().any(|found| found == line), "{command}\nprints no {line:?}:\n{said}");
        }
        let swap = ["weir list add", "weir module push", "weir module rollback"];
        if swap.iter().any(|swap| command.starts_with(swap)) {
            swaps += 1;
            await_the_tag(&weir);
        }
    }
    assert_eq!((swaps, topic.count_all()), (4, 3));
    assert_eq!(weir.lines("shop").delivered, 3);
}

/// Runs a command line as in a terminal of the agent's host; what it prints.
#[track_caller]
fn shell(weir: &Weir, dir: &Path, line: &str) -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_weir")).parent().expect("a directory");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a path"));
    let mut command = std::process::Command::new("bash");
    command.args(["-c", line]).current_dir(dir).env("PATH", path);
    command.env("WEIR_CONFIG", weir.file("weir.toml")).env("CARGO_NET_OFFLINE", "true");
    command.env("CARGO_TARGET_DIR", workspace().join("target/new"));
    let output = command.output().expect("run bash");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{line}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Waits until the entry, where there is one, has the module that the tag points at.
fn await_the_tag(weir: &Weir) {
    let listed = weir.weir(&["list", "get"]).stdout;
    if !listed.contains("shop") {
        return;
    }
    let modules: Value = serde_json::from_str(&weir.weir(&["module", "ls", "--json"]).ok()).expect("JSON");
    let digest = modules["tags"][0]["digest"].clone();
    assert!(digest.is_string(), "{modules}");
    let applied =
        |entry: &Value| entry["filter"]["digest"] == digest && entry["filter"]["state"] == "applied";
    eventually(LONG, "the module of the tag", || weir.entry("shop"), applied);
}

/// The series of `/metrics` by name, as docs/metrics.md has them; a test of the agent compares that with the code.
fn series() -> BTreeSet<String> {
    let page = std::fs::read_to_string(workspace().join("docs/metrics.md")).expect("the metrics");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let series = rows.flat_map(|(name, rest)| {
        let suffixes = if rest.starts_with("histogram") { &["_bucket", "_sum", "_count"][..] } else { &[""] };
        suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
    });
    series.collect()
}

/// Words of `text` that begin as a metric of weir does.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("weir_")).map(String::from).collect()
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_there_are() {
    let series = series();
    assert!(series.contains("weir_filter_seconds_bucket") && series.len() > 20, "{series:?}");
    let read =
        |name: &str| std::fs::read_to_string(workspace().join("conf").join(name)).expect("a file of conf");
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let exprs: Vec<_> = targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect();
    assert!(exprs.len() > 20 && exprs.iter().all(|expr| !named(expr).is_empty()), "{exprs:?}");
    let places: BTreeSet<_> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
    assert_eq!(places.len(), panels.len(), "no panel lies on another");
    let variables = dashboard["templating"].to_string();
    let alerts = read("alerts.yml");
    for (file, text) in [("dashboard.json", exprs.concat() + &variables), ("alerts.yml", alerts.clone())] {
        let strangers: Vec<_> = named(&text).into_iter().filter(|name| !series.contains(name)).collect();
        assert!(strangers.is_empty(), "conf/{file} names metrics that there are not: {strangers:?}");
    }
    // Each alert says what to do.
    assert_eq!(alerts.matches("- alert: ").count(), alerts.matches("          action: ").count());
    promtool(&["check", "rules", "conf/alerts.yml"]);
}

/// Asks Prometheus itself, where it is installed (Debian: `prometheus`).
fn promtool(args: &[&str]) {
    let mut command = std::process::Command::new("promtool");
    match command.args(args).current_dir(workspace()).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("SKIPPED: promtool is not here; conf/alerts.yml was not checked by it"),
    }
}
