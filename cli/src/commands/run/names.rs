//! How the command of `pillion run` finds services by name: the best way this host allows.
//!
//! A private mount namespace with its own `resolv.conf` serves every program, but needs the right to
//! make one and to bind port 53. Otherwise the proxy variables serve programs that heed them. Files
//! of the host are never edited.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::process::Command;

use super::words_to_command;

/// The file that programs read to find their DNS servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How many loopback addresses are tried for port 53.
const TRIES: u8 = 32;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// The best available.
    #[default]
    Auto,
    /// A private resolv.conf that names the sidecar's DNS.
    Dns,
    /// The variables `http_proxy` and `no_proxy`.
    Proxy,
    /// None: the command knows what to do.
    None,
}

/// The way in force.
pub(super) enum Names {
    /// A private resolv.conf; the sidecar's DNS listens on this address.
    Dns { server: SocketAddr, file: PrivateFile },
    /// The proxy variables.
    Proxy,
    /// Nothing is set.
    None,
}

impl Names {
    /// Looks what this host allows.
    pub(super) fn choose(choice: Choice) -> anyhow::Result<Self> {
        match choice {
            Choice::Auto => Ok(Self::dns().unwrap_or(Self::Proxy)),
            Choice::Dns => Self::dns().context("--names dns"),
            Choice::Proxy => Ok(Self::Proxy),
            Choice::None => Ok(Self::None),
        }
    }

    fn dns() -> anyhow::Result<Self> {
        anyhow::ensure!(
            rustix::process::geteuid().is_root(),
            "a private mount namespace needs root (or CAP_SYS_ADMIN and CAP_NET_BIND_SERVICE)"
        );
        let server = free_dns_address()?;
        let text = resolv_conf(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default(), server);
        let file = PrivateFile::write(&text)?;
        // What the command will do is tried once, so that it cannot fail after the sidecar has joined.
        let binary = std::env::current_exe().context("find our own binary")?;
        let mut probe = std::process::Command::new(binary);
        probe.args(["in-namespace", "--resolv-conf"]).arg(&file.0).args([
            "--",
            "/proc/self/exe",
            "--version",
        ]);
        let output = probe.output().context("try a private mount namespace")?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(output.status.success(), "a private mount namespace is not allowed here: {said}");
        Ok(Self::Dns { server, file })
    }

    /// Where the sidecar's DNS must listen for this way.
    pub(super) fn dns_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Dns { server, .. } => Some(*server),
            Self::Proxy | Self::None => None,
        }
    }

    /// The command, wrapped as this way needs it.
    pub(super) fn command(&self, words: &[OsString]) -> anyhow::Result<Command> {
        let Self::Dns { file, .. } = self else { return words_to_command(words) };
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.args(["in-namespace", "--resolv-conf"]).arg(&file.0).arg("--").args(words);
        Ok(command)
    }

    /// The variables that the command gets for this way.
    pub(super) fn environment(&self, outbound: SocketAddr) -> Vec<(&'static str, String)> {
        match self {
            Self::Proxy => vec![
                ("http_proxy", format!("http://{outbound}")),
                ("no_proxy", "localhost,127.0.0.1,::1".to_owned()),
            ],
            Self::Dns { .. } | Self::None => Vec::new(),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns { server, .. } => write!(f, "by DNS, a private resolv.conf names {}", server.ip()),
            Self::Proxy => {
                f.write_str("by the variables http_proxy and no_proxy, for programs that heed them")
            }
            Self::None => {
                f.write_str("left to the command; PILLION_PROXY and PILLION_DNS_SERVER say where to ask")
            }
        }
    }
}

/// A loopback address whose port 53 is free, below 127.53.0.0/16.
fn free_dns_address() -> anyhow::Result<SocketAddr> {
    let mut last = None;
    for _ in 0..TRIES {
        let address = SocketAddr::from((Ipv4Addr::new(127, 53, fastrand::u8(..), fastrand::u8(1..255)), 53));
        match UdpSocket::bind(address).and_then(|_free| std::net::TcpListener::bind(address)) {
            Ok(_free) => return Ok(address),
            Err(error) => last = Some(error),
        }
    }
    let last = last.map(anyhow::Error::from).unwrap_or_else(|| anyhow::anyhow!("nothing was tried"));
    Err(last.context("bind port 53 of a loopback address"))
}

/// The host's resolver settings with other servers.
fn resolv_conf(host: &str, server: SocketAddr) -> String {
    let kept = host
        .lines()
        .filter(|line| matches!(line.split_whitespace().next(), Some("search" | "domain" | "options")));
    let mut text =
        format!("# Written by `pillion run` for this command alone.\nnameserver {}\n", server.ip());
    for line in kept {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A file in the temporary folder that goes with us.
pub(super) struct PrivateFile(PathBuf);

impl PrivateFile {
    fn write(text: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "pillion-resolv-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        ));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("create {}", path.display()))?;
        let kept = Self(path);
        file.write_all(text.as_bytes()).with_context(|| format!("write {}", kept.0.display()))?;
        Ok(kept)
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // it is in the temporary folder, which is cleared anyway
    }
}

/// Arguments of the hidden `pillion in-namespace`.
#[derive(Debug, clap::Args)]
pub(crate) struct InNamespace {
    /// The file to see as /etc/resolv.conf.
    #[arg(long)]
    resolv_conf: PathBuf,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command, in a mount namespace where `/etc/resolv.conf` is another file.
pub(crate) fn in_namespace(arguments: &InNamespace) -> anyhow::Result<()> {
    make_namespace(&arguments.resolv_conf)?;
    let (program, rest) = arguments.command.split_first().context("no command given")?;
    let error = std::process::Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("start `{}`", program.to_string_lossy()))
}

fn make_namespace(file: &Path) -> anyhow::Result<()> {
    #[expect(unsafe_code, reason = "only the mount namespace is left, before any other thread exists")]
    // SAFETY: the flag concerns mounts alone; no file descriptor table is unshared.
    unsafe {
        unshare_unsafe(UnshareFlags::NEWNS).context("make a mount namespace")?;
    }
    // What is mounted from here on stays here.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("detach mounts")?;
    let target = std::fs::canonicalize(RESOLV_CONF).with_context(|| format!("find {RESOLV_CONF}"))?;
    mount_bind(file, &target).with_context(|| format!("mount over {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_and_options_are_kept_and_servers_replaced() {
        let host =
            "# by hand\nnameserver 10.0.0.2\nsearch example.com\noptions ndots:2\nnameserver 10.0.0.3\n";
        let text = resolv_conf(host, SocketAddr::from(([127, 53, 1, 2], 53)));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["nameserver 127.53.1.2", "search example.com", "options ndots:2"]);
    }
}
