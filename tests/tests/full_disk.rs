//! A disk that is full, and then is not any more.

use std::path::Path;
use std::process::Command;

use pillion_tests::support::peer::skip;
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::{DEADLINE, Registry, eventually};
use serde_json::json;

/// A small disk of its own, until dropped.
struct Disk<'a> {
    folder: &'a Path,
}

impl<'a> Disk<'a> {
    fn mount(folder: &'a Path, size: &str) -> Self {
        let options = format!("size={size}");
        mount(&["-t", "tmpfs", "-o", &options, "pillion", &folder.display().to_string()]);
        Self { folder }
    }

    fn grow(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}"), &self.folder.display().to_string()]);
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // What still has files open there keeps them until it ends.
        drop(Command::new("umount").arg("--lazy").arg(self.folder).status());
    }
}

fn mount(arguments: &[&str]) {
    let status = Command::new("mount").args(arguments).status().expect("mount can be started");
    assert!(status.success(), "mount {arguments:?}: {status}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_forgiven() {
    if !rustix::process::geteuid().is_root() {
        return skip("mount", "it needs root");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Disk::mount(folder.path(), "2m");
    let registry = Registry::start(folder.path()).await;
    let register = async |n: usize| {
        let path = format!("/v1/namespaces/shop/services/orders/instances/orders-{n}");
        let metadata = json!({"filler": format!("{n:04}").repeat(900)});
        let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "1h", "metadata": metadata});
        registry.put(&path, &body).await
    };
    let mut registered = 0;
    let refused = loop {
        let answer = register(registered).await;
        if answer.status != 201 {
            break answer;
        }
        registered += 1;
        assert!(registered < 2000, "a disk of 2 MiB is never full");
    };
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("No space left on device"), "{refused:?}");
    let told = registry.get("/v1/store").await.json();
    assert!(told["trouble"].as_str().is_some_and(|text| text.contains("No space left")), "{told}");
    let up = async || sum(&registry.get("/metrics").await.body, "pillion_registry_store_up", &[]);
    assert_eq!(up().await, 0.0);

    disk.grow("64m");
    eventually("it is registered", DEADLINE, || async {
        let answer = register(registered).await;
        if answer.status == 201 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(up().await, 1.0);
    assert_eq!(registry.get("/v1/store").await.json().get("trouble"), None);
    // What was acknowledged before and after is there, and nothing else.
    let restarted = registry.crash_and_restart().await;
    restarted.serving("orders.shop", registered + 1).await;
}
