//! An NBD server over a disk in memory, to try clients against:
//! `cargo run -p nbd-frontend --example nbd_mem -- SIZE_MIB [SOCKET]`. Without a socket: TCP on 127.0.0.1, any port.
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(size_mib) = arguments.next().and_then(|s| s.parse::<u64>().ok()).filter(|s| (1..=4096).contains(s)) else {
        eprintln!("usage: nbd_mem SIZE_MIB [SOCKET], with SIZE_MIB from 1 to 4096");
        std::process::exit(2);
    };
    let disk = support::Disk::new(nbd_frontend::Export {
        name: "mem".to_owned(),
        size_bytes: size_mib << 20,
        limits: types::BlockLimits::default(),
        read_only: false,
        multi_conn: true,
    });
    match arguments.next() {
        Some(path) => {
            support::listen_unix(&disk, Path::new(&path))?;
            println!("nbd+unix:///mem?socket={path}");
        }
        None => println!("nbd://127.0.0.1:{}/mem", support::listen_tcp(&disk, "127.0.0.1:0")?),
    }
    loop {
        std::thread::park();
    }
}
