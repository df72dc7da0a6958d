//! One door to everything that is done with the project besides using it. A thin dispatcher: one module per
//! subcommand, each with its own arguments.

mod bench;
mod demo;
mod fuzz;
mod packages;
mod test;
mod vm;
mod workspace;

use clap::{CommandFactory, Parser};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and try replicad")]
enum Command {
    /// All tests on this machine; installs what they need
    Test(test::Args),
    /// Two nodes on this machine, replicating, for you to play with
    Demo(demo::Args),
    /// Ratios of speed, in one table
    Bench(bench::Args),
    /// The simulator: --seeds N, --seconds N, --seed S --trace, --shrink S, --scenario FILE
    Sim(test::SimArgs),
    /// Looks for bytes that break a reader of foreign bytes
    Fuzz(fuzz::Args),
    /// Whole machines in QEMU: real ublk, real kernels
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Test(args) => test::main(args),
        Command::Demo(args) => demo::main(args),
        Command::Bench(args) => bench::main(args),
        Command::Sim(args) => test::sim(args),
        Command::Fuzz(args) => fuzz::main(args),
        Command::Vm(args) => vm::main(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tests in virtual machines: the subcommands of `vm` that are named so.
fn vm_tests() -> Vec<String> {
    let command = Command::command();
    let vm = command.find_subcommand("vm").expect("it is defined above");
    vm.get_subcommands().map(|test| test.get_name().to_string()).filter(|name| name.starts_with("test-")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap finds clashing names only when the command that has them is called.
    #[test]
    fn the_arguments_of_all_commands_fit_together() {
        Command::command().debug_assert();
    }
}
