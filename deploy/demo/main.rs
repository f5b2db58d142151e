//! `make demo`: a real RabbitMQ, the sandbox CRM and the worker, with 300 tasks on their way from one to the other; in the
//! end the books have to balance.

mod books;
#[path = "../../tests/integration/support/broker.rs"]
#[expect(dead_code, reason = "the tests do more with a broker")]
mod broker;
mod events;
mod http;
mod letters;
mod messages;
mod queues;
mod screen;
mod show;
mod stage;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::show::Show;

/// What a shell makes of the signal SIGINT.
const INTERRUPTED: u8 = 130;

/// A real RabbitMQ, the sandbox CRM and the worker at work on 300 tasks
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave everything running in the end, and print the addresses
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut show = Show::default();
    let played = tokio::select! {
        played = show.play(arguments.keep) => Some(played),
        () = interrupted() => None,
    };
    let balanced = match played {
        None => {
            eprintln!("interrupted: cleaning up");
            show.close().await;
            return ExitCode::from(INTERRUPTED);
        }
        Some(Err(why)) => {
            show.failed();
            show.close().await;
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
        Some(Ok(balanced)) => balanced,
    };
    if !balanced {
        show.failed();
    }
    if arguments.keep {
        show.keep();
    } else {
        show.close().await;
    }
    if balanced { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
