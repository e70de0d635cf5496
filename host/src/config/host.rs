//! What the host says about itself: the defaults that no file names.

use std::ffi::OsString;
use std::net::UdpSocket;
use std::path::PathBuf;

/// An address on the other side of the default route. Nothing is sent there.
const FAR_AWAY: &str = "8.8.8.8:80";

/// The surroundings of the agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    pub(super) name: String,
    /// Of the default route, or of the loopback where there is none.
    pub(super) ip: String,
    /// Where state goes when nobody says; `None` without a home.
    pub(super) state_dir: Option<PathBuf>,
    /// Where the socket goes when nobody says; `None`: into the state directory.
    pub(super) runtime_dir: Option<PathBuf>,
    /// `WEIR_ALLOW`: directories separated by colons.
    pub(super) allow: Vec<PathBuf>,
}

impl Host {
    /// This one.
    pub(super) fn here() -> Self {
        Self::with(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn with(env: impl Fn(&str) -> Option<OsString>) -> Self {
        // systemd gives several directories where several were asked for.
        let first = |name: &str| env(name).and_then(|dirs| std::env::split_paths(&dirs).next());
        let state_home = || env("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let home = || env("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        Self {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            ip: default_route().unwrap_or_else(|_| "127.0.0.1".into()),
            state_dir: first("STATE_DIRECTORY").or_else(|| Some(state_home().or_else(home)?.join("weir"))),
            runtime_dir: first("RUNTIME_DIRECTORY"),
            allow: env("WEIR_ALLOW").map_or_else(Vec::new, |dirs| std::env::split_paths(&dirs).collect()),
        }
    }
}

fn default_route() -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(FAR_AWAY)?;
    Ok(socket.local_addr()?.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(vars: &[(&str, &str)]) -> Host {
        Host::with(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn systemd_goes_before_xdg_and_xdg_before_home() {
        let (systemd, xdg, home) = (
            ("STATE_DIRECTORY", "/var/lib/weir:/var/lib/x"),
            ("XDG_STATE_HOME", "/xdg"),
            ("HOME", "/home/ann"),
        );
        let state = |vars: &[_]| host(vars).state_dir.map(|dir| dir.display().to_string());
        assert_eq!(state(&[systemd, xdg, home]).as_deref(), Some("/var/lib/weir"));
        assert_eq!(state(&[xdg, home]).as_deref(), Some("/xdg/weir"));
        assert_eq!(state(&[home]).as_deref(), Some("/home/ann/.local/state/weir"));
        assert_eq!(state(&[]), None);
    }

    #[test]
    fn allowed_directories_are_separated_by_colons() {
        assert_eq!(host(&[("WEIR_ALLOW", "/a:/b")]).allow, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    #[test]
    fn a_host_has_a_name_and_an_address() {
        let host = host(&[]);
        assert!(!host.name.is_empty());
        assert!(host.ip.parse::<std::net::IpAddr>().is_ok());
    }
}
