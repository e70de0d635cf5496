//! The lines of the demo: each is known by its number, and so is what every version of the filter
//! makes of it.

/// One in so many lines is a DEBUG line.
const DEBUG_EVERY: u64 = 4;
/// What stands before a line's number.
const NUMBER: &str = " line=";
const USERS: [&str; 5] = ["ann", "ben", "cleo", "dan", "eve"];
const REQUESTS: [&str; 3] = ["GET /cart", "POST /order", "GET /help"];

/// What was done to a line, in the order in which the demo has it done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// Nothing: without a filter, or kept by `drop_debug`.
    AsWritten,
    /// The token is blanked out.
    NoToken,
    /// The token and the user are blanked out.
    NoTokenNoUser,
}

impl Version {
    /// All of them, in order.
    pub(super) const ALL: [Self; 3] = [Self::AsWritten, Self::NoToken, Self::NoTokenNoUser];
}

/// Whether the line is one that `drop_debug` drops.
pub(super) fn is_debug(number: u64) -> bool {
    number % DEBUG_EVERY == DEBUG_EVERY - 1
}

/// The line of that number as `version` leaves it.
pub(super) fn text(number: u64, version: Version) -> String {
    let level = if is_debug(number) { "DEBUG" } else { "INFO" };
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let token = if version == Version::AsWritten { format!("{mixed:08x}") } else { "***".into() };
    let user = if version == Version::NoTokenNoUser { "***" } else { pick(&USERS, mixed) };
    let request = pick(&REQUESTS, mixed >> 8);
    format!("{level}{NUMBER}{number} user={user} token={token} {request} in {} ms", mixed % 97)
}

/// The number of a line, whatever was done to it, and what that was; `None` if it is no line of
/// the demo or no version's.
pub(super) fn parse(payload: &[u8]) -> Option<(u64, Version)> {
    let line = std::str::from_utf8(payload).ok()?;
    let (number, _) = line.split_once(NUMBER)?.1.split_once(' ')?;
    let number = number.parse().ok()?;
    let version = Version::ALL.into_iter().find(|version| text(number, *version) == line)?;
    Some((number, version))
}

fn pick(from: &[&'static str], by: u64) -> &'static str {
    from[(by % from.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_in_every_version_and_in_no_mixture() {
        for version in Version::ALL {
            for number in 0..100 {
                assert_eq!(parse(text(number, version).as_bytes()), Some((number, version)));
            }
        }
        let mixed = text(7, Version::NoTokenNoUser).replace("token=***", "token=0");
        assert_eq!(parse(mixed.as_bytes()), None);
        assert_eq!(parse(b"something else"), None);
    }
}
