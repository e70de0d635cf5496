//! What many agents cost the etcd that steers them: the load of each, for a calculation of more.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weir_tests::etcd::Etcd;
use weir_tests::metrics::Metrics;
use weir_tests::process::Process;
use weir_tests::{guests, http, ports, scratch};

use crate::Bench;
use crate::agent::without_env;
use crate::report::Table;
use crate::stats::number;

const LIST: &str = "/weir/all/collect";
/// For all agents to do what was said.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn fleet(bench: &mut Bench) -> Result<()> {
    let Some(agent) = bench.agent("weir").cloned() else { return Ok(()) };
    for count in bench.plan.fleet.clone() {
        let (etcd, dir) = (Etcd::private(), scratch::dir("fleet"));
        let start = |n: u64| -> Result<Process> {
            let home = dir.path().join(n.to_string());
            fs::create_dir(&home)?;
            let settings = format!(
                "[agent]\nname = \"host{n:05}\"\n[kafka]\nbrokers = {:?}\n[etcd]\nendpoints = [{:?}]\ncollect_key = {LIST:?}\n\
                 [state]\ndir = {:?}\n[admin]\nlisten = \"127.0.0.1:{}\"\n[policy]\nroots = [{:?}]\n",
                bench.kafka.brokers(),
                etcd.endpoint(),
                home.join("state"),
                ports::free(),
                home,
            );
            let config = home.join("weir.toml");
            fs::write(&config, settings)?;
            let mut command = without_env(Command::new(&agent.program));
            command.args(["run", "--config"]).arg(&config);
            Ok(Process::start("weir", command, &home.join("output.log")))
        };
        let weir = |args: &[&str]| -> Result<()> {
            let config = dir.path().join("0/weir.toml");
            let mut command = without_env(Command::new(&agent.program));
            let output = command.args(args).arg("--config").arg(config).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "weir {}: {said}", args.join(" "));
            Ok(())
        };
        let edit = |filter: Option<&str>, line_bytes_max: u64| {
            let path = dir.path().join("*/app.log");
            let entry = json!({"name": "app", "path": path, "topic": "fleet", "line_bytes_max": line_bytes_max,
                "filter": filter});
            etcd.put(LIST, json!([entry]).to_string())
        };
        let applied = |revision: i64| {
            weir(&["fleet", "--wait", &revision.to_string(), "--within", &PATIENCE.as_secs().to_string()])
        };

        let first = edit(None, 10_000);
        let agents = (0..count).map(start).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        while etcd.keys("/weir/agents/").len() < count as usize {
            ensure!(begun.elapsed() < PATIENCE, "not all agents came");
            std::thread::sleep(LOOK);
        }
        applied(first)?;
        let quiet = Load::between(&etcd, || {
            std::thread::sleep(Duration::from_secs(bench.plan.idle_seconds));
            Ok(())
        })?;
        let edited = Load::between(&etcd, || applied(edit(None, 20_000)))?;
        let module = guests::path("drop_debug");
        let size = fs::metadata(&module)?.len();
        weir(&["module", "push", &module.to_string_lossy(), "--tag", "fleet"])?;
        let pushed = Load::between(&etcd, || {
            let begun = Load::of(&etcd)?;
            edit(Some("fleet"), 20_000);
            let from = Instant::now();
            while Load::of(&etcd)?.sent - begun.sent < (count * size) as f64 {
                ensure!(from.elapsed() < PATIENCE, "not all agents fetched the module");
                std::thread::sleep(LOOK);
            }
            Ok(())
        })?;
        drop(agents);
        let title = format!("{} agents on one etcd", number(count as f64, 0));
        let columns = ["", "s", "etcd CPU s", "kB sent an agent", "kB received an agent", "etcd RSS MB"];
        let mut table = Table::new("fleet", &title, &columns);
        for (what, load) in [("nothing happens", quiet), ("a list edit", edited), ("a module", pushed)] {
            let each = |bytes: f64| bytes / count as f64 / 1e3;
            let figures = [load.seconds, load.cpu, each(load.sent), each(load.received), load.resident / 1e6];
            let cells: Vec<_> = [what.to_owned()].into_iter().chain(figures.map(|n| number(n, 2))).collect();
            eprintln!("fleet: {count}, {}", cells.join(", "));
            let json = json!({"what": what, "agents": count, "s": load.seconds, "etcd_cpu_s": load.cpu,
                "sent_kb_each": figures[2], "received_kb_each": figures[3], "etcd_rss_mb": figures[4]});
            table.row(&cells, json);
        }
        bench.report.add(table)?;
    }
    Ok(())
}

/// What etcd did.
#[derive(Clone, Copy, Debug)]
struct Load {
    seconds: f64,
    cpu: f64,
    /// To and from clients. Bytes.
    sent: f64,
    received: f64,
    /// Bytes.
    resident: f64,
}

impl Load {
    /// Since it started.
    fn of(etcd: &Etcd) -> Result<Self> {
        let (_, text) = http::get(etcd.endpoint().parse()?, "/metrics").context("the metrics of etcd")?;
        let metrics = Metrics::parse(&text);
        let sum = |name| metrics.sum(name, &[]);
        Ok(Self {
            seconds: 0.0,
            cpu: sum("process_cpu_seconds_total"),
            sent: sum("etcd_network_client_grpc_sent_bytes_total"),
            received: sum("etcd_network_client_grpc_received_bytes_total"),
            resident: sum("process_resident_memory_bytes"),
        })
    }

    fn between(etcd: &Etcd, act: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (before, begun) = (Self::of(etcd)?, Instant::now());
        act()?;
        let seconds = begun.elapsed().as_secs_f64();
        let after = Self::of(etcd)?;
        Ok(Self {
            seconds,
            cpu: after.cpu - before.cpu,
            sent: after.sent - before.sent,
            received: after.received - before.received,
            resident: after.resident,
        })
    }
}
