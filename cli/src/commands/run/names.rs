//! How the command of `pillion run` finds services by name: the best way this host allows.
//!
//! A private mount namespace with its own `resolv.conf` serves every program, but needs the right to
//! bind port 53. A private hosts file needs only a user namespace, and knows the names that the
//! sidecar has learnt: dependencies, upstreams, and what was called before. The proxy variables serve
//! programs that heed them, for every name. Files of the host are never edited.

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
use crate::commands::sidecar::ListenArguments;
use crate::exit::CannotStart;

/// The file that programs read to find their DNS servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The file in which programs look for names first.
const HOSTS: &str = "/etc/hosts";
/// The lowest port that everybody may bind.
const PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
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
    /// A private hosts file that the sidecar keeps, and the proxy variables for names it lacks.
    Hosts,
    /// The variables `http_proxy` and `no_proxy`.
    Proxy,
    /// None: the command knows what to do.
    None,
}

/// The way in force.
pub(super) enum Names {
    /// A private resolv.conf; the sidecar's DNS listens on this address.
    Dns { server: SocketAddr, file: PrivateFile },
    /// A private hosts file, and the proxy variables.
    Hosts { file: PrivateFile },
    /// The proxy variables.
    Proxy,
    /// Nothing is set.
    None,
}

impl Names {
    /// Looks what this host allows.
    pub(super) fn choose(choice: Choice) -> anyhow::Result<Self> {
        match choice {
            Choice::Auto => Ok(Self::dns().or_else(|_| Self::hosts()).unwrap_or(Self::Proxy)),
            Choice::Dns => Self::dns().context("--names dns"),
            Choice::Hosts => Self::hosts().context("--names hosts"),
            Choice::Proxy => Ok(Self::Proxy),
            Choice::None => Ok(Self::None),
        }
    }

    fn dns() -> anyhow::Result<Self> {
        let server = free_dns_address()?;
        let text = resolv_conf(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default(), server);
        let file = PrivateFile::write("resolv.conf", &text)?;
        let names = Self::Dns { server, file };
        names.check()?;
        Ok(names)
    }

    fn hosts() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(HOSTS).with_context(|| format!("read {HOSTS}"))?;
        let names = Self::Hosts { file: PrivateFile::write("hosts", &text)? };
        names.check()?;
        Ok(names)
    }

    /// Tries once what the command will do, so that it cannot fail after the sidecar has joined.
    fn check(&self) -> anyhow::Result<()> {
        let mut words = self.wrapper()?.into_iter().flatten();
        let mut probe = std::process::Command::new(words.next().context("no namespace is needed")?);
        probe.args(words).args(["/proc/self/exe", "--version"]);
        let output = probe.output().context("try a private mount namespace")?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(output.status.success(), "a private mount namespace is not allowed here: {said}");
        Ok(())
    }

    /// Tells the sidecar where to listen and what to keep for this way: elsewhere than `pillion proxy`
    /// on free ports, so that several fit on a host.
    pub(super) fn prepare(&self, listen: &mut ListenArguments) {
        let (any, local) =
            (SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        listen.inbound.get_or_insert(any);
        listen.outbound.get_or_insert(local);
        listen.admin.get_or_insert(local);
        listen.metrics.get_or_insert(any);
        let dns = match self {
            Self::Dns { server, .. } => *server,
            Self::Hosts { .. } | Self::Proxy | Self::None => local,
        };
        listen.dns.get_or_insert(dns);
        if let Self::Hosts { file } = self {
            listen.hosts_file = Some(file.0.clone());
        }
    }

    /// The command, wrapped as this way needs it.
    pub(super) fn command(&self, words: &[OsString]) -> anyhow::Result<Command> {
        let Some(wrapper) = self.wrapper()? else { return words_to_command(words) };
        words_to_command(&[&wrapper, words].concat())
    }

    /// What stands before the command; `None`: nothing.
    fn wrapper(&self) -> anyhow::Result<Option<Vec<OsString>>> {
        let (file, target) = match self {
            Self::Dns { file, .. } => (file, RESOLV_CONF),
            Self::Hosts { file } => (file, HOSTS),
            Self::Proxy | Self::None => return Ok(None),
        };
        let binary = std::env::current_exe().context("find our own binary")?;
        let words: [OsString; 7] = [
            binary.into(),
            "in-namespace".into(),
            "--file".into(),
            file.0.clone().into(),
            "--over".into(),
            target.into(),
            "--".into(),
        ];
        Ok(Some(words.into()))
    }

    /// The variables that the command gets for this way.
    pub(super) fn environment(&self, outbound: SocketAddr) -> Vec<(&'static str, String)> {
        match self {
            Self::Proxy | Self::Hosts { .. } => vec![
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
            Self::Hosts { .. } => {
                f.write_str(
                    "by a private hosts file, for --dependency, --upstream and services called before, and \
                     by the variables http_proxy and no_proxy",
                )?;
                match port_start() {
                    0..=80 => Ok(()),
                    start => write!(f, "; ports below {start} by the variables alone"),
                }
            }
            Self::Proxy => {
                f.write_str("by the variables http_proxy and no_proxy, for programs that heed them")
            }
            Self::None => {
                f.write_str("left to the command; PILLION_PROXY and PILLION_DNS_SERVER say where to ask")
            }
        }
    }
}

/// The lowest port that the sidecar may bind for a service.
fn port_start() -> u16 {
    if rustix::process::geteuid().is_root() {
        return 0;
    }
    let text = std::fs::read_to_string(PORT_START).unwrap_or_default();
    text.trim().parse().unwrap_or(PORT_START_DEFAULT)
}

/// The kernel's default of [`PORT_START`].
const PORT_START_DEFAULT: u16 = 1024;

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
    fn write(name: &str, text: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "pillion-{name}-{}-{:08x}",
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
    /// The file to see.
    #[arg(long)]
    file: PathBuf,
    /// Where to see it.
    #[arg(long)]
    over: PathBuf,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command, in a mount namespace where one file is another.
pub(crate) fn in_namespace(arguments: &InNamespace) -> anyhow::Result<()> {
    make_namespace(&arguments.file, &arguments.over)?;
    let (program, rest) = arguments.command.split_first().context("no command given")?;
    let reason = std::process::Command::new(program).args(rest).exec();
    Err(CannotStart { program: program.to_string_lossy().into_owned(), reason }.into())
}

fn make_namespace(file: &Path, over: &Path) -> anyhow::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // Whoever is not root may make mounts only in a user namespace of its own.
    let flags = if is_root { UnshareFlags::NEWNS } else { UnshareFlags::NEWNS | UnshareFlags::NEWUSER };
    #[expect(unsafe_code, reason = "only namespaces are left, before any other thread exists")]
    // SAFETY: the flags concern mounts and ids alone; no file descriptor table is unshared.
    unsafe {
        unshare_unsafe(flags).context("make a mount namespace")?;
    }
    if !is_root {
        // The same user inside and outside, so that files are whose they were.
        for (map, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{user} {user} 1")),
            ("gid_map", format!("{group} {group} 1")),
        ] {
            std::fs::write(format!("/proc/self/{map}"), text).with_context(|| format!("write {map}"))?;
        }
    }
    // What is mounted from here on stays here.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("detach mounts")?;
    let target = std::fs::canonicalize(over).with_context(|| format!("find {}", over.display()))?;
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
