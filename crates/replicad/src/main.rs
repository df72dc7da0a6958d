//! `replicad`: reads the configuration, starts the resources, serves the control socket until told to end.
//!
//! Exit codes: 0 left cleanly, 1 run-time failure, 2 usage or configuration.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use config::Config;
use replicad::node::Node;
use replicad::{control_socket, process};
use rustix::fs::{FlockOperation, flock};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

const EXIT_RUN_TIME: u8 = 1;
const EXIT_CONFIGURATION: u8 = 2;
/// Held as long as the daemon runs: a second one on the same run directory must not take over its sockets.
const LOCK_NAME: &str = "replicad.lock";

/// Replicates block devices to other nodes.
#[derive(Parser)]
#[command(
    version,
    after_help = "A volume's `device` in the configuration: \"ublk:N\" for /dev/ublkbN; \"nbd\" for a socket in DIR; \
                  \"nbd:ADDRESS:PORT\" for\nthe same and TCP at that address of the node, WITHOUT AUTHENTICATION: \
                  trusted networks only; \"none\"."
)]
struct Arguments {
    /// TOML file, or a directory of *.toml
    #[arg(long, value_name = "PATH", default_value = "/etc/replicad")]
    config: PathBuf,
    /// Name of this node in the configuration [default: the host name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Holds control.sock and the NBD sockets
    #[arg(long, value_name = "DIR", default_value = "/run/replicad")]
    run_dir: PathBuf,
    /// Copy what is read from a disk to the application, also where the kernel can do without (6.16)
    #[arg(long)]
    no_zero_copy: bool,
}

fn main() -> ExitCode {
    // Prints usage errors itself and ends with 2.
    let arguments = Arguments::parse();
    start_logging();
    let node_name = arguments.node.clone().unwrap_or_else(host_name);
    let loaded = Config::load(&arguments.config).and_then(|config| {
        let locals = config.for_node(&node_name)?;
        Ok((config, locals))
    });
    let (config, locals) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            // Not eprintln, which panics where stderr takes nothing: the exit code has to be the one that is promised.
            let _ = writeln!(std::io::stderr(), "{error}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    match run(arguments, node_name, config, locals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_RUN_TIME)
        }
    }
}

fn start_logging() {
    use std::io::IsTerminal;
    use tracing::Level;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::prelude::*;
    let colours = std::io::stderr().is_terminal();
    let level = if std::env::var_os("REPLICAD_DEBUG").is_some() { Level::DEBUG } else { Level::INFO };
    // libublk tells of its control commands at level info; the devices' own lines say the same with names.
    let targets = Targets::new().with_default(level).with_target("libublk", Level::WARN);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false);
    let registry = tracing_subscriber::registry().with(targets);
    // Under systemd the journal has the time.
    match std::env::var_os("JOURNAL_STREAM").is_some() {
        true => registry.with(lines.without_time()).init(),
        false => registry.with(lines).init(),
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn run(
    arguments: Arguments,
    node_name: String,
    config: Config,
    locals: Vec<config::LocalResource>,
) -> anyhow::Result<()> {
    let run_dir = &arguments.run_dir;
    std::fs::create_dir_all(run_dir)
        .with_context(|| format!("cannot create the run directory {}", run_dir.display()))?;
    let _lock = lock(run_dir)?;
    process::prepare();
    // The control plane is small: listening, answering, connecting.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let socket_path = run_dir.join(control::SOCKET_NAME);
        let socket = control_socket::bind(&socket_path)
            .with_context(|| format!("cannot listen on {}", socket_path.display()))?;
        let node = Arc::new(Node::start(
            &config,
            locals,
            node_name,
            arguments.config.clone(),
            run_dir,
            !arguments.no_zero_copy,
        )?);
        let serving = tokio::spawn(control_socket::serve(socket, node.clone()));
        let watching = tokio::spawn(watchdog(node.clone()));
        tracing::info!("node {} serves {} resources", node.name, node.resources.len());
        notify(&[NotifyState::Ready]);
        wait_for_the_end().await?;
        notify(&[NotifyState::Stopping]);
        serving.abort();
        node.stop().await;
        watching.abort();
        // Gone already only if somebody else removed it.
        let _ = std::fs::remove_file(&socket_path);
        tracing::info!("ended");
        Ok(())
    })
}

fn lock(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join(LOCK_NAME);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another replicad uses the run directory {}; stop it, or give --run-dir", run_dir.display());
    }
    Ok(file)
}

async fn wait_for_the_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: leaving"),
        _ = interrupt.recv() => tracing::info!("SIGINT: leaving"),
    }
    Ok(())
}

/// Tells systemd that all resource threads answer, as often as it wants to hear.
async fn watchdog(node: Arc<Node>) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    // Zero is no interval that could be kept.
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        if node.is_alive().await {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell systemd: {error}");
    }
}
