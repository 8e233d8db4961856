//! The image of docker/Dockerfile on a real engine.

use pillion_tests::support::{DEADLINE, Docker, eventually};

#[tokio::test]
async fn the_image_runs_a_registry_without_root_and_tells_its_health() {
    let Some(docker) = Docker::start().await else { return };
    let Some(image) = docker.image().await else { return docker.stop().await };
    let ready = "PILLION_READY_ADDRESS=127.0.0.1:7070";
    let started = docker
        .run(&["run", "--detach", "--name", "registry", "--env", ready, image, "registry", "--open"])
        .await;
    assert_eq!(started.code, 0, "{started:?}");
    eventually("the container is healthy", DEADLINE, || async {
        let health = docker.run(&["inspect", "--format", "{{.State.Health.Status}}", "registry"]).await;
        if health.stdout.trim() == "healthy" { Ok(()) } else { Err(format!("{health:?}")) }
    })
    .await;
    let listed = docker.run(&["exec", "registry", "/pillion", "get", "services"]).await;
    assert_eq!(listed.code, 0, "{listed:?}");
    let user = docker.run(&["inspect", "--format", "{{.Config.User}}", image]).await;
    assert_eq!(user.stdout.trim(), "65532:65532", "{user:?}");
    let stopped = docker.run(&["stop", "registry"]).await;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    let code = docker.run(&["inspect", "--format", "{{.State.ExitCode}}", "registry"]).await;
    assert_eq!(code.stdout.trim(), "0", "SIGTERM ends it in order: {code:?}");
    docker.stop().await;
}
