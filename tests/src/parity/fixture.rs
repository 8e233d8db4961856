//! What a fixture says. `docs/parity.md` explains it to whoever writes one.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// One file: a bootstrap, origins, and cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fixture {
    /// What the file is about, for whoever reads it.
    #[expect(dead_code, reason = "for readers of the file")]
    pub(crate) about: String,
    /// Listeners by name: the fields of an HTTP connection manager, or of a listener if
    /// `filter_chains` is among them.
    pub(crate) listeners: BTreeMap<String, Value>,
    /// Clusters by name: the fields of an Envoy cluster, and `endpoints`.
    #[serde(default)]
    pub(crate) clusters: BTreeMap<String, Value>,
    /// Programs behind the proxy by name.
    #[serde(default)]
    pub(crate) origins: BTreeMap<String, Protocol>,
    pub(crate) cases: Vec<Case>,
}

/// What an origin speaks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/1, one request on each connection.
    Once,
    Http2,
    /// HTTP/1, unwell at first: on each connection, so many requests that belong to no case get 503.
    Late,
    /// Sends back what it gets.
    Echo,
}

/// One case: what is sent, and how the origins answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// The listener; needed if there are several.
    pub(crate) to: Option<String>,
    /// Runs while no other case does.
    #[serde(default)]
    pub(crate) alone: bool,
    /// Begins no earlier than this many milliseconds after the proxy was ready.
    #[serde(default)]
    pub(crate) since_start: u64,
    /// Over HTTP/2.
    #[serde(default)]
    pub(crate) http2: bool,
    /// Over TLS.
    pub(crate) tls: Option<Tls>,
    /// A GET of this path.
    pub(crate) get: Option<String>,
    pub(crate) request: Option<Request>,
    /// One after another on one connection, or all at once (`at_once`).
    #[serde(default)]
    pub(crate) requests: Vec<Request>,
    /// Each request on its own connection, begun in their order.
    #[serde(default)]
    pub(crate) at_once: bool,
    /// Bytes, instead of requests.
    #[serde(default)]
    pub(crate) raw: Vec<Step>,
    /// Fields of a request over HTTP/2, as they are, instead of requests.
    #[serde(default)]
    pub(crate) fields: Vec<(String, String)>,
    /// The body that follows them.
    pub(crate) field_body: Option<String>,
    /// How the origins answer, attempt by attempt; the last stays.
    #[serde(default)]
    pub(crate) origin: Vec<Answer>,
    /// Milliseconds by which the duration may differ; without it, it is not compared.
    pub(crate) time_within: Option<u64>,
    /// Statistics whose growth during the case is compared; it then runs while no other does.
    #[serde(default)]
    pub(crate) stats: Vec<String>,
    /// The requests are repeated this often; what they were answered with is counted.
    pub(crate) times: Option<u32>,
    /// How counts are compared.
    #[serde(default)]
    pub(crate) tally: Tally,
    /// Lines that contain this are not compared: they are a matter of chance.
    pub(crate) without: Option<String>,
    /// Differences that the tables explain.
    #[serde(default)]
    pub(crate) differs: Vec<Differs>,
}

/// How a client handshakes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    /// The server name it asks for; without it, none.
    pub(crate) name: Option<String>,
    pub(crate) alpn: Vec<String>,
    /// `1.2` or `1.3`; both without it.
    pub(crate) version: Option<String>,
    /// Whose certificate it has: `client`, `plain` or `stranger`.
    pub(crate) certificate: Option<String>,
}

/// How counts of repeated requests are compared.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tally {
    /// The same answer to each request.
    #[default]
    Each,
    /// The same distribution, by chi-square.
    Chance,
}

/// A difference that is known.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Differs {
    /// The row's id.
    pub(crate) id: String,
    /// The lines it concerns contain this.
    pub(crate) lines: String,
}

/// A request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Request {
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    /// `name: value`.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Option<String>,
    /// A body of this many bytes.
    pub(crate) body_bytes: Option<usize>,
    /// HTTP/1: in chunks.
    pub(crate) chunked: bool,
    pub(crate) trailers: Vec<String>,
    /// HTTP/2: `:scheme`; default `http`.
    pub(crate) scheme: Option<String>,
    /// HTTP/2: `:protocol` of an extended CONNECT.
    pub(crate) protocol: Option<String>,
    /// The body never ends.
    pub(crate) unfinished: bool,
    /// Milliseconds after which the client goes away.
    pub(crate) gone_after: Option<u64>,
    /// Milliseconds to wait before it is sent.
    pub(crate) after: u64,
}

