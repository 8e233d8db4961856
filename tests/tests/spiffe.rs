//! A sidecar that has its identity from a SPIFFE agent. SPIRE cannot be had here: the agent is a script with
//! the messages of the Python package `spiffe`, and openssl signs what it gives.

use std::path::Path;

use pillion_tests::support::process::finish;
use pillion_tests::support::{App, DEADLINE, Plan, Process, Registry, Sidecar, eventually, peer};

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "hello.default.mesh.internal";

struct Company<'a> {
    openssl: &'a Path,
    folder: &'a Path,
}

impl Company<'_> {
    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// `<name>.pem` and `<name>.key`, signed by the root unless it is that.
    async fn certificate(&self, name: &str, extensions: &[&str]) {
        let (config, key, pem) =
            (self.file("openssl.cnf"), self.file(&format!("{name}.key")), self.file(&format!("{name}.pem")));
        std::fs::write(&config, "[req]\ndistinguished_name=dn\n[dn]\n").expect("written");
        let (root, root_key) = (self.file("root.pem"), self.file("root.key"));
        let subject = format!("/O=Example/CN={name}");
        let mut arguments =
            vec!["req", "-config", &config, "-x509", "-days", "2", "-subj", &subject, "-nodes"];
        arguments.extend(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        arguments.extend(["-keyout", &key, "-out", &pem]);
        if name != "root" {
            arguments.extend(["-CA", &root, "-CAkey", &root_key]);
        }
        for extension in extensions {
            arguments.extend(["-addext", extension]);
        }
        let made = finish(self.openssl, arguments).await;
        assert_eq!(made.code, 0, "{made:?}");
    }

    /// A new certificate of this service for the agent to give.
    async fn gives(&self, service: &str, agent: &Path) {
        let id = format!("spiffe://mesh.internal/ns/default/svc/{service}");
        let uri = format!("subjectAltName=URI:{id}");
        let usage = ["keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"];
        self.certificate(
            "leaf",
            &[&[uri.as_str(), "basicConstraints=critical,CA:FALSE"], &usage[..]].concat(),
        )
        .await;
        std::fs::write(agent.join("id"), id).expect("written");
        // The certificate last, and whole: it is what the agent looks at.
        for (from, to) in [("root.pem", "bundle.pem"), ("leaf.key", "key.pem"), ("leaf.pem", "svid.new")] {
            std::fs::copy(self.folder.join(from), agent.join(to)).expect("copied");
        }
        std::fs::rename(agent.join("svid.new"), agent.join("svid.pem")).expect("renamed");
    }
}

#[tokio::test]
async fn an_agent_gives_the_identity_and_the_next_one() {
    let (Some(openssl), Some(python)) = (peer("openssl"), peer("python-spiffe")) else { return };
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [folder, data, given] = &folders;
    let company = Company { openssl: &openssl, folder: folder.path() };
    company
        .certificate("root", &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"])
        .await;
    let ours = ["--ca-cert", &company.file("root.pem"), "--ca-key", &company.file("root.key")];
    let registry = Registry::start_with(data.path(), &[&["--open"], &ours[..]].concat()).await;
    registry.apply(HELLO).await;
    let app = App::start("hello").await;
    let _hello = Sidecar::beside(&registry, "hello.default", app.address).await;

    let socket = company.file("agent.sock");
    let script = pillion_tests::support::peer::script("spiffe_agent.py");
    let folder = given.path().display().to_string();
    let agent = Process::program("agent", &python, [script.as_str(), &socket, &folder]);
    agent.line("serving", |line| (line == "serving").then_some(())).await;
    let address = format!("unix://{socket}");
    let plan = Plan::caller(registry.mesh, "web.default").with(&["--spiffe-socket", &address]);
    let process = Process::pillion("sidecar", plan.arguments());
    let waits = |what: &'static str| {
        let process = &process;
        async move { process.line(what, |line| line.contains(what).then_some(())).await }
    };
    // Nobody is known to it; then somebody else; then we are.
    waits("no identity issued").await;
    company.gives("another", given.path()).await;
    waits("the agent has no identity of web.default, only spiffe://mesh.internal/ns/default/svc/another")
        .await;
    company.gives("web", given.path()).await;
    let outbound = process.bound("outbound").await;
    let asked = async || {
        eventually("hello answers", DEADLINE, || async {
            let answer = pillion_tests::support::http::get(outbound, NAME, "/").await?;
            if answer.status == 200 { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await
    };
    assert_eq!(asked().await.json()["caller"], "spiffe://mesh.internal/ns/default/svc/web");

    // The next one comes by the stream.
    company.gives("web", given.path()).await;
    waits("the agent gave an identity").await;
    asked().await;
    // What is revoked the registry tells.
    let revoked = registry.cli(&["ca", "revoke", "spiffe://mesh.internal/ns/default/svc/hello"]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");
    waits("whom not to trust has changed").await;
}
