//! How much is measured.

/// Requests in flight where the worker is judged beside others.
pub const IN_FLIGHT_OF_GOALS: usize = 64;

/// See the module's documentation.
pub struct Plan {
    /// Requests at a time.
    pub in_flight: Vec<usize>,
    /// Runs of everything, alternating. The median counts; of memory the largest, since it has a limit.
    pub rounds: usize,
    /// How long a run is to last, in seconds,
    seconds: f64,
    /// and where the goals are judged.
    seconds_of_goals: f64,
    /// Messages of the first run, by which the others are sized.
    pub first: usize,
    /// Most messages of a run.
    pub most: usize,
    /// Backlogs.
    pub backlogs: Vec<usize>,
    /// Single messages to an idle worker, each time,
    pub singles: usize,
    /// and to one that has had none for some seconds, altogether.
    pub rested: usize,
    /// How long the CRM's limits are kept to, each time.
    pub ceiling_seconds: f64,
}

impl Plan {
    /// How long a run with so many in flight is to last, in seconds.
    pub fn seconds(&self, in_flight: usize) -> f64 {
        if in_flight == IN_FLIGHT_OF_GOALS { self.seconds_of_goals } else { self.seconds }
    }

    /// What docs/benchmarks.md shows.
    pub fn full() -> Self {
        Self {
            in_flight: vec![1, 2, 16, 64, 256],
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

    /// Everything once, with little: it shows that the benchmark works, and figures that are good for nothing else.
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
