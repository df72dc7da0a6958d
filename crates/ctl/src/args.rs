//! The command line. Names are DRBD's; a name here is a contract with scripts (docs of `replicactl`).

use crate::options::{DiskOptions, NetOptions, PeerDeviceOptions, ResourceOptions};
use clap::{Args, Parser, Subcommand};
use control::Target;
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(
    name = "replicactl",
    version,
    about = "Administer replicad, the replicated block device daemon",
    after_help = "TARGET is RESOURCE, RESOURCE/VOLUME, PEER:RESOURCE, PEER:RESOURCE/VOLUME, or all.\n\
                  Exit codes: 0 done; 1 refused or failed; 2 usage; 5 a wait timed out; 10 no such object, or refused\n\
                  by the configuration; 11 refused by the state; 16 needs a disk; 17 no up-to-date data; 20 no daemon.\n\
                  Called by the name drbdmeta it takes that program's command line: drbdmeta --help",
    after_long_help = None
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Cmd,
}

/// Where the daemon listens, unless told otherwise.
pub const RUN_DIR: &str = "/run/replicad";
const STATE_DIR: &str = "/var/lib/replicad";

#[derive(Args)]
pub struct Global {
    /// Directory of the daemon's control socket
    #[arg(long, value_name = "DIR", default_value = RUN_DIR, global = true)]
    pub run_dir: PathBuf,
    /// TOML file, or directory of *.toml
    #[arg(long, value_name = "PATH", default_value = "/etc/replicad", global = true)]
    pub config: PathBuf,
    /// Name of this node in the configuration [default: host name]
    #[arg(long, value_name = "NAME", global = true)]
    pub node: Option<String>,
    /// Where sizes of disks with internal metadata are remembered [default: /var/lib/replicad, or what --run-dir gives]
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Answer in JSON, refusals too
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// What has its own sockets has its own memory: a demo or a test leaves nothing behind in /var.
    pub fn state_dir(&self) -> &Path {
        let usual = if self.run_dir == Path::new(RUN_DIR) { Path::new(STATE_DIR) } else { &self.run_dir };
        self.state_dir.as_deref().unwrap_or(usual)
    }
}

#[derive(Args)]
pub struct One {
    #[arg(value_name = "TARGET")]
    pub target: Target,
}

#[derive(Args)]
pub struct Any {
    /// All resources if not given
    #[arg(value_name = "TARGET", default_value = "all")]
    pub target: Target,
}

