# A kernel's DRBD 8.4 and a replicad replicate with each other, in one machine. Before this stand `replicad.sh` and
# `test_interop_disks.sh`.
#
# DRBD 8.4 opens its connections in the first network namespace (10.1.1.1); the daemon lives in namespace bob (10.1.1.2).
# Each pair of nodes is made anew on two RAM disks: ram0 is the kernel's, ram1 ours. A second volume has ram2 and ram3.
set -u

kern=/dev/drbd0
kern_disk=/dev/ram0
our_disk=/dev/ram1
kern_disk_1=/dev/ram2
our_disk_1=/dev/ram3
kern_id=0
# A test says here what its resource has.
volumes=0
external=

network() {
    ip netns add bob
    ip link add va type veth peer name vb netns bob
    ip addr add 10.1.1.1/24 dev va
    ip link set va up
    ip -n bob addr add 10.1.1.2/24 dev vb
    ip -n bob link set vb up
    ip -n bob link set lo up
    # drbdmeta locks a minor there.
    mkdir -p /var/lock
}

# ---- the two nodes

# our_config PROTOCOL [NET_OPTION, ...]
our_config() {
    cat >"$conf" <<TOML
[[resource]]
name = "r0"
net = { protocol = "$1", timeout = 60, ping-timeout = 50, connect-int = 7, ping-int = 11, socket-check-timeout = 10${2:+, $2} }
$(our_volumes)
[[resource.on]]
node = "kern"
node-id = $kern_id
address = "10.1.1.1:7789"
[[resource.on]]
node = "bob"
node-id = $((1 - kern_id))
address = "10.1.1.2:7789"
volume = [$(our_disks)]
TOML
}
our_volumes() {
    for volume in $volumes; do
        printf '[[resource.volume]]\nnumber = %s\ndevice = "ublk:%s"\ndisk = "/nowhere%s"\n' "$volume" $((volume + 1)) "$volume"
    done
}
our_disks() {
    for volume in $volumes; do
        printf '{ number = %s, disk = "%s"%s }, ' "$volume" "$(our_disk_of "$volume")" "$(our_meta_disk "$(our_disk_of "$volume")")"
    done
}
our_meta_disk() { case " $external " in *" $1 "*) printf ', meta-disk = "%s"' "$(meta_disk "$1")" ;; esac; }
bob() { ctl bob "$@"; }
dr() { drbdsetup-84 "$@"; }
# What belongs to volume 0 or 1; "twin" is the second node while it is the kernel's, too.
kern_disk_of() { case $1 in 0) echo $kern_disk ;; *) echo $kern_disk_1 ;; esac; }
our_disk_of() { case $1 in 0) echo $our_disk ;; *) echo $our_disk_1 ;; esac; }
kern_minor() { echo $(($1 * 2)); }
twin_minor() { echo $(($1 * 2 + 1)); }
kern_device_of() { echo "/dev/drbd$(kern_minor "$1")"; }
twin_device_of() { echo "/dev/drbd$(twin_minor "$1")"; }
our_device_of() { echo "/dev/ublkb$(($1 + 1))"; }
# Of DISK, for a disk of $external: that has its metadata on another one.
meta_disk() { echo "/dev/ram$((${1#/dev/ram} + 4))"; }
# metadata_of DISK EXTERNAL: where it is, as drbdmeta and drbdsetup want it, who have their own words for EXTERNAL.
metadata_of() {
    case " $external " in
    *" $1 "*) echo "$(meta_disk "$1") $2" ;;
    *) echo "$1 internal" ;;
    esac
}
# drbdmeta_of MINOR DISK COMMAND...
drbdmeta_of() {
    drbdmeta_minor=$1
    drbdmeta_disk=$2
    shift 2
    # shellcheck disable=SC2046 # words
    drbdmeta --force "$drbdmeta_minor" v08 $(metadata_of "$drbdmeta_disk" flex-external) "$@"
}
# attach MINOR DISK [RATE]: without the controller of the resync rate, which begins slowly.
# shellcheck disable=SC2046 # words
attach() { dr attach "$1" "$2" $(metadata_of "$2" flexible) --c-plan-ahead=0 --resync-rate="${3:-100000}"; }
kern_attach() { attach 0 $kern_disk; }
# kern_connect PROTOCOL [OPTION...]
kern_connect() {
    kern_protocol=$1
    shift
    dr connect r0 ipv4:10.1.1.1:7789 ipv4:10.1.1.2:7789 --protocol="$kern_protocol" --timeout=60 --ping-timeout=50 \
        --connect-int=7 --socket-check-timeout=10 "$@"
}
kern_disconnect() { dr disconnect ipv4:10.1.1.1:7789 ipv4:10.1.1.2:7789 "$@"; }
kern_new() {
    dr new-resource r0
    for volume in $volumes; do
        drbdmeta_of "$(kern_minor "$volume")" "$(kern_disk_of "$volume")" create-md >/dev/null
        dr new-minor r0 "$(kern_minor "$volume")" "$volume"
        attach "$(kern_minor "$volume")" "$(kern_disk_of "$volume")"
    done
}
our_new() {
    bob create-md r0 --force
    start bob ip netns exec bob
}
# Fresh disks, full of what differs.
wipe() {
    for volume in $volumes; do
        dd if=/dev/urandom of="$(kern_disk_of "$volume")" bs=1M count=32 oflag=direct 2>/dev/null
        dd if=/dev/urandom of="$(our_disk_of "$volume")" bs=1M count=32 oflag=direct 2>/dev/null
    done
    # Or create-md finds what the last test left there.
    for disk in $external; do dd if=/dev/urandom of="$(meta_disk "$disk")" bs=1M count=1 oflag=direct 2>/dev/null; done
}
down() {
    if [ -e /tmp/bob.pid ] && [ -d "/proc/$(cat /tmp/bob.pid)" ]; then
        bob demote r0 || true
        bob down r0 || true
        end bob
    fi
    for minor in 0 1 2 3; do dr secondary $minor 2>/dev/null || true; done
    for resource in r0 r1; do dr down $resource 2>/dev/null || true; done
    cable up
}
# pair PROTOCOL [OUR_NET_OPTION [KERNEL_OPTION...]]: both fresh and connected.
pair() {
    pair_protocol=$1
    pair_ours=${2:-}
    [ $# -lt 2 ] || shift
    shift
    down
    wipe
    our_config "$pair_protocol" "$pair_ours"
    kern_new
    our_new
    kern_connect "$pair_protocol" "$@"
    bob up r0
    connected
}

# ---- what they say

# minor_says MINOR KEY: cs, ro, ds; none if there is no such minor.
minor_says() { { grep -E "^ *$1: cs:" /proc/drbd || echo none; } | tr ' ' '\n' | sed -n "s/^$2://p"; }
kern_says() { minor_says 0 "$1"; }
# minor_number MINOR KEY: of the second line: ns, nr, oos, ...
minor_number() { sed -n "/^ *$1: cs:/{n;p;}" /proc/drbd | tr ' ' '\n' | sed -n "s/^$2://p"; }
kern_number() { minor_number 0 "$1"; }
is_kern() { [ "$(kern_says "$1")" = "$2" ]; }
# all_say kern|twin KEY VALUE: of each volume.
all_say() {
    for volume in $volumes; do
        [ "$(minor_says "$("$1_minor" "$volume")" "$2")" = "$3" ] || return 1
    done
}
nothing_is_out_of_sync() {
    for volume in $volumes; do
        equal "out of sync at the kernel, volume $volume" "$(minor_number "$(kern_minor "$volume")" oos)" 0
    done
}
turned() { echo "${1#*/}/${1%/*}"; }
our_dstate() { bob dstate r0 | tr -d '\n'; }
# Own role and the peer's.
our_roles() { bob status r0 --verbose | sed -n 's/.* role:\([A-Za-z]*\).*/\1/p' | tr '\n' '/' | sed 's,/$,,'; }
our_cstate() { bob cstate r0 | tr -d '\n'; }
# Both show the same, from their sides.
agree() {
    agree_tries=0
    until [ "$(turned "$(kern_says ds)")" = "$(our_dstate)" ] && [ "$(turned "$(kern_says ro)")" = "$(our_roles)" ]; do
        agree_tries=$((agree_tries + 1))
        [ $agree_tries -lt 30 ] || { cat /proc/drbd; bob status r0 --verbose; return 1; }
        sleep 0.1
    done
}
connected() {
    bob wait-connect r0 --timeout 120
    eventually kern_is_connected
}
kern_is_connected() { case $(kern_says cs) in WF* | StandAlone | Unconnected | none | '') return 1 ;; esac; }
in_sync() {
    bob wait-sync r0 --timeout 240
    eventually is_kern cs Connected
    eventually is_kern ds UpToDate/UpToDate
    equal "out of sync at the kernel" "$(kern_number oos)" 0
    agree
}
# kern_bytes [VOLUME]
kern_bytes() { echo $(($(cat "/sys/block/drbd$(kern_minor "${1:-0}")/size") * 512)); }
# The backing devices, byte by byte; what the page cache has of them is old.
same_bytes() {
    echo 1 >/proc/sys/vm/drop_caches
    for volume in $volumes; do
        above "size of volume $volume" "$(kern_bytes "$volume")" 1000000
        cmp -n "$(kern_bytes "$volume")" "$(kern_disk_of "$volume")" "$(our_disk_of "$volume")"
    done
}
both_in_sync() { in_sync; same_bytes; }
# Nothing that the kernel complains of in a healthy protocol. (BAD without its mark is in one generation of a hundred.)
kernel_content() {
    complaints=$(dmesg | sed -n '/interop: from here/,$p' | grep -vE "$1" |
        grep -E 'drbd.*(error|unexpected|ASSERT|unknown|Unexpected|BAD!|wrong|magic|FIXME)' | head -n 5) || return 0
    [ -z "$complaints" ] || wrong $complaints
}
mark_kernel_log() { echo "interop: from here" >/dev/kmsg; }
# scribble DEVICE MIB_OFFSET COUNT: that many 4k blocks, 64 KiB apart.
scribble() {
    scribble_at=0
    while [ $scribble_at -lt "$3" ]; do
        dd if=/dev/urandom of="$1" bs=4k count=1 seek=$(($2 * 256 + scribble_at * 16)) oflag=direct conv=notrunc \
            2>/dev/null
        scribble_at=$((scribble_at + 1))
    done
}
our_promote() {
    promote bob "$@"
    for volume in $volumes; do eventually test -b "$(our_device_of "$volume")"; done
}
our_demote() {
    demote bob
    for volume in $volumes; do eventually test ! -e "$(our_device_of "$volume")"; done
}
kern_promote() { for volume in $volumes; do dr primary "$(kern_minor "$volume")" "$@"; done; }
kern_demote() { for volume in $volumes; do dr secondary "$(kern_minor "$volume")"; done; }

