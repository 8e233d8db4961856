//! Bad input: each with a clear message, and nothing done.

use pillion_tests::support::process::run;

const THREE_MISTAKES: &str = "\
kind: Service
name: orders
namespace: shop
ports:
  - {name: http, port: 80, targetPort: 808080, protocol: http}
lodBalancing: {policy: ewma}
---
kind: Route
name: canary
namespace: shop
to: orders
rules:
  - split: [{subset: v1, weigth: 90}]
";

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

#[tokio::test]
async fn three_mistakes_are_reported_in_one_run_with_their_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, "mesh.yaml", THREE_MISTAKES);
    let finished = run(["validate", "-f", &path]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    for want in [
        "mesh.yaml:5:40",
        "ports[0].targetPort",
        "mesh.yaml:6:1",
        "lodBalancing",
        "loadBalancing",
        "mesh.yaml:13:26",
        "weigth",
        "weight",
        "3 mistakes found",
    ] {
        assert!(finished.stderr.contains(want), "no `{want}` in:\n{}", finished.stderr);
    }
    let finished = run(["validate", "-o", "json", &path]).await;
    let mistakes: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!((finished.code, mistakes.as_array().map(Vec::len)), (1, Some(3)), "{finished:?}");
}

#[tokio::test]
async fn rules_that_cannot_hold_name_what_is_missing() {
    let service =
        "kind: Service\nname: orders\nports: [{name: http, port: 80}]\nsubsets: {v1: {version: \"1\"}}\n";
    for (more, want) in [
        ("kind: Teapot\nname: x\n", "Teapot"),
        ("kind: Route\nname: r\nto: orders\nrules: [{split: [{subset: v2, weight: 1}]}]\n", "v2"),
        ("kind: Route\nname: r\nto: nobody\nrules: [{split: [{weight: 1}]}]\n", "nobody"),
        ("kind: Service\nname: orders\nports: [{name: http, port: 80}]\n", "already defined"),
        ("kind: [\n", "unclosed bracket"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = file(&folder, "mesh.yaml", &format!("{service}---\n{more}"));
        let finished = run(["validate", "-f", &path]).await;
        assert_eq!(finished.code, 1, "{more}: {finished:?}");
        assert!(finished.stderr.contains(want), "{more}: no `{want}` in:\n{}", finished.stderr);
    }
}

#[tokio::test]
async fn valid_files_are_listed_and_the_schema_knows_the_kinds() {
    let examples = pillion_tests::support::binary::repository().join("config/examples");
    let finished = run([std::ffi::OsStr::new("validate"), examples.as_os_str()]).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.contains("Service"), "{finished:?}");
    let finished = run(["schema", "Service"]).await;
    let schema: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(schema["$ref"], "#/$defs/Service", "{finished:?}");
}