#[derive(Args)]
pub struct Forced {
    #[arg(value_name = "TARGET")]
    pub target: Target,
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Wait {
    #[arg(value_name = "TARGET")]
    pub target: Target,
    /// Seconds; 0 waits for ever [default: wfc-timeout of the configuration]
    #[arg(long, alias = "wfc-timeout", value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// Of metadata on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// DRBD 8
    V08,
    /// DRBD 9, and this daemon
    V09,
}

const CREATE_MD_HELP: &str = "\
--format v08 --force turns the v09 metadata of a two-node resource into v08, in place: generations, bitmap and data stay,\n\
so a kernel with DRBD 8.4 resyncs only what differs. Refused where v08 cannot say what v09 says: bitmaps for other nodes, an\n\
activity log that is not applied, bitmap blocks other than 4096 bytes. It makes no fresh v08 metadata.";

const CHECK_RESIZE_HELP: &str = "\
The size that a disk had is remembered by create-md, restore-md, apply-al and check-resize; only there the old metadata is\n\
looked for. The size of the volume does not change. A crash in the middle leaves the old metadata, the new, or, where the two\n\
places overlap, metadata that asks for a full sync.";

const ADJUST_HELP: &str = "\
Prints what it changed, a line each. al-extents takes effect at the next attach; shared-secret, cram-hmac-alg and what is\n\
about making a connection at the next connect. Other addresses, disks, devices, volumes, nodes and sizes need a restart\n\
of replicad; then nothing is changed.";

const VERIFY_HELP: &str = "\
Needs the same verify-alg on both nodes. Returns when it runs; status shows how far it is, the log and out-of-sync in\n\
status --json what it found. Blocks that differ are out of sync on both nodes from then on, and nothing else happens to\n\
them: disconnect and connect copies them, from the Primary or, where there is none, from the node with the lower id;\n\
invalidate chooses the direction.";

/// A number of sectors, or of bytes with a suffix.
fn sectors(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no number of sectors; write 2048, 2048s or 1M");
    let unit = |letter: char| match letter.to_ascii_uppercase() {
        'S' => Some(1),
        'K' => Some(2),
        'M' => Some(2 << 10),
        'G' => Some(2 << 20),
        'T' => Some(2 << 30),
        _ => None,
    };
    let (digits, factor) = match text.chars().last() {
        Some(last) if !last.is_ascii_digit() => (&text[..text.len() - last.len_utf8()], unit(last).ok_or_else(wrong)?),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    // No disk has more; as bytes it still fits.
    number.checked_mul(factor).filter(|sectors| *sectors < 1 << 54).ok_or_else(wrong)
}

#[derive(Subcommand)]
pub enum Cmd {
    /// Write fresh metadata for a resource or volume; with --force, metadata of DRBD 8 (v08) is converted in place
    #[command(after_help = CREATE_MD_HELP)]
    CreateMd {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// Bitmap slots, 1 to 31 [default: the other nodes of the resource]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=31))]
        max_peers: Option<u8>,
        /// v08: give a disk back to a kernel with DRBD 8.4
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::V09)]
        format: Format,
        /// Overwrite what is found on the disk
        #[arg(long)]
        force: bool,
    },
    /// Print a volume's metadata as text
    DumpMd {
        #[arg(value_name = "RESOURCE/VOLUME")]
        target: Target,
        /// Also if the activity log has to be applied first
        #[arg(long)]
        force: bool,
    },
    /// Write a volume's metadata from a dump
    RestoreMd {
        #[arg(value_name = "RESOURCE/VOLUME")]
        target: Target,
        /// Output of dump-md
        file: PathBuf,
        /// Overwrite metadata that is there
        #[arg(long)]
        force: bool,
    },
    /// Merge the activity log into the bitmaps, as attaching does; also in metadata of DRBD 8
    ApplyAl(One),
    /// Move internal metadata to the end of its disk after the disk has grown; apply-al does so, too
    #[command(after_help = CHECK_RESIZE_HELP)]
    CheckResize {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// Size of the disk before it grew [default: as remembered]
        #[arg(long, value_name = "BYTES")]
        old_size: Option<u64>,
    },
    /// Generation identifiers, explained
    ShowGi(One),
    /// Generation identifiers, one line
    GetGi(One),
    /// Attach the disks and connect
    Up(One),
    /// Disconnect, detach, forget
    Down(One),
    /// Make the running state match the configuration: options that differ change, disks are attached, peers connected
    #[command(after_help = ADJUST_HELP)]
    Adjust {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// Only tell what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Change options of connections until the next adjust
    NetOptions(NetOptions),
    /// Change options of disks until the next adjust
    DiskOptions(DiskOptions),
    /// Change options of volumes towards peers until the next adjust
    PeerDeviceOptions(PeerDeviceOptions),
    /// Change options of a resource until the next adjust
    ResourceOptions(ResourceOptions),
    /// Attach a disk
    Attach(One),
    /// Detach a disk
    Detach(Forced),
    /// Connect to the peers
    Connect {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// Throw away what was changed here since the split brain
        #[arg(long)]
        discard_my_data: bool,
    },
    /// Disconnect from the peers
    Disconnect(Forced),
    /// Become Primary; a TCP address for NBD that cannot be had is told on stderr and does not stop it
    #[command(visible_alias = "primary")]
    Promote(Forced),
    /// Become Secondary
    #[command(visible_alias = "secondary")]
    Demote(Forced),
    /// State of resources, disks and connections
    Status {
        #[command(flatten)]
        any: Any,
        #[arg(long, short)]
        verbose: bool,
        /// What was moved, and how long requests take, stage by stage
        #[arg(long)]
        statistics: bool,
        /// Repeat every second until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// State changes as they happen
    #[command(visible_alias = "events2")]
    Events {
        #[command(flatten)]
        any: Any,
        /// Only the present state
        #[arg(long)]
        now: bool,
        #[arg(long)]
        statistics: bool,
        /// Start each line with the time
        #[arg(long)]
        timestamps: bool,
    },
    /// Own role
    Role(One),
    /// Connection states, a line per peer
    Cstate(One),
    /// Disk states, a line per volume: own/peer/...
    Dstate(One),
    /// Wait until the peers are connected
    WaitConnect(Wait),
    /// Wait until the data is in sync
    WaitSync(Wait),
    /// Throw the local data away and fetch it from a peer
    Invalidate {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// Host name of the peer to fetch from
        #[arg(long, value_name = "PEER")]
        from_peer: Option<String>,
    },
    /// Throw a peer's data away and send it ours
    InvalidateRemote(One),
    /// Hold a resync
    PauseSync(One),
    /// Let a held resync go on
    ResumeSync(One),
    /// Compare the data with the peers' while it is in use
    #[command(after_help = VERIFY_HELP)]
    Verify {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// First sector, or bytes with K, M, G or T [default: where the last verify was interrupted, else 0]
        #[arg(long, value_name = "SECTOR", value_parser = sectors)]
        start: Option<u64>,
        /// Where to stop [default: the end]
        #[arg(long, value_name = "SECTOR", value_parser = sectors)]
        stop: Option<u64>,
    },
    /// Start a new generation
    NewCurrentUuid {
        #[arg(value_name = "TARGET")]
        target: Target,
        /// Declare the copies equal: skips the first sync
        #[arg(long)]
        clear_bitmap: bool,
    },
    /// Mark the local data as outdated
    Outdate(One),
    /// Print shell completions
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    #[command(hide = true)]
    Manual,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("replicactl").chain(line.split_whitespace()))
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in ["--json status r0", "status --json r0", "status r0 --json --run-dir /x"] {
            assert!(parse(line).unwrap().global.json, "{line}");
        }
    }

