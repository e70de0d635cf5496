//! The list as people change it: in an editor, over time, side by side.

use serde_json::{Value, json};
use weir_tests::etcd::Etcd;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::unconnected;

/// Someone whose editor is a script: it copies `next.json` over the draft.
struct Desk(Weir);

impl Desk {
    fn new(key: Option<&str>) -> Self {
        let mut weir = unconnected().env("VISUAL", "sh ./editor.sh");
        match key {
            Some(key) => weir = weir.etcd(&Etcd::shared().endpoint(), key),
            None => weir.list(&json!([])),
        }
        let drafts = weir.file("");
        let desk = Self(weir.env("TMPDIR", &drafts.to_string_lossy()));
        desk.editor("cp next.json \"$1\"");
        desk
    }

    fn editor(&self, script: &str) {
        std::fs::write(self.0.file("editor.sh"), script).expect("write the editor");
    }

    fn next(&self, text: &str) {
        std::fs::write(self.0.file("next.json"), text).expect("write a list");
    }

    /// Drafts that lie about.
    fn drafts(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.0.file("")).expect("a directory").flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("weir-collect-")).collect()
    }
}

const ONE: &str = r#"[
  {"path": "/a", "topic": "t"},
  {"path": "/b", "topic": "t", "filter": "one"}
]
"#;
const TWO: &str = r#"[
  {"path": "/b", "topic": "t", "filter": "two"},
  {"path": "/c", "topic": "t"}
]
"#;

/// What both kinds of lists have in common; `read` is what stands there.
#[track_caller]
fn edit(desk: &Desk, read: impl Fn() -> String) {
    let weir = &desk.0;
    desk.next(ONE);
    let said = weir.weir(&["list", "edit"]).ok();
    assert!(
        said.contains("\nstarts    /a: /a to topic t\nstarts    /b: /b to topic t, filter one\n"),
        "{said}"
    );
    assert_eq!(read(), ONE);
    let same = weir.weir(&["list", "edit"]).ok();
    assert!(same.ends_with(": nothing to change\n"), "{same}");

    desk.next(TWO);
    let diff = weir.weir(&["list", "diff", "next.json"]).ok();
    assert_eq!(read(), ONE, "diff only shows");
    let said = weir.weir(&["list", "edit"]).ok();
    for line in [
        "+  {\"path\": \"/c\", \"topic\": \"t\"}",
        "starts    /c: /c to topic t",
        "stops     /a: its offsets are kept for 7 days",
        "swaps     /b: filter two in place of one",
    ] {
        for said in [&said, &diff] {
            assert!(said.lines().any(|said| said == line), "no {line:?} in\n{said}");
        }
    }
    assert_eq!(read(), TWO);
    assert_eq!(desk.drafts(), [""; 0], "a draft that was written is gone");

    desk.next("[\n  {\"path\": \"/c\", \"topic\": \"not/one\"}\n]\n");
    let refused = weir.weir(&["list", "edit"]);
    let drafts = desk.drafts();
    assert_eq!((refused.code(), drafts.len()), (1, 1), "{refused:?}");
    assert!(refused.stderr.contains("line 2, column") || refused.stderr.contains("json:2:"), "{refused:?}");
    assert!(
        refused.stderr.contains(&format!("weir list put {}", weir.file(&drafts[0]).display())),
        "{refused:?}"
    );
    let kept = std::fs::read_to_string(weir.file(&drafts[0])).expect("the draft");
    assert!(kept.contains("not/one"));
    std::fs::remove_file(weir.file(&drafts[0])).expect("remove the draft");

    desk.editor("exit 3");
    let failed = weir.weir(&["list", "edit"]);
    assert!(failed.code() == 1 && failed.stderr.contains("failed (exit status: 3)"), "{failed:?}");
    assert_eq!(read(), TWO);
}

#[test]
fn a_list_in_etcd_is_edited_and_nobody_is_overwritten() {
    const KEY: &str = "/desk/collect";
    let desk = Desk::new(Some(KEY));
    let read = || String::from_utf8(Etcd::shared().get(KEY).unwrap_or_default()).expect("text");
    edit(&desk, read);
    // Somebody else is faster.
    let add = r#"list add '{"path": "/d", "topic": "t"}'"#;
    desk.editor(&format!(
        "{} --config weir.toml {add} >&2 && cp next.json \"$1\"",
        env!("CARGO_BIN_EXE_weir")
    ));
    desk.next(ONE);
    let late = desk.0.weir(&["list", "edit"]);
    assert!(late.code() == 1 && late.stderr.contains("somebody else changed"), "{late:?}");
    assert!(late.stderr.contains("; the draft is "), "{late:?}");
    assert!(read().contains("\"/d\""), "{}", read());
}

