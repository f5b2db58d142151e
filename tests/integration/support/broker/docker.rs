//! RabbitMQ in a container.

use std::collections::HashMap;
use std::time::Duration;

use testcontainers::bollard::models::PortBinding;
use testcontainers::runners::AsyncRunner;
use testcontainers::{GenericImage, ImageExt};
use tokio::time::timeout;

use super::{Broker, Owned, Reaper, START_TIMEOUT, answers, free_port, install, shell, unique};

pub(super) async fn start() -> Result<Broker, String> {
    shell("docker version", Duration::from_secs(20))
        .await
        .map_err(|_| "Docker is not installed, or its daemon does not answer. Install or start it")?;
    let image = install("deploy/docker/rabbitmq-image.sh").await?;
    // Another process can take a port before Docker uses it: try again with other ports.
    let mut last = String::new();
    for _ in 0..3 {
        match container(&image).await {
            Ok(broker) => return Ok(broker),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn container(image: &str) -> Result<Broker, String> {
    let name = unique("wolkvox-task-worker-rabbitmq");
    let reaper = Reaper::new(format!("timeout 60 docker rm -fv {name}"))?;
    // Fixed ports, because Docker would choose new ones at every start. On loopback only.
    let (amqp, management, metrics) = (free_port()?, free_port()?, free_port()?);
    let bindings = HashMap::from([binding(5672, amqp), binding(15672, management), binding(15692, metrics)]);
    let (image, tag) = image.split_once(':').ok_or("an image without a tag")?;
    let request = GenericImage::new(image, tag).with_container_name(&name).with_host_config_modifier(move |host| {
        host.publish_all_ports = Some(false);
        host.port_bindings = Some(bindings.clone());
    });
    let container = timeout(START_TIMEOUT, request.start()).await;
    let container = container.map_err(|_| format!("the container did not start within {START_TIMEOUT:?}"))?;
    let container = container.map_err(|error| format!("the container did not start: {error}"))?;
    // The reaper removes the container, however this process ends.
    std::mem::forget(container);
    let url = format!("amqp://guest:guest@127.0.0.1:{amqp}/%2f");
    answers(&url, START_TIMEOUT).await?;
    Ok(Broker {
        url,
        management_url: Some(format!("http://127.0.0.1:{management}")),
        metrics: Some(format!("127.0.0.1:{metrics}")),
        owned: Some(Owned { control: |action, name| format!("docker {action} {name}"), name, reaper }),
    })
}

fn binding(inside: u16, outside: u16) -> (String, Option<Vec<PortBinding>>) {
    let binding = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(outside.to_string()) };
    (format!("{inside}/tcp"), Some(vec![binding]))
}
