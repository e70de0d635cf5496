//! What the agent touches once the kernel holds it: a run under strace, and what the settings say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;
use weir_tests::guests;
use weir_tests::kafka::Kafka;

use crate::host;

/// Where reading is expected, and by what.
const READ: [(&str, &str); 12] = [
    ("/etc/", "names, certificates, settings of libraries"),
    ("/usr/lib/", "libraries, for the compiler of modules"),
    ("/lib/", "libraries, for the compiler of modules"),
    ("/lib64/", "libraries, for the compiler of modules"),
    ("/usr/local/lib/", "libraries, for the compiler of modules"),
    ("/usr/share/zoneinfo", "the time zone"),
    ("/proc/", "itself, and limits of the kernel"),
    ("/sys/", "how many cores there are"),
    ("/dev/null", "output of the compiler"),
    ("/dev/urandom", "randomness"),
    ("/run/systemd/resolve", "names"),
    ("/usr/share/", "names, locale"),
];

/// One call on a file, as strace has it.
#[derive(Debug)]
struct Call<'a> {
    path: &'a str,
    writes: bool,
    failed: Option<&'a str>,
}

/// What each thread did.
fn traces(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).expect("the directory of the traces").flatten();
    let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("trace."));
    files.map(|file| std::fs::read_to_string(file.path()).expect("a trace")).collect()
}

/// `openat(AT_FDCWD, "/x", O_RDONLY|O_CLOEXEC) = 3`
fn call(line: &str) -> Option<Call<'_>> {
    let (name, rest) = line.split_once('(')?;
    let path = rest.split('"').nth(1)?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let flags = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"];
    let writes =
        flags.iter().any(|flag| arguments.contains(flag)) || !name.starts_with("open") && name != "execve";
    let failed = result.strip_prefix("-1 ").and_then(|error| error.split(' ').next());
    Some(Call { path, writes, failed })
}

#[test]
fn a_run_under_strace_touches_its_roots_its_state_and_the_system_alone() {
    let topic = Kafka::shared().topic("strace", 1);
    let mut weir = host();
    let (trace, secret) = (weir.file("trace"), weir.file("secret"));
    std::fs::write(&secret, "x\n").expect("write a file");
    let wasm = weir.file("drop_debug.wasm");
    std::fs::write(&wasm, guests::bytes("drop_debug")).expect("write a module");
    std::fs::write(weir.log("app.log"), "DEBUG one\nINFO two\n").expect("write a log");
    std::os::unix::fs::symlink(&secret, weir.log("way-out.log")).expect("a link");
    weir.list(&json!([{"name": "app", "path": weir.log("*.log"), "topic": topic.name(),
        "start_at": "beginning", "filter": wasm}]));
    let calls = "trace=open,openat,openat2,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,\
                 symlink,symlinkat,truncate,chmod,fchmodat,execve,landlock_restrict_self";
    let out = trace.to_str().expect("text").to_owned();
    let weir = weir.wrapped(&["strace", "-ff", "-qq", "-s", "4096", "-e", calls, "-o", &out]);
    weir.weir(&["run", "--once"]).ok();
    assert_eq!(topic.all().len(), 1, "the filter was compiled and ran");

    let traces = traces(&weir.file(""));
    let held = traces.iter().find_map(|text| Some(text.split_once("landlock_restrict_self(")?.1));
    let held = held.and_then(|behind| behind.split_once(") = 0\n")).map(|(_, behind)| behind);
    // A kernel without Landlock: what is touched is the same, and nothing enforces it.
    let begun = |text: &&String| !text.contains("landlock_restrict_self(");
    let after = held.into_iter().chain(traces.iter().filter(begun).map(String::as_str));
    let after: Vec<_> = after.flat_map(str::lines).collect();
    let held = held.is_some();
    let place = |path: &str| weir.file(path).to_string_lossy().into_owned();
    let (state, log, list) = (place("state"), place("log"), place("collect.json"));
    let exe = weir.exe().to_string_lossy().into_owned();
    let (mut seen, mut strange) = (BTreeMap::<&str, BTreeSet<&str>>::new(), Vec::new());
    for call in after.iter().filter_map(|line| call(line)).filter(|call| call.failed.is_none()) {
        let below = |dir: &str| Path::new(call.path).starts_with(dir);
        let why = match () {
            () if below(&state) => Some("its state"),
            () if call.writes => (call.path == "/dev/null").then_some("output of the compiler"),
            () if below(&log) => Some("a root"),
            () if call.path == list || call.path == wasm.to_string_lossy() => Some("list and modules"),
            () if call.path == "/proc/self/exe" || call.path == exe => {
                Some("itself, as the compiler of modules")
            }
            // A look at names alone, which a glob needs.
            () if Path::new(call.path).is_dir() => Some("names in a directory"),
            () => READ.iter().find(|(dir, _)| call.path.starts_with(dir)).map(|(_, why)| *why),
        };
        match why {
            Some(why) => drop(seen.entry(why).or_default().insert(call.path)),
            None if held => strange.push(format!("{call:?}")),
            // Before it is held, it reads its settings and is loaded.
            None => {}
        }
    }
    assert!(strange.is_empty(), "{strange:#?}");
    let opened = |line: &&&str| line.contains("/secret\"") && line.starts_with("open");
    assert_eq!(after.iter().find(opened), None, "what lies outside is not even tried");
    for why in ["its state", "a root", "list and modules", "itself, as the compiler of modules"] {
        assert!(seen.contains_key(why), "{why} in {seen:#?}");
    }
    println!("held by the kernel: {held}");
    for (why, paths) in seen {
        println!("{why}: {} paths, such as {:?}", paths.len(), paths.first());
    }
}

