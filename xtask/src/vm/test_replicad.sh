# Two nodes in network namespaces of one machine, each with a disk and a daemon: the main job, with every protocol.
a=/dev/vdb
b=/dev/vdc
network() {
    ip netns add alice
    ip netns add bob
    ip link add va netns alice type veth peer name vb netns bob
    ip -n alice addr add 10.1.1.1/24 dev va
    ip -n bob addr add 10.1.1.2/24 dev vb
    for node in alice bob; do ip -n "$node" link set lo up; done
    ip -n alice link set va up
    ip -n bob link set vb up
}
in_netns() { start "$1" ip netns exec "$1"; }
configured() { configure "$1" $a 10.1.1.1 $b 10.1.1.2; }
up_both() {
    configured "$1"
    in_netns alice
    in_netns bob
    ctl alice up r0
    ctl bob up r0
    ctl alice wait-connect r0 --timeout 240
}
end_both() { end alice; end bob; }
wiped() { echo 3 >/proc/sys/vm/drop_caches; }
# The copies, as the disks have them. The daemons are gone.
equal_copies() {
    above "the data area" "$(cat /tmp/size)" 1000000
    wiped
    cmp -n "$(cat /tmp/size)" $a $b
}

initial_sync() {
    configured C
    rm -f /tmp/alice.log
    ctl alice create-md r0
    ctl bob create-md r0
    up_both C
    refused ctl alice promote r0
    promote alice --force
    wait_sync alice
    size_bytes alice >/tmp/size
    equal state "$(ctl alice dstate r0)" UpToDate/UpToDate
    equal "size of the device" "$(blockdev --getsize64 $dev)" "$(cat /tmp/size)"
    # All of it, once.
    above "KiB received in the first sync" "$(number bob received)" $(($(cat /tmp/size) / 1024 - 1))
}
fio_verify() {
    fio --name=v --filename="$1" --rw=randwrite --bsrange=4k-32k --size="$2" --direct=1 --iodepth=16 --ioengine=libaio \
        --verify=crc32c --verify_fatal=1 --randrepeat=0 --output-format=terse --minimal >/tmp/fio.log 2>&1 ||
        { cat /tmp/fio.log; return 1; }
}
sums() { (cd "$1" && find . -type f | sort | xargs sha256sum); }
# make_files FILESYSTEM: on alice's device.
make_files() {
    case $1 in xfs) mkfs.xfs -q -f $dev ;; *) mkfs.ext4 -q -F $dev ;; esac
    mount -t "$1" $dev /mnt/a
    head -c 3000000 /dev/urandom >/mnt/a/random
    mkdir /mnt/a/dir
    cp /usr/bin/busybox /mnt/a/dir/
    for n in 1 2 3 4 5 6 7 8; do head -c $((n * 1111)) /dev/urandom >/mnt/a/dir/$n; done
    fio_verify /mnt/a/fio 4m
    refused ctl alice demote r0
    sums /mnt/a >/tmp/sums
    umount /mnt/a
}
# same_files NODE FILESYSTEM: after its promotion.
same_files() {
    mount -t "$2" $dev /mnt/b
    sums /mnt/b >/tmp/sums.found
    umount /mnt/b
    above "number of files" "$(wc -l </tmp/sums)" 9
    cmp /tmp/sums /tmp/sums.found
}
fail_over() {
    make_files "$1"
    demote alice
    promote bob
    same_files bob "$1"
}
back() {
    demote bob
    promote alice
}
discard() {
    tr '\0' x </dev/zero | dd of=$dev bs=1M count=8 iflag=fullblock oflag=direct 2>/dev/null
    blkdiscard -o 1048576 -l 2097152 $dev
    blkdiscard -z -o 4194304 -l 1048576 $dev
    for at in 256 1024; do
        dd if=$dev bs=4096 skip=$at count=256 iflag=direct 2>/dev/null | cmp -n 1048576 - /dev/zero
    done
    equal "byte before" "$(dd if=$dev bs=1 skip=1048575 count=1 2>/dev/null)" x
    equal "byte after" "$(dd if=$dev bs=1 skip=3145728 count=1 2>/dev/null)" x
    # The other copy has the same.
    sync $dev
    wiped
    cmp -n 8388608 $a $b
}
fstrim_test() {
    mount -t ext4 $dev /mnt/a
    busybox fstrim -v /mnt/a
    umount /mnt/a
    e2fsck -fn $dev
}
flushes_of() { awk '{ print $16 }' "/sys/block/$1/stat"; }
# A flush and FUA are durable on both disks.
flushes_arrive() {
    for disk in vdb vdc; do flushes_of $disk >/tmp/flushes.$disk; done
    dd if=/dev/urandom of=$dev bs=4096 count=8 oflag=direct,dsync 2>/dev/null
    dd if=/dev/urandom of=$dev bs=4096 count=8 conv=fsync 2>/dev/null
    for disk in vdb vdc; do
        above "flushes of $disk" "$(flushes_of $disk)" $(($(cat /tmp/flushes.$disk) + 8))
    done
}
# Written while the peer was away, by its own will: sent to the byte.
reconnect() {
    ctl bob disconnect r0
    dd if=/dev/urandom of=$dev bs=64k count=16 seek=100 oflag=direct 2>/dev/null
    before=$(number bob received)
    equal "KiB out of sync" "$(number alice out-of-sync)" 1024
    ctl bob connect r0
    wait_sync bob
    equal "KiB resynced" $(($(number bob received) - ${before:-0})) 1024
}
# The Secondary's daemon dies under load and comes back: what it missed is sent, to the block, nothing else; and the
# copies are equal.
kill_secondary() {
    fio --name=k --filename=$dev --rw=randwrite --bs=4k --size=6m --loops=2 --direct=1 --iodepth=16 --ioengine=libaio \
        --verify=crc32c --verify_fatal=1 --randrepeat=0 >/tmp/kill.log 2>&1 3>&- &
    load=$!
    writes=$(awk '{ print $5 }' /sys/block/ublkb1/stat)
    eventually written_since $((writes + 200))
    kill -KILL "$(cat /tmp/bob.pid)"
    wait "$load" || { cat /tmp/kill.log; return 1; }
    missed=$(number alice out-of-sync)
    above "KiB missed" "$missed" 0
    in_netns bob
    ctl bob up r0
    wait_sync bob
    equal state "$(ctl alice dstate r0)" UpToDate/UpToDate
    equal "KiB resynced" "$(number bob received)" "$missed"
}
written_since() { [ "$(awk '{ print $5 }' /sys/block/ublkb1/stat)" -gt "$1" ]; }
# With a protocol: the file system goes over and back, and the copies are equal.
protocol() {
    up_both "$1"
    promote alice
    fail_over "$2"
    demote bob
    end_both
    equal_copies
}
# Served over NBD and TCP; the other namespace is a client's machine, whose kernel makes a block device of it.
nbd_client() {
    # By ioctl: netlink knows the first namespace only. Two connections. It stays in the background.
    ip netns exec "$1" nbd-client -nonetlink -connections 2 -name r0.0 "$2" 10809 /dev/nbd0 >>/tmp/nbd.log 2>&1 3>&- ||
        { cat /tmp/nbd.log; return 1; }
    eventually has_size
    equal "size of /dev/nbd0" "$(blockdev --getsize64 /dev/nbd0)" "$(size_bytes "$3")"
}
has_size() { [ "$(blockdev --getsize64 /dev/nbd0)" -gt 0 ]; }
nbd_gone() {
    nbd-client -nonetlink -d /dev/nbd0
    eventually not_open "$1"
}
not_open() { ctl "$1" status r0 | grep -q 'open:no'; }
nbd_over_tcp() {
    configured C
    for side in "$a 10.1.1.1" "$b 10.1.1.2"; do
        sed -i "s|disk = \"${side% *}\" }|disk = \"${side% *}\", device = \"nbd:${side#* }:10809\" }|" "$conf"
    done
    in_netns alice
    in_netns bob
    ctl alice up r0
    ctl bob up r0
    ctl alice wait-connect r0 --timeout 240
    ctl alice promote r0
    nbd_client bob 10.1.1.1 alice
    mkfs.ext4 -q -F /dev/nbd0
    mount -t ext4 /dev/nbd0 /mnt/a
    head -c 3000000 /dev/urandom >/mnt/a/random
    fio_verify /mnt/a/fio 4m
    sums /mnt/a >/tmp/sums
    refused ctl alice demote r0 2>/tmp/why
    cat /tmp/why
    grep -q 'from 10.1.1.2:' /tmp/why
    umount /mnt/a
    nbd_gone alice
    ctl alice demote r0
    ctl bob promote r0
    nbd_client alice 10.1.1.2 bob
    mount -t ext4 /dev/nbd0 /mnt/b
    sums /mnt/b | cmp - /tmp/sums
    umount /mnt/b
    e2fsck -fn /dev/nbd0
    nbd_gone bob
    ctl bob demote r0
    end_both
    equal_copies
}
# What refuses says why in one sentence with the place, and changes nothing.
refuses_mounted() {
    mkfs.ext4 -q -F /dev/vdd
    mount -o ro -t ext4 /dev/vdd /mnt/a
    sha256sum </dev/vdd >/tmp/before
    configure C /dev/vdd 10.1.1.1 $b 10.1.1.2
    refused ctl alice create-md r0 --force 2>/tmp/why
    cat /tmp/why
    grep -q /dev/vdd /tmp/why
    grep -Eq 'mounted|in use' /tmp/why
    sha256sum </dev/vdd | cmp - /tmp/before
    umount /mnt/a
    sha256sum </dev/vdd >/tmp/before
    refused ctl alice create-md r0 2>/tmp/why
    cat /tmp/why
    grep -qi ext4 /tmp/why
    sha256sum </dev/vdd | cmp - /tmp/before
}
# Metadata is there, but a file system holds the disk: attaching is refused. A daemon holds it: all else is.
refuses_in_use() {
    configure C /dev/vdd 10.1.1.1 $b 10.1.1.2
    ctl alice create-md r0 --force
    in_netns alice
    mkfs.ext4 -q -F /dev/vdd 8m
    mount -o ro -t ext4 /dev/vdd /mnt/a
    refused ctl alice up r0 2>/tmp/why
    cat /tmp/why
    grep -q /dev/vdd /tmp/why
    umount /mnt/a
    ctl alice up r0
    refused ctl alice create-md r0 --force 2>/tmp/why
    cat /tmp/why
    grep -q /dev/vdd /tmp/why
    refused mount -t ext4 /dev/vdd /mnt/a
    ctl alice down r0
    end alice
}

