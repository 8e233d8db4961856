//! An authority that a company keeps, made by openssl: two registries on one etcd sign below its root, each
//! with an intermediate of its own.

use std::path::Path;

use pillion_tests::support::process::{finish, run};
use pillion_tests::support::{App, Etcd, Plan, Registry, Sidecar, peer};

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "hello.default.mesh.internal";

/// `<name>.pem` and `<name>.key` in `folder`, signed by `by` or by itself.
async fn authority(openssl: &Path, folder: &Path, name: &str, by: Option<&str>) {
    let file = |name: &str| folder.join(name).display().to_string();
    let config = file("openssl.cnf");
    std::fs::write(&config, "[req]\ndistinguished_name=dn\n[dn]\n").expect("written");
    let (key, pem) = (file(&format!("{name}.key")), file(&format!("{name}.pem")));
    let subject = format!("/O=Example/CN={name}");
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let mut arguments = vec!["req", "-config", &config, "-x509", "-days", "30", "-subj", &subject];
    arguments.extend(curve);
    arguments.extend(["-keyout", &key, "-out", &pem, "-addext", "basicConstraints=critical,CA:TRUE"]);
    arguments.extend(["-addext", "keyUsage=critical,keyCertSign", "-addext", "subjectKeyIdentifier=hash"]);
    let by = by.map(|by| [file(&format!("{by}.pem")), file(&format!("{by}.key"))]);
    if let Some([certificate, key]) = &by {
        arguments.extend(["-CA", certificate, "-CAkey", key, "-addext", "authorityKeyIdentifier=keyid"]);
    }
    let made = finish(openssl, arguments).await;
    assert_eq!(made.code, 0, "{made:?}");
}

#[tokio::test]
async fn sidecars_of_two_registries_below_one_root_trust_each_other() {
    let Some(openssl) = peer("openssl") else { return };
    let Some(etcd) = Etcd::start().await else { return };
    let folders = [(); 4].map(|()| tempfile::tempdir().expect("a folder"));
    let [company, data, other_data, files] = &folders;
    let file = |name: &str| company.path().join(name).display().to_string();
    authority(&openssl, company.path(), "root", None).await;
    for name in ["one", "two"] {
        authority(&openssl, company.path(), name, Some("root")).await;
    }
    let store = etcd.store("mesh");
    let start = async |data: &Path, name: &str| {
        let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        let ours = ["--ca-cert", &certificate, "--ca-key", &key, "--ca-chain", &file("root.pem")];
        Registry::start_with(data, &[&["--open", "--store", &store][..], &ours].concat()).await
    };
    let one = start(data.path(), "one").await;
    let two = start(other_data.path(), "two").await;

    let out = files.path().join("web").display().to_string();
    let mesh = two.mesh.to_string();
    let joined = run(["generate", "envoy", "--registry", &mesh, "--service", "web", "--out", &out]).await;
    assert_eq!(joined.code, 0, "{joined:?}");
    let (chain, roots) = (format!("{out}/chain.pem"), format!("{out}/roots.pem"));
    let root = std::fs::read_to_string(file("root.pem")).expect("there");
    assert_eq!(std::fs::read_to_string(roots).expect("written"), root);
    let verify = ["verify", "-x509_strict", "-CAfile", &file("root.pem"), "-untrusted", &chain, &chain];
    let verified = finish(&openssl, verify).await;
    assert_eq!(verified.code, 0, "{verified:?}");

    one.apply(HELLO).await;
    let app = App::start("hello").await;
    let port = app.address.port().to_string();
    let _hello = Plan::new(one.mesh, "hello.default", &port).start().await;
    two.serving("hello.default", 1).await;
    let web = Sidecar::caller(&two, "web.default").await;
    web.get_until(NAME, "/", 200).await;

    let rotated = one.cli(&["ca", "rotate"]).await;
    assert!(rotated.code == 1 && rotated.stderr.contains("--ca-chain"), "{rotated:?}");
    let status = one.cli(&["ca", "status"]).await;
    assert!(status.stdout.contains("the authority is in files"), "{status:?}");
    // Nobody has another authority by mistake.
    let third = tempfile::tempdir().expect("a folder");
    let data = third.path().display().to_string();
    let own = run(["registry", "--data-dir", &data, "--store", &store, "--api", "127.0.0.1:0"]
        .into_iter()
        .chain(["--mesh", "127.0.0.1:0", "--dns", "127.0.0.1:0"]));
    let own = own.await;
    assert!(own.code == 1 && own.stderr.contains("--ca-cert"), "{own:?}");
}
