//! `weir module gc`: modules that nobody uses, out of the store.

use std::process::ExitCode;

use indicatif::HumanBytes;
use serde_json::json;

use crate::config::EtcdSettings;
use crate::control::modules::{HISTORY_MOST, Store, Swept};

/// Arguments of `gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  weir module gc --dry-run
  weir module gc

What stays: modules that a tag points at or pointed at before, that a list names, that an agent runs,
and all that was pushed or begun within the last hour, so that a push under way is safe. The lists
that are looked at are those of all hosts: of every key that the settings' collect_key may stand for,
and those of --key. If a tag or a list changes meanwhile, nothing more is removed; run it again.

etcd gives the space back after its next compaction and `etcdctl defrag`.")]
pub struct GcArgs {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// How many former modules of each tag stay, for `weir module rollback` and `tag`
    #[arg(long, value_name = "COUNT", default_value_t = HISTORY_MOST)]
    history: usize,
    /// A list in etcd that other settings follow; may be given more than once
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) async fn run(etcd: &EtcdSettings, args: &GcArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::connect(etcd).await?;
    let uses = store.uses(etcd, &args.key, args.history).await?;
    let swept = store.sweep(&uses, args.dry_run).await?;
    if args.json {
        let Swept { unused, used, young } = swept;
        let said = json!({ "removed": unused, "dry_run": args.dry_run, "used": used, "young": young });
        println!("{}", serde_json::to_string_pretty(&said)?);
    } else {
        print!("{}", text(&swept, args.dry_run));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(swept: &Swept, dry_run: bool) -> String {
    let Swept { unused, used, young } = swept;
    let mut text = String::new();
    for blob in unused {
        let size = HumanBytes(blob.bytes as u64).to_string();
        text.push_str(&format!("{}  {size:>10}  {:20}  {}\n", blob.digest, blob.when, blob.who));
    }
    let bytes = HumanBytes(unused.iter().map(|blob| blob.bytes as u64).sum());
    let done = if dry_run { "would be removed" } else { "removed" };
    text.push_str(&format!("{} {done}, {bytes}; {used} in use", unused.len()));
    if *young > 0 {
        text.push_str(&format!(", {young} pushed within the last hour"));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::modules::BlobInfo;

    #[test]
    fn what_goes_is_named_and_what_stays_is_counted() {
        let blob = BlobInfo { digest: "sha256:ab".into(), bytes: 2048, who: "a@b".into(), when: "W".into() };
        let swept = Swept { unused: vec![blob], used: 2, young: 1 };
        let end = ", 2.00 KiB; 2 in use, 1 pushed within the last hour\n";
        assert_eq!(
            text(&swept, true),
            format!("sha256:ab    2.00 KiB  W{}  a@b\n1 would be removed{end}", " ".repeat(19))
        );
        assert!(text(&swept, false).contains("\n1 removed, "));
        assert_eq!(text(&Swept::default(), false), "0 removed, 0 B; 0 in use\n");
    }
}
