# Disks that a kernel's DRBD 8.4 left, and disks that it gets back. Functions for test_interop.sh, which comes after this.
#
# Until it is taken over, our disk belongs to a second resource of the same kernel, "twin" (minor 1): the two replicate
# over loopback, 10.1.1.1:7789 and 10.1.1.1:7790. `drbdmeta` makes v08, as `drbdadm create-md` does there.

twin=/dev/drbd1
# Where the state of a disk at a crash is kept, and goes on from there.
copy_disk=/dev/ram2

twin_says() { minor_says 1 "$1"; }
is_twin() { [ "$(twin_says "$1")" = "$2" ]; }
# twin_attach VOLUME [RATE]: not without its log applied, clean as its end may have been; `drbdadm up` does that, too.
twin_attach() {
    drbdmeta_of 9 "$(our_disk_of "$1")" apply-al
    attach "$(twin_minor "$1")" "$(our_disk_of "$1")" "${2:-100000}"
}
twin_connect() { between_twins connect r1 ipv4:10.1.1.1:7790 ipv4:10.1.1.1:7789; }
kern_connect_twin() { between_twins connect r0 ipv4:10.1.1.1:7789 ipv4:10.1.1.1:7790 "$@"; }
between_twins() { dr "$@" --protocol="$protocol" --timeout=60 --ping-timeout=50 --connect-int=7; }
twin_disconnect() { dr disconnect ipv4:10.1.1.1:7790 ipv4:10.1.1.1:7789; }
kern_disconnect_twin() { dr disconnect ipv4:10.1.1.1:7789 ipv4:10.1.1.1:7790; }
twins_are_one() { all_say kern cs Connected && all_say kern ds UpToDate/UpToDate && all_say twin ds UpToDate/UpToDate; }
# twin_up [RATE]: the resource of the second node, not connected.
twin_up() {
    dr new-resource r1
    for volume in $volumes; do
        dr new-minor r1 "$(twin_minor "$volume")" "$volume"
        twin_attach "$volume" "$@"
    done
}
# Both in the kernel, connected, in sync, Secondary.
twins() {
    down
    wipe
    kern_new
    for volume in $volumes; do drbdmeta_of 9 "$(our_disk_of "$volume")" create-md >/dev/null; done
    twin_up
    kern_connect_twin
    twin_connect
    eventually all_say kern ds Inconsistent/Inconsistent
    kern_promote --force
    eventually twins_are_one
    kern_demote
}
# No packet between the twins, and no goodbye.
cable() { ip link set lo "$1"; }
twin_is_away() { case $(kern_says cs) in WF* | Unconnected | NetworkFailure | Timeout | BrokenPipe) return 0 ;; esac; return 1; }
twin_promote() { for volume in $volumes; do dr primary "$(twin_minor "$volume")"; done; }
twin_demote() { for volume in $volumes; do dr secondary "$(twin_minor "$volume")"; done; }
# The twin leaves in good order; its peer is told.
twin_down() {
    twin_demote
    dr down r1
    kern_disconnect_twin
}
# crash_twin MORE: the state of its disk at a moment at which it is Primary, and writes that it had sent but not done.
# From then on $our_disk is the copy.
crash_twin() {
    cp_node_disk $our_disk $copy_disk
    if [ "$1" = sent ]; then scribble $twin 4 4; fi
    cable down
    eventually twin_is_away
    dr secondary 1
    dr down r1
    kern_disconnect_twin
    cable up
    our_disk=$copy_disk
    echo "v08 flags of the disk that crashed: $(flags_of $our_disk)"
}
cp_disk() { dd if="$1" of="$2" bs=1M iflag=direct oflag=direct 2>/dev/null; }
# cp_node_disk FROM TO: with the metadata, where that is on another one.
cp_node_disk() {
    cp_disk "$1" "$2"
    case " $external " in *" $1 "*) cp_disk "$(meta_disk "$1")" "$(meta_disk "$2")" ;; esac
}
# The second node is replicad from here on: metadata converted in place, nothing else touched.
convert() {
    our_config "$protocol"
    bob apply-al r0
    bob create-md r0 --force | tee /tmp/converted
    all_converted_to v09
}
all_converted_to() {
    for volume in $volumes; do
        grep -q "^r0/$volume: .* converted to $1" /tmp/converted || wrong "create-md did not convert: $(cat /tmp/converted)"
    done
}
take_over() {
    convert
    start bob ip netns exec bob
    kern_connect "$protocol"
    bob up r0
    connected
}
# kern_resync [VOLUME]: the kernel's own count of the last resync, from its log.
kern_resync() {
    dmesg | sed -n "/drbd$(kern_minor "${1:-0}"): Began resync/s/.*\[\([0-9]*\) bits set\].*/\1/p" | tail -n 1
}
both_count() {
    only_the_difference "$1"
    equal "blocks of the resync, as the kernel counts" "$(kern_resync)" "$1"
}
# Extents of 4 MiB that the log of DISK has hot, as bits: what drbdmeta's own apply-al would set in a copy of it.
spare=/dev/ram3
drbdmeta_applies() {
    cp_node_disk "$1" $spare
    drbdmeta_of 9 $spare apply-al >/dev/null
    drbdmeta_of 9 $spare dump-md 2>/dev/null | sed -n 's/^# bits-set \([0-9]*\);/\1/p'
}