check network network
check refuses_mounted refuses_mounted
check refuses_in_use refuses_in_use
check initial_sync initial_sync
check protocol_c.fail_over fail_over ext4
check back back
check fstrim fstrim_test
check discard discard
check flushes_arrive flushes_arrive
check reconnect reconnect
check kill_secondary kill_secondary
# Reads go on from the peer while the disk is away, and from the disk when it is back.
detach_under_reads() {
    fio --name=v --filename=$dev --rw=write --bs=16k --size=8m --direct=1 --ioengine=libaio --iodepth=8 \
        --verify=crc32c --do_verify=0 --output-format=terse --minimal >/tmp/fio.log 2>&1 || { cat /tmp/fio.log; return 1; }
    fio --name=v --filename=$dev --rw=read --bs=16k --size=8m --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c \
        --verify_fatal=1 --loops=8 --output-format=terse --minimal >/tmp/reads.log 2>&1 3>&- &
    reads=$!
    read_before=$(reads_done)
    eventually more_reads_than $((read_before + 50))
    ctl alice detach r0
    read_before=$(reads_done)
    eventually more_reads_than $((read_before + 50))
    ctl alice attach r0
    wait "$reads" || { cat /tmp/reads.log; return 1; }
    eventually equal state "$(ctl alice dstate r0)" UpToDate/UpToDate
}
reads_done() { awk '{ print $1 }' /sys/block/ublkb1/stat; }
more_reads_than() { [ "$(reads_done)" -gt "$1" ] || [ ! -d "/proc/$reads" ]; }
# Whether it is in effect cannot be seen from outside.
zero_copy() {
    case $(uname -r) in 6.12.*) not_here "the driver cannot register buffers" ;; esac
    grep "disks read into the application's pages" /tmp/alice.log
    if grep 'reading into memory of its own' /tmp/alice.log /tmp/bob.log; then return 1; fi
}
finish_c() { demote alice; end_both; equal_copies; }
check detach_under_reads detach_under_reads
check zero_copy zero_copy
check equal_copies finish_c
check protocol_a protocol A ext4
replicad_options=--no-zero-copy
check protocol_b protocol B ext4
replicad_options=
check protocol_c.xfs protocol C xfs
check nbd_over_tcp nbd_over_tcp
check kernel_is_well kernel_is_well
logs
