//! The control plane's half of a resource's devices: making what blocks, then handing it to the resource thread.
//!
//! NBD: its listening sockets (`nbd_doors`) exist exactly while the engine wants the device.
//! ublk: the kernel's device is made here and removed by the resource thread. A host without the driver gets the NBD
//! socket instead, with a warning.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use config::Device;
use engine::DeviceShape;
use tokio::sync::mpsc;
use types::VolumeNumber;
use ublk_frontend::{DeviceOptions, Start, UblkError};

use crate::nbd_doors::{Doors, Served};
use crate::resource::{Order, ResourceHandle, Wish};

/// `RUN_DIR/RESOURCE.VOLUME.nbd`
pub fn nbd_path(run_dir: &Path, resource: &str, volume: VolumeNumber) -> PathBuf {
    run_dir.join(format!("{resource}.{volume}.nbd"))
}

/// The devices of one resource.
pub struct Devices {
    resource: String,
    run_dir: PathBuf,
    zero_copy: bool,
    /// What the configuration wants for each volume.
    kinds: BTreeMap<VolumeNumber, Device>,
    handle: ResourceHandle,
    doors: BTreeMap<VolumeNumber, Doors>,
    /// ublk devices that the resource thread has.
    made: BTreeMap<VolumeNumber, DeviceShape>,
}

impl Devices {
    pub fn new(
        resource: String,
        run_dir: PathBuf,
        zero_copy: bool,
        kinds: BTreeMap<VolumeNumber, Device>,
        handle: ResourceHandle,
    ) -> Devices {
        Devices { resource, run_dir, zero_copy, kinds, handle, doors: BTreeMap::new(), made: BTreeMap::new() }
    }

    /// Until the resource thread has ended.
    pub async fn serve(mut self, mut wishes: mpsc::UnboundedReceiver<Wish>) {
        while let Some(Wish::Device { volume, shape }) = wishes.recv().await {
            match shape {
                Some(shape) => self.create(volume, shape).await,
                None => self.remove(volume).await,
            }
        }
        for doors in self.doors.into_values() {
            doors.close().await;
        }
    }

    async fn create(&mut self, volume: VolumeNumber, shape: DeviceShape) {
        match self.kinds.get(&volume) {
            Some(Device::Nbd { listen }) => self.listen(volume, *listen),
            Some(Device::Ublk(number)) => self.create_ublk(volume, *number, shape).await,
            Some(Device::None) | None => {}
        }
    }

    async fn create_ublk(&mut self, volume: VolumeNumber, number: u32, shape: DeviceShape) {
        if let Some(made) = self.made.get(&volume) {
            if *made != shape {
                tracing::warn!(
                    "{}/{volume}: /dev/ublkb{number} keeps its {} bytes until the next promotion; now it would be {}",
                    self.resource,
                    made.size_bytes,
                    shape.size_bytes
                );
            }
            return;
        }
        let resource = self.resource.clone();
        let zero_copy = self.zero_copy;
        let made =
            tokio::task::spawn_blocking(move || make_ublk(number, shape, zero_copy)).await.expect("it does not panic");
        match made {
            Ok(device) => {
                self.made.insert(volume, shape);
                // A thread that has ended needs no device; dropping it leaves it to recovery.
                let _ = self.handle.send(Order::UblkDevice { volume, device: Box::new(device) });
            }
            Err(UblkError::NoDriver) => {
                let path = nbd_path(&self.run_dir, &resource, volume);
                tracing::warn!(
                    "{resource}/{volume}: this kernel has no ublk driver (modprobe ublk_drv?); NBD on {} instead of \
                     /dev/ublkb{number}",
                    path.display()
                );
                self.listen(volume, None);
            }
            Err(error) => tracing::error!("{resource}/{volume}: cannot make /dev/ublkb{number}: {error}"),
        }
    }

    fn listen(&mut self, volume: VolumeNumber, address: Option<SocketAddr>) {
        if self.doors.contains_key(&volume) {
            return;
        }
        let path = nbd_path(&self.run_dir, &self.resource, volume);
        let served = Served { resource: self.resource.clone(), volume, handle: self.handle.clone() };
        self.doors.insert(volume, Doors::open(served, &path, address));
    }

    async fn remove(&mut self, volume: VolumeNumber) {
        self.made.remove(&volume);
        if let Some(doors) = self.doors.remove(&volume) {
            doors.close().await;
        }
    }
}

/// Requests in flight on one device; the engine parks what it cannot start.
const UBLK_QUEUE_DEPTH: u16 = 128;
/// A device that is on its way out keeps its number for a moment.
const MAKE_ATTEMPTS: u32 = 50;
const MAKE_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

pub fn ublk_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// Blocks for milliseconds, seconds if the number is still in use. A device that a dead daemon left is taken over.
fn make_ublk(number: u32, shape: DeviceShape, zero_copy: bool) -> Result<ublk_frontend::Device, UblkError> {
    let left_behind = Path::new(&format!("/dev/ublkc{number}")).exists();
    let mut options = DeviceOptions {
        start: if left_behind { Start::Recover(number) } else { Start::Add(Some(number)) },
        queue_depth: UBLK_QUEUE_DEPTH,
        size_bytes: shape.size_bytes,
        limits: shape.limits,
        mode: None,
        register_buffers: zero_copy,
        recovery: true,
    };
    for _ in 1..MAKE_ATTEMPTS {
        match ublk_frontend::Device::create(&options) {
            Err(UblkError::NoDriver) => return Err(UblkError::NoDriver),
            Ok(device) => return Ok(device),
            Err(error) => tracing::debug!("ublk device {number}: {error}; trying again"),
        }
        std::thread::sleep(MAKE_PAUSE);
        options.start = match Path::new(&format!("/dev/ublkc{number}")).exists() {
            true => Start::Recover(number),
            false => Start::Add(Some(number)),
        };
    }
    ublk_frontend::Device::create(&options)
}

/// Something mounted the device or builds on it: exclusive opening is refused. (The driver does not tell us of opens.)
pub fn ublk_is_held(number: u32) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(ublk_path(number));
    matches!(opened, Err(error) if error.raw_os_error() == Some(libc::EBUSY))
}