#[test]
fn whoever_edits_at_a_terminal_is_asked_before_anything_is_written() {
    let desk = Desk::new(None);
    // The first draft is wrong, all others are right.
    desk.editor("if [ -e edited ]; then cp next.json \"$1\"; else echo [ >\"$1\"; fi; echo >>edited");
    desk.next(ONE);
    let edits = || std::fs::read_to_string(desk.0.file("edited")).expect("the edits").len();
    let read = || std::fs::read_to_string(desk.0.list_file()).expect("the list");
    let mut refusing = desk.0.terminal(&["list", "edit"]);
    refusing.answer("go on editing? [Y/n] ", "\n");
    refusing.answer("starts    /a: /a to topic t", "");
    refusing.answer("write it? [y/e/N]", "e\n");
    refusing.answer("write it? [y/e/N]", "n\n");
    assert_eq!(refusing.wait(SOON).code(), Some(1), "{}", refusing.shown());
    assert_eq!((edits(), read()), (3, "[]\n".into()), "nothing was written");
    let mut willing = desk.0.terminal(&["list", "edit"]);
    willing.answer("write it? [y/e/N]", "y\n");
    assert!(willing.wait(SOON).success(), "{}", willing.shown());
    assert_eq!((edits(), read()), (4, ONE.into()));
}

#[test]
fn a_list_in_a_file_is_edited_the_same_way() {
    let desk = Desk::new(None);
    let file = desk.0.list_file();
    edit(&desk, || std::fs::read_to_string(&file).expect("the list"));
    let none = desk.0.weir(&["list", "history"]);
    assert!(none.code() == 1 && none.stderr.contains("a file has no revisions"), "{none:?}");
}

#[test]
fn the_history_of_a_list_is_shown_and_gone_back_to() {
    const KEY: &str = "/past/collect";
    let desk = Desk::new(Some(KEY));
    let weir = &desk.0;
    assert!(weir.weir(&["list", "history"]).ok().contains("nothing was ever written"));
    for list in [ONE, TWO] {
        desk.next(list);
        weir.weir(&["list", "put", "next.json"]).ok();
    }
    Etcd::shared().put(KEY, "{");
    let shown = weir.weir(&["list", "history"]).ok();
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].contains("unknown") && lines[0].ends_with("not valid: what ran went on"), "{shown}");
    assert!(lines[1].contains('@') && lines[1].ends_with("starts 1, stops 1, swaps 1"), "{shown}");
    assert!(lines[2].ends_with("starts 2"), "{shown}");
    let patch = weir.weir(&["list", "history", "--patch", "-n", "2"]).ok();
    assert!(
        patch.contains("\n-  {\"path\": \"/a\", \"topic\": \"t\"},\n")
            && !patch.contains("+  {\"path\": \"/a\""),
        "{patch}"
    );
    let steps: Value = serde_json::from_str(&weir.weir(&["list", "history", "--json"]).ok()).expect("JSON");
    assert_eq!(steps[1]["effects"]["starts"][0]["name"], "/c", "{steps}");
    let revision = steps[2]["revision"].to_string();
    assert_eq!(weir.weir(&["list", "get", "--revision", &revision]).ok(), ONE);
}

#[test]
fn each_change_of_a_list_is_printed_as_it_is_written() {
    const KEY: &str = "/watched/collect";
    let desk = Desk::new(Some(KEY));
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| desk.0.weir(&["list", "watch", "-n", "2"]).ok());
        let mut n = 0;
        // Until it has seen two: when it begins cannot be told from outside.
        let write = || {
            n += 1;
            Etcd::shared().put(KEY, format!("[{{\"path\": \"/{n}\", \"topic\": \"t\"}}]"));
            watch.is_finished()
        };
        eventually(SOON, "two changes to be seen", write, |seen| *seen);
        let said = watch.join().expect("the command");
        assert_eq!(said.matches("starts    /").count(), 2, "{said}");
        assert_eq!(said.matches("\n+++ revision ").count(), 2, "{said}");
    });
}
