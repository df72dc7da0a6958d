//! All cuts of a script, or every n-th point of it.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::DiskOp;
use sim::disk::Survival;
use sim::world::World;
use types::NodeId;

use super::driver::{Driver, Stop};
use super::script::Script;
use super::{A, B, Cut, Moment, VOLUME, Victims};

/// At every so many visited points the restart is cut short at each of its own points.
const REPLAY_STRIDE: u64 = 5;
/// Outcomes by chance beside the chosen ones.
const MIXTURES: u64 = 2;
/// Blocks of one metadata write that are torn inside.
const TORN_BLOCKS_MAX: u32 = 3;
/// Of the story of a finding.
const STORY_LINES: usize = 150;

#[derive(Default, Debug)]
pub struct Report {
    pub points: u64,
    pub points_visited: u64,
    pub cuts: u64,
    /// Of these, restarts that were cut short in turn.
    pub replays: u64,
    pub findings: Vec<String>,
    /// Of the first finding.
    pub story: String,
}

/// What one run came to.
#[derive(Default)]
struct Run {
    /// Other outcomes at the last cut, one for each that leaves something else behind.
    variants: Vec<Survival>,
    /// Power went a second time.
    again: bool,
}

/// The cuts of one script.
pub struct Enumeration {
    pub script: &'static Script,
    /// Every `stride`-th point is visited.
    pub stride: u64,
    /// Ends with the first finding.
    pub first_only: bool,
}

impl Enumeration {
    pub fn run(&self) -> Report {
        let mut report = Report::default();
        let counts = match self.count_points() {
            Ok(counts) => counts,
            Err(text) => {
                report.findings.push(format!("{}, nobody loses power: {text}", self.script.name));
                return report;
            }
        };
        for (node, count) in [A, B].into_iter().zip(counts) {
            report.points += count;
            for point in (1..=count).step_by(self.stride as usize) {
                report.points_visited += 1;
                self.visit(node, point, &mut report);
                if report.points_visited.is_multiple_of(REPLAY_STRIDE) {
                    self.cut_replays(node, point, &mut report);
                }
                if self.first_only && !report.findings.is_empty() {
                    return report;
                }
            }
        }
        report
    }

    fn count_points(&self) -> Result<[u64; 2], String> {
        let mut driver = Driver::new((self.script.options)(), None, false);
        let result = quietly(|| {
            (self.script.play)(&mut driver)?;
            driver.settle()
        });
        match result {
            Ok(()) => Ok([A, B].map(|id| driver.world.node(id).disks[&VOLUME].durable_points())),
            Err(Stop::PowerCut) => unreachable!("no cut was planned"),
            Err(Stop::Wrong(text)) => Err(text),
        }
    }

