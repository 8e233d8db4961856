//! The last configuration on disk, so that a sidecar that starts while the registry is away
//! serves with what it had.
//!
//! `config.bin` in the state directory: one line `pillion-config 1 <SHA-256 of the rest>`, then a
//! protobuf message. Written to a temporary file (mode 0600) and renamed, so a crash leaves the old
//! or the new one. A file that is damaged, or another node's, is reported and not used.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

/// Name of the file in the state directory.
pub(super) const FILE: &str = "config.bin";
const HEADER: &str = "pillion-config 1 ";
/// Largest file read.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What is kept.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Saved {
    /// Whose configuration it is.
    #[prost(string, tag = "1")]
    pub(super) node_id: String,
    /// Every resource held.
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<SavedResource>,
    /// Names asked for on demand, least recently used first.
    #[prost(string, repeated, tag = "3")]
    pub(super) on_demand: Vec<String>,
}

/// One resource as received.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedResource {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) version: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) body: Bytes,
}

/// Why a saved configuration is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is damaged: {reason}; it will be replaced", .path.display())]
    Damaged { path: PathBuf, reason: &'static str },
    #[error("{} belongs to node {found:?}, not {want:?}; it is not used and will be replaced", .path.display())]
    OtherNode { path: PathBuf, found: String, want: String },
}

/// Reads the configuration of `node_id`; `None` when there is no file.
pub(super) fn load(dir: &Path, node_id: &str) -> Result<Option<Saved>, LoadError> {
    let path = dir.join(FILE);
    let mut content = Vec::new();
    match File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)) {
        Ok(_bytes) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LoadError::Read(path, error)),
    }
    let saved = match parse(content) {
        Ok(saved) => saved,
        Err(reason) => return Err(LoadError::Damaged { path, reason }),
    };
    if saved.node_id != node_id {
        return Err(LoadError::OtherNode { path, found: saved.node_id, want: node_id.to_owned() });
    }
    Ok(Some(saved))
}

fn parse(content: Vec<u8>) -> Result<Saved, &'static str> {
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err("it is larger than 256 MiB");
    }
    let rest = content.strip_prefix(HEADER.as_bytes()).ok_or("the first line is not ours")?;
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or("the first line has no end")?;
    if rest[..end] != *checksum(&rest[end + 1..]).as_bytes() {
        return Err("the checksum does not match");
    }
    let body = Bytes::from(content).slice(HEADER.len() + end + 1..);
    Saved::decode(body).map_err(|_error| "the message cannot be decoded")
}

fn checksum(body: &[u8]) -> String {
    use std::fmt::Write;
    digest(&SHA256, body).as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // into a String: cannot fail
        hex
    })
}

/// Replaces the file.
pub(super) fn store(dir: &Path, saved: &Saved) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let body = saved.encode_to_vec();
    let temporary = dir.join(format!("{FILE}.new"));
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{HEADER}{}", checksum(&body))?;
    file.write_all(&body)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

/// Writes the newest state offered, one write at a time; ends when the sender is gone and the last
/// state is on disk. Failures go to `report`.
pub(super) async fn keep(
    dir: PathBuf,
    mut states: watch::Receiver<Option<Saved>>,
    report: impl Fn(Option<String>),
) {
    while states.changed().await.is_ok() {
        let Some(saved) = states.borrow_and_update().clone() else {
            continue;
        };
        let target = dir.clone();
        let written = tokio::task::spawn_blocking(move || store(&target, &saved)).await;
        report(match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("cannot write {}: {error}", dir.join(FILE).display())),
            Err(_panicked) => Some(format!("writing {} panicked", dir.join(FILE).display())),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn saved() -> Saved {
        let resource = SavedResource {
            type_url: "t".into(),
            name: "orders.shop".into(),
            version: "1".into(),
            body: Bytes::from_static(b"body"),
        };
        Saved {
            node_id: "shop/web/a".into(),
            resources: vec![resource],
            on_demand: vec!["orders.shop".into()],
        }
    }

    #[test]
    fn a_configuration_reads_back_what_was_written_and_is_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = dir.path().join("state");
        assert!(load(&state, "shop/web/a").expect("no file is no error").is_none());
        store(&state, &Saved::default()).expect("written");
        store(&state, &saved()).expect("replaced");
        assert_eq!(load(&state, "shop/web/a").expect("read"), Some(saved()));
        let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&state).expect("listed").count(), 1, "no temporary file is left");
    }

    #[test]
    fn damaged_and_foreign_files_are_refused_and_say_why() {
        let dir = tempfile::tempdir().expect("temporary directory");
        store(dir.path(), &saved()).expect("written");
        let path = dir.path().join(FILE);
        let good = fs::read(&path).expect("read");
        let mut flipped = good.clone();
        *flipped.last_mut().expect("not empty") ^= 1;
        for (case, content, want) in [
            ("flipped", flipped, "the checksum does not match"),
            ("cut", good[..good.len() - 3].to_vec(), "the checksum does not match"),
            ("empty", Vec::new(), "the first line is not ours"),
            ("header only", HEADER.into(), "the first line has no end"),
        ] {
            fs::write(&path, content).expect(case);
            let error = load(dir.path(), "shop/web/a").expect_err(case).to_string();
            assert!(error.contains(want), "{case}: {error}");
        }
        fs::write(&path, good).expect("written");
        let error = load(dir.path(), "shop/web/b").expect_err("another node").to_string();
        assert!(error.contains("belongs to node \"shop/web/a\", not \"shop/web/b\""), "{error}");
    }
}
