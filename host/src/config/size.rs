//! Sizes as people write them: `64MiB`, `1 GB`, `4096`.

/// Units, largest first; the decimal ones behind the binary ones they abbreviate.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Bytes. A number without unit is bytes; units are read without case.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err(format!("{text:?} does not begin with a number"));
    }
    let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(format!("{unit:?} is not a unit of size")),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("{text:?} is more than a 64-bit number holds"))
}

/// The shortest exact way to write it.
pub fn show(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(name, factor)| name.contains('i') && bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("1 GiB", 1 << 30),
            ("256kib", 256 << 10),
            ("10MB", 10_000_000),
            ("4096", 4096),
            ("7B", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_bad_size_says_what_is_wrong() {
        assert_eq!(parse("64 Mibs"), Err("\"Mibs\" is not a unit of size".into()));
        assert_eq!(parse("much"), Err("\"much\" does not begin with a number".into()));
        assert_eq!(parse("-1"), Err("\"-1\" does not begin with a number".into()));
        assert!(parse("99999999TiB").unwrap_err().contains("64-bit"));
        assert!(parse("1.5GiB").is_err());
    }

    #[test]
    fn what_is_shown_reads_back() {
        for bytes in [0, 1, 1023, 1024, 64 << 20, 1 << 30, 1_000_000, u64::MAX] {
            assert_eq!(parse(&show(bytes)), Ok(bytes));
        }
        assert_eq!(show(64 << 20), "64MiB");
    }
}