# ---- the tests. Each begins where it wants to: `pair`, or `synced` from a fresh pair.

# synced PROTOCOL [OUR_NET_OPTION [KERNEL_OPTION...]]: equal and UpToDate, both Secondary. Nothing was copied for it:
# both ends were told that they are equal, and made so before.
synced() {
    pair "$@"
    kern_promote --force
    in_sync
    kern_demote
    agree
}

# Both fresh: connected, nothing synced, and each sees the other.
first_connect() {
    pair "$protocol"
    equal "the kernel's disks" "$(kern_says ds)" Inconsistent/Inconsistent
    agree
}
sync_from_kernel() {
    pair "$protocol"
    kern_promote --force
    in_sync
    kern_demote
    agree
    same_bytes
}
sync_from_us() {
    pair "$protocol"
    our_promote --force
    in_sync
    our_demote
    agree
    same_bytes
}
skip_initial_sync_ours() {
    pair "$protocol"
    bob new-current-uuid --clear-bitmap r0
    eventually is_kern ds UpToDate/UpToDate
    agree
}
skip_initial_sync_kernel() {
    pair "$protocol"
    dr new-current-uuid --clear-bitmap 0
    in_sync
}
# writes DEVICE: of several shapes.
writes() {
    scribble "$1" 0 64
    dd if=/dev/urandom of="$1" bs=1M count=4 seek=8 oflag=direct conv=notrunc 2>/dev/null
    dd if=/dev/urandom of="$1" bs=512 count=9 seek=30001 oflag=direct conv=notrunc 2>/dev/null
    dd if=/dev/urandom of="$1" bs=4k count=8 seek=5000 oflag=direct,dsync conv=notrunc,fsync 2>/dev/null
    fio --name=w --filename="$1" --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --size=8m --offset=16m \
        --number_ios=400 --fsync=50 >/tmp/fio.out 2>&1 3>&- || { cat /tmp/fio.out; return 1; }
    blkdiscard -o 1048576 -l 2097152 "$1"
    blkdiscard -z -o 4194304 -l 1048576 "$1"
    scribble "$1" 1 4
    sync
}
# Secondary and Primary on both sides, by turns, with writes in between; a refused second Primary.
roles() {
    synced "$protocol"
    for turn in 1 2; do
        kern_promote
        agree
        refused bob promote r0
        writes $kern
        kern_demote
        agree
        same_bytes
        our_promote
        agree
        refused kern_promote
        writes $dev
        our_demote
        agree
        same_bytes
    done
    equal "out of sync at the kernel" "$(kern_number oos)" 0
}
# A file system on top, handed over twice.
file_system() {
    synced "$protocol"
    kern_promote
    mkfs.ext4 -q -F $kern
    mkdir -p /tmp/mnt
    mount -t ext4 $kern /tmp/mnt
    head -c 3000000 /dev/urandom >/tmp/mnt/from_kernel
    umount /tmp/mnt
    kern_demote
    our_promote
    mount -t ext4 $dev /tmp/mnt
    cp /tmp/mnt/from_kernel /tmp/mnt/from_us
    umount /tmp/mnt
    our_demote
    kern_promote
    e2fsck -fn $kern
    mount -t ext4 $kern /tmp/mnt
    cmp /tmp/mnt/from_kernel /tmp/mnt/from_us
    umount /tmp/mnt
    kern_demote
    same_bytes
}

