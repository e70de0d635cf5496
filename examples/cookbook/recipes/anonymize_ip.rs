//! Makes addresses anonymous: of IPv4 the last of four bytes becomes 0, of IPv6 all behind the
//! first 48 bits, so that networks can still be told apart.
//!
//! An address is a whole word, perhaps with a port: `10.1.2.3`, `10.1.2.3:80`, `[2001:db8::1]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use weir_guest::Verdict;

fn anonymous(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !(u128::MAX >> 48)).into(),
    }
}

/// The word with its address made anonymous, if it is one.
fn anonymous_word(word: &[u8]) -> Option<String> {
    // Most words are none, and most of these show it here.
    if !word.iter().any(|byte| b".:".contains(byte)) {
        return None;
    }
    let word = std::str::from_utf8(word).ok()?;
    let bare = word.trim_end_matches(['.', ':']);
    let behind = &word[bare.len()..];
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(format!("{}{behind}", anonymous(address)));
    }
    let address: SocketAddrV4 = bare.parse().ok()?;
    Some(format!("{}:{}{behind}", anonymous((*address.ip()).into()), address.port()))
}

fn of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.:".contains(&byte) || !byte.is_ascii()
}

#[weir_guest::filter]
fn anonymize_ip(line: &[u8]) -> Verdict<'_> {
    let mut changed = Vec::new();
    let mut copied = 0;
    let mut begin = 0;
    for word in line.split(|byte| !of_word(*byte)) {
        if let Some(anonymous) = anonymous_word(word) {
            changed.extend_from_slice(&line[copied..begin]);
            changed.extend_from_slice(anonymous.as_bytes());
            copied = begin + word.len();
        }
        begin += word.len() + 1;
    }
    if copied == 0 {
        return Verdict::Keep;
    }
    changed.extend_from_slice(&line[copied..]);
    Verdict::replace(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_what_tells_people_apart() {
        for (line, expected) in [
            ("10.1.2.3 GET /", "10.1.2.0 GET /"),
            ("from=192.168.7.9:4711, to=10.0.0.5.", "from=192.168.7.0:4711, to=10.0.0.0."),
            ("[2001:db8:1:2::3]:80", "[2001:db8:1::]:80"),
        ] {
            assert_eq!(anonymize_ip(line.as_bytes()), Verdict::replace(expected.as_bytes()));
        }
    }

    #[test]
    fn what_only_looks_like_an_address_stays() {
        for line in ["12:30:59", "std::fmt", "v1.2.3.4", "1.2.3.4.5", "d::f_x", "é::1", "", "..."] {
            assert_eq!(anonymize_ip(line.as_bytes()), Verdict::Keep, "{line}");
        }
    }
}
