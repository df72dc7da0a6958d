#!/bin/busybox sh
# First program of a guest: loads the modules, mounts the image, hands over to start.sh inside it.
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*.ko; do
    # shellcheck disable=SC2046 # options are words
    insmod "$module" $(cat "${module%.ko}.options" 2>/dev/null) || echo "init: cannot load $module"
done
tries=0
until [ -b /dev/vda ] || [ "$tries" -ge 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
mount -t ext4 -o ro /dev/vda /mnt || echo "init: cannot mount the image"
for dir in dev proc sys; do mount --move "/$dir" "/mnt/$dir"; done
for dir in run tmp var root etc/lvm; do [ -d "/mnt/$dir" ] && mount -t tmpfs tmpfs "/mnt/$dir"; done
mkdir -p /mnt/var/lib/drbd /mnt/var/tmp /mnt/run/lock /mnt/dev/pts /mnt/dev/shm
mount -t devpts devpts /mnt/dev/pts
mount -t tmpfs tmpfs /mnt/dev/shm
cp -a /vm /mnt/run/vm
exec switch_root /mnt /bin/busybox sh /run/vm/start.sh
