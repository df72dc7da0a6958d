//! One seed from beginning to end. A panic of the engine is a finding like any other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::world::{Stats, World};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub at: u64,
    pub text: String,
}

#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub result: Result<(), Failure>,
    pub stats: Stats,
}

pub fn run_seed(seed: u64) -> Outcome {
    go(seed, false).0
}

/// The same run with its story.
pub fn trace_seed(seed: u64) -> (Outcome, Vec<String>) {
    go(seed, true)
}

fn go(seed: u64, trace: bool) -> (Outcome, Vec<String>) {
    let mut world: Option<World> = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(seed, trace));
        world.run()
    }));
    let at = world.as_ref().map_or(0, |w| w.now);
    let stats = world.as_ref().map(|w| w.stats.clone()).unwrap_or_default();
    let mut story = world.as_mut().map(World::take_trace).unwrap_or_default();
    if let (true, Some(world)) = (trace, &world) {
        story.insert(0, format!("{:#?}", world.options));
    }
    let result = match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(complaint)) => Err(Failure { at: complaint.at, text: complaint.text }),
        Err(panic) => Err(Failure { at, text: format!("panic: {}", message(&*panic)) }),
    };
    (Outcome { seed, result, stats }, story)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        return text.clone();
    }
    panic.downcast_ref::<&str>().map_or_else(|| "without a message".into(), |text| (*text).into())
}
