# bob, with replicad, who asks alice, with the kernel's DRBD, to do things, and the host to pull her plug. Before this stands
# `tests`.
. /usr/lib/migration.sh
set -u
dev=/dev/ublkb10

# Who is asked: alice. What is asked of bob runs here.
alice() { typed_on alice "$1"; }
# Asked so that a dead machine does not keep us: the script is "true".
alice_listens() { echo dHJ1ZQ== | timeout 10 nc 10.1.1.31 $shell_port 2>/dev/null | grep -q '^STATUS 0'; }
alice_is_dead() { ! alice_listens; }
# The plug, and the way back: the host does it and answers nothing, so what follows waits for what it sees.
kill_alice() {
    say "kill $test"
    eventually alice_is_dead
    eventually we_are_alone
}
we_are_alone() { [ "$(replicactl cstate r0 | tr -d '\n')" = Connecting ]; }
boot_alice() {
    say "boot $test"
    eventually alice_listens
    replicactl wait-connect r0 --timeout 240
}
synced() {
    replicactl wait-sync r0 --timeout 240
    equal "disks" "$(replicactl dstate r0 | tr -d '\n')" UpToDate/UpToDate
    eventually alice_agrees
}
alice_agrees() { [ "$(alice 'drbdadm dstate r0' | tail -n 1)" = UpToDate/UpToDate ]; }
same_disks() {
    size=$(($(alice 'cat /sys/block/drbd0/size' | tail -n 1) * 512))
    above "size of the volume" "$size" 100000000
    equal "the sum of alice's disk" "$(alice "disk_sum $size" | tail -n 1)" "$(disk_sum "$size")"
}
above() { [ "$2" -gt "$3" ] || wrong "$1 is $2, should be above $3"; }
below() { [ "$2" -lt "$3" ] || wrong "$1 is $2, should be below $3"; }
# resynced LIMIT: one resync, of something, and of less than LIMIT blocks; both counted the same.
resynced() {
    resynced_ours=$(our_resyncs)
    equal "blocks of the resync, as the kernel counts" "$(alice kernel_resyncs | tail -n 1)" "$resynced_ours"
    echo "resynced $resynced_ours blocks"
    above "blocks of the resync" "$resynced_ours" 0
    below "blocks of the resync" "$resynced_ours" "$1"
}

begin() {
    replicactl create-md r0
    daemon_start
    eventually alice_listens
    replicactl wait-connect r0 --timeout 240
    replicactl new-current-uuid --clear-bitmap r0
    synced
    promote
    mkfs.ext4 -q -F $dev
    demote
}
promote() {
    replicactl promote r0
    eventually test -b $dev
}
demote() {
    replicactl demote r0
    eventually test ! -e $dev
}

# The kernel's machine dies as Secondary, under load. It comes back, to just what it missed.
killed_secondary() {
    mark_step
    promote
    mount $dev /srv
    service_start
    sleep 5
    kill_alice
    alone_at=$(service_count)
    eventually written_beyond "$alone_at"
    boot_alice
    synced
    service_stop
    service_check
    umount /srv
    demote
    resynced 12000
    same_disks
}
written_beyond() { [ "$(service_count)" -ge $(($1 + 10)) ]; }

# alice_serves: the service runs there.
alice_serves() {
    alice 'drbdadm primary r0; mount /dev/drbd0 /srv; service_start'
    sleep 5
}
# It dies as Primary, under load; we take over, with all that it had synced; it comes back and follows.
killed_primary() {
    mark_step
    alice_serves
    # Its directory entry may be the one that is being synced just now: all before it are.
    durable=$(alice service_count | tail -n 1)
    kill_alice
    promote
    mount $dev /srv
    service_start
    above "writes that we found" "$(cat /run/service.found)" $((durable - 2))
    eventually written_beyond "$durable"
    boot_alice
    synced
    service_stop
    service_check
    umount /srv
    demote
    resynced 12000
    same_disks
}
# It dies as Primary and is back before anybody took over: its hot extents are resynced, from it.
killed_primary_returns() {
    mark_step
    alice_serves
    # Its directory entry may be the one that is being synced just now: all before it are.
    durable=$(alice service_count | tail -n 1)
    kill_alice
    boot_alice
    synced
    equal "roles" "$(alice 'drbdadm role r0' | tail -n 1)" Secondary/Secondary
    resynced 40000
    same_disks
    promote
    mount $dev /srv
    service_check
    above "writes that we found" "$(service_count)" $((durable - 2))
    umount /srv
    demote
    same_disks
}
logs() { cat /tmp/replicad.log; }
needed() {
    check "$@"
    [ "$check_status" = 0 ] || { logs; exit 1; }
}
needed bob_is_up machine bob 10.1.1.32
needed begin begin
for test in $tests; do needed "$test" "$test"; done
say "size $(($(alice 'cat /sys/block/drbd0/size' | tail -n 1) * 512))"
alice 'touch /run/quit'
check kernel_is_well kernel_is_well
logs
