//! Random configurations and random requests, with Envoy as the oracle.
//!
//! One bootstrap holds many configurations, each in a listener's virtual host or route of its own.
//! What is decided is told by the answer itself: its status, and what the access log says of it.

mod policies;
mod requests;
mod routes;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use self::requests::request;
use super::bootstrap::Ports;
use super::client::{self, Pace};
use super::fixture::{Fixture, Request};
use super::side::{Program, Side};

/// Configurations in one bootstrap.
const CONFIGURATIONS: usize = 200;
/// Requests to each of them.
const REQUESTS: usize = 10;
/// Requests on one connection.
const ON_A_CONNECTION: usize = 25;
/// Differences that are told.
const TOLD_MAX: usize = 5;
const PACE: Pace = Pace { answer: Duration::from_secs(10), settle: Duration::ZERO };

/// What is made at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Authorization policies.
    Policies,
    /// Tables of routes.
    Routes,
}

/// What came of it.
#[derive(Debug)]
pub struct Decisions {
    what: What,
    seed: u64,
    decided: usize,
    /// How often which status came, of Envoy.
    statuses: BTreeMap<String, usize>,
    different: usize,
    told: Vec<String>,
}

impl Decisions {
    /// Whether both always decided alike.
    pub fn are_the_same(&self) -> bool {
        self.different == 0
    }
}

impl fmt::Display for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for told in &self.told {
            writeln!(f, "{told}")?;
        }
        let Self { what, seed, decided, statuses, different, .. } = self;
        write!(f, "{what:?}: {decided} decisions, {different} different; {statuses:?}; seed {seed}")
    }
}

/// Lets both proxies decide at least so often.
///
/// # Panics
///
/// If a proxy does not start.
pub async fn decide(what: What, decisions: usize, seed: u64) -> Decisions {
    let mut all =
        Decisions { what, seed, decided: 0, statuses: BTreeMap::new(), different: 0, told: Vec::new() };
    let mut rng = Rng::with_seed(seed);
    while all.decided < decisions {
        let configurations: Vec<Value> = (0..CONFIGURATIONS)
            .map(|n| match what {
                What::Policies => policies::virtual_host(&mut rng, n),
                What::Routes => routes::virtual_host(&mut rng, n),
            })
            .collect();
        let requests: Vec<Request> =
            (0..CONFIGURATIONS * REQUESTS).map(|n| request(&mut rng, n, n % CONFIGURATIONS)).collect();
        let fixture = fixture(what, &configurations);
        let envoy = answers(Program::Envoy, &fixture, &requests).await;
        let pillion = answers(Program::Pillion, &fixture, &requests).await;
        for (n, request) in requests.iter().enumerate() {
            let (envoy, pillion) = (&envoy[&n], &pillion[&n]);
            all.decided += 1;
            *all.statuses.entry(envoy.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
            if envoy != pillion {
                all.different += 1;
                if all.told.len() < TOLD_MAX {
                    let configuration = &configurations[n % CONFIGURATIONS];
                    all.told.push(format!(
                        "ENVOY   {envoy}\nPILLION {pillion}\n  {request:?}\n  {configuration}"
                    ));
                }
            }
        }
    }
    all
}

fn fixture(what: What, hosts: &[Value]) -> Fixture {
    let mut listener = json!({
        "virtual_hosts": hosts,
        "use_remote_address": true,
        "xff_num_trusted_hops": 1,
        "log": "%REQ(X-NUMBER)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% route=%ROUTE_NAME%",
    });
    if what == What::Policies {
        listener["filters"] = json!([{"rbac": {}}]);
    }
    let whole = json!({"about": "", "listeners": {"web": listener}, "cases": []});
    serde_json::from_value(whole).expect("a fixture")
}

/// What one proxy answers, by the requests' numbers.
async fn answers(program: Program, fixture: &Fixture, all: &[Request]) -> BTreeMap<usize, String> {
    let side = Side::start(program, fixture, &Ports::new()).await;
    let to = side.address("web");
    let mut clients = Vec::new();
    for some in all.chunks(ON_A_CONNECTION) {
        clients.push(client::requests(to, None, some, "random", PACE).await.port);
    }
    let log = side.log("web", &clients, all.len(), Duration::from_secs(10)).await;
    let numbered = log.iter().filter_map(|line| {
        let (number, rest) = line.strip_prefix("log ")?.split_once(' ')?;
        Some((number.parse().ok()?, rest.to_owned()))
    });
    let mut answers: BTreeMap<usize, String> = numbered.collect();
    for n in 0..all.len() {
        answers.entry(n).or_insert_with(|| "no line in the access log".to_owned());
    }
    answers
}
