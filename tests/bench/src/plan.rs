//! How much a run measures.

/// The requests in flight at which the goals compare the worker with others.
pub const IN_FLIGHT_OF_GOALS: usize = 64;

/// The extent of a run.
pub struct Plan {
    /// The numbers of requests in flight.
    pub in_flight: Vec<usize>,
    /// How often everything is measured. The median counts; for memory the largest value.
    pub rounds: usize,
    /// The length of a run in seconds.
    seconds: f64,
    /// The length of a run that the goals use, in seconds.
    seconds_of_goals: f64,
    /// The messages of the first run, which determines the size of the others.
    pub first: usize,
    /// The most messages of a run.
    pub most: usize,
    /// The sizes of the backlogs.
    pub backlogs: Vec<usize>,
    /// The number of single messages to an idle worker in each run.
    pub singles: usize,
    /// The total number of single messages to a worker without a message for some seconds.
    pub rested: usize,
    /// The length of a run with the CRM's limits.
    pub ceiling_seconds: f64,
}

impl Plan {
    /// The length of a run with `in_flight` requests in flight, in seconds.
    pub fn seconds(&self, in_flight: usize) -> f64 {
        if in_flight == IN_FLIGHT_OF_GOALS { self.seconds_of_goals } else { self.seconds }
    }

    /// The run whose figures are in docs/benchmarks.md.
    pub fn full() -> Self {
        Self {
            in_flight: vec![1, 2, 64, 256],
            rounds: 5,
            seconds: 2.0,
            seconds_of_goals: 4.0,
            first: 300,
            most: 120_000,
            backlogs: vec![1_000, 100_000, 1_000_000],
            singles: 1_000,
            rested: 10,
            ceiling_seconds: 5.0,
        }
    }

    /// Everything once and briefly. It shows that the benchmark works; its figures have no other use.
    pub fn quick() -> Self {
        Self {
            in_flight: vec![2, 64],
            rounds: 1,
            seconds: 0.5,
            seconds_of_goals: 0.5,
            first: 100,
            most: 5_000,
            backlogs: vec![1_000, 10_000],
            singles: 100,
            rested: 2,
            ceiling_seconds: 2.0,
        }
    }
}