    fn visit(&self, node: NodeId, point: u64, report: &mut Report) {
        for moment in [Moment::Before, Moment::After] {
            for victims in [Victims::One, Victims::Both] {
                let cut = Cut { node, point, moment, survival: Survival::Nothing, victims, again: None };
                let Some(run) = self.try_cut(cut, report) else { return };
                for survival in run.variants {
                    if self.try_cut(Cut { survival, ..cut }, report).is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// P12: the restart after this cut is cut short at each of its durable points.
    fn cut_replays(&self, node: NodeId, point: u64, report: &mut Report) {
        let (moment, victims) = (Moment::Before, Victims::One);
        for survival in [Survival::Nothing, Survival::Everything] {
            for again in 1.. {
                let cut = Cut { node, point, moment, survival, victims, again: Some((again, Survival::Nothing)) };
                let Some(run) = self.try_cut(cut, report) else { return };
                if !run.again {
                    break;
                }
                report.replays += 1;
                for second in run.variants {
                    report.replays += 1;
                    if self.try_cut(Cut { again: Some((again, second)), ..cut }, report).is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// `None`: a finding, which ends this point.
    fn try_cut(&self, cut: Cut, report: &mut Report) -> Option<Run> {
        report.cuts += 1;
        match self.cut(&mut Driver::new((self.script.options)(), Some(cut), false), cut) {
            Ok(run) => Some(run),
            Err(text) => {
                if report.findings.is_empty() {
                    report.story = self.story(cut);
                }
                report.findings.push(format!("{}, {cut:?}: {text}", self.script.name));
                None
            }
        }
    }

    fn cut(&self, driver: &mut Driver, cut: Cut) -> Result<Run, String> {
        let mut run = Run::default();
        let result = quietly(|| {
            match (self.script.play)(driver).and_then(|()| driver.settle()) {
                Err(Stop::PowerCut) => {}
                Ok(()) => return Err(Stop::Wrong("the point was not reached again: the run has chance in it".into())),
                Err(wrong) => return Err(wrong),
            }
            let victims: &[NodeId] = if cut.victims == Victims::Both { &[A, B] } else { &[cut.node] };
            run.variants = variants(&driver.world, cut.node, victims, cut.moment);
            driver.lose_power(victims, cut.survival)?;
            if let Some((point, survival)) = cut.again {
                run.again = driver.restart_until(cut.node, point)?;
                if run.again {
                    run.variants = variants(&driver.world, cut.node, victims, Moment::Before);
                    driver.lose_power_again(cut.node, survival)?;
                }
            }
            driver.settle()
        });
        match result {
            Ok(()) => Ok(run),
            Err(Stop::PowerCut) => unreachable!("power was cut already"),
            Err(Stop::Wrong(text)) => Err(text),
        }
    }

    /// The end of the story of a finding.
    fn story(&self, cut: Cut) -> String {
        let mut driver = Driver::new((self.script.options)(), Some(cut), true);
        // What it comes to is known.
        let _ = self.cut(&mut driver, cut);
        let story = driver.world.take_trace();
        let told: Vec<&str> = story.iter().map(String::as_str).filter(|line| !line.contains("Ping")).collect();
        told[told.len().saturating_sub(STORY_LINES)..].join("\n")
    }
}

/// Outcomes that leave something else behind than [`Survival::Nothing`] does, and than one another.
fn variants(world: &World, node: NodeId, victims: &[NodeId], moment: Moment) -> Vec<Survival> {
    let mut all = vec![Survival::Everything, Survival::Data, Survival::Metadata];
    all.extend((0..MIXTURES).map(Survival::Mixture));
    let disk = |id: &NodeId| &world.node(*id).disks[&VOLUME];
    if let (Some(op), Moment::Before) = (disk(&node).cut_operation(), moment) {
        all.extend(parts(op));
    }
    let remains = |survival| victims.iter().map(|id| disk(id).remains(survival)).collect::<Vec<u64>>();
    let mut seen = BTreeSet::from([remains(Survival::Nothing)]);
    all.retain(|survival| seen.insert(remains(*survival)));
    all
}

/// Every prefix and its counterpart by blocks; the first blocks also by sectors.
fn parts(op: &DiskOp) -> Vec<Survival> {
    let torn = |sectors: u32, unit: u32| {
        let cuts = (1..sectors).filter(move |n| n % unit == 0 || *n < TORN_BLOCKS_MAX * 8);
        cuts.flat_map(|n| [Survival::First(n), Survival::AllBut(n)]).collect()
    };
    match op {
        DiskOp::Write { range, .. } if range.sectors() <= 16 => torn(range.sectors() as u32, 1),
        DiskOp::MetaWrite { blocks, .. } => torn(blocks.len() as u32 * 8, 8),
        _ => Vec::new(),
    }
}

/// A panic of the engine is a finding like any other.
fn quietly(run: impl FnOnce() -> Result<(), Stop>) -> Result<(), Stop> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_string()));
        Err(Stop::Wrong(format!("panic: {}", text.unwrap_or_else(|| "without a message".into()))))
    })
}
