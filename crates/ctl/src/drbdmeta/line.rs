//! The command line of drbdmeta: options anywhere, `MINOR FORMAT DEVICE PLACE COMMAND [ARGUMENT]` in this order.

use super::Failure;
use metadata::{Geometry, Placement};
use std::collections::BTreeMap;
use std::path::PathBuf;
use types::NodeId;

pub const USAGE: &str = "\
usage: drbdmeta [--force] [--quiet] {MINOR|-} {v09|v08} DEVICE {internal|flex-internal|flex-external|INDEX} COMMAND

commands:
  create-md [--peer-max-bio-size BYTES] [--al-stripes N] [--al-stripe-size-kB KIB] [--bitmap-block-size BYTES] MAX_PEERS
  dump-md | restore-md FILE | verify-dump FILE | apply-al | check-resize | wipe-md
  get-gi | show-gi | set-gi VALUE | forget-peer       each with --node-id ID
  outdate | invalidate | dstate | read-dev-uuid | write-dev-uuid HEX
v08 has: dump-md, restore-md, verify-dump, apply-al, wipe-md.
This is replicactl under the name of DRBD's tool; its own commands: replicactl --help
";

/// Of the metadata asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    V08,
    V09,
}

impl Format {
    pub const fn name(self) -> &'static str {
        match self {
            Format::V08 => "v08",
            Format::V09 => "v09",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    CreateMd,
    DumpMd,
    RestoreMd,
    VerifyDump,
    ApplyAl,
    CheckResize,
    WipeMd,
    GetGi,
    ShowGi,
    SetGi,
    ForgetPeer,
    Outdate,
    Invalidate,
    Dstate,
    ReadDevUuid,
    WriteDevUuid,
}

const COMMANDS: [(&str, Command); 16] = [
    ("create-md", Command::CreateMd),
    ("dump-md", Command::DumpMd),
    ("restore-md", Command::RestoreMd),
    ("verify-dump", Command::VerifyDump),
    ("apply-al", Command::ApplyAl),
    ("check-resize", Command::CheckResize),
    ("wipe-md", Command::WipeMd),
    ("get-gi", Command::GetGi),
    ("show-gi", Command::ShowGi),
    ("set-gi", Command::SetGi),
    ("forget-peer", Command::ForgetPeer),
    ("outdate", Command::Outdate),
    ("invalidate", Command::Invalidate),
    ("dstate", Command::Dstate),
    ("read-dev-uuid", Command::ReadDevUuid),
    ("write-dev-uuid", Command::WriteDevUuid),
];

impl Command {
    pub fn name(self) -> &'static str {
        COMMANDS.iter().find(|(_, command)| *command == self).expect("every command has a name").0
    }
    /// Leaves the device as it is.
    pub const fn only_reads(self) -> bool {
        use Command::{Dstate, DumpMd, GetGi, ReadDevUuid, ShowGi, VerifyDump};
        matches!(self, DumpMd | Dstate | GetGi | ReadDevUuid | ShowGi | VerifyDump)
    }
    const fn knows_v08(self) -> bool {
        use Command::{ApplyAl, DumpMd, RestoreMd, VerifyDump, WipeMd};
        matches!(self, ApplyAl | DumpMd | RestoreMd | VerifyDump | WipeMd)
    }
}

/// What was asked for.
#[derive(Debug)]
pub struct Line {
    pub force: bool,
    /// `None`: `-`, no minor.
    pub minor: Option<u32>,
    pub format: Format,
    pub device: PathBuf,
    pub placement: Placement,
    pub command: Command,
    pub argument: Option<String>,
    options: BTreeMap<&'static str, String>,
    /// As it was typed, for the head of a dump.
    pub typed: String,
}

const VALUED: [&str; 5] = ["node-id", "peer-max-bio-size", "al-stripes", "al-stripe-size-kB", "bitmap-block-size"];

/// Without the program's name.
pub fn parse(arguments: &[String]) -> Result<Line, Failure> {
    let (mut options, mut words, mut force) = (BTreeMap::new(), Vec::new(), false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(option) = argument.strip_prefix("--").or(argument.strip_prefix('-').filter(|o| !o.is_empty())) else {
            words.push(argument.clone());
            continue;
        };
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, VALUED.iter().find(|known| **known == name)) {
            ("force", _) => force = true,
            ("quiet" | "verbose" | "v", _) => {}
            (_, Some(known)) => {
                let value = value.map(String::from).or_else(|| rest.next().cloned());
                let value = value.ok_or_else(|| usage(format!("option --{known} needs a value")))?;
                options.insert(*known, value);
            }
            (_, None) => return Err(usage(format!("unknown option {argument}"))),
        }
    }
    let mut words = words.into_iter();
    let mut next = |what: &str| words.next().ok_or_else(|| usage(format!("{what} is missing")));
    let minor = parse_minor(&next("the minor number")?)?;
    let format = match next("the format")?.as_str() {
        "v08" => Format::V08,
        "v09" => Format::V09,
        other => return Err(Failure::new(20, format!("unknown format `{other}`; v09 and v08 are there"))),
    };
    let device = PathBuf::from(next("the device")?);
    let placement = parse_placement(&next("the place of the metadata")?)?;
    let command = next("the command")?;
    let Some((_, command)) = COMMANDS.iter().find(|(name, _)| *name == command) else {
        return Err(Failure::new(20, format!("unknown command `{command}`")));
    };
    if format == Format::V08 && !command.knows_v08() {
        let next = "convert with `replicactl create-md` (to v08: --format v08), or use DRBD's own drbdmeta";
        return Err(Failure::new(20, format!("{} is not offered for v08; {next}", command.name())));
    }
    let typed = std::iter::once("drbdmeta").chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    Ok(Line { force, minor, format, device, placement, command: *command, argument: words.next(), options, typed })
}

