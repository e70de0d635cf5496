//! Numbers and names as people read them on a terminal.

/// Names are cut to this width, in the middle. Characters.
pub(super) const NAME_WIDTH_MAX: usize = 48;

/// The text, or its beginning and end where it is too wide.
pub(super) fn cut(text: &str) -> String {
    let width = text.chars().count();
    if width <= NAME_WIDTH_MAX {
        return text.into();
    }
    let kept = NAME_WIDTH_MAX - 1;
    let beginning = text.chars().take(kept / 3);
    let end = text.chars().skip(width - (kept - kept / 3));
    beginning.chain(['…']).chain(end).collect()
}

/// `1 file`, `12 files`.
pub(super) fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(n), if n == 1 { one } else { many })
}

/// `4,812,345`.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// `0 B`, `3.4 MiB`, `12 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let (mut size, mut unit) = (n as f64, 0);
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    while size >= 1023.5 && unit < units.len() - 1 {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    let places = usize::from(unit > 0 && size < 9.95);
    format!("{size:.places$} {}", units[unit])
}

/// `0.2 s`, `12 s`, `3 min 12 s`, `2 h 5 min`, `3 d 4 h`.
pub(super) fn seconds(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86400, whole % 86400 / 3600),
    }
}
