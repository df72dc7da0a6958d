//! What can go wrong with a device, as opposed to one request. Each says the next step where there is one.

use libublk::UblkError as LibError;
use std::io;

#[derive(thiserror::Error, Debug)]
pub enum UblkError {
    #[error("/dev/ublk-control does not exist: load the driver with `modprobe ublk_drv`, or serve the volume over NBD")]
    NoDriver,
    #[error("ublk device option {option}: {value} is {violated}")]
    Option { option: &'static str, value: u64, violated: &'static str },
    #[error("the kernel's ublk driver has no {feature}; it needs Linux {since} or newer")]
    NoFeature { feature: &'static str, since: &'static str },
    #[error("ublk device {id}: {command} failed: {source}{}", hint(command, source))]
    Control { id: i64, command: &'static str, source: io::Error },
    #[error("ublk device {id}: cannot map the request descriptors: {source}")]
    Map { id: u32, source: io::Error },
    #[error("ublk device {id}: the kernel refused to hand over request {tag}: {source}")]
    Fetch { id: u32, tag: u16, source: io::Error },
    #[error("ublk device {id}: its control thread has ended")]
    ControlThread { id: i64 },
}

impl UblkError {
    pub(crate) fn control(id: i64, command: &'static str, error: LibError) -> UblkError {
        UblkError::Control { id, command, source: to_io(error) }
    }
}

/// libublk reports the kernel's answer in three forms; the number is what matters.
pub(crate) fn to_io(error: LibError) -> io::Error {
    match error {
        LibError::IOError(e) => e,
        LibError::UringIOError(code) | LibError::OtherError(code) => io::Error::from_raw_os_error(code.abs()),
        LibError::InvalidVal => io::Error::from_raw_os_error(libc::EINVAL),
        other => io::Error::other(other.to_string()),
    }
}

fn hint(command: &str, source: &io::Error) -> &'static str {
    match (command, source.raw_os_error()) {
        ("add", Some(libc::EEXIST)) => " (the number is taken: choose another, or remove the old device)",
        ("recover", Some(libc::EBUSY)) => " (its old server still runs)",
        _ => "",
    }
}
