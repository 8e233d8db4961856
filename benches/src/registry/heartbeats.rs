//! All instances beat, each stream all of its own with one message; then some over HTTP, one by one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pillion_model::name::ServiceName;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Arguments;
use super::http::Client;
use super::latency::Latencies;
use super::server::Registry;
use super::stream::{Stream, identity};
use crate::report::{Budget, Report};

/// Streams that present the same service's identity.
const STREAMS_PER_SERVICE: usize = 10;
/// Streams opened at the same time.
const OPENING: usize = 64;
/// Connections that carry single heartbeats over HTTP.
const HTTP_CONNECTIONS: usize = 64;

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let registry = Registry::start(arguments, data.path()).await?;
    let fleet = Fleet::of(arguments)?;
    // What is common to any number of streams: code paths, allocator, certificates.
    let empty = registry.memory()?;
    let mut streams = fleet.open(&registry).await?;
    let opened = registry.memory()?;
    let per_stream = (opened - empty) / streams.len() as f64;
    report.row("memory per mutual-TLS stream", per_stream / 1024.0, "KiB", Some(Budget::AtMost(48.0)));

    fleet.register(&mut streams).await?;
    // What so many registrations lead to (resolving, writing) is measured elsewhere.
    registry.settle().await?;
    let expired = registry.metric("pillion_registry_expired_total").await?;
    let heard = registry.metric("pillion_registry_heartbeats_total").await?;
    let before = registry.usage()?;
    let (mut latencies, streams) = fleet.beat(streams, arguments).await?;
    let after = registry.usage()?;
    let heard = registry.metric("pillion_registry_heartbeats_total").await? - heard;
    let expired = registry.metric("pillion_registry_expired_total").await? - expired;
    let instances = fleet.instances() as f64;
    let per_instance = (registry.memory()? - opened) / instances;
    report.row("memory per instance", per_instance / 1024.0, "KiB", Some(Budget::AtMost(2.0)));
    report.row("instances heard per second", heard / arguments.window.as_secs_f64(), "1/s", None);
    report.row(
        "CPU for heartbeats on streams",
        after.cores_since(before),
        "cores",
        Some(Budget::AtMost(0.25)),
    );
    report.row("acknowledgement, median", latencies.quantile_ms(0.5), "ms", None);
    report.row("acknowledgement, p99", latencies.quantile_ms(0.99), "ms", Some(Budget::AtMost(20.0)));
    report.row("expired while beating", expired, "instances", Some(Budget::AtMost(0.0)));
    drop(streams);

    let before = registry.usage()?;
    let (mut latencies, cores) = single(&registry, &fleet, arguments).await?;
    let cpu = registry.usage()?.cpu_since(before);
    let each = cpu.as_secs_f64() * 1e6 / latencies.len().max(1) as f64;
    report.row("CPU of one heartbeat over HTTP", each, "µs", None);
    report.row("heartbeats over HTTP per second", cores, "1/s", None);
    report.row("answer to a heartbeat over HTTP, p99", latencies.quantile_ms(0.99), "ms", None);
    Ok(())
}

/// Who beats: services with their instances, spread over streams.
pub(super) struct Fleet {
    services: Vec<ServiceName>,
    streams: usize,
    slots: usize,
}

impl Fleet {
    fn of(arguments: &Arguments) -> anyhow::Result<Self> {
        Self::new(arguments.streams, arguments.instances.div_ceil(arguments.streams), STREAMS_PER_SERVICE)
    }

    /// `streams` of `slots` instances each, `share` of them to a service.
    pub(super) fn new(streams: usize, slots: usize, share: usize) -> anyhow::Result<Self> {
        let name = |n: usize| ServiceName::new("bench", &format!("s{n}")).context("a name");
        let services = (0..streams.div_ceil(share)).map(name).collect::<Result<_, _>>()?;
        Ok(Self { services, streams, slots })
    }

    pub(super) fn instances(&self) -> usize {
        self.streams * self.slots
    }

    pub(super) fn services(&self) -> &[ServiceName] {
        &self.services
    }

    fn service_of(&self, stream: usize) -> &ServiceName {
        &self.services[stream % self.services.len()]
    }

