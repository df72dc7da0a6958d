# Two volumes of one resource, and metadata on disks of their own. Functions for test_interop.sh, which comes after this.

volumes_in_sync() {
    bob wait-sync r0 --timeout 240
    eventually all_say kern cs Connected
    eventually all_say kern ds UpToDate/UpToDate
    nothing_is_out_of_sync
    equal "our disks" "$(bob dstate r0)" "$(for volume in $volumes; do echo UpToDate/UpToDate; done)"
    same_bytes
}
# write_alone kern|twin|our MIB_OFFSET COUNT: so many blocks into volume 0, seven more into the next.
write_alone() { for volume in $volumes; do scribble "$("$1_device_of" "$volume")" "$2" $(($3 + 7 * volume)); done; }
write_all() { for volume in $volumes; do writes "$("$1_device_of" "$volume")"; done; }
# Blocks of the last resync of each volume, as the daemon says it.
volume_resync() { sed -n "s/.*volume $1: resync [a-z]* peer 0 of \([0-9]*\) blocks.*/\1/p" /tmp/bob.log | tail -n 1; }
# we_resynced COUNT: just what write_alone has written.
we_resynced() {
    for volume in $volumes; do equal "blocks of the resync of volume $volume" "$(volume_resync "$volume")" $(($1 + 7 * volume)); done
}
kern_resynced() {
    for volume in $volumes; do
        equal "blocks of the resync of volume $volume, as the kernel counts" "$(kern_resync "$volume")" $(($1 + 7 * volume))
    done
}
# Initial sync, an outage with other writes on each, and a fail-over, either side Primary.
two_volumes() {
    volumes='0 1'
    pair "$protocol"
    kern_promote --force
    volumes_in_sync
    write_all kern
    link down
    disconnected
    write_alone kern 4 40
    link up
    connected
    volumes_in_sync
    we_resynced 40
    kern_demote
    link down
    disconnected
    our_promote
    write_alone our 6 5
    link up
    connected
    volumes_in_sync
    we_resynced 5
    writes "$(our_device_of 1)"
    our_demote
    volumes_in_sync
}
# Both with metadata elsewhere, so the volume is as large as the disk: sync, an outage either way.
external_metadata() {
    external="$kern_disk $our_disk"
    pair "$protocol"
    equal "size of the volume" "$(kern_bytes)" "$(blockdev --getsize64 $kern_disk)"
    kern_promote --force
    both_in_sync
    writes $kern
    link down
    disconnected
    scribble $kern 4 40
    link up
    connected
    both_in_sync
    only_the_difference 40
    kern_demote
    link down
    disconnected
    our_promote
    writes $dev
    link up
    connected
    both_in_sync
    our_demote
}

# ---- the second node moves from the kernel's DRBD to replicad and back

# Twice, and each time somebody has written alone: the node that stays, or the one that moves, whose own bits and generation
# are converted then. No two resyncs have the same count.
moves() {
    twins
    kern_promote
    write_all kern
    moves_bytes=$(kern_bytes)

    twin_down
    write_alone kern 4 20
    take_over
    volumes_in_sync
    we_resynced 20
    kern_resynced 20
    equal "size of volume 0 at ours" "$(size_bytes bob)" "$moves_bytes"
    kern_demote

    our_promote
    write_all our
    part ours
    write_alone our 6 30
    our_demote
    bob down r0
    give_back
    twins_equal
    kern_resynced 30

    twin_promote
    write_all twin
    twin_disconnect
    kern_disconnect_twin
    write_alone twin 8 25
    twin_demote
    dr down r1
    take_over
    volumes_in_sync
    we_resynced 25
    kern_resynced 25

    kern_promote
    write_all kern
    bob down r0
    write_alone kern 10 35
    give_back
    twins_equal
    kern_resynced 35
    kern_demote
    equal "size of volume 0 in the end" "$(kern_bytes)" "$moves_bytes"
}
# As hand_back, with our own tool.
give_back() {
    end bob
    kern_disconnect
    bob create-md r0 --format v08 --force | tee /tmp/converted
    all_converted_to v08
    twin_up
    kern_connect_twin
    twin_connect
}
external_metadata_moves() {
    external="$kern_disk $our_disk"
    moves
}
# The log of what a dead Primary had in flight lies on the other disk, too.
external_metadata_crash() {
    external="$kern_disk $our_disk $copy_disk $spare"
    takeover_crash
}
# One has its metadata inside, the other elsewhere.
volumes_move() {
    volumes='0 1'
    external="$kern_disk_1 $our_disk_1"
    moves
}
