# Measures in one machine with one processor: each case on our device and on theirs in turn, round after round. Before this
# stand `replicad.sh` and what bench.rs gives: `rounds`, `hot_mib`, and the jobs of a round in /tmp/ours_first and
# /tmp/theirs_first.
#
# Every disk is a RAM disk of its own:
#   ram0  pass-through, ublk 2     ram1  replicad without a peer, ublk 1
#   ram2, ram3  replicad, protocol C, ublk 3     ram4, ram5  DRBD, protocol C, minors 0 and 1
#   ram6, ram7  replicad, protocol A, ublk 4     ram8, ram9  DRBD, protocol A, minors 2 and 3
#   ram10  pass-through without a copy, ublk 5
#   ram11, ram12  replicad, C, 67 extents in the activity log, ublk 6     ram13, ram14  DRBD, the same, minors 4 and 5
# Each pair but the last two uses no more than `hot_mib` of its device.
# Both ends of each pair, ours and DRBD's, talk over loopback. carol has no peer.
set -u

replicated() { # NAME PROTOCOL UBLK DISK_A DISK_B PORT [OPTIONS]
    cat <<TOML
[[resource]]
name = "$1"
net = { protocol = "$2", ping-timeout = 50, connect-int = 7 }
${7:-}
[[resource.volume]]
number = 0
device = "ublk:$3"
disk = "/nowhere"
[[resource.on]]
node = "alice"
node-id = 0
address = "127.0.1.1:$6"
volume = [{ number = 0, disk = "$4" }]
[[resource.on]]
node = "bob"
node-id = 1
address = "127.0.1.2:$6"
volume = [{ number = 0, disk = "$5" }]
TOML
}
unreplicated() { # NAME UBLK DISK
    cat <<TOML
[[resource]]
name = "$1"
[[resource.volume]]
number = 0
device = "ublk:$2"
disk = "$3"
[[resource.on]]
node = "carol"
node-id = 0
address = "127.0.0.1:7780"
TOML
}
# A page of a RAM disk comes into being with its first write: not in a round that counts.
fill() {
    for disk in /dev/ram? /dev/ram10; do
        dd if=/dev/zero of="$disk" bs=1M count="$hot_mib" oflag=direct 2>/dev/null
    done
}
ours() {
    {
        unreplicated alone 1 /dev/ram1
        replicated c C 3 /dev/ram2 /dev/ram3 7781
        replicated a A 4 /dev/ram6 /dev/ram7 7782
        replicated cold C 6 /dev/ram11 /dev/ram12 7785 "disk = { al-extents = 67 }"
    } >"$conf"
    ctl carol create-md alone
    for node in alice bob; do for resource in $replicated; do ctl $node create-md "$resource"; done; done
    start carol
    for node in alice bob; do start $node; done
    ctl carol up all
    for node in alice bob; do ctl $node up all; done
    ctl carol promote alone --force
    for resource in $replicated; do
        ctl alice wait-connect $resource --timeout 240
        # All disks are zeroes: nothing to copy.
        ctl alice new-current-uuid --clear-bitmap $resource
        ctl alice promote $resource
    done
    for number in 1 3 4 6; do eventually test -b /dev/ublkb$number; done
}
passthrough() {
    : >/tmp/memdisk.log
    memdisk --id 2 --backing /dev/ram0 --recovery >/tmp/memdisk.log 2>&1 3>&- &
    eventually grep ^ready /tmp/memdisk.log
    : >/tmp/memdisk5.log
    memdisk --id 5 --backing /dev/ram10 --zero-copy --recovery >/tmp/memdisk5.log 2>&1 3>&- &
    eventually grep ^ready /tmp/memdisk5.log
    cat /tmp/memdisk5.log
}
drbd_end() { # NAME PROTOCOL MINOR DISK MY_ADDRESS PEER_ADDRESS AL_EXTENTS
    drbdmeta --force "$3" v08 "$4" internal create-md >/dev/null
    drbdsetup-84 new-resource "$1"
    drbdsetup-84 new-minor "$1" "$3" 0
    drbdsetup-84 attach "$3" "$4" "$4" internal --al-extents="$7"
    drbdsetup-84 connect "$1" "ipv4:$5" "ipv4:$6" --protocol="$2" --ping-timeout=50 --connect-int=7
}
# The name of a resource isn't on the wire: both ends live in one kernel, under two names.
drbd_pair() { # NAME PROTOCOL MINOR_A MINOR_B DISK_A DISK_B PORT [AL_EXTENTS]
    drbd_end "$1-alice" "$2" "$3" "$5" "127.0.0.1:$7" "127.0.0.2:$7" "${8:-1237}"
    drbd_end "$1-bob" "$2" "$4" "$6" "127.0.0.2:$7" "127.0.0.1:$7" "${8:-1237}"
    drbdsetup-84 wait-connect "$3" --wfc-timeout=120
    drbdsetup-84 new-current-uuid --clear-bitmap "$3"
    drbdsetup-84 primary "$3"
}
theirs() {
    # drbdmeta locks a minor there.
    mkdir -p /var/lock
    drbd_pair c C 0 1 /dev/ram4 /dev/ram5 7783
    drbd_pair a A 2 3 /dev/ram8 /dev/ram9 7784
    drbd_pair cold C 4 5 /dev/ram13 /dev/ram14 7786 67
    cat /proc/drbd
}
# A number measured while one end was away would be of something else.
replicating() {
    for resource in $replicated; do
        equal "replicad's $resource" "$(ctl alice dstate "$resource")" UpToDate/UpToDate
    done
    for minor in 0 2 4; do equal "DRBD's $minor" "$(drbdsetup-84 dstate $minor)" UpToDate/UpToDate; done
}
# one_round JOBS: fio ends with one line per job. Of its terse format, version 3: the job's name, KiB and milliseconds that
# were read and written in the part that counts.
one_round() {
    fio --output-format=terse --terse-version=3 "$1" >/tmp/fio.out 2>/tmp/fio.err 3>&- ||
        { cat /tmp/fio.out /tmp/fio.err; return 1; }
    cut -d ';' -f 3,6,9,47,50 /tmp/fio.out | tr ';' ' ' >/tmp/measured
    cat /tmp/measured
    while read -r line; do say "measured $line"; done </tmp/measured
    replicating
}
# The copies hold the same, theirs and ours; nothing was skipped to be fast.
equal_copies() {
    bytes=$(blockdev --getsize64 /dev/ublkb3)
    equal "size of DRBD's device" "$(blockdev --getsize64 /dev/drbd0)" "$bytes"
    ctl carol demote alone
    for resource in $replicated; do ctl alice demote "$resource"; done
    for node in alice bob carol; do end $node; done
    for minor in 0 2 4; do drbdsetup-84 secondary $minor; done
    for resource in $replicated; do drbdsetup-84 down "$resource-alice"; drbdsetup-84 down "$resource-bob"; done
    hot=$((hot_mib << 20))
    cmp -n $hot /dev/ram2 /dev/ram3
    cmp -n $hot /dev/ram4 /dev/ram5
    cmp -n $hot /dev/ram6 /dev/ram7
    cmp -n $hot /dev/ram8 /dev/ram9
    cmp -n "$bytes" /dev/ram11 /dev/ram12
    cmp -n "$bytes" /dev/ram13 /dev/ram14
}
replicated="c a cold"

# Without all of them there is nothing to compare.
needed() {
    check "$@"
    [ "$check_status" = 0 ] || { logs; exit 1; }
}
needed fill fill
needed passthrough passthrough
needed replicad ours
needed drbd theirs
needed replicating replicating
round=1
while [ $round -le "$rounds" ]; do
    # Who is first changes with the round: what the machine does meanwhile falls on both.
    if [ $((round % 2)) = 1 ]; then jobs=/tmp/ours_first; else jobs=/tmp/theirs_first; fi
    check round_$round one_round $jobs
    round=$((round + 1))
done
check equal_copies equal_copies
check kernel_is_well kernel_is_well
cat /tmp/memdisk.log
logs
