//! `make demo`: starts a real RabbitMQ, the sandbox CRM and the worker, publishes 300 tasks, and checks in the end that every
//! message is in the CRM or on the dead-letter queue.

#[path = "../../tests/integration/support/broker.rs"]
#[expect(dead_code, reason = "the tests do more with a broker")]
mod broker;
mod dead_letters;
mod events;
mod http;
mod launcher;
mod messages;
mod queues;
mod report;
mod screen;
mod seen;
mod steps;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::steps::Demo;

/// The exit code that a shell gives a program ended by SIGINT.
const INTERRUPTED: u8 = 130;

/// Run a real RabbitMQ, the sandbox CRM and the worker on 300 tasks
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave everything running at the end, and print the addresses
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut demo = Demo::default();
    let result = tokio::select! {
        result = demo.run(arguments.keep) => Some(result),
        () = interrupted() => None,
    };
    let is_good = match result {
        None => {
            eprintln!("interrupted: stopping what the demo started");
            demo.close().await;
            return ExitCode::from(INTERRUPTED);
        }
        Some(Err(why)) => {
            demo.failed();
            demo.close().await;
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
        Some(Ok(is_good)) => is_good,
    };
    if !is_good {
        demo.failed();
    }
    if arguments.keep {
        demo.keep();
    } else {
        demo.close().await;
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