fn usage(message: String) -> Failure {
    Failure { exit: 20, message, usage: true }
}

fn parse_minor(word: &str) -> Result<Option<u32>, Failure> {
    if word == "-" {
        return Ok(None);
    }
    let digits = word.trim_start_matches("/dev/").trim_start_matches("drbd");
    let minor = digits.parse().ok().filter(|minor| *minor < 1 << 20);
    minor.map(Some).ok_or_else(|| Failure::new(20, format!("`{word}` is no minor number, /dev/drbdN, or `-` for none")))
}

fn parse_placement(word: &str) -> Result<Placement, Failure> {
    match word {
        "internal" | "flex-internal" => Ok(Placement::Internal),
        "flex-external" => Ok(Placement::External),
        index => index.parse().map(Placement::Indexed).map_err(|_| {
            Failure::new(
                20,
                format!("`{index}` is no place: internal, flex-internal, flex-external, or an index to 255"),
            )
        }),
    }
}

impl Line {
    fn number(&self, option: &'static str) -> Result<Option<u32>, Failure> {
        let Some(text) = self.options.get(option) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Failure::new(10, format!("--{option} is `{text}`, which is no number")))
    }
    pub fn node_id(&self) -> Result<NodeId, Failure> {
        let Some(id) = self.number("node-id")? else {
            return Err(Failure::new(10, format!("{} needs --node-id", self.command.name())));
        };
        let known = u8::try_from(id).ok().and_then(NodeId::new);
        known.ok_or_else(|| Failure::new(10, format!("--node-id is {id}; node ids are 0 to 31")))
    }
    pub fn peer_max_io_bytes(&self) -> Result<u32, Failure> {
        Ok(self.number("peer-max-bio-size")?.unwrap_or(0))
    }
    /// For this number of peers, with what the options say.
    pub fn geometry(&self, max_peers: u8) -> Result<Geometry, Failure> {
        let default = Geometry::new(max_peers);
        let stripe_kib = self.number("al-stripe-size-kB")?.unwrap_or(default.al_stripe_4k * 4);
        if !stripe_kib.is_multiple_of(4) {
            return Err(Failure::new(10, format!("--al-stripe-size-kB is {stripe_kib}: it comes in steps of 4")));
        }
        Ok(Geometry {
            al_stripes: self.number("al-stripes")?.unwrap_or(default.al_stripes),
            al_stripe_4k: stripe_kib / 4,
            bitmap_block_bytes: self.number("bitmap-block-size")?.unwrap_or(default.bitmap_block_bytes),
            ..default
        })
    }
    pub fn required_argument(&self) -> Result<&str, Failure> {
        let missing = || Failure::new(10, format!("{} needs an argument", self.command.name()));
        self.argument.as_deref().ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, Failure> {
        parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    /// As LINSTOR and drbdadm call it.
    #[test]
    fn options_stand_anywhere() {
        let got = line("--force --node-id 3 1000 v09 /dev/sdx internal set-gi A:0:B:0:1:1:").ok().unwrap();
        assert!(got.force && got.minor == Some(1000) && got.command == Command::SetGi);
        assert_eq!((got.node_id().ok().unwrap().get(), got.argument.as_deref()), (3, Some("A:0:B:0:1:1:")));
        let got = line("- v08 file 4 dump-md --force").ok().unwrap();
        assert_eq!((got.force, got.minor, got.format, got.placement), (true, None, Format::V08, Placement::Indexed(4)));
        let got =
            line("/dev/drbd7 v09 x flex-external create-md --al-stripes=4 --al-stripe-size-kB 64 3").ok().unwrap();
        let geometry = got.geometry(3).ok().unwrap();
        assert_eq!((got.minor, geometry.al_stripes, geometry.al_stripe_4k), (Some(7), 4, 16));
    }

    #[test]
    fn wrong_lines_have_drbdmetas_exit_codes() {
        let twenty = [
            "",
            "7",
            "7 v09",
            "7 v09 x",
            "7 v09 x internal",
            "7 v09 x internal fly",
            "7 v10 x internal dump-md",
            "7 v09 x 500 dump-md",
            "7 v09 x foo dump-md",
            "7 v09 x internal dump-md --foo",
            "x v09 x internal dump-md",
            "7 v08 x internal get-gi",
            "7 v09 x internal get-gi --node-id",
        ];
        for text in twenty {
            assert_eq!(line(text).unwrap_err().exit, 20, "{text}");
        }
        for text in ["7 v09 x internal get-gi", "7 v09 x internal get-gi --node-id 40", "7 v09 x 0 get-gi --node-id=a"]
        {
            assert_eq!(line(text).ok().unwrap().node_id().unwrap_err().exit, 10, "{text}");
        }
    }
}
