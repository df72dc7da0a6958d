# What a block device owes its users, in each data mode of the frontend, on memory and on a disk.
dev=/dev/ublkb3
queue=/sys/block/ublkb3/queue

# serve NAME OPTIONS...: starts memdisk, waits for its device.
serve() {
    # What a failed test left behind must not fail the next.
    # shellcheck disable=SC2046 # one word per process
    if pidof memdisk >/tmp/old; then kill -TERM $(cat /tmp/old); eventually nothing_left; fi
    # The shell in the background opens the log at some later time: what the last server wrote must not be read as this one's.
    : >/tmp/memdisk.log
    memdisk --id 3 "$@" >/tmp/memdisk.log 2>&1 3>&- &
    server=$!
    eventually ready || { cat /tmp/memdisk.log; return 1; }
    cat /tmp/memdisk.log
    [ -b "$dev" ]
}
ready() { grep -q ^ready /tmp/memdisk.log || ! kill -0 "$server"; }
# remove: asks it to go; nothing may be left.
remove() {
    kill -TERM "$server"
    wait "$server" || { echo "exit status $?"; cat /tmp/memdisk.log; return 1; }
    nothing_left
}
nothing_left() {
    for left in /dev/ublkb3 /dev/ublkc3 /sys/block/ublkb3 /sys/class/ublk-char/ublkc3 /run/ublksrvd/0003.json; do
        [ ! -e "$left" ] || { echo "left over: $left"; return 1; }
    done
}
limit() { equal "$1" "$(cat "$queue/$1")" "$2"; }

