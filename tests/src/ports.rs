//! Free ports on 127.0.0.1.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the kernel's range for outgoing connections (from 32768), so that nothing takes the port
/// of a broker that is down for a moment.
const RANGE: std::ops::Range<u32> = 12_000..32_000;

/// A port on which nothing listens now, and which this process gives to nobody else.
pub fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run at the same time begin at different places.
    let base = std::process::id().wrapping_mul(97);
    for _ in RANGE {
        let step = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (RANGE.end - RANGE.start);
        let port = u16::try_from(RANGE.start + step).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {} and {}", RANGE.start, RANGE.end);
}
