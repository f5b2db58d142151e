//! Simulates the whole worker with a fake broker, CRM and ledger in simulated time. Each seed generates one episode of messages
//! and faults. [`invariants`] checks the guarantees of the contract.
//!
//! `make sim MESSAGES=10000000 SEED=1` runs ten million messages. The same seed gives the same episode.
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

/// The number of messages that `make test` simulates at least.
const MESSAGES: u64 = 100_000;
const SEED: u64 = 1;

/// Hides the output of simulated panics.
fn hide_simulated_panics() {
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
fn number_variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is not a whole number; correct or unset it"))
    })
}

#[test]
fn nothing_is_lost_or_duplicated_and_no_limit_is_exceeded() {
    hide_simulated_panics();
    let messages = number_variable("SIMULATE_MESSAGES").unwrap_or(MESSAGES);
    let seed = number_variable("SIMULATE_SEED").unwrap_or(SEED);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match campaign(seed, messages, threads) {
        Ok(Campaign { messages, episodes, met }) => {
            println!(
                "{messages} messages in {episodes} episodes from seed {seed}. Situations met:\n{}",
                met.lines().join("\n")
            );
            let missing = met.missing();
            assert!(
                messages < MESSAGES || missing.is_empty(),
                "situations that no episode met: {missing:?}. Make the generated scripts reach them again."
            );
        }
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn episode_of_one_seed_is_always_the_same() {
    hide_simulated_panics();
    for seed in 1..20 {
        let [one, two] = [(); 2].map(|()| episode(&generate(seed)).trace);
        let first = one.iter().zip(&two).find(|(one, two)| one != two);
        assert!(one == two, "seed {seed}: {first:?}");
    }
}
