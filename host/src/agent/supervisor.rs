//! What the service manager is told.
//!
//! In: `NOTIFY_SOCKET` and `WATCHDOG_USEC`, where systemd set them. Out: ready, alive, stopping, and a line for
//! `systemctl status`. Signs of life come from the agent's own loop, so an agent that hangs is started again.

use std::future::pending;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service manager; nobody where there is none.
pub(super) struct Supervisor {
    beat: Option<Interval>,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        let beat = sd_notify::watchdog_enabled().map(|limit| {
            // Twice as often as it must be, as sd_watchdog_enabled(3) asks for.
            let mut beat = interval(limit / 2);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beat
        });
        Self { beat }
    }

    /// The state is open, the sockets listen, the list is being followed.
    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("delivers what was read, then stops")]);
    }

    /// A line for `systemctl status`.
    pub(super) fn status(&self, text: &str) {
        tell(&[NotifyState::Status(text)]);
    }

    /// Done when a sign of life was due and given; never without a watchdog.
    pub(super) async fn beat(&mut self) {
        match &mut self.beat {
            Some(beat) => {
                beat.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
            None => pending().await,
        }
    }
}

fn tell(states: &[NotifyState]) {
    // Without NOTIFY_SOCKET this does nothing.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
