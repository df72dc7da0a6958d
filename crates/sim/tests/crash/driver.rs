//! Steps a world along a script, and cuts power where it is told to.

use engine::Command;
use sim::action::Action;
use sim::disk::{Disk, Survival, View};
use sim::swarm::{MS, Options, SECOND};
use sim::world::{Event, World};
use types::{BlockOp, ByteRange, ConnectionState, DiskState, NodeId, ReplicationState};

use super::after::{Remains, WasLogged};
use super::order::Order;
use super::{A, B, Cut, Moment, VOLUME};

/// Virtual time that a step of a script may take.
const PATIENCE: u64 = 200 * SECOND;

/// Why a script ended early.
#[derive(Debug)]
pub enum Stop {
    PowerCut,
    Wrong(String),
}
pub type Go = Result<(), Stop>;

pub fn wrong<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Wrong(text.into()))
}

pub struct Driver {
    pub world: World,
    cut: Option<Cut>,
    order: Order,
    /// A Primary stepped down with both copies equal, and nothing was written since (rule P14).
    pub at_rest: bool,
    /// What a node knew when it was restarted.
    remains: Option<Remains>,
}

impl Driver {
    pub fn new(options: Options, cut: Option<Cut>, trace: bool) -> Driver {
        let mut world = World::with_options(options, 1, trace);
        // Nothing happens that the script does not ask for.
        world.healing = true;
        if let Some(Cut { node, point, moment: Moment::Before, .. }) = cut {
            disk_of(&mut world, node).cut_power_at(Some(point));
        }
        Driver { world, cut, order: Order::default(), at_rest: false, remains: None }
    }

    /// One event.
    fn step(&mut self) -> Go {
        self.world.step();
        self.look()?;
        if self.power_goes() { Err(Stop::PowerCut) } else { Ok(()) }
    }

    fn look(&mut self) -> Go {
        if let Some(complaint) = &self.world.complaint {
            return wrong(complaint.text.clone());
        }
        self.order.look(&self.world).map_err(Stop::Wrong)
    }

    fn power_goes(&self) -> bool {
        let Some(cut) = self.cut else { return false };
        let disk = &self.world.node(cut.node).disks[&VOLUME];
        match cut.moment {
            Moment::Before => disk.cut_operation().is_some(),
            Moment::After => disk.durable_points() >= cut.point,
        }
    }

    // ------------------------------------------------------------------ what a script says

    pub fn until(&mut self, what: &str, mut reached: impl FnMut(&World) -> bool) -> Go {
        let begun = self.world.now;
        while !reached(&self.world) {
            self.step()?;
            if self.world.now - begun > PATIENCE {
                return wrong(format!("the script waits for ever: {what}"));
            }
        }
        Ok(())
    }

    /// Lets pages that may wait a little go to disk.
    pub fn pause(&mut self) -> Go {
        let end = self.world.now + 3 * SECOND;
        self.until("time passes", |world| world.now >= end)
    }

    pub fn in_sync(&mut self) -> Go {
        self.until("both nodes are in sync", |world| is_in_sync(world, A) && is_in_sync(world, B))
    }

    /// Gives a command and waits until it succeeded.
    pub fn command(&mut self, node: NodeId, command: Command) -> Go {
        let name = sim::action::Order::of(&command).name();
        let refused = |world: &World| world.stats.commands.get(name).map_or(0, |(_, refused)| *refused);
        let before = refused(&self.world);
        let asks_for_resync = matches!(command, Command::Invalidate { .. } | Command::InvalidateRemote { .. });
        self.at_rest &= !asks_for_resync && !matches!(command, Command::Promote { .. });
        self.world.command(node, command, false);
        self.look()?;
        self.until(name, |world| world.node(node).commands.is_empty())?;
        if refused(&self.world) > before { wrong(format!("{name} was refused")) } else { Ok(()) }
    }

    pub fn promote(&mut self, node: NodeId) -> Go {
        self.command(node, Command::Promote { force: false })
    }

    pub fn demote(&mut self, node: NodeId) -> Go {
        let equal = is_in_sync(&self.world, A) && is_in_sync(&self.world, B);
        self.command(node, Command::Demote)?;
        super::after::demoted(&self.world, node, equal).map_err(Stop::Wrong)?;
        self.at_rest = equal;
        Ok(())
    }

    pub fn disconnect(&mut self, node: NodeId) -> Go {
        self.command(node, Command::Disconnect { peer: other(node), force: false })
    }

    /// From both sides.
    pub fn connect(&mut self) -> Go {
        for node in [A, B] {
            self.command(node, Command::Connect { peer: other(node), discard_my_data: false })?;
        }
        Ok(())
    }

    pub fn detach(&mut self, node: NodeId) -> Go {
        self.command(node, Command::Detach { volume: VOLUME, force: false })
    }

    pub fn attach(&mut self, node: NodeId) -> Go {
        let disk = self.world.node(node).disks[&VOLUME].attach(View::Visible).map_err(Stop::Wrong)?;
        self.command(node, Command::Attach { volume: VOLUME, disk: Box::new(disk) })
    }