# Blocks of the last resync, as the daemon says it.
last_resync() { sed -n 's/.*resync [a-z]* peer 0 of \([0-9]*\) blocks.*/\1/p' /tmp/bob.log | tail -n 1; }
# A resync of just the blocks that were written meanwhile.
only_the_difference() { equal "blocks of the resync" "$(last_resync)" "$1"; }
link() { ip link set va "$1"; }
disconnected() {
    eventually kern_is_away
    eventually we_are_away
}
kern_is_away() { refused kern_is_connected >/dev/null; }
we_are_away() { case $(our_cstate) in Connected) return 1 ;; esac; }

# Who is Primary: kernel. Who says goodbye: we, the kernel, nobody.
outage_kernel_primary() {
    synced "$protocol"
    kern_promote
    writes $kern
    for how in ours kernel link; do
        part $how
        scribble $kern 4 40
        join $how
        both_in_sync
        only_the_difference 40
    done
    kern_demote
}
outage_our_primary() {
    synced "$protocol"
    our_promote
    writes $dev
    for how in ours kernel link; do
        part $how
        scribble $dev 4 40
        join $how
        both_in_sync
        only_the_difference 40
    done
    our_demote
}
part() {
    case $1 in
    ours) bob disconnect r0 ;;
    kernel) kern_disconnect ;;
    link) link down ;;
    esac
    disconnected
}
join() {
    case $1 in
    ours) bob connect r0 ;;
    kernel) kern_connect "$protocol" ;;
    link) link up ;;
    esac
    connected
}
# The other side takes over while one is away, and the old Primary comes back as target.
fail_over_to_us() {
    synced "$protocol"
    kern_promote
    writes $kern
    kern_demote
    link down
    disconnected
    our_promote
    scribble $dev 6 30
    link up
    connected
    both_in_sync
    only_the_difference 30
    our_demote
}
fail_over_to_kernel() {
    synced "$protocol"
    our_promote
    writes $dev
    our_demote
    link down
    disconnected
    kern_promote
    scribble $kern 6 30
    link up
    connected
    both_in_sync
    only_the_difference 30
    kern_demote
}
# Writes while the resync runs.
writes_in_resync() {
    synced "$protocol"
    for who in kernel ours; do
        link down
        disconnected
        if [ $who = kernel ]; then kern_promote && device=$kern; else our_promote && device=$dev; fi
        dd if=/dev/urandom of=$device bs=1M count=24 oflag=direct conv=notrunc 2>/dev/null
        link up
        connected
        scribble $device 2 100
        both_in_sync
        if [ $who = kernel ]; then kern_demote; else our_demote; fi
        agree
        same_bytes
    done
}
invalidate() {
    synced "$protocol"
    bob invalidate r0
    both_in_sync
    bob invalidate-remote r0
    both_in_sync
    dr invalidate 0
    both_in_sync
    dr invalidate-remote 0
    both_in_sync
}
split() {
    link down
    disconnected
    kern_promote
    scribble $kern 3 20
    kern_demote
    our_promote
    scribble $dev 5 10
    our_demote
    link up
    eventually is_kern cs StandAlone
    eventually we_stand_alone
}
we_stand_alone() { [ "$(our_cstate)" = StandAlone ]; }
# Detected by both; each side in turn gives its data up.
split_brain() {
    synced "$protocol"
    split
    kern_connect "$protocol"
    bob connect r0 --discard-my-data
    connected
    both_in_sync
    only_the_difference 30
    split
    bob connect r0
    kern_connect "$protocol" --discard-my-data
    connected
    both_in_sync
    only_the_difference 30
}
auth() {
    synced "$protocol" "cram-hmac-alg = \"$1\", shared-secret = \"for tests\"" --cram-hmac-alg="$1" "--shared-secret=for tests"
    kern_promote
    scribble $kern 0 4
    same_bytes
    kern_demote
}
auth_sha256() { auth sha256; }
auth_sha1() { auth sha1; }
# Neither comes further than StandAlone or the next attempt.
wrong_secret() {
    down
    our_config "$protocol" 'cram-hmac-alg = "sha256", shared-secret = "one"'
    kern_new
    our_new
    kern_connect "$protocol" --cram-hmac-alg=sha256 --shared-secret=other
    bob up r0
    eventually is_kern cs StandAlone
    eventually we_stand_alone
}
protocol_mismatch() {
    down
    our_config C
    kern_new
    our_new
    kern_connect A
    bob up r0
    eventually is_kern cs StandAlone
    eventually we_stand_alone
}
# The kernel's disk goes: it reads from us and writes to us. It comes back: the difference.
kernel_detach_primary() {
    synced "$protocol"
    kern_promote
    writes $kern
    dr detach 0
    eventually is_kern ds Diskless/UpToDate
    agree
    dd if=$kern of=/tmp/read bs=1M count=16 iflag=direct 2>/dev/null
    echo 1 >/proc/sys/vm/drop_caches
    cmp -n 16777216 /tmp/read $our_disk
    rm /tmp/read
    scribble $kern 2 25
    drbdmeta --force 0 v08 $kern_disk internal apply-al >/dev/null
    kern_attach
    both_in_sync
    kern_demote
}
kernel_detach_secondary() {
    synced "$protocol"
    our_promote
    dr detach 0
    eventually is_kern ds Diskless/UpToDate
    agree
    scribble $dev 2 25
    drbdmeta --force 0 v08 $kern_disk internal apply-al >/dev/null
    kern_attach
    both_in_sync
    below "blocks of the resync" "$(last_resync)" 8182
    our_demote
}
our_detach_primary() {
    synced "$protocol"
    our_promote
    writes $dev
    bob detach r0
    eventually is_kern ds UpToDate/Diskless
    agree
    dd if=$dev of=/tmp/read bs=1M count=16 iflag=direct 2>/dev/null
    echo 1 >/proc/sys/vm/drop_caches
    cmp -n 16777216 /tmp/read $kern_disk
    rm /tmp/read
    scribble $dev 2 25
    bob attach r0
    both_in_sync
    our_demote
}
our_detach_secondary() {
    synced "$protocol"
    kern_promote
    bob detach r0
    eventually is_kern ds UpToDate/Diskless
    agree
    scribble $kern 2 25
    bob attach r0
    both_in_sync
    only_the_difference 25
    kern_demote
}
# The daemon is killed and comes back.
our_crash_secondary() {
    synced "$protocol"
    kern_promote
    writes $kern
    kill -9 "$(cat /tmp/bob.pid)"
    eventually kern_is_away
    scribble $kern 4 15
    start bob ip netns exec bob
    bob up r0
    connected
    both_in_sync
    only_the_difference 15
    kern_demote
}
# Its hot extents are resynced.
our_crash_primary() {
    synced "$protocol"
    our_promote
    writes $dev
    kill -9 "$(cat /tmp/bob.pid)"
    eventually kern_is_away
    start bob ip netns exec bob
    bob up r0
    connected
    both_in_sync
    above "blocks of the resync" "$(last_resync)" 0
    below "blocks of the resync" "$(last_resync)" 8182
}
# The same, and the kernel went on meanwhile.
our_crash_primary_kernel_takes_over() {
    synced "$protocol"
    our_promote
    writes $dev
    kill -9 "$(cat /tmp/bob.pid)"
    eventually kern_is_away
    kern_promote
    scribble $kern 4 15
    start bob ip netns exec bob
    bob up r0
    connected
    both_in_sync
    kern_demote
}
# Protocol and options changed by the peer while connected.
switched_by_the_kernel() {
    synced "$protocol"
    kern_promote
    for next in A B C; do
        dr net-options ipv4:10.1.1.1:7789 ipv4:10.1.1.2:7789 --protocol=$next
        writes $kern
        equal "connection" "$(our_cstate)" Connected
    done
    kern_demote
    agree
    same_bytes
}
protocol_errors() { kernel_content "$expected_complaints"; }
# Each is provoked by a test.
expected_complaints='Split-Brain|magic not found|error receiving|meta connection shut down|sock was shut down|PingAck did not arrive|incompatible .* settings'

needed() {
    check "$@"
    [ "$check_status" = 0 ] || { logs; dmesg | tail -100; exit 1; }
}
needed network network
mark_kernel_log
# A test is a function, with the protocol behind it where it is not C: outage_our_primary@A.
for test in $tests; do
    case $test in *@*) protocol=${test#*@} ;; *) protocol=C ;; esac
    check "$test" "${test%@*}"
    # What the kernel says to it is far away at the end.
    [ "$check_status" = 0 ] || { cat /proc/drbd; dmesg | grep -i drbd | tail -n 60; }
done
check kernel_log protocol_errors
check kernel_is_well kernel_is_well
down
logs
dmesg | grep -i drbd
