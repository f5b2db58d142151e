//! Starts RabbitMQ as a private node, without Docker.

use super::{Broker, CONTROL_TIMEOUT, Owned, Reaper, START_TIMEOUT, answers, free_port, install, shell, unique};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/support/broker/node.sh");

pub(super) async fn start() -> Result<Broker, String> {
    let server = install("deploy/rabbitmq-server.sh").await?;
    // Not in TMPDIR: Erlang refuses some characters that its path can have.
    let folder = format!("/tmp/{}", unique("wolkvox-task-worker-rabbitmq"));
    let reaper = Reaper::new(control("remove", &folder))?;
    let (amqp, management, metrics) = (free_port()?, free_port()?, free_port()?);
    let (distribution, names) = (free_port()?, free_port()?);
    let ports = format!("{amqp} {management} {distribution} {names} {metrics}");
    let create = format!("{} '{server}' {ports}", control("create", &folder));
    shell(&create, CONTROL_TIMEOUT).await?;
    shell(&control("start", &folder), CONTROL_TIMEOUT).await?;
    let url = format!("amqp://guest:guest@127.0.0.1:{amqp}/%2f");
    if let Err(why) = answers(&url, START_TIMEOUT).await {
        let said = tokio::fs::read_to_string(format!("{folder}/output")).await.unwrap_or_default();
        return Err(format!("{server}: {why}\n{said}"));
    }
    Ok(Broker {
        url,
        management_url: Some(format!("http://127.0.0.1:{management}")),
        metrics: Some(format!("127.0.0.1:{metrics}")),
        owned: Some(Owned { control, name: folder, reaper }),
    })
}

fn control(action: &str, folder: &str) -> String {
    format!("'{SCRIPT}' {action} '{folder}'")
}