limits() {
    equal size "$(blockdev --getsize64 "$dev")" "$1"
    limit logical_block_size "$2"
    limit physical_block_size 4096
    limit max_hw_sectors_kb 1024
    limit max_sectors_kb 1024
    limit discard_granularity 4096
    limit discard_max_bytes 134217728
    limit write_zeroes_max_bytes 134217728
    limit write_cache "write back"
    limit fua 1
    equal hardware_queues "$(ls "/sys/block/ublkb3/mq" | wc -l)" 1
    equal depth "$(cat /sys/block/ublkb3/mq/0/nr_tags)" 128
}
file_system() {
    "mkfs.$1" $2 -q "$dev"
    mount -t "$1" "$dev" /mnt/a
    head -c 20000000 /dev/urandom >/tmp/original
    cp /tmp/original /mnt/a/copy
    cp -r /usr/bin/busybox /usr/bin/fio /mnt/a/
    sync
    umount /mnt/a
    mount -t "$1" "$dev" /mnt/a
    cmp /tmp/original /mnt/a/copy
    cmp /usr/bin/fio /mnt/a/fio
    umount /mnt/a
    rm /tmp/original
}
ext4() { file_system ext4 -F; e2fsck -fn "$dev"; }
xfs() { file_system xfs -f; xfs_repair -n "$dev"; }
fio_verify() {
    fio --name=v --filename="$dev" --rw=randrw --bsrange=512-128k --blockalign=512 --size=24m --direct=1 --iodepth=32 \
        --ioengine=libaio --verify=crc32c --verify_fatal=1 --fsync=64 --norandommap=0 --randrepeat=0 --output-format=terse \
        --minimal >/tmp/fio.log 2>&1 || { cat /tmp/fio.log; return 1; }
}
# zeroes OFFSET LENGTH: that part reads as zeroes.
zeroes() { dd if="$dev" bs=4096 skip=$(($1 / 4096)) count=$(($2 / 4096)) iflag=direct 2>/dev/null | cmp -s -n "$2" - /dev/zero; }
fill() { tr '\0' x </dev/zero | dd of="$dev" bs=1M count=8 iflag=fullblock oflag=direct 2>/dev/null; }
not_zero_at() { if zeroes "$1" 4096; then echo "zeroes at $1"; return 1; fi; }
refused() { if "$@"; then echo "succeeded: $*"; return 1; fi; }
discard() {
    fill
    not_zero_at 0
    blkdiscard -o 1048576 -l 2097152 "$dev"
    zeroes 1048576 2097152
    not_zero_at 1044480
    not_zero_at 3145728
}
write_zeroes() {
    fill
    blkdiscard -z -o 2097152 -l 1048576 "$dev"
    zeroes 2097152 1048576
    not_zero_at 2093056
    not_zero_at 3145728
    # Zeroes over everything: more than one request takes.
    blkdiscard -z "$dev"
    zeroes 0 8388608
}
no_discard() {
    limit discard_max_bytes 0
    fill
    refused blkdiscard "$dev"
    not_zero_at 0
    blkdiscard -z -o 0 -l 1048576 "$dev"
    zeroes 0 1048576
}
# flushes_of DEVICE: how many it has completed.
flushes_of() { awk '{ print $16 }' "/sys/block/$1/stat"; }
# Flushes reach the disk below, for FUA too.
flushes_arrive() {
    serve --backing /dev/vdb
    before=$(flushes_of vdb)
    dd if=/dev/urandom of="$dev" bs=4096 count=8 oflag=direct,dsync
    [ "$(flushes_of vdb)" -ge $((before + 8)) ] || { echo "FUA: $before -> $(flushes_of vdb)"; return 1; }
    before=$(flushes_of vdb)
    sync "$dev"
    [ "$(flushes_of vdb)" -gt "$before" ] || { echo "flush: $before -> $(flushes_of vdb)"; return 1; }
    remove
}
flush_and_fua() {
    dd if=/dev/urandom of="$dev" bs=4096 count=16 oflag=direct,dsync
    dd if=/dev/urandom of="$dev" bs=64k count=16 conv=fsync
    sync
}
# One loop: no thread but the main one and the sleeping control thread (its commands go through a worker of its own), and
# no io_uring worker of the main thread: nothing in the path of a request blocks.
threads() {
    dd if="$dev" of=/dev/null bs=64k count=64 iflag=direct
    dd if=/dev/zero of="$dev" bs=64k count=64 oflag=direct
    for task in "/proc/$server/task"/*; do
        name=$(cat "$task/comm")
        case $name in
        "iou-wrk-$server") echo "the loop has a worker thread: $name"; return 1 ;;
        memdisk | ublk-control | iou-wrk-*) ;;
        *) echo "unexpected thread: $name"; return 1 ;;
        esac
    done
}
remove_under_load() {
    fio --name=load --filename="$dev" --rw=randrw --bs=4k --size=16m --direct=1 --iodepth=32 --ioengine=libaio \
        --time_based --runtime=600 >/tmp/load.log 2>&1 3>&- &
    load=$!
    eventually in_flight
    kill -TERM "$server"
    wait "$server" || { cat /tmp/memdisk.log; return 1; }
    # The load ends by itself, with an error: long before its ten minutes.
    if wait "$load"; then echo "I/O on a removed device succeeded"; return 1; fi
    grep -qi 'error' /tmp/load.log
    nothing_left
}
in_flight() { [ "$(awk '{ print $1 + $5 }' /sys/block/ublkb3/stat)" -gt 500 ]; }
suite() {
    name=$1
    size=$2
    shift 2
    check "$name.appear" serve "$@"
    # `check` runs in a subshell; the server's number must be known here.
    server=$(pidof memdisk)
    check "$name.limits" limits "$size" 512
    check "$name.ext4" ext4
    check "$name.fio_verify" fio_verify
    check "$name.flush_and_fua" flush_and_fua
    check "$name.discard" discard
    check "$name.write_zeroes" write_zeroes
    check "$name.remove" removed
}
removed() { kill -TERM "$server"; eventually gone; grep -q ^removed /tmp/memdisk.log; nothing_left; }
gone() { [ ! -d "/proc/$server" ]; }

suite memory 402653184 --size-mib 384
suite memory_plain_copy 402653184 --size-mib 384 --plain-copy
suite disk 1073741824 --backing /dev/vdb
suite disk_plain_copy 1073741824 --backing /dev/vdb --plain-copy
suite disk_zero_copy 1073741824 --backing /dev/vdb --zero-copy
# That suite says nothing where the option has no effect.
zero_copy_has_effect() {
    case $(uname -r) in 6.12.*) not_here "the driver cannot register buffers" ;; esac
    serve --backing /dev/vdb --zero-copy
    grep 'registered buffers' /tmp/memdisk.log
    remove
}
check zero_copy_has_effect zero_copy_has_effect

check flushes_arrive flushes_arrive
# The server dies under load; the next one takes over; the application sees a pause and its data is right.
recovery() {
    serve --backing /dev/vdb --recovery "$@"
    fio --name=r --filename="$dev" --rw=randwrite --bs=4k --size=8m --direct=1 --iodepth=16 --ioengine=libaio \
        --verify=crc32c --verify_fatal=1 >/tmp/recovery.log 2>&1 3>&- &
    load=$!
    for _ in 1 2; do
        done_before=$(writes_done)
        eventually more_writes_than $((done_before + 100))
        kill -KILL "$server"
        wait "$server" || true
        serve_again "$@"
    done
    wait "$load" || { cat /tmp/recovery.log; return 1; }
    remove
}
writes_done() { awk '{ print $5 }' /sys/block/ublkb3/stat; }
more_writes_than() { [ "$(writes_done)" -gt "$1" ]; }
serve_again() {
    : >/tmp/memdisk.log
    memdisk --id 3 --recover --recovery --backing /dev/vdb "$@" >/tmp/memdisk.log 2>&1 3>&- &
    server=$!
    eventually ready
    grep -q ^ready /tmp/memdisk.log || { cat /tmp/memdisk.log; return 1; }
}
check recovery recovery
check recovery_zero_copy recovery --zero-copy
resize() {
    serve --size-mib 64 --grow-mib 96
    kill -USR1 "$server"
    eventually grep -q resized /tmp/memdisk.log
    cat /tmp/memdisk.log
    if grep -q 'not resized.*6.16' /tmp/memdisk.log; then remove; not_here "the driver cannot resize a live device"; fi
    equal size "$(blockdev --getsize64 "$dev")" 100663296
    zeroes 67108864 1048576
    ext4
    remove
}
check resize resize
threads_test() { serve --size-mib 16; threads; remove; }
check one_loop threads_test
xfs_test() { serve --size-mib 384; xfs; remove; }
check xfs xfs_test
block_4096() { serve --size-mib 64 --block 4096; limit logical_block_size 4096; ext4; remove; }
check block_4096 block_4096
no_discard_test() { serve --size-mib 16 --no-discard; no_discard; remove; }
check no_discard no_discard_test
load_test() { serve --backing /dev/vdb; remove_under_load; }
check remove_under_load load_test
load_memory() { serve --size-mib 64; remove_under_load; }
check remove_under_load_memory load_memory
again() { for _ in 1 2 3 4 5; do serve --size-mib 16; remove; done; }
check come_and_go again
taken() { serve --size-mib 16; refused memdisk --id 3 2>/tmp/second; cat /tmp/second; grep -q 'number is taken' /tmp/second; remove; }
check number_taken taken
two_devices() {
    mkfifo /tmp/control
    two_on_one_ring </tmp/control >/tmp/two.log 2>&1 3>&- &
    server=$!
    exec 9>/tmp/control
    eventually grep -q ^ready /tmp/two.log
    read -r _ first second </tmp/two.log
    for disk in "$first" "$second"; do
        fio --name=v --filename="$disk" --rw=randwrite --bs=8k --size=8m --direct=1 --iodepth=16 --ioengine=libaio \
            --verify=crc32c --verify_fatal=1 --output-format=terse --minimal >"/tmp/fio${disk##*/}.log" 2>&1 3>&- 9>&- &
        jobs="${jobs:-} $!"
    done
    for job in $jobs; do wait "$job" || { cat /tmp/fiou*.log; return 1; }; done
    # Not each other's data.
    dd if=/dev/zero of="$first" bs=1M count=8 oflag=direct
    if cmp -s -n 8388608 "$first" "$second"; then echo "both devices show one content"; return 1; fi
    exec 9>&-
    wait "$server"
    [ ! -e "$first" ] && [ ! -e "$second" ]
}
check two_on_one_ring two_devices
check kernel_is_well kernel_is_well