    /// Opens every stream; nothing is registered yet.
    pub(super) async fn open(&self, registry: &Registry) -> anyhow::Result<Vec<Stream>> {
        let mut identities = Vec::with_capacity(self.services.len());
        for some in self.services.chunks(OPENING) {
            let asked: JoinSet<_> = some
                .iter()
                .enumerate()
                .map(|(at, service)| {
                    let (mesh, service) = (registry.mesh, service.clone());
                    async move { anyhow::Ok((at, identity(mesh, &service).await?)) }
                })
                .collect();
            let mut some: Vec<_> = asked.join_all().await.into_iter().collect::<Result<_, _>>()?;
            some.sort_by_key(|(at, _)| *at);
            identities.extend(some.into_iter().map(|(_, identity)| identity));
        }
        let mut streams = Vec::with_capacity(self.streams);
        while streams.len() < self.streams {
            let some = streams.len()..self.streams.min(streams.len() + OPENING);
            let opening: JoinSet<_> = some
                .map(|stream| {
                    let (mesh, config) = (registry.mesh, Arc::clone(&identities[stream % identities.len()]));
                    async move { anyhow::Ok((stream, Stream::open(mesh, config).await?)) }
                })
                .collect();
            let mut opened: Vec<_> = opening.join_all().await.into_iter().collect::<Result<_, _>>()?;
            opened.sort_by_key(|(stream, _)| *stream);
            streams.extend(opened.into_iter().map(|(_, stream)| stream));
        }
        Ok(streams)
    }

    /// Registers every stream's instances, all streams at the same time.
    pub(super) async fn register(&self, streams: &mut Vec<Stream>) -> anyhow::Result<()> {
        let slots = self.slots;
        let registering: JoinSet<_> = std::mem::take(streams)
            .into_iter()
            .enumerate()
            .map(|(number, mut stream)| {
                let service = self.service_of(number).clone();
                async move {
                    stream.register(&service, number * slots..(number + 1) * slots).await?;
                    anyhow::Ok((number, stream))
                }
            })
            .collect();
        let mut registered: Vec<_> = registering.join_all().await.into_iter().collect::<Result<_, _>>()?;
        registered.sort_by_key(|(number, _)| *number);
        streams.extend(registered.into_iter().map(|(_, stream)| stream));
        Ok(())
    }

    /// Beats for the window, the streams spread evenly over the interval.
    async fn beat(
        &self,
        streams: Vec<Stream>,
        arguments: &Arguments,
    ) -> anyhow::Result<(Latencies, Vec<Stream>)> {
        let (slots, every, window) = (self.slots as u32, arguments.beat, arguments.window);
        let (start, count) = (Instant::now(), streams.len() as u32);
        let beating: JoinSet<_> = streams
            .into_iter()
            .enumerate()
            .map(|(number, mut stream)| async move {
                let mut latencies = Latencies::default();
                let mut next = start + every * number as u32 / count;
                while next < start + window {
                    sleep_until(next).await;
                    let sent = Instant::now();
                    stream.beat(slots).await?;
                    latencies.add(sent.elapsed());
                    next += every;
                }
                anyhow::Ok((latencies, stream))
            })
            .collect();
        let (mut all, mut streams) = (Latencies::default(), Vec::new());
        for done in beating.join_all().await {
            let (latencies, stream) = done?;
            all.extend(latencies);
            streams.push(stream);
        }
        sleep_until(start + window).await;
        Ok((all, streams))
    }
}

/// Beats instance after instance over HTTP, at the rate at which all of them would; tells how many a
/// second were answered.
async fn single(
    registry: &Registry,
    fleet: &Fleet,
    arguments: &Arguments,
) -> anyhow::Result<(Latencies, f64)> {
    let every = arguments.beat.div_f64(fleet.instances() as f64 / HTTP_CONNECTIONS as f64);
    let window = arguments.window.min(Duration::from_secs(20));
    let start = Instant::now();
    let beating: JoinSet<_> = (0..HTTP_CONNECTIONS)
        .map(|connection| {
            let api = registry.api;
            let paths: Vec<String> = (connection..fleet.instances())
                .step_by(HTTP_CONNECTIONS)
                .map(|id| {
                    let service = fleet.service_of(id / fleet.slots).service();
                    format!("/v1/namespaces/bench/services/{service}/instances/{service}-{id}/heartbeat")
                })
                .collect();
            async move {
                let mut client = Client::connect(api).await?;
                let (mut latencies, mut next) = (Latencies::default(), start);
                for path in paths.iter().cycle() {
                    if next >= start + window || Instant::now() >= start + window {
                        break;
                    }
                    sleep_until(next).await;
                    let sent = Instant::now();
                    let (status, body) = client.call("PUT", path, "").await?;
                    anyhow::ensure!(status == 200, "PUT {path}: {status} {body}");
                    latencies.add(sent.elapsed());
                    next += every;
                }
                Ok(latencies)
            }
        })
        .collect();
    let mut all = Latencies::default();
    for latencies in beating.join_all().await {
        all.extend(latencies?);
    }
    let rate = all.len() as f64 / start.elapsed().as_secs_f64();
    Ok((all, rate))
}
