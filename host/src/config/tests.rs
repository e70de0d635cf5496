//! The whole room: text in, settings or problems out.

use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::model::Digest;

/// A directory with a settings file, on a host that is always the same.
struct Desk {
    dir: tempfile::TempDir,
    host: Host,
    instead: Instead,
}

impl Desk {
    fn new() -> Self {
        let host = Host {
            name: "web1".into(),
            ip: "10.0.0.7".into(),
            state_dir: Some("/home/ann/.local/state/weir".into()),
            ..Host::default()
        };
        Self { dir: tempfile::tempdir().unwrap(), host, instead: Instead::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn load(&self, name: &str, text: impl AsRef<[u8]>) -> Result<Settings, ConfigError> {
        let file = self.write(name, text);
        parse_on(&self.host, &self.instead, &read_text(&file).map_err(one)?, &file)
    }

    fn toml(&self, text: &str) -> Settings {
        self.load("weir.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn ini(&self, text: &str) -> Settings {
        self.load("config.ini", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// All problems, one a line, without the directory.
    fn problems(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let error = self.load(name, text).expect_err("these settings are bad");
        let lines: Vec<_> = error.problems.iter().map(Problem::to_string).collect();
        lines.join("\n").replace(&format!("{}/", self.dir.path().display()), "")
    }

    fn notes(&self, settings: &Settings) -> String {
        settings.notes.join("\n").replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn etcd(settings: &Settings) -> &EtcdSettings {
    match &settings.list {
        ListSource::Etcd(etcd) => etcd,
        other => panic!("{other:?}"),
    }
}

const SMALLEST: &str = "[kafka]\nbrokers = \"k:9092\"\n[etcd]\n";

#[test]
fn the_smallest_file_takes_every_default() {
    let desk = Desk::new();
    let settings = desk.toml(SMALLEST);
    assert_eq!(settings.agent.name, "web1");
    assert_eq!(settings.agent.ip, "10.0.0.7");
    assert_eq!(settings.agent.drain, Duration::from_secs(10));
    assert_eq!(settings.kafka.brokers, "k:9092");
    assert_eq!(etcd(&settings).endpoints, ["127.0.0.1:2379"]);
    assert_eq!(etcd(&settings).collect_keys, ["/weir/web1/collect"]);
    assert_eq!(etcd(&settings).modules_prefix, "/weir/modules/");
    assert_eq!(etcd(&settings).agents_prefix, "/weir/agents/");
    assert_eq!(settings.state_dir, Path::new("/home/ann/.local/state/weir"));
    assert_eq!(settings.admin.listen.to_string(), "127.0.0.1:9477");
    assert_eq!(settings.admin.socket, settings.state_dir.join("weir.sock"));
    assert_eq!(settings.limits.memory, 64 << 20);
    assert_eq!(settings.limits.held_files_bytes, 1 << 30);
    assert_eq!(settings.policy.rules().roots.as_deref(), Some(&[PathBuf::from("/var/log")][..]));
    assert_eq!(settings.policy.rules().max_entries, 1000);
    assert_eq!(settings.notes, Vec::<String>::new());
}

#[test]
fn every_key_is_read() {
    let desk = Desk::new();
    for name in ["kafka.password", "etcd.password", "ca.pem", "c.pem", "c.key"] {
        desk.write(name, "secret\n");
    }
    let digest = Digest::of(b"module");
    let settings = desk.toml(&format!(
        r#"
        [agent]
        name = "a"
        ip = "::1"
        labels = {{ role = "web", zone = "z1" }}
        drain = "1m 30s"
        [kafka]
        brokers = ["a:1", "b:2"]
        sasl_password_file = "kafka.password"
        [kafka.properties]
        "compression.type" = "lz4"
        linger.ms = 5
        socket.keepalive.enable = true
        [etcd]
        endpoints = "a:1, https://b:2"
        collect_key = ["/x/{{label.role}}", "/y/{{label.zone}}/%s"]
        modules_prefix = "/m"
        agents_prefix = "/a/"
        on_delete = "stop"
        username = "u"
        password_file = "etcd.password"
        ca_file = "ca.pem"
        cert_file = "c.pem"
        key_file = "c.key"
        [state]
        dir = "state"
        [admin]
        listen = "[::1]:1"
        socket = "/run/x.sock"
        [limits]
        memory = 2097152
        filter_memory = "8 MiB"
        quarantine = "1MB"
        held_files = {{ age = "2h", bytes = "2GiB" }}
        [policy]
        roots = ["/srv", "logs"]
        deny = ["**/*.key"]
        topics = ["app-*"]
        modules = ["{digest}"]
        max_entries = 7
        max_files = 8
        read_bytes_per_second = "2MiB"
        keys = ["{KEY}"]
        confine = false
        "#
    ));
    assert_eq!((settings.agent.name.as_str(), settings.agent.ip.as_str()), ("a", "::1"));
    assert_eq!(settings.agent.drain, Duration::from_secs(90));
    assert_eq!(settings.kafka.brokers, "a:1,b:2");
    let properties: Vec<_> =
        settings.kafka.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        properties,
        [
            ("compression.type", "lz4"),
            ("linger.ms", "5"),
            ("sasl.password", "secret"),
            ("socket.keepalive.enable", "true")
        ]
    );
    let wanted = EtcdSettings {
        endpoints: vec!["a:1".into(), "https://b:2".into()],
        collect_keys: vec!["/x/web".into(), "/y/z1/::1".into()],
        collect_patterns: ["/x/{label.role}", "/y/{label.zone}/%s"].map(key::Pattern::of).into(),
        modules_prefix: "/m/".into(),
        agents_prefix: "/a/".into(),
        on_delete: OnDelete::Stop,
        username: Some("u".into()),
        password: Some(Secret("secret".into())),
        ca_file: Some(desk.path("ca.pem")),
        cert_file: Some(desk.path("c.pem")),
        key_file: Some(desk.path("c.key")),
    };
    assert_eq!(*etcd(&settings), wanted);
    assert_eq!(settings.state_dir, desk.path("state"));
    assert_eq!(
        settings.admin,
        AdminSettings { listen: "[::1]:1".parse().unwrap(), socket: "/run/x.sock".into() }
    );
    let limits = Limits {
        memory: 2 << 20,
        filter_memory: 8 << 20,
        quarantine: 1_000_000,
        held_files_age: Duration::from_secs(7200),
        held_files_bytes: 2 << 30,
    };
    assert_eq!(settings.limits, limits);
    let rules = settings.policy.rules();
    assert_eq!(rules.roots.as_deref(), Some(&["/srv".into(), desk.path("logs")][..]));
    assert_eq!(
        (rules.deny.as_slice(), rules.topics.as_deref()),
        (&["**/*.key".into()][..], Some(&["app-*".into()][..]))
    );
    assert!(settings.policy.allows_module(&digest) && !settings.policy.allows_module(&Digest::of(b"other")));
    assert_eq!((rules.max_entries, rules.max_files), (7, 8));
    assert_eq!((rules.read_bytes_per_second, rules.confine), (Some(2 << 20), false));
    assert_eq!((rules.keys.as_slice(), settings.policy.keys().are_set()), (&[KEY.into()][..], true));
}

/// Of the form of a key of minisign.
const KEY: &str = "RWQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[test]
fn all_problems_are_said_at_once_with_line_and_column() {
    let desk = Desk::new();
    let text = r#"[agent]
drain = 10
ip = "localhost"
[kafka]
broker = "k:9092"
[kafka.properties]
acks = 1
[etcd]
endpoints = ["etcd"]
collect_key = "/weir/%_/collect"
on_delete = "forget"
[limits]
memory = "64 megs"
held_files = { age = "soon" }
[polcy]
roots = []
"#;
    assert_eq!(
        desk.problems("weir.toml", text),
        r#"weir.toml:2:9: agent.drain: the number 10, where text in quotes belongs; write drain = "10s", "5m" or "1h 30m"
weir.toml:5:1: kafka.broker: unknown key; did you mean "brokers"?
weir.toml:11:13: etcd.on_delete: "forget": unknown; write on_delete = "keep" or "stop"
weir.toml:13:10: limits.memory: "64 megs": "megs" is not a unit of size; write memory = "64MiB"
weir.toml:14:22: limits.held_files.age: "soon": expected number at 0; write age = "10s", "5m" or "1h 30m"
weir.toml:15:2: polcy: unknown section; did you mean [policy]?
weir.toml:3:6: agent.ip: "localhost" is no IP address; write an address such as "10.0.0.7", or delete the line: the default is the address of the default route
weir.toml: kafka.brokers: missing; write brokers = "host:9092" under [kafka], or "mock" for an in-process broker
weir.toml:7:1: kafka.properties.acks: not to be set: an acknowledged line must be safe: weir sets it to all; delete the line
weir.toml:9:14: etcd.endpoints: "etcd" names no port; write host:port, several separated by commas
weir.toml:10:15: etcd.collect_key: "/weir/%_/collect", column 7: `%_` is no placeholder; write %s where the ip belongs, and %% for a plain %"#
    );
}

#[test]
fn broken_toml_says_where() {
    let desk = Desk::new();
    assert_eq!(
        desk.problems("weir.toml", "[kafka]\nbrokers = 127.0.0.1:9092\n"),
        "weir.toml:2:16: not TOML: invalid float; put text in quotes: brokers = \"127.0.0.1:9092\""
    );
    assert!(desk.problems("weir.toml", "[kafka\nbrokers = \"k:1\"\n").starts_with("weir.toml:1:7: "));
    assert!(
        desk.problems("weir.toml", "[kafka]\n[kafka]\n")
            .starts_with("weir.toml:2:2: not TOML: duplicate key")
    );
}

#[test]
fn a_file_that_is_not_utf8_says_which_byte() {
    let desk = Desk::new();
    assert_eq!(
        desk.problems("weir.toml", b"[kafka]\nbrokers = \"\xff\"\n"),
        "weir.toml:2:12: not UTF-8: byte 0xff; save it as UTF-8"
    );
    let settings = desk.toml(&format!("\u{feff}{SMALLEST}"));
    assert_eq!(settings.kafka.brokers, "k:9092");
}

#[test]
fn a_missing_file_is_named() {
    let common = Cli::parse_from(["weir", "--config", "/none/weir.toml", "check"]).common;
    assert_eq!(
        load(&common, &[]).unwrap_err().to_string(),
        "/none/weir.toml: cannot be read: No such file or directory (os error 2); name another with --config"
    );
    let error = convert(Path::new("/none/config.ini")).unwrap_err().to_string();
    assert_eq!(error, "/none/config.ini: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn several_problems_are_listed_one_a_line() {
    let problems = ["a", "b"].map(|place| Problem::new(place, "wrong", "mend it")).to_vec();
    let error = ConfigError { problems };
    assert_eq!(error.to_string(), "2 problems in the settings\n  a: wrong; mend it\n  b: wrong; mend it");
}

#[test]
fn the_list_has_one_source() {
    let desk = Desk::new();
    let kafka = "[kafka]\nbrokers = \"k:9092\"\n";
    assert_eq!(
        desk.problems("weir.toml", format!("{kafka}[etcd]\n[collect]\nfile = \"c.json\"\n")),
        "weir.toml:4:2: [collect]: [etcd] stands there too (weir.toml:3:2); \
         delete one: the list comes from etcd or from a file"
    );
    assert_eq!(
        desk.problems("weir.toml", kafka),
        "weir.toml: nothing says what to collect; \
         write [etcd] with its endpoints, or [collect] with file = \"collect.json\""
    );
    assert_eq!(
        desk.problems("weir.toml", format!("{kafka}[collect]\n")),
        "weir.toml:3:2: [collect]: file is missing; write file = \"collect.json\" below it"
    );
    assert_eq!(
        desk.problems("weir.toml", format!("{kafka}[collect]\nfile = 3\n")),
        "weir.toml:4:8: collect.file: the number 3, where text belongs; write file = \"…\""
    );
}

#[test]
fn values_of_the_wrong_type_are_said_once() {
    let desk = Desk::new();
    let bad = |line: &str| desk.problems("weir.toml", format!("{SMALLEST}{line}\n"));
    assert_eq!(
        desk.problems("weir.toml", "[kafka]\nbrokers = 9092\n[etcd]\n"),
        "weir.toml:2:11: kafka.brokers: the number 9092, where text, or an array of texts belongs; write brokers = [\"…\"]"
    );
    assert_eq!(
        bad("state = \"x\""),
        "weir.toml:4:1: etcd.state: unknown key; known here: endpoints, collect_key, modules_prefix, agents_prefix, on_delete, username, password_file, ca_file, cert_file, key_file"
    );
    assert_eq!(
        bad("[policy]\nmax_files = -1"),
        "weir.toml:5:13: policy.max_files: the number -1, where a number from 0 up belongs; write max_files = 1000"
    );
    assert_eq!(
        bad("[agent]\nname = \" \""),
        "weir.toml:5:8: agent.name: empty; write a value, or delete the line"
    );
    assert_eq!(
        bad("[agent]\nname = \"a/b\""),
        "weir.toml:5:8: agent.name: \"a/b\": a name is part of keys; write it without blanks and without /"
    );
    assert_eq!(
        bad("[kafka.properties]\nx = []"),
        "weir.toml:5:1: kafka.properties.x: an array, where text belongs; write x = \"…\""
    );
    assert_eq!(
        bad("[limits]\nmemory = \"1KiB\""),
        "weir.toml:5:10: limits.memory: 1KiB is too little to run with; write \"1MiB\" or more"
    );
    assert_eq!(
        bad("[limits]\nheld_files = \"1h\""),
        "weir.toml:5:14: limits.held_files: the text \"1h\", where a section belongs; write [limits.held_files] and its keys below it"
    );
    assert!(bad("[admin]\nlisten = \"9477\"").starts_with("weir.toml:5:10: admin.listen: \"9477\": invalid socket address syntax; write listen = \"127.0.0.1:9477\""));
    assert!(
        bad("[policy]\ndeny = [\"{a\"]")
            .starts_with("weir.toml:5:9: policy.deny: \"{a\": unclosed alternate group")
    );
    assert_eq!(
        bad("[policy]\nkeys = [\"RWQ\"]"),
        "weir.toml:5:9: policy.keys: \"RWQ\": Invalid encoding in minisign data; write the second line of a .pub file of minisign"
    );
    assert_eq!(
        bad("[policy]\nread_bytes_per_second = 10"),
        "weir.toml:5:25: policy.read_bytes_per_second: 10 bytes a second never read one chunk in sensible time; write 1024 or more"
    );
    assert_eq!(
        bad("[policy]\nconfine = \"no\""),
        "weir.toml:5:11: policy.confine: the text \"no\", where true or false belongs; write confine = true"
    );
    assert_eq!(
        bad("[policy]\nmodules = [\"redact\"]"),
        "weir.toml:5:12: policy.modules: \"redact\": a digest begins with `sha256:`; weir module inspect FILE prints it"
    );
}

#[test]
fn credentials_come_in_pairs() {
    let desk = Desk::new();
    desk.write("p", "x");
    let bad = |line: &str| desk.problems("weir.toml", format!("{SMALLEST}{line}\n"));
    assert!(bad("username = \"u\"").contains("a user without a password; write password_file"));
    assert!(bad("password_file = \"p\"").contains("a password without a user; write username"));
    assert!(bad("cert_file = \"p\"").contains("etcd.key_file is missing; write both or none"));
    assert!(bad("ca_file = \"none.pem\"").contains("none.pem cannot be read: No such file"));
    desk.write("empty", "\n");
    assert!(
        bad("username = \"u\"\npassword_file = \"empty\"")
            .contains("empty is empty; write the password into it")
    );
}

#[test]
fn secrets_are_never_shown() {
    let desk = Desk::new();
    let password = desk.write("p", "hunter2\n");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let text = "[kafka]\nbrokers = \"k:1\"\nsasl_password_file = \"p\"\n[kafka.properties]\n\
                ssl.key.password = \"hunter2\"\nsasl.username = \"weir\"\n\
                [etcd]\nusername = \"u\"\npassword_file = \"p\"\n";
    let settings = desk.toml(text);
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hunter2") && shown.contains("\"sasl.username\": \"weir\""), "{shown}");
    assert!(
        desk.notes(&settings)
            .contains("weir.toml:3:22: kafka.sasl_password_file: everybody may read p: chmod 600 p")
    );
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(desk.toml(text).notes, Vec::<String>::new());
}

#[test]
fn the_environment_goes_before_the_file() {
    let mut desk = Desk::new();
    desk.instead = Instead {
        brokers: Some("e:1,f:2".into()),
        endpoints: Some("e:3".into()),
        state_dir: Some("/elsewhere".into()),
        allow: vec!["/srv".into()],
        without_kafka: false,
        name: None,
    };
    desk.host.allow = vec!["/opt".into(), "/srv".into()];
    let settings = desk.toml(SMALLEST);
    assert_eq!(settings.kafka.brokers, "e:1,f:2");
    assert_eq!(etcd(&settings).endpoints, ["e:3"]);
    assert_eq!(settings.state_dir, Path::new("/elsewhere"));
    let roots = ["/var/log", "/srv", "/opt"].map(PathBuf::from);
    assert_eq!(settings.policy.rules().roots.as_deref(), Some(&roots[..]));
    assert_eq!(desk.toml("").kafka.brokers, "e:1,f:2");
    let settings = desk.toml("[collect]\nfile = \"c.json\"\n");
    assert_eq!(settings.list, ListSource::File(desk.path("c.json")));
    assert!(desk.notes(&settings).contains("etcd endpoints are not used"));
}

#[test]
fn a_command_that_talks_to_etcd_only_needs_no_broker() {
    let mut desk = Desk::new();
    desk.instead.without_kafka = true;
    assert_eq!(desk.toml("[etcd]\n").kafka.brokers, "");
}

#[test]
fn a_local_list_is_bound_only_where_others_may_write_it() {
    let desk = Desk::new();
    let text = "[kafka]\nbrokers = \"mock\"\n[collect]\nfile = \"c.json\"\n";
    let list = desk.write("c.json", "[]");
    assert_eq!(desk.toml(text).policy.rules().roots, None);
    fs::set_permissions(&list, fs::Permissions::from_mode(0o666)).unwrap();
    let settings = desk.toml(text);
    assert_eq!(settings.policy.rules().roots.as_deref(), Some(&[PathBuf::from("/var/log")][..]));
    assert_eq!(
        desk.notes(&settings),
        "c.json: others may change it (it is writable by everybody (mode 0666)), so it may name files below \
         /var/log only; let root or the agent's user alone write it, or write roots under [policy]"
    );
    let settings = desk.toml(&format!("{text}[policy]\nroots = [\"/srv\"]\n"));
    assert_eq!(settings.policy.rules().roots.as_deref(), Some(&[PathBuf::from("/srv")][..]));
    assert_eq!(settings.notes, Vec::<String>::new());
}

#[test]
fn the_policy_may_stand_in_a_file_of_its_own() {
    let desk = Desk::new();
    desk.write("policy.toml", "roots = [\"/srv\"]\ntopics = [\"t\"]\n");
    let settings = desk.toml(&format!("{SMALLEST}[policy]\nfile = \"policy.toml\"\n"));
    let rules = settings.policy.rules();
    assert_eq!(rules.roots.as_deref(), Some(&[PathBuf::from("/srv")][..]));
    assert_eq!(rules.file, desk.path("policy.toml"));
    let both =
        desk.problems("weir.toml", format!("{SMALLEST}[policy]\nroots = []\nfile = \"policy.toml\"\n"));
    assert_eq!(
        both,
        "weir.toml:6:8: policy.file: other keys stand beside it; write the policy here or in that file"
    );
    desk.write("policy.toml", "root = [\"/srv\"]\n");
    let bad = desk.problems("weir.toml", format!("{SMALLEST}[policy]\nfile = \"policy.toml\"\n"));
    assert_eq!(bad, "policy.toml:1:1: root: unknown key; did you mean \"roots\"?");
}

#[test]
fn a_user_without_a_home_must_say_where_state_goes() {
    let mut desk = Desk::new();
    desk.host.state_dir = None;
    assert_eq!(
        desk.problems("weir.toml", SMALLEST),
        "weir.toml: state.dir: this user has no home, so there is no default; write dir = \"/var/lib/weir\" under [state]"
    );
    desk.host.runtime_dir = Some("/run/weir".into());
    let settings = desk.toml(&format!("{SMALLEST}[state]\ndir = \"/s\"\n"));
    assert_eq!(settings.admin.socket, Path::new("/run/weir/weir.sock"));
}

/// `conf/weir.toml` with every path below /etc/weir in the desk's directory.
fn shipped(desk: &Desk) -> String {
    for name in ["kafka.password", "etcd.password", "ca.pem", "weir.pem", "weir.key"] {
        desk.write(name, "x");
    }
    desk.write("policy.toml", "");
    let text = include_str!("../../../conf/weir.toml");
    text.replace("/etc/weir/", &format!("{}/", desk.dir.path().display()))
}

#[test]
fn the_shipped_settings_are_the_defaults() {
    let desk = Desk::new();
    let (shipped, mut smallest) = (desk.toml(&shipped(&desk)), desk.toml(SMALLEST));
    smallest.kafka.brokers = "127.0.0.1:9092".into();
    assert_eq!(shipped, smallest);
}

#[test]
fn every_commented_line_of_the_shipped_settings_can_be_used() {
    let desk = Desk::new();
    let text = shipped(&desk);
    let is_key = |line: &str| line.strip_prefix("# ").is_some_and(|line| line.split(' ').nth(1) == Some("="));
    let mut used = 0;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| is_key(line)) {
        let key = line[2..].split(' ').next().unwrap();
        let pair = match key {
            "username" => "# password_file",
            "password_file" => "# username",
            "cert_file" => "# key_file",
            "key_file" => "# cert_file",
            _ => "nothing goes with it",
        };
        let collect = line.contains("collect.json");
        let changed: Vec<_> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !(key == "collect_key" && line.starts_with("collect_key")))
            .filter(|(_, line)| {
                !(collect && ["[etcd]", "endpoints", "collect_key"].iter().any(|l| line.starts_with(l)))
            })
            .map(|(n, line)| {
                let use_it = n == number || line.starts_with(pair) || collect && line == "# [collect]";
                if use_it { &line[2..] } else { line }
            })
            .collect();
        desk.toml(&changed.join("\n"));
        used += 1;
    }
    assert_eq!(used, 38);
}

#[test]
fn the_shipped_older_form_means_what_its_conversion_means() {
    let desk = Desk::new();
    let text = include_str!("../../../conf/config.ini");
    let settings = desk.ini(text);
    assert_eq!(settings.kafka.brokers, "127.0.0.1:9092");
    assert_eq!(etcd(&settings).endpoints, ["127.0.0.1:2379"]);
    assert_eq!(etcd(&settings).collect_keys, ["/logagent/10.0.0.7/collect_config"]);
    assert_eq!(
        desk.notes(&settings),
        "config.ini:7:1: kafka.chan_size: not used: limits.memory bounds what is under way\n\
         config.ini:14:1: collect.logfile_path: not used: the list in etcd names the log file\n\
         config.ini:6:1: kafka.topic: not used: the list in etcd names the topic"
    );
    same_when_converted(&desk, text);
}

/// Settings of the older form, and of what they are converted to.
fn same_when_converted(desk: &Desk, text: &str) -> (Settings, Settings) {
    let old = desk.ini(text);
    let new = desk.toml(&convert(&desk.path("config.ini")).unwrap());
    let without_file = |settings: &Settings| {
        let mut settings = settings.clone();
        settings.notes.clear();
        let rules = crate::policy::Rules { file: PathBuf::new(), ..settings.policy.rules().clone() };
        (settings.file, settings.policy) = (PathBuf::new(), Policy::new(rules).unwrap());
        if matches!(settings.list, ListSource::Fixed { .. } | ListSource::File(_)) {
            settings.list = ListSource::File(PathBuf::new());
        }
        settings
    };
    assert_eq!(without_file(&old), without_file(&new));
    (old, new)
}

#[test]
fn a_conversion_keeps_several_addresses_and_quotes() {
    let desk = Desk::new();
    let (old, _) = same_when_converted(
        &desk,
        "[kafka]\naddress = a:1, b:2\n[etcd]\naddress=c:3,d:4\ncollect_key=\"/a \\b'%s\"\n",
    );
    assert_eq!(etcd(&old).collect_keys, ["/a \\b'10.0.0.7"]);
    assert_eq!(old.kafka.brokers, "a:1,b:2");
}

#[test]
fn a_conversion_of_a_fixed_file_gives_its_list() {
    let desk = Desk::new();
    let text = "[kafka]\naddress=a:1\ntopic=web_log\n[collect]\nlogfile_path=/var/log/x.log\n";
    let (old, new) = same_when_converted(&desk, text);
    assert_eq!(old.list, ListSource::Fixed { path: "/var/log/x.log".into(), topic: "web_log".into() });
    assert_eq!(new.list, ListSource::File(desk.path("collect.json")));
    let converted = convert(&desk.path("config.ini")).unwrap();
    let list = converted.lines().find_map(|line| line.strip_prefix("#   ")).unwrap();
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    assert_eq!(list, serde_json::json!([{"path": "/var/log/x.log", "topic": "web_log"}]));
}

#[test]
fn a_conversion_puts_the_password_into_a_file() {
    let desk = Desk::new();
    desk.write("etcd.password", "hunter2\n");
    let text = "[kafka]\naddress=a:1\n[etcd]\ncollect_key=/k\nusername=root\npassword=hunter2\n";
    same_when_converted(&desk, text);
    assert!(!convert(&desk.path("config.ini")).unwrap().contains("hunter2"));
}

#[test]
fn every_spelling_of_the_older_form_is_read() {
    let desk = Desk::new();
    for (text, brokers, endpoint, key) in [
        (
            "[kafka]\nproducerAddr=k:1\n[etcd]\nendpoints=e:1\ndialTimeout=5\ncollect_log_key=/l\n",
            "k:1",
            "e:1",
            "/l",
        ),
        (
            "[Kafka]\nkafkaHost = k\nkafkaPort = :9092\n[Etcd]\naddr=e:1\nstorekey=/s/%s\n",
            "k:9092",
            "e:1",
            "/s/10.0.0.7",
        ),
        (
            "[kafka]\nserver_addr=k:1\n[etcd]\naddr=e:1\nconfigKey=/old/config\n",
            "k:1",
            "e:1",
            "/old/config/10.0.0.7",
        ),
        (
            "[kafka]\nserver_addr=k:1\n[etcd]\naddr=e:1\nconfigKey=/old/config/\n",
            "k:1",
            "e:1",
            "/old/config/10.0.0.7",
        ),
        (
            "[kafka]\n\taddress = \"k:1\"\n[etcd]\n\taddress = 'e:1'\n\tcollectKey = `/c`\n",
            "k:1",
            "e:1",
            "/c",
        ),
        (
            "etcd_addr = e:1\netcd_timeout = 5\netcd_watch_key = /w/%s\nkafka_addr = k:1\nthread_num = 4\nlog = ./x\nlevel = debug\n",
            "k:1",
            "e:1",
            "/w/10.0.0.7",
        ),
        (
            "[kafka]\r\naddress=k:1\r\n[etcd]\r\naddress=e:1\r\ntimeout=5 //seconds\r\nlog_key=/k #c\r\n",
            "k:1",
            "e:1",
            "/k",
        ),
        (
            "[kafka]\naddress: k:1\n[etcd]\naddress=http://e:1\ncollect_conf_key=/k ; c\n",
            "k:1",
            "http://e:1",
            "/k",
        ),
    ] {
        let settings = desk.ini(text);
        assert_eq!(settings.kafka.brokers, brokers, "{text}");
        assert_eq!(etcd(&settings).endpoints, [endpoint], "{text}");
        assert_eq!(etcd(&settings).collect_keys, [key], "{text}");
    }
    for section in ["collect", "taillog"] {
        for key in ["logfile_path", "filename", "log_path"] {
            let settings = desk.ini(&format!("[kafka]\naddress=k:1\ntopic=t\n[{section}]\n{key}=/x.log\n"));
            assert_eq!(settings.list, ListSource::Fixed { path: "/x.log".into(), topic: "t".into() });
        }
    }
}

#[test]
fn unknown_keys_of_the_older_form_are_noted_and_ignored() {
    let desk = Desk::new();
    let settings =
        desk.ini("[kafka]\naddress=k:1\nadress=x\nwhatever=1\n[etcd]\ncollect_key=/k\n[mysql]\nhost=db\n");
    assert_eq!(
        desk.notes(&settings),
        "config.ini:3:1: kafka.adress: unknown here and ignored; did you mean address?\n\
         config.ini:4:1: kafka.whatever: unknown here and ignored\n\
         config.ini:8:1: mysql.host: unknown here and ignored"
    );
}

#[test]
fn a_bad_older_form_says_where_and_what_to_do() {
    let desk = Desk::new();
    let bad = |text: &str| desk.problems("config.ini", text);
    assert_eq!(
        bad("address=k:1\n"),
        "config.ini: kafka.address: missing; write address = host:9092 under [kafka]\n\
         config.ini: nothing says what to collect; write collect_key = KEY under [etcd], \
         or logfile_path = PATH under [collect] and topic = NAME under [kafka]"
    );
    assert_eq!(
        bad("[kafka\naddress=k:1\n[collect]\n  logfile_path=/x\njust words\n"),
        "config.ini:1:1: a section without its `]`; write [name]\n\
         config.ini:5:1: \"just words\" is neither a section nor a key; write key = value, or begin the line with #\n\
         config.ini:4:3: collect.logfile_path: a log file without a topic; \
         write topic = NAME under [kafka], or collect_key = KEY under [etcd]\n\
         config.ini: kafka.address: missing; write address = host:9092 under [kafka]"
    );
    assert_eq!(
        bad("[kafka]\naddress=\"k:1\n[etcd]\ncollect_key=/l/%_/c\n"),
        "config.ini:2:1: kafka.address: a \" that is not closed; close the quotes on the same line\n\
         config.ini:4:1: etcd.collect_key: \"/l/%_/c\", column 4: `%_` is no placeholder; \
         write %s where the ip belongs, and %% for a plain %"
    );
}

#[test]
fn the_form_is_told_by_the_extension() {
    for (name, ini) in
        [("a.ini", true), ("a.CFG", true), ("a.conf", true), ("weir.toml", false), ("weir", false)]
    {
        assert_eq!(is_ini(Path::new(name)), ini, "{name}");
    }
}

#[test]
fn a_key_is_found_again() {
    let desk = Desk::new();
    let settings = desk.toml(&format!("{SMALLEST}[kafka.properties]\nbatch.sise = 1\n\"a.b\" = 2\n"));
    let place = |key: &str| place(&settings, key).rsplit('/').next().unwrap().to_string();
    assert_eq!(place("kafka.brokers"), "weir.toml:2:1: kafka.brokers");
    assert_eq!(place("kafka.properties.a.b"), "weir.toml:6:1: kafka.properties.a.b");
    assert_eq!(place("kafka.properties.batch.sise"), "weir.toml:5:7: kafka.properties.batch.sise");
    assert_eq!(place("state.dir"), "weir.toml: state.dir");
}

#[test]
fn a_rule_of_the_policy_is_found_where_it_is_written() {
    let desk = Desk::new();
    let place = |settings: &Settings, key: &str| {
        policy_place(settings, key).map(|place| place.rsplit('/').next().unwrap().to_string())
    };
    let settings = desk.toml(&format!("{SMALLEST}[policy]\nroots = [\"/srv\"]\n"));
    assert_eq!(place(&settings, "roots").as_deref(), Some("weir.toml:5:1: policy.roots"));
    assert_eq!(place(&settings, "deny"), None);
    desk.write("policy.toml", "topics = []\nroots = [\"/srv\"]\n");
    let settings = desk.toml(&format!("{SMALLEST}[policy]\nfile = \"policy.toml\"\n"));
    assert_eq!(place(&settings, "roots").as_deref(), Some("policy.toml:2:1: roots"));
}