#[test]
fn the_kernels_hold_can_be_switched_off_and_check_says_which_it_is() {
    let mut weir = host();
    weir.list(&json!([]));
    assert!(weir.weir(&["check"]).stdout.contains("note     the kernel "), "{:?}", weir.weir(&["check"]));
    weir.start();
    // It cannot be undone from inside; this is what remains to be seen of it from outside.
    let no_new_privileges = |weir: &weir_tests::weir::Weir| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", weir.pid())).expect("a status");
        status.contains("NoNewPrivs:\t1")
    };
    let held = weir.stderr().contains("confined by the kernel");
    assert_eq!(no_new_privileges(&weir), held, "{}", weir.stderr());
    assert!(held || weir.stderr().contains("the kernel does not confine the agent"));
    assert!(weir.stop().success());
    let mut weir = weir.setting("policy", "confine = false");
    assert!(weir.weir(&["check"]).stdout.contains("confine = false under [policy]"));
    weir.start();
    assert!(!no_new_privileges(&weir));
    assert!(weir.stop().success());
}

/// What an older kernel answers, and what is said of it.
const OLDER: [(&str, &str); 3] = [
    ("error=ENOSYS", "this kernel has no Landlock"),
    ("error=EOPNOTSUPP", "Landlock is not switched on in this kernel"),
    // The first version; it is asked for once, and then used.
    ("retval=1:when=1", "confined by the kernel to the roots of its policy and its state, as far as it can"),
];

#[test]
fn a_kernel_without_landlock_or_with_less_of_it_costs_a_line_in_the_log() {
    for (answer, said) in OLDER {
        let topic = Kafka::shared().topic("older", 1);
        let mut weir = host();
        std::fs::write(weir.log("app.log"), "one\n").expect("write a log");
        weir.list(&json!([{"path": weir.log("app.log"), "topic": topic.name(), "start_at": "beginning"}]));
        let out = weir.file("trace").to_string_lossy().into_owned();
        let inject = format!("inject=landlock_create_ruleset:{answer}");
        let trace = "trace=landlock_create_ruleset";
        let weir = weir.wrapped(&["strace", "-f", "-qq", "-e", trace, "-e", &inject, "-o", &out]);
        let ran = weir.weir(&["run", "--once"]);
        assert!(ran.stderr.matches(said).count() == 1, "{answer}: {ran:?}");
        assert_eq!((ran.code(), topic.all().len()), (0, 1), "{answer}");
    }
}
