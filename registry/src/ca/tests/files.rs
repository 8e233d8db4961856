//! Authorities that openssl made.

use std::path::{Path, PathBuf};

use super::*;

/// A folder of authorities, made by openssl.
struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let made = Self { folder: tempfile::tempdir().expect("a folder") };
        // Without the extensions of the system's configuration.
        std::fs::write(made.file("openssl.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n").expect("written");
        made
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn key(&self, name: &str, algorithm: &[&str]) {
        let file = self.text(&format!("{name}.key"));
        run("openssl", &[&["genpkey", "-out", &file], algorithm].concat());
    }

    /// `<name>.pem` with its key, signed by `by` (itself without), with these extensions.
    fn authority(&self, name: &str, by: Option<&str>, extensions: &[&str]) {
        self.key(name, P256);
        self.certificate(name, by, extensions);
    }

    fn certificate(&self, name: &str, by: Option<&str>, extensions: &[&str]) {
        let config = self.text("openssl.cnf");
        let (key, pem) = (self.text(&format!("{name}.key")), self.text(&format!("{name}.pem")));
        let subject = format!("/O=Example/CN={name}");
        let mut arguments = vec![
            "req", "-config", &config, "-x509", "-new", "-days", "30", "-key", &key, "-out", &pem, "-subj",
            &subject,
        ];
        let by = by.map(|by| [self.text(&format!("{by}.pem")), self.text(&format!("{by}.key"))]);
        if let Some([certificate, key]) = &by {
            arguments.extend(["-CA", certificate, "-CAkey", key]);
        }
        let identifiers = ["subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid"];
        for extension in identifiers.iter().take(if by.is_some() { 2 } else { 1 }).chain(extensions) {
            arguments.extend(["-addext", extension]);
        }
        run("openssl", &arguments);
    }

    /// One file of several.
    fn joined(&self, name: &str, parts: &[&str]) -> PathBuf {
        let read = |part: &&str| std::fs::read_to_string(self.file(part)).expect("written");
        std::fs::write(self.file(name), parts.iter().map(read).collect::<String>()).expect("written");
        self.file(name)
    }

    fn files(&self, name: &str, chain: Option<&str>) -> CaFiles {
        CaFiles {
            certificate: self.file(&format!("{name}.pem")),
            key: self.file(&format!("{name}.key")),
            chain: chain.map(|chain| self.file(chain)),
        }
    }
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const RSA_1024: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"];
const RSA_2048: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const USAGE: &str = "keyUsage=critical,keyCertSign,cRLSign";
const CA: &[&str] = &["basicConstraints=critical,CA:TRUE", USAGE];
const LAST_CA: &[&str] = &["basicConstraints=critical,CA:TRUE,pathlen:0", USAGE];

async fn store(folder: &Path) -> Arc<dyn Store> {
    Arc::new(RedbStore::open(folder).expect("a store"))
}

async fn open_files(store: &Arc<dyn Store>, files: &CaFiles) -> Result<Arc<Authority>, CaError> {
    Authority::open_files(Arc::clone(store), Settings::default(), files).await
}

#[tokio::test]
async fn openssl_accepts_what_its_own_authorities_sign_here() {
    if !has("openssl") {
        return;
    }
    let made = Made::new();
    made.authority("root", None, CA);
    made.authority("middle", Some("root"), CA);
    made.authority("issuing", Some("middle"), LAST_CA);
    made.key("rsa", RSA_2048);
    made.certificate("rsa", None, CA);
    made.authority("below-rsa", Some("rsa"), CA);
    made.joined("chain.pem", &["root.pem", "middle.pem"]);
    // The length of what is sent with a leaf: an authority of this process where there is room for one.
    for (name, chain, roots, length) in [
        ("root", None, "root.pem", 2),
        ("middle", Some("root.pem"), "root.pem", 3),
        ("issuing", Some("chain.pem"), "root.pem", 3),
        ("below-rsa", Some("rsa.pem"), "rsa.pem", 3),
    ] {
        let data = tempfile::tempdir().expect("a folder");
        let store = store(data.path()).await;
        let authority = open_files(&store, &made.files(name, chain)).await.expect(name);
        let issued = authority.issue(&orders_1(), &csr()).expect("signed");
        assert_eq!(issued.chain.len(), length, "{name}");
        let pem = |der: &CertificateDer<'_>| pillion_net::identity::pem_text("CERTIFICATE", der);
        let leaf = made.file("leaf.pem");
        std::fs::write(&leaf, issued.chain.iter().map(pem).collect::<String>()).expect("written");
        let (leaf, roots) = (leaf.display().to_string(), made.text(roots));
        let said = run("openssl", &["verify", "-x509_strict", "-CAfile", &roots, "-untrusted", &leaf, &leaf]);
        assert!(said.contains("OK"), "{name}: {said}");
        assert_eq!(authority.info().root_pem, std::fs::read_to_string(roots).expect("there"), "{name}");
        let error = authority.rotate(false).await.expect_err("not ours to change").to_string();
        assert!(error.contains("--ca-chain"), "{error}");
        let kept = store.load_space(Space::Ca).await.expect("read");
        let kept = String::from_utf8(kept.entries[&Material::key()].value.to_vec()).expect("JSON");
        assert!(kept.contains("rootsSha256") && !kept.to_lowercase().contains("key"), "{kept}");
        drop(authority);
        let error = Authority::open(store, Settings::default()).await.expect_err("without").to_string();
        assert!(error.contains("start the registry with --ca-cert"), "{error}");
    }
}

#[tokio::test]
async fn files_that_make_no_authority_say_why() {
    if !has("openssl") {
        return;
    }
    let made = Made::new();
    made.authority("root", None, CA);
    made.authority("other", None, CA);
    made.authority("below", Some("root"), CA);
    made.authority("leaf", None, &["basicConstraints=critical,CA:FALSE"]);
    made.authority("no-sign", None, &[CA[0], "keyUsage=critical,digitalSignature"]);
    made.authority("short", None, LAST_CA);
    made.authority("too-deep", Some("short"), CA);
    made.key("weak", RSA_1024);
    made.certificate("weak", None, CA);
    made.authority("below-weak", Some("weak"), CA);
    made.key("rsa", RSA_2048);
    made.certificate("rsa", None, CA);
    let encrypted = made.text("locked.key");
    let root_key = made.text("root.key");
    run("openssl", &["pkey", "-in", &root_key, "-out", &encrypted, "-aes256", "-passout", "pass:x"]);
    std::fs::copy(made.file("root.pem"), made.file("locked.pem")).expect("copied");
    std::fs::copy(made.file("root.pem"), made.file("mixed.pem")).expect("copied");
    std::fs::copy(made.file("other.key"), made.file("mixed.key")).expect("copied");
    std::fs::write(made.file("empty.pem"), "nothing\n").expect("written");
    std::fs::copy(made.file("root.key"), made.file("empty.key")).expect("copied");
    for (name, chain, want) in [
        ("absent", None, "--ca-cert"),
        ("empty", None, "it holds no certificate in PEM"),
        ("mixed", None, "it is not the key of --ca-cert's certificate"),
        ("locked", None, "the key is encrypted"),
        ("leaf", None, "want basicConstraints CA:TRUE"),
        ("no-sign", None, "want keyUsage keyCertSign"),
        ("rsa", None, "want a key of ECDSA P-256 (best) or P-384; it has RSA of 2048 bits"),
        ("below", None, "which signed `O=Example, CN=below`, is missing"),
        ("below", Some("other.pem"), "--ca-chain"),
        ("below-weak", Some("weak.pem"), "has a weak key, RSA of 1024 bits"),
        ("too-deep", Some("short.pem"), "allows 0 authorities below it (pathlen), and there are 1"),
    ] {
        let data = tempfile::tempdir().expect("a folder");
        let store = store(data.path()).await;
        let error = open_files(&store, &made.files(name, chain)).await.err();
        let error = error.unwrap_or_else(|| panic!("{name} is accepted")).to_string();
        assert!(error.contains(want), "{name}: no `{want}` in: {error}");
    }
    let (month, now) = (Duration::from_secs(31 * 24 * 3600), SystemTime::now());
    for (at, want) in [(now + month, "`O=Example, CN=root` expired"), (now - month, "becomes valid in")] {
        let error = made.files("root", None).read(at).err().expect("not now").to_string();
        assert!(error.contains(want), "no `{want}` in: {error}");
    }
}

#[tokio::test]
async fn the_root_changes_by_way_of_both_and_not_otherwise() {
    if !has("openssl") {
        return;
    }
    let made = Made::new();
    for root in ["old", "new"] {
        made.authority(root, None, CA);
        made.authority(&format!("below-{root}"), Some(root), CA);
    }
    made.joined("both.pem", &["old.pem", "new.pem"]);
    let data = tempfile::tempdir().expect("a folder");
    let store = store(data.path()).await;
    let open = async |name: &str, chain: &str| open_files(&store, &made.files(name, Some(chain))).await;
    open("below-old", "old.pem").await.expect("begins");
    let error = open("below-new", "new.pem").await.expect_err("at once").to_string();
    assert!(error.contains("none of its roots is one that this mesh trusts"), "{error}");
    let both = open("below-old", "both.pem").await.expect("announced");
    assert_eq!(both.roots().len(), 2);
    let switched = open("below-new", "both.pem").await.expect("switched");
    assert_eq!(switched.info().root_sha256, hex(&switched.material().pin()));
    assert_ne!(switched.info().root_sha256, both.info().root_sha256);
    assert_eq!(open("below-new", "new.pem").await.expect("retired").roots().len(), 1);
    let error = open("below-old", "old.pem").await.expect_err("gone").to_string();
    assert!(error.contains("none of its roots"), "{error}");

    let own = tempfile::tempdir().expect("a folder");
    let own = self::store(own.path()).await;
    Authority::open(Arc::clone(&own), Settings::default()).await.expect("its own");
    let error = open_files(&own, &made.files("old", None)).await.expect_err("it has one").to_string();
    assert!(error.contains("--ca-cert is for a new mesh"), "{error}");
}
