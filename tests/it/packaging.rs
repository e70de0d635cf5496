//! What a host gets: the Debian package, the unit, the manifests and the example lists are whole and valid.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use weir_tests::workspace;

use crate::unconnected;

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

#[test]
fn the_debian_package_has_what_the_docs_say_and_its_agent_runs() {
    let weir = unconnected();
    let out = weir.file("dist");
    let mut make = Command::new(workspace().join("packaging/deb.sh"));
    make.arg(env!("CARGO_BIN_EXE_weir")).arg(&out).env("DEB_COMPRESSION", "none");
    let printed = run(&mut make);
    let deb = Path::new(printed.trim());
    assert_eq!(deb.parent(), Some(out.as_path()), "{printed}");
    let root = weir.file("root");
    run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&root));
    for file in [
        "usr/bin/weir",
        "etc/weir/weir.toml",
        "usr/lib/systemd/system/weir.service",
        "usr/share/man/man1/weir.1.gz",
        "usr/share/man/man1/weir-run.1.gz",
        "usr/share/bash-completion/completions/weir",
        "usr/share/doc/weir/examples/nginx.json",
    ] {
        assert!(root.join(file).is_file(), "{file} is in {}", deb.display());
    }
    let control = run(Command::new("dpkg-deb").arg("--field").arg(deb));
    assert!(control.contains("Package: weir\n") && control.contains("libssl3"), "{control}");
    let version = run(Command::new(root.join("usr/bin/weir")).arg("--version"));
    assert!(
        control.contains(&format!("Version: {}", version.trim().trim_start_matches("weir "))),
        "{version}"
    );
    // The settings that it installs are those of a host on which all stands at its default.
    let settings = root.join("etc/weir/weir.toml");
    let state = "\n[state]\ndir = \"/var/lib/weir\" ";
    assert!(read(&settings).contains(state), "commands by hand find the state of the service");
    let said = weir.bare(&["check", "--offline", "--config", settings.to_str().expect("text")]);
    assert!(said.stdout.contains("ok       settings"), "{}{}", said.stdout, said.stderr);
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(workspace().join("packaging/debian").join(script)));
    }
}

#[test]
fn the_unit_starts_the_installed_agent_and_waits_longer_than_it_drains() {
    let unit = read(&workspace().join("conf/weir.service"));
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("{key} is set")).to_owned()
    };
    assert_eq!(value("Type"), "notify");
    assert_eq!(value("ExecStart"), "/usr/bin/weir run --config /etc/weir/weir.toml");
    assert_eq!(value("CapabilityBoundingSet"), "CAP_DAC_READ_SEARCH");
    let seconds = |key| value(key).trim_end_matches('s').parse::<u64>().expect("seconds");
    // `agent.drain` is 10 s by default.
    assert!(seconds("TimeoutStopSec") > 10 && seconds("WatchdogSec") > 10);
}

#[test]
fn the_example_lists_are_valid_and_so_is_the_one_for_kubernetes() {
    let weir = unconnected().kafka("127.0.0.1:9");
    let settings = weir.file("weir.toml");
    let check = |name: &str, list: &str| {
        std::fs::write(weir.file("collect.json"), list).expect("write a list");
        let text = format!(
            "[kafka]\nbrokers = \"127.0.0.1:9\"\n[state]\ndir = {:?}\n[collect]\nfile = {:?}\n",
            weir.file("state"),
            weir.file("collect.json")
        );
        std::fs::write(&settings, text).expect("write settings");
        let said = weir.bare(&["check", "--offline", "--config", settings.to_str().expect("text")]);
        // A tag needs a store; all else is well.
        let problems: Vec<_> = said.stdout.lines().filter(|line| line.starts_with("problem")).collect();
        assert!(problems.iter().all(|problem| problem.contains("is a tag")), "{name}: {}", said.stdout);
        let entries: Value = serde_json::from_str(list).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(entries.as_array().is_some_and(|entries| !entries.is_empty()), "{name}");
    };
    let examples = workspace().join("conf/examples");
    let lists = std::fs::read_dir(examples).expect("the examples").flatten().map(|file| file.path());
    let lists: Vec<_> = lists.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    assert!(lists.len() >= 4, "{lists:?}");
    for path in lists {
        check(&path.display().to_string(), &read(&path));
    }
    let manifest = read(&workspace().join("conf/kubernetes.yaml"));
    let block = |key: &str| {
        let (_, behind) = manifest.split_once(&format!("  {key}: |\n")).expect("the key");
        behind.lines().map_while(|line| line.strip_prefix("    ")).collect::<Vec<_>>().join("\n")
    };
    check("kubernetes.yaml", &block("collect.json"));
    let settings = block("weir.toml");
    assert!(settings.contains("[policy]\nroots = [\"/var/log\"]"), "{settings}");
    std::fs::write(weir.file("weir.toml"), settings).expect("write settings");
    let said = weir.bare(&["check", "--offline", "--config", weir.file("weir.toml").to_str().expect("text")]);
    assert!(said.stdout.contains("ok       settings"), "{}{}", said.stdout, said.stderr);
}
