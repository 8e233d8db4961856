//! docker/compose.yaml on an engine of our own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binary::repository;
use super::docker::Docker;
use super::http;
use super::peer::peer;
use super::process::{Finished, finish, finish_within};

/// How long `up` and `down` may take: some twenty containers, most of them with an order.
const UP_DEADLINE: Duration = Duration::from_secs(120);

/// A project that is up.
#[derive(Debug)]
pub struct Compose {
    docker: Docker,
    program: PathBuf,
    variables: Vec<(&'static str, String)>,
    /// Whether Prometheus takes part.
    pub prometheus: bool,
}

impl Compose {
    /// Brings everything up; `None` where something is missing, which has been said.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub async fn up() -> Option<Self> {
        let program = peer("docker-compose")?;
        let docker = Docker::start().await?;
        let Some(image) = docker.image().await else {
            docker.stop().await;
            return None;
        };
        // Port 0: a free one.
        let mut variables = vec![("PILLION_IMAGE", image.to_owned())];
        variables
            .extend(["REGISTRY_PORT", "SHOPPER_PORT", "PROMETHEUS_PORT"].map(|port| (port, "0".to_owned())));
        let mut words = vec!["up", "--detach"];
        // Its public image would have to be downloaded; the program itself is installed here.
        let prometheus = peer("prometheus");
        match &prometheus {
            Some(program) => {
                let program = program.canonicalize().expect("the program is there");
                variables.push(("PROMETHEUS_IMAGE", docker.image_of(&program).await));
            }
            None => words.extend(["shopper", "clock"]), // and what they depend on
        }
        let compose = Self { docker, program, variables, prometheus: prometheus.is_some() };
        let up = compose.run(&words).await;
        if up.code != 0 {
            let logs = compose.run(&["logs", "--tail", "20"]).await;
            panic!("{up:?}\n{}", logs.stdout);
        }
        Some(compose)
    }

    /// Runs `docker-compose` with docker/compose.yaml.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        let file = repository().join("docker/compose.yaml").display().to_string();
        let words = [&["--project-name", "shop", "--file", &file], arguments].concat();
        let mut command = self.docker.command(&self.program, &words);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        finish_within(UP_DEADLINE, command).await
    }

    /// Runs `docker`.
    pub async fn docker(&self, arguments: &[&str]) -> Finished {
        self.docker.run(arguments).await
    }

    /// Runs a command of `pillion` in the registry's container.
    pub async fn cli(&self, arguments: &[&str]) -> Finished {
        let container = self.container("registry").await;
        self.docker(&[&["exec", &container, "/pillion"], arguments].concat()).await
    }

    /// The id of a service's container, whether it runs or not.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn container(&self, service: &str) -> String {
        let filter = format!("label=com.docker.compose.service={service}");
        let listed = self.docker(&["ps", "--all", "--quiet", "--filter", &filter]).await;
        let id = listed.stdout.trim();
        assert!(!id.is_empty(), "no container of {service}: {listed:?}");
        id.to_owned()
    }

    /// The address of a service's container on the project's network.
    pub async fn address(&self, service: &str) -> String {
        self.inspect(service, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").await
    }

    /// Where a published port of a service is found on this machine.
    ///
    /// # Panics
    ///
    /// If it is not published.
    pub async fn published(&self, service: &str, port: u16) -> SocketAddr {
        let container = self.container(service).await;
        let told = self.docker(&["port", &container, &port.to_string()]).await;
        let line = told.stdout.lines().next().unwrap_or_default();
        line.parse().unwrap_or_else(|error| panic!("{service} {port}: {error}: {told:?}"))
    }

    /// Asks a service at a published port.
    ///
    /// # Errors
    ///
    /// What went wrong, as text.
    pub async fn get(&self, address: SocketAddr, path: &str) -> Result<serde_json::Value, String> {
        Ok(http::get(address, &address.to_string(), path).await?.json())
    }

    /// Runs a program of this machine in the network namespace of a service's container.
    pub async fn inside(&self, service: &str, program: &Path, arguments: &[&str]) -> Finished {
        let id = self.inspect(service, "{{.State.Pid}}").await;
        let program = program.display().to_string();
        let words = [&["--net", "--target", &id, "--", &program], arguments].concat();
        finish(Path::new("nsenter"), words).await
    }

    async fn inspect(&self, service: &str, format: &str) -> String {
        let container = self.container(service).await;
        let told = self.docker(&["inspect", "--format", format, &container]).await;
        assert_eq!(told.code, 0, "{told:?}");
        told.stdout.trim().to_owned()
    }

    /// Takes everything down; what is left then: containers, networks of a project and volumes.
    pub async fn down(self) -> String {
        let down = self.run(&["down", "--volumes"]).await;
        assert_eq!(down.code, 0, "{down:?}");
        let mut left = String::new();
        for words in [
            &["ps", "--all", "--quiet"][..],
            &["volume", "ls", "--quiet"],
            &["network", "ls", "--quiet", "--filter", "type=custom"],
        ] {
            left += &self.docker(words).await.stdout;
        }
        self.docker.stop().await;
        left
    }
}
