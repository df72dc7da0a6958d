//! One run from beginning to end. A panic of the engine is a finding like any other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::reached::Reached;
use crate::scenario::Scenario;
use crate::swarm::Given;
use crate::world::{Stats, World};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub at: u64,
    pub text: String,
}

impl Failure {
    /// Two failures of one kind differ in numbers only.
    pub fn kind(&self) -> String {
        self.text.chars().filter(|c| !c.is_ascii_digit()).take(60).collect()
    }
}

pub struct Outcome {
    pub seed: u64,
    pub result: Result<(), Failure>,
    pub stats: Stats,
    pub reached: Reached,
    /// The run as a scenario, if it failed.
    pub scenario: Option<Scenario>,
}

pub fn run_seed(seed: u64) -> Outcome {
    run_seed_with(seed, &Given::default())
}

/// What is given is not drawn.
pub fn run_seed_with(seed: u64, given: &Given) -> Outcome {
    go(seed, || World::with_options(given.draw(seed), seed, false)).0
}

/// Seeds whose finding is written down and not mended: they are shown, and only new ones make a run fail.
pub fn open_findings() -> Vec<u64> {
    let lines = include_str!("../regressions.txt").lines();
    lines.filter_map(|line| line.split_once(" open ")).filter_map(|(seed, _)| seed.parse().ok()).collect()
}

/// The same run with its story.
pub fn trace_seed(seed: u64, given: &Given) -> (Outcome, Vec<String>) {
    go(seed, || World::with_options(given.draw(seed), seed, true))
}

pub fn run_scenario(scenario: &Scenario, trace: bool) -> (Outcome, Vec<String>) {
    go(scenario.seed, || scenario.world(trace))
}

/// Lets a world run to its end.
pub fn finish(world: &mut World) -> Result<(), Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(complaint)) => Err(Failure { at: complaint.at, text: complaint.text }),
        Err(panic) => Err(Failure { at: world.now, text: format!("panic: {}", message(&*panic)) }),
    }
}

fn go(seed: u64, make: impl FnOnce() -> World) -> (Outcome, Vec<String>) {
    let mut world = make();
    let result = finish(&mut world);
    let scenario = result.as_ref().err().map(|failure| Scenario::of(&world, seed, &failure.text));
    let mut story = world.take_trace();
    if !story.is_empty() {
        story.insert(0, format!("{:#?}", world.options));
    }
    let (stats, reached) = (world.stats.clone(), std::mem::take(&mut world.reached));
    (Outcome { seed, result, stats, reached, scenario }, story)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        return text.clone();
    }
    panic.downcast_ref::<&str>().map_or_else(|| "without a message".into(), |text| (*text).into())
}