impl Request {
    pub(crate) fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/")
    }

    pub(crate) fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("host.test")
    }

    pub(crate) fn body(&self) -> Option<Vec<u8>> {
        let filled = self.body_bytes.map(filled);
        self.body.as_ref().map(|text| text.clone().into_bytes()).or(filled)
    }
}

/// A body of a size.
pub(crate) fn filled(bytes: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(bytes).collect()
}

/// What a client does with bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Step {
    /// Sends this; `{case}` stands for the case's tag.
    Send(String),
    /// Does this.
    Do(Deed),
}

/// What a client does beside sending.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Deed {
    /// These lines, each ended by CR LF.
    pub(crate) lines: Option<String>,
    /// Sends `fill` this many times.
    pub(crate) times: usize,
    pub(crate) fill: String,
    /// Waits so many milliseconds.
    pub(crate) pause: u64,
    /// Waits until something was answered since the last such wait.
    pub(crate) answer: bool,
    /// Sends no more.
    pub(crate) finish: bool,
}

/// How an origin answers: a status, a word, or all of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Status(u16),
    Word(End),
    Full(Box<Reply>),
}

/// An origin's answer in full.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reply {
    pub(crate) status: Option<u16>,
    pub(crate) headers: Vec<String>,
    /// Default: the origin's name.
    pub(crate) body: Option<String>,
    pub(crate) body_bytes: Option<usize>,
    /// HTTP/1: in chunks.
    pub(crate) chunked: bool,
    pub(crate) trailers: Vec<String>,
    /// HTTP/1: these bytes instead.
    pub(crate) raw: Option<String>,
    /// Milliseconds before the head.
    pub(crate) after: u64,
    /// Milliseconds between head and body.
    pub(crate) body_after: u64,
    /// Before the request's body was read.
    pub(crate) early: bool,
    /// No answer, only the end.
    pub(crate) nothing: bool,
    pub(crate) end: End,
    /// HTTP/2: the code of a reset.
    pub(crate) code: Option<u32>,
    /// WebSocket and the like: after the head, bytes are sent back as they come.
    pub(crate) echo: bool,
}

/// What an origin does with the connection after its answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum End {
    /// Nothing.
    #[default]
    Keep,
    /// Closes it.
    Close,
    /// Resets the connection; over HTTP/2, the stream.
    Reset,
    /// Says nothing more.
    Hang,
}

impl Answer {
    pub(crate) fn reply(&self) -> Reply {
        match self {
            Self::Status(status) => Reply { status: Some(*status), ..Reply::default() },
            Self::Word(end) => Reply { nothing: *end != End::Keep, end: *end, ..Reply::default() },
            Self::Full(reply) => (**reply).clone(),
        }
    }
}

impl Fixture {
    /// Reads a file, or the example of a page.
    ///
    /// # Panics
    ///
    /// If it cannot be read, with the place in it.
    pub(crate) fn read(file: &Path) -> Self {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        // Of a page, the example.
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
        let fixture: Self = serde_saphyr::from_str(example.unwrap_or(&text))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut names: Vec<&str> = fixture.cases.iter().map(|case| &*case.name).collect();
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        assert!(twice.is_none(), "{}: two cases are named {twice:?}", file.display());
        fixture
    }
}

impl Case {
    /// Its requests, however they are written.
    pub(crate) fn all_requests(&self) -> Vec<Request> {
        let get = self.get.as_ref().map(|path| Request { path: Some(path.clone()), ..Request::default() });
        get.into_iter().chain(self.request.clone()).chain(self.requests.iter().cloned()).collect()
    }

    /// Whether its bytes say nothing of the case, so that no other may run meanwhile.
    pub(crate) fn is_anonymous(&self) -> bool {
        let named = |step: &Step| match step {
            Step::Send(text) => text.contains("{case}"),
            Step::Do(deed) => deed.lines.as_ref().is_some_and(|lines| lines.contains("{case}")),
        };
        !self.raw.is_empty() && !self.raw.iter().any(named)
    }
}

impl Request {
    /// The request with its number in the place of `{n}`.
    pub(crate) fn numbered(&self, n: u32) -> Self {
        let numbered = |text: &String| text.replace("{n}", &n.to_string());
        Self {
            path: self.path.as_ref().map(numbered),
            headers: self.headers.iter().map(numbered).collect(),
            ..self.clone()
        }
    }
}
