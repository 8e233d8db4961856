//! The data that every server answers from, and the questions.
//!
//! `many-17.bench.mesh.internal` has as many instances as the bench is told, `one-17` has one. Other
//! servers get the very records that the registry makes of its instances.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde_json::json;

/// The zone of everything.
pub const ZONE: &str = "mesh.internal";
/// The namespace of every service.
pub const NAMESPACE: &str = "bench";
/// The port of every instance.
const PORT: u16 = 8080;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// Services with several instances, and as many with one.
    pub services: u32,
    /// How many several are.
    pub instances: u32,
}

/// One instance of one service.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its service.
    pub service: String,
    /// Its id.
    pub id: String,
    /// Where it is.
    pub address: Ipv4Addr,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Addresses of services with one instance: one record.
    One,
    /// Addresses of services with several instances.
    Many,
    /// SRV of those, with the addresses beside.
    Services,
    /// Names that do not exist, each another one.
    Nothing,
}

impl Asked {
    /// In the order of the report.
    pub const ALL: [Self; 4] = [Self::One, Self::Many, Self::Services, Self::Nothing];

    /// For the report.
    pub fn name(self, data: Data) -> String {
        match self {
            Self::One => "A, 1 record".to_owned(),
            Self::Many => format!("A, {} records", data.instances),
            Self::Services => format!("SRV, {} records", data.instances),
            Self::Nothing => "NXDOMAIN".to_owned(),
        }
    }

    /// The response code that every answer must have.
    pub fn code(self) -> &'static str {
        if self == Self::Nothing { "NXDOMAIN" } else { "NOERROR" }
    }
}

impl Data {
    /// All instances.
    pub fn all(self) -> impl Iterator<Item = Instance> {
        let many = move |at| (0..self.instances).map(move |one| self.instance("many", at, one));
        (0..self.services).flat_map(move |at| many(at).chain([self.instance("one", at, 0)]))
    }

    fn instance(self, kind: &str, service: u32, one: u32) -> Instance {
        let network = if kind == "one" { 0x0a80_0000 } else { 0x0a00_0000 };
        Instance {
            service: format!("{kind}-{service}"),
            id: format!("i{one}"),
            address: Ipv4Addr::from_bits(network + service * self.instances + one),
        }
    }

    /// Questions of one kind, as dnsperf reads them.
    pub fn questions(self, asked: Asked) -> String {
        let mut text = String::new();
        for at in 0..self.services {
            // Writing to a String does not fail.
            let _ = match asked {
                Asked::One => writeln!(text, "one-{at}.{NAMESPACE}.{ZONE} A"),
                Asked::Many => writeln!(text, "many-{at}.{NAMESPACE}.{ZONE} A"),
                Asked::Services => writeln!(text, "_http._tcp.many-{at}.{NAMESPACE}.{ZONE} SRV"),
                Asked::Nothing => writeln!(text, "nobody-{at}.{NAMESPACE}.{ZONE} A"),
            };
        }
        text
    }

    /// All records in the form of a zone file, with absolute names.
    pub fn records(self) -> Vec<String> {
        let mut lines = vec![
            format!("{ZONE}. 5 IN SOA ns.all.{ZONE}. hostmaster.{ZONE}. 1 7200 1800 86400 5"),
            format!("{ZONE}. 5 IN NS ns.all.{ZONE}."),
            format!("ns.all.{ZONE}. 5 IN A 127.0.0.1"),
        ];
        for instance in self.all() {
            let Instance { service, id, address } = &instance;
            let service = format!("{service}.{NAMESPACE}.{ZONE}.");
            lines.push(format!("{service} 5 IN A {address}"));
            lines.push(format!("{id}.inst.{service} 5 IN A {address}"));
            lines.push(format!("_http._tcp.{service} 5 IN SRV 0 100 {PORT} {id}.inst.{service}"));
        }
        lines
    }
}

impl Instance {
    /// Where it is registered.
    pub fn path(&self) -> String {
        format!("/v1/namespaces/{NAMESPACE}/services/{}/instances/{}", self.service, self.id)
    }

    /// What it registers with. Nobody beats for it, so it lives longer than the bench.
    pub fn body(&self) -> serde_json::Value {
        json!({"address": self.address, "ports": {"http": {"port": PORT, "protocol": "http"}}, "ttl": "24h"})
    }
}