# Flags of the v08 superblock of DISK, in hexadecimal.
flags_of() {
    # shellcheck disable=SC2046 # words
    set -- $(metadata_of "$1" external)
    case $2 in internal) flags_at=$((32 * 1024 * 1024 - 4096 + 56)) ;; *) flags_at=56 ;; esac
    od -A n -t x1 -j $flags_at -N 4 "$1" | tr -d ' '
}

# ---- taken over

# The kernel's Secondary leaves; the Primary goes on.
takeover_secondary() {
    twins
    kern_promote
    writes $kern
    twin_down
    scribble $kern 4 40
    take_over
    both_in_sync
    both_count 40
    kern_demote
}
# The second node wrote while it was alone: its bits, and the generation they count from, are converted.
takeover_primary() {
    twins
    dr primary 1
    writes $twin
    twin_disconnect
    kern_disconnect_twin
    scribble $twin 4 30
    dr secondary 1
    dr down r1
    take_over
    both_in_sync
    both_count 30
}
# Both wrote alone: found, and solved with both nodes' bits.
takeover_split_brain() {
    twins
    dr primary 1
    twin_disconnect
    kern_disconnect_twin
    scribble $twin 3 20
    dr secondary 1
    dr down r1
    kern_promote
    scribble $kern 5 10
    kern_demote
    convert
    start bob ip netns exec bob
    kern_connect "$protocol"
    bob up r0
    eventually is_kern cs StandAlone
    eventually we_stand_alone
    kern_connect "$protocol"
    bob connect r0 --discard-my-data
    connected
    both_in_sync
    both_count 30
}
# The second node died as Primary: what its log had hot is resynced, from it.
takeover_crash() {
    twins
    dr primary 1
    writes $twin
    crash_twin sent
    hot=$(drbdmeta_applies $our_disk)
    above "blocks that drbdmeta finds hot" "$hot" 0
    take_over
    both_in_sync
    both_count "$hot"
    below "blocks of the resync" "$(last_resync)" 8000
}
# The same, and the other node went on meanwhile: the crashed one follows.
takeover_crash_survivor_went_on() {
    twins
    dr primary 1
    scribble $twin 4 8
    crash_twin sent
    hot=$(drbdmeta_applies $our_disk)
    kern_promote
    scribble $kern 12 25
    take_over
    both_in_sync
    both_count $((hot + 25))
    kern_demote
}
# The second node died as Secondary of a Primary that went on.
takeover_crash_secondary() {
    twins
    kern_promote
    writes $kern
    cp_disk $our_disk $copy_disk
    scribble $kern 4 6
    cable down
    eventually twin_is_away
    scribble $kern 4 20
    dr down r1
    kern_disconnect_twin
    cable up
    our_disk=$copy_disk
    echo "v08 flags of the disk that crashed: $(flags_of $our_disk)"
    take_over
    both_in_sync
    both_count 20
    kern_demote
}
# The second node died in the middle of a resync to it: the rest is resynced.
takeover_crash_sync_target() {
    twins
    twin_down
    kern_promote
    dd if=/dev/urandom of=$kern bs=1M count=24 oflag=direct conv=notrunc 2>/dev/null
    kern_connect_twin
    twin_up 500
    dr pause-sync 1
    twin_connect
    eventually is_twin cs PausedSyncT
    # A little of it, and it stands still again.
    dr resume-sync 1
    dr pause-sync 1
    eventually is_twin cs PausedSyncT
    crash_twin quiet
    case $(flags_of $our_disk) in *[02468ace]) ;; *) wrong "the copy is not of the middle of a resync: flags $(flags_of $our_disk)" ;; esac
    take_over
    both_in_sync
    above "blocks of the resync" "$(last_resync)" 0
    below "blocks of the resync" "$(last_resync)" 6145
    kern_demote
}

