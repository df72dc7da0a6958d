//! Options of a running resource on the command line: one `--name VALUE` for each row of the configuration's tables.

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, FromArgMatches};
use config::value::{Kind, OptionSpec, Support};
use control::{Command, OptionWords, Target};

/// A target and the options of one section that were given, as they were written.
pub struct Changed {
    target: Target,
    options: OptionWords,
}

impl Changed {
    fn of(matches: &ArgMatches, table: &[OptionSpec]) -> Result<Changed, clap::Error> {
        let target = matches.get_one::<Target>("target").expect("it is required").clone();
        let given = |spec: &OptionSpec| Some((spec.name.into(), matches.get_one::<String>(spec.name)?.clone()));
        let options: OptionWords = on_command_line(table).filter_map(given).collect();
        match options.is_empty() {
            true => Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, "name at least one option; see --help\n")),
            false => Ok(Changed { target, options }),
        }
    }
}

/// A secret on a command line is there for everybody to see.
fn on_command_line(table: &[OptionSpec]) -> impl Iterator<Item = &OptionSpec> {
    table.iter().filter(|spec| !matches!(spec.kind, Kind::Secret { .. }))
}

fn augment(command: clap::Command, table: &'static [OptionSpec]) -> clap::Command {
    let target = Arg::new("target").value_name("TARGET").required(true).value_parser(clap::value_parser!(Target));
    let option = |spec: &'static OptionSpec| {
        let useless = if matches!(spec.support, Support::NotYet | Support::NoEffect(_)) { "; no effect" } else { "" };
        Arg::new(spec.name).long(spec.name).value_name("VALUE").help(format!("{}{useless}", spec.describe()))
    };
    command.arg(target).args(on_command_line(table).map(option))
}

macro_rules! sections {
    ($($name:ident)+) => { $(
        pub struct $name(Changed);

        impl $name {
            pub fn command(&self) -> Command {
                let Changed { target, options } = &self.0;
                Command::$name { target: target.clone(), options: options.clone() }
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<$name, clap::Error> {
                Changed::of(matches, config::options::$name::TABLE).map($name)
            }
            fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
                Err(clap::Error::new(ErrorKind::InvalidSubcommand))
            }
        }

        impl Args for $name {
            fn augment_args(command: clap::Command) -> clap::Command {
                augment(command, config::options::$name::TABLE)
            }
            fn augment_args_for_update(command: clap::Command) -> clap::Command {
                augment(command, config::options::$name::TABLE)
            }
        }
    )+ };
}

sections! { NetOptions DiskOptions PeerDeviceOptions ResourceOptions }
