//! The whole worker on in-memory edges with paused time: episodes made from seeds, with everything going wrong that can,
//! and the [`invariants`] that hold all the same.
//!
//! `make sim MESSAGES=10000000 SEED=1` runs at length. The same seed gives the same episode.
#![cfg(test)]

mod broker;
mod clock;
mod coverage;
mod crm;
mod invariants;
mod ledger;
mod reports;
mod run;
mod schedule;
mod script;
mod session;
mod world;

use std::sync::Once;

use crate::run::{Campaign, campaign, episode};
use crate::schedule::generate;

/// What `make test` simulates at least.
const MESSAGES: u64 = 100_000;
const SEED: u64 = 1;

/// Messages that panic are part of the simulation, and need no words.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<&str>() != Some(&crm::PANIC) {
                other(panic);
            }
        }));
    });
}

#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

#[test]
fn nothing_is_lost_duplicated_or_flooded() {
    quiet();
    let messages = asked("SIMULATE_MESSAGES").unwrap_or(MESSAGES);
    let seed = asked("SIMULATE_SEED").unwrap_or(SEED);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match campaign(seed, messages, threads) {
        Ok(Campaign { messages, episodes, met }) => {
            println!(
                "{messages} messages in {episodes} episodes from seed {seed}, which met\n{}",
                met.lines().join("\n")
            );
            let missing = met.missing();
            assert!(messages < MESSAGES || missing.is_empty(), "never met: {missing:?}");
        }
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn an_episode_repeats_itself() {
    quiet();
    for seed in 1..20 {
        let [one, two] = [(); 2].map(|()| episode(&generate(seed)).trace);
        let first = one.iter().zip(&two).find(|(one, two)| one != two);
        assert!(one == two, "seed {seed}: {first:?}");
    }
}