# ---- handed back

# hand_back: our metadata becomes v08 again with DRBD's own tool, and the kernel attaches it.
hand_back() {
    end bob
    kern_disconnect
    drbdmeta --force 9 v08 $our_disk internal create-md >/dev/null
    twin_up
    kern_connect_twin
    twin_connect
}
twins_equal() {
    eventually twins_are_one
    nothing_is_out_of_sync
    same_bytes
}
kern_counts() { equal "blocks of the resync, as the kernel counts" "$(kern_resync)" "$1"; }
# Our Secondary leaves; the Primary goes on.
handback_secondary() {
    synced "$protocol"
    kern_promote
    writes $kern
    bob down r0
    scribble $kern 4 40
    hand_back
    twins_equal
    kern_counts 40
    kern_demote
}
# We wrote while alone.
handback_primary() {
    synced "$protocol"
    our_promote
    writes $dev
    part ours
    scribble $dev 4 30
    our_demote
    bob down r0
    hand_back
    twins_equal
    kern_counts 30
}
# The same with the node-ids exchanged: drbdmeta takes record 0 for the peer's, which is our own then, and the generation
# that the bits count from is lost. The kernel sees a split brain; the bits are there and solve it.
handback_lost_generation() {
    kern_id=1
    synced "$protocol"
    our_promote
    part ours
    scribble $dev 4 30
    our_demote
    bob down r0
    hand_back
    eventually is_kern cs StandAlone
    equal "the kernel's disk" "$(kern_says ds)" UpToDate/DUnknown
    twin_disconnect || true
    kern_connect_twin --discard-my-data
    twin_connect
    twins_equal
    kern_counts 30
}
# The daemon was killed as Primary: drbdmeta applies our log before the kernel attaches.
handback_crash() {
    synced "$protocol"
    our_promote
    writes $dev
    kill -9 "$(cat /tmp/bob.pid)"
    eventually kern_is_away
    kern_disconnect
    hot=$(converted_hot)
    above "blocks that drbdmeta finds hot" "$hot" 0
    drbdmeta --force 9 v08 $our_disk internal create-md >/dev/null
    twin_up
    kern_connect_twin
    twin_connect
    twins_equal
    kern_counts "$hot"
}
converted_hot() {
    cp_disk $our_disk $spare
    drbdmeta --force 9 v09 $spare internal apply-al >/dev/null
    drbdmeta --force 9 v09 $spare internal dump-md 2>/dev/null | sed -n 's/^# bits-set \([0-9]*\);/\1/p'
}
# There and back: taken over, handed back, taken over; each time just the difference.
there_and_back() {
    twins
    kern_promote
    for turn in 1 2; do
        twin_down
        scribble $kern 4 20
        take_over
        both_in_sync
        both_count 20
        bob down r0
        scribble $kern 8 15
        hand_back
        twins_equal
        kern_counts 15
    done
    kern_demote
}
# The kernel attaches no v09, the daemon no v08; neither touches it.
wrong_program() {
    down
    wipe
    our_config "$protocol"
    drbdmeta --force 1 v08 $our_disk internal create-md >/dev/null
    cp_disk $our_disk $copy_disk
    start bob ip netns exec bob
    refused bob up r0
    end bob
    untouched
    bob create-md r0 --force
    cp_disk $our_disk $copy_disk
    dr new-resource r1
    dr new-minor r1 1 0
    refused twin_attach 0
    untouched
}
untouched() {
    echo 1 >/proc/sys/vm/drop_caches
    cmp $our_disk $copy_disk
}
