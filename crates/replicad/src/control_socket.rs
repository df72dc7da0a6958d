//! `RUN_DIR/control.sock`: one request a connection, answers until a final one.
//!
//! Who may connect is the socket's mode (0660); who may change something is root, or the user the daemon runs as
//! (SO_PEERCRED). An answer that cannot be queued is dropped: its client is gone, which is all that a send can fail of.
//! Bounds: connections, length of a line (`control::LINE_BYTES_MAX`), time until the request is there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control::{Command, EventRecord, LineBuffer, Reply, Request, Response, Target, decode_line, encode_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc};

use crate::commands::{chosen, execute};
use crate::events;
use crate::node::{Node, Served};

/// Connections served at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 256;
/// For a client to send its request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// For a client to take an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// Lines between a command and its client.
const LINES_QUEUED: usize = 64;
/// Who may ask questions.
const GROUP: &std::ffi::CStr = c"replicad";

pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if path.exists() {
        // Left by a daemon that died: the lock on the run directory is ours.
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Some(group) = crate::process::group_id(GROUP)
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group))
    {
        tracing::warn!("{} stays with its group: {error}", path.display());
    }
    Ok(listener)
}

pub async fn serve(listener: UnixListener, node: Arc<Node>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    connection(stream, node).await;
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a control connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, node: Arc<Node>) {
    let user = stream.peer_cred().map(|cred| cred.uid());
    let (mut reader, writer) = stream.into_split();
    let (answers, queue) = mpsc::channel(LINES_QUEUED);
    let writing = tokio::spawn(write_all(writer, queue));
    match tokio::time::timeout(REQUEST_PATIENCE, read_request(&mut reader)).await {
        // A client that says nothing gets nothing.
        Err(_) | Ok(Ok(None)) => {}
        Ok(Err(message)) => {
            let next_step = Some("use the replicactl of this version".into());
            let _ = answers.send(Response::Error { message, next_step }).await;
        }
        Ok(Ok(Some(command))) => {
            tokio::select! {
                () = answer(&node, command, user, &answers) => {}
                // A client that hangs up ends its event stream or its wait; changes that began go on in the engine.
                () = hung_up(&mut reader) => {}
            }
        }
    }
    drop(answers);
    // The task ends with the queue; it does not panic.
    let _ = writing.await;
}

async fn read_request(reader: &mut OwnedReadHalf) -> Result<Option<Command>, String> {
    let mut lines = LineBuffer::new();
    let mut piece = [0; 4096];
    loop {
        let n = reader.read(&mut piece).await.map_err(|e| e.to_string())?;
        if n == 0 {
            return Ok(None);
        }
        lines.push(&piece[..n]);
        if let Some(line) = lines.next_line().map_err(|e| e.to_string())? {
            return decode_line::<Request>(&line).map(|request| Some(request.command)).map_err(|e| e.to_string());
        }
    }
}

async fn hung_up(reader: &mut OwnedReadHalf) {
    let mut piece = [0; 256];
    // What a client says after its request is not looked at.
    while matches!(reader.read(&mut piece).await, Ok(1..)) {}
}

async fn write_all(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Response>) {
    while let Some(response) = queue.recv().await {
        let line = encode_line(&Reply::new(response)).or_else(|error| {
            let next_step = Some("ask for one resource at a time".into());
            encode_line(&Reply::new(Response::Error { message: format!("the answer is too long: {error}"), next_step }))
        });
        let Ok(line) = line else { return };
        match tokio::time::timeout(WRITE_PATIENCE, writer.write_all(&line)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

async fn answer(node: &Arc<Node>, command: Command, user: std::io::Result<u32>, answers: &mpsc::Sender<Response>) {
    let own = rustix::process::geteuid().as_raw();
    let may_change = matches!(&user, Ok(uid) if *uid == 0 || *uid == own);
    if !command.is_question() && !may_change {
        let who = user.map_or("an unknown user".into(), |uid| format!("user {uid}"));
        let refusal = Response::Refused {
            object: command.target().to_string(),
            code: 152,
            rule: "ERR_PERM".into(),
            state: who,
            message: format!("{} is for root", command.name()),
            next_step: Some("run it as root".into()),
        };
        let _ = answers.send(refusal).await;
        return;
    }
    let response = match &command {
        Command::Events { target, now, statistics } => stream_events(node, target, *now, *statistics, answers).await,
        _ if command.is_question() => execute(node, command, answers).await,
        _ => {
            tracing::info!("{} {} asked for by user {:?}", command.name(), command.target(), user.ok());
            // A change runs to its end even if the client goes away.
            let (node, answers) = (node.clone(), answers.clone());
            let running = tokio::spawn(async move { execute(&node, command, &answers).await });
            running.await.unwrap_or_else(|error| Response::Error { message: error.to_string(), next_step: None })
        }
    };
    let _ = answers.send(response).await;
}

/// The present state, then changes for ever. Ends with `Error` if the client cannot keep up.
async fn stream_events(
    node: &Arc<Node>,
    target: &Target,
    now: bool,
    statistics: bool,
    answers: &mpsc::Sender<Response>,
) -> Response {
    let resources = match chosen(node, target) {
        Ok(resources) => resources,
        Err(failure) => return *failure,
    };
    let mut streams = Vec::new();
    for served in resources {
        // Subscribed before the first look, so that nothing is missed in between.
        let changes = served.handle.subscribe();
        let Ok(snapshot) = served.handle.snapshot().await else { continue };
        let report = served.report(&snapshot);
        for record in events::initial(&report, statistics) {
            if send(answers, record).await.is_err() {
                return Response::Done;
            }
        }
        streams.push((served, changes, report));
    }
    if send(answers, EventRecord::end_of_initial_state()).await.is_err() || now {
        return Response::Done;
    }
    let mut following = tokio::task::JoinSet::new();
    for (served, mut changes, mut report) in streams {
        let answers = answers.clone();
        following.spawn(async move {
            loop {
                match follow(&served, &mut changes, &mut report, statistics, &answers).await {
                    Ok(()) => {}
                    Err(response) => return response,
                }
            }
        });
    }
    match following.join_next().await {
        Some(Ok(response)) => response,
        // No resources: nothing will ever change.
        None => std::future::pending().await,
        Some(Err(error)) => Response::Error { message: error.to_string(), next_step: None },
    }
}

async fn follow(
    served: &Served,
    changes: &mut tokio::sync::broadcast::Receiver<Arc<crate::resource::Snapshot>>,
    report: &mut control::ResourceReport,
    statistics: bool,
    answers: &mpsc::Sender<Response>,
) -> Result<(), Response> {
    let snapshot = match changes.recv().await {
        Ok(snapshot) => snapshot,
        Err(RecvError::Closed) => return Err(Response::Done),
        Err(RecvError::Lagged(missed)) => {
            return Err(Response::Error {
                message: format!("events of {}: {missed} changes were missed, the reader is too slow", served.name()),
                next_step: Some("read faster, or start again to get the present state".into()),
            });
        }
    };
    let next = served.report(&snapshot);
    for record in events::changes(report, &next, statistics) {
        send(answers, record).await.map_err(|()| Response::Done)?;
    }
    *report = next;
    Ok(())
}

async fn send(answers: &mpsc::Sender<Response>, event: EventRecord) -> Result<(), ()> {
    answers.send(Response::Event { event }).await.map_err(|_| ())
}