    /// Requests of the application that are in flight together, each an operation with start and length in bytes.
    pub fn submit(&mut self, node: NodeId, requests: &[(BlockOp, u64, u64)]) -> Go {
        self.at_rest &= requests.iter().all(|(op, ..)| !op.is_write());
        for (op, start, len) in requests {
            self.world.submit(node, VOLUME, *op, ByteRange::new(*start, *len).expect("small"));
            self.look()?;
        }
        Ok(())
    }

    /// The same, until all have completed.
    pub fn requests(&mut self, node: NodeId, requests: &[(BlockOp, u64, u64)]) -> Go {
        self.submit(node, requests)?;
        self.completed(node)
    }

    pub fn completed(&mut self, node: NodeId) -> Go {
        self.until("the requests complete", |world| world.node(node).requests.is_empty())
    }

    /// Power loss that belongs to the script. The node comes back by itself.
    pub fn crash(&mut self, node: NodeId, survival: Survival) -> Go {
        self.at_rest = false;
        disk_of(&mut self.world, node).survive(survival);
        self.world.act(power_loss(node));
        self.look()
    }

    pub fn restarted(&mut self, node: NodeId) -> Go {
        self.until("the node is back", |world| is_attached(world, node))
    }

    // ------------------------------------------------------------------ after the cut

    /// Power goes as planned.
    pub fn lose_power(&mut self, victims: &[NodeId], survival: Survival) -> Go {
        self.cut = None;
        let logged: Vec<WasLogged> = victims
            .iter()
            .map(|id| WasLogged::of(&self.world.node(*id).disks[&VOLUME]))
            .collect::<Result<_, _>>()
            .map_err(Stop::Wrong)?;
        for id in victims {
            disk_of(&mut self.world, *id).survive(survival);
            self.world.act(power_loss(*id));
        }
        self.look()?;
        for (id, logged) in victims.iter().zip(logged) {
            logged.compare(&self.world.node(*id).disks[&VOLUME]).map_err(|e| Stop::Wrong(format!("{id:?}: {e}")))?;
        }
        Ok(())
    }

    /// To the durable point `point` of the restart of a node that lost power. `false`: the disk was attached before.
    pub fn restart_until(&mut self, node: NodeId, point: u64) -> Result<bool, Stop> {
        self.remains = Some(Remains::of(&self.world, node).map_err(Stop::Wrong)?);
        let disk = disk_of(&mut self.world, node);
        disk.cut_power_at(Some(disk.durable_points() + point));
        while !is_attached(&self.world, node) {
            self.step()?;
            if self.world.node(node).disks[&VOLUME].cut_operation().is_some() {
                return Ok(true);
            }
        }
        disk_of(&mut self.world, node).cut_power_at(None);
        Ok(false)
    }

    /// Where [`Driver::restart_until`] stopped.
    pub fn lose_power_again(&mut self, node: NodeId, survival: Survival) -> Go {
        self.lose_power(&[node], survival)?;
        // Bits that the first restart took from the log cannot be told from older ones any more: they are compared (BM-3).
        self.at_rest = false;
        let remains = self.remains.take().expect("it was restarted");
        remains.still_known(&self.world, node).map_err(Stop::Wrong)
    }

    /// Everybody comes back and all becomes good; the simulator's checkers look at the end.
    pub fn settle(&mut self) -> Go {
        let resyncs = self.world.stats.resyncs;
        self.world.schedule(MS, Event::Heal);
        while !self.world.settled {
            self.step()?;
        }
        if self.at_rest && self.world.stats.resyncs > resyncs {
            return wrong(
                "P14: nothing was written since a Primary stepped down, and a power cut made a resync necessary",
            );
        }
        Ok(())
    }
}

/// The machine comes back after a moment.
fn power_loss(node: NodeId) -> Action {
    Action::Crash { node, power: true, keep_device: false, late: false, restart_after: SECOND }
}

fn disk_of(world: &mut World, node: NodeId) -> &mut Disk {
    world.node_mut(node).disks.get_mut(&VOLUME).expect("made with the node")
}

pub fn other(node: NodeId) -> NodeId {
    if node == A { B } else { A }
}

fn is_in_sync(world: &World, node: NodeId) -> bool {
    let Some(status) = world.status(node) else { return false };
    let peer = &status.peers[&other(node)];
    let device = &peer.volumes[&VOLUME];
    status.volumes[&VOLUME].disk == DiskState::UpToDate
        && peer.connection == ConnectionState::Connected
        && device.disk == DiskState::UpToDate
        && device.replication == ReplicationState::Established
}

pub fn is_connected(world: &World, node: NodeId) -> bool {
    world.status(node).is_some_and(|s| s.peers[&other(node)].connection == ConnectionState::Connected)
}

fn is_attached(world: &World, node: NodeId) -> bool {
    world.status(node).is_some_and(|s| s.volumes[&VOLUME].disk > DiskState::Attaching)
}
