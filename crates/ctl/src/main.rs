//! replicactl: talks to replicad over its socket (`online.rs`), and works on metadata without it (`offline/`). Called as
//! drbdmeta it takes that program's command line (`drbdmeta/`).

mod args;
mod client;
mod drbdmeta;
mod offline;
mod online;
mod options;
mod output;
mod render;

use args::{Cli, Cmd};
use clap::{CommandFactory, Parser};
use output::{Exit, Output};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == drbdmeta::NAME) {
        let arguments: Vec<String> = arguments.map(|a| a.to_string_lossy().into_owned()).collect();
        let mut output = Output::new(false);
        let exit = drbdmeta::run(&arguments, &mut output);
        return ExitCode::from(output.exit(exit).0);
    }
    let cli = Cli::parse();
    let mut output = Output::new(cli.global.json);
    let exit = run(&cli, &mut output);
    ExitCode::from(output.exit(exit).0)
}

fn run(cli: &Cli, output: &mut Output) -> Exit {
    match &cli.command {
        Cmd::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "replicactl", &mut text);
            output.text(&String::from_utf8_lossy(&text));
            return Exit::DONE;
        }
        Cmd::Manual => return manual(output),
        _ => {}
    }
    if let Some(exit) = offline::run(&cli.command, &cli.global, output) {
        return exit;
    }
    let command = online::command_of(&cli.command, &cli.global).expect("every other command is the daemon's");
    match online::run(&cli.command, command, &cli.global, output) {
        Ok(exit) => exit,
        Err(error) => offline::fallback(&cli.command, &cli.global, output, &error)
            .unwrap_or_else(|| online::no_daemon(&error, output)),
    }
}

fn manual(output: &mut Output) -> Exit {
    let mut text = Vec::new();
    match clap_mangen::Man::new(Cli::command()).render(&mut text) {
        Ok(()) => output.text(&String::from_utf8_lossy(&text)),
        Err(e) => return output.error(Exit::FAILED, format!("cannot render the manual page: {e}")),
    }
    Exit::DONE
}