    #[test]
    fn sectors_have_drbds_suffixes() {
        for (text, expected) in [("0", 0), ("2048", 2048), ("8s", 8), ("4K", 8), ("1M", 2048), ("2g", 4 << 20)] {
            let line = format!("verify r0 --start {text}");
            let Cmd::Verify { start, stop: None, .. } = parse(&line).unwrap().command else { panic!("{line}") };
            assert_eq!(start, Some(expected), "{line}");
        }
        for text in ["", "M", "1.5M", "-1", "9x", "99999999999999T"] {
            let line = ["replicactl", "verify", "r0", "--stop", text];
            assert_eq!(Cli::try_parse_from(line).err().map(|e| e.exit_code()), Some(2), "{text}");
        }
    }

    #[test]
    fn drbds_words_work_too() {
        assert!(matches!(parse("primary r0 --force").unwrap().command, Cmd::Promote(Forced { force: true, .. })));
        assert!(matches!(parse("secondary r0").unwrap().command, Cmd::Demote(Forced { force: false, .. })));
        assert!(matches!(parse("events2 --now all").unwrap().command, Cmd::Events { now: true, .. }));
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        for line in [
            "",
            "fly r0",
            "up",
            "up r0/x",
            "create-md r0 --max-peers 32",
            "create-md r0 --max-peers 0",
            "status --verbos",
            "connect a:b:c",
            "wait-sync r0 --timeout soon",
        ] {
            let error = parse(line).err().unwrap_or_else(|| panic!("`{line}` has to be refused"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
