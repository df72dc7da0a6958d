# alice, who types. Before this stand `path` (the steps to go, in order) and the document's blocks as functions, step_N.
. /usr/lib/migration.sh
set -u
home=alice

# The cluster of the document, as it is before the first step; what its blocks about configuration hold is in the image.
begin() {
    typed_on bob 'cluster_up'
    typed_on alice 'cluster_up'
    typed_on alice 'type_in "drbdadm cstate r0" soon Connected; drbdsetup-84 new-current-uuid --clear-bitmap 0
        type_in "drbdadm dstate r0" soon UpToDate/UpToDate; drbdadm primary r0
        echo $(($(cat /sys/block/drbd0/size) * 512)) >/run/bytes
        mkfs.ext4 -q -F /dev/drbd0; mount /dev/drbd0 /srv; service_start'
    step_begin
    grows
}
count_now() { typed_on $home service_count | tail -n 1; }
# The service writes on, wherever it is.
grows() {
    grows_from=$(count_now)
    eventually grown
}
grown() { [ "$(count_now)" -ge $((grows_from + 5)) ]; }

# step N: what the document says, and what it promises.
step() {
    typed_on bob mark_step
    typed_on alice mark_step
    "step_$1"
    case $1 in
    2) home=bob ;;
    5) home=alice ;;
    esac
    grows
    case $1 in
    1) resynced kernel our ;;
    3) resynced our our ;;
    4) resynced kernel our ;;
    6) resynced kernel kernel ;;
    esac
}
# resynced ALICE BOB: who counts there. One resync, of much less than the disk. Its source counts last, so what the service
# writes while the bitmaps are exchanged is in its count only.
resynced() {
    resynced_alice=$(typed_on alice "$1_resyncs" | tail -n 1)
    resynced_bob=$(typed_on bob "$2_resyncs" | tail -n 1)
    echo "step resynced $resynced_alice blocks as alice counts, $resynced_bob as bob does, of $(($(cat /run/bytes) / 4096))"
    case $home in
    alice) resynced_source=$resynced_alice resynced_target=$resynced_bob ;;
    bob) resynced_source=$resynced_bob resynced_target=$resynced_alice ;;
    esac
    [ "$resynced_target" -gt 0 ] || wrong "nothing was resynced under load"
    [ "$resynced_target" -le "$resynced_source" ] || wrong "$home, the source, has less to send than the other lacks"
    [ "$resynced_source" -lt $((resynced_target + 100)) ] || wrong "$home sends more than the other lacks"
    [ "$resynced_source" -lt $(($(cat /run/bytes) / 4096 / 4)) ] || wrong "$resynced_source blocks are not the difference"
}
# after_block STEP NUMBER: where the service stands still, the disks are compared, and its last write is looked for.
after_block() {
    case "$1 $2" in
    '2 1' | '5 1') same_disks ;;
    '2 2') nothing_lost alice bob ;;
    '5 2') nothing_lost bob alice ;;
    esac
}
same_disks() {
    same_bytes=$(cat /run/bytes)
    [ "$same_bytes" -gt 100000000 ] || wrong "the volume has $same_bytes bytes"
    equal "the sum of bob's disk" "$(typed_on bob "disk_sum $same_bytes" | tail -n 1)" "$(disk_sum "$same_bytes")"
}
# nothing_lost FROM TO: the service found its last synced write.
nothing_lost() {
    nothing_last=$(typed_on "$1" 'cat /run/service.last' | tail -n 1)
    equal "the last write that $2 found" "$(typed_on "$2" 'cat /run/service.found' | tail -n 1)" "$nothing_last"
}
finish() {
    typed_on $home 'systemctl stop my-service; service_check; umount /srv'
    case $home in
    alice) typed_on alice 'drbdadm secondary r0 2>/dev/null || replicactl demote r0' ;;
    bob) typed_on bob 'replicactl demote r0' ;;
    esac
    same_disks
    say "size $(cat /run/bytes)"
}
logs() {
    echo '---- alice, daemon'; cat /tmp/replicad.log
    echo '---- alice, kernel'; dmesg | grep -i drbd
}
needed() {
    check "$@"
    [ "$check_status" = 0 ] || { logs; typed_on bob 'touch /run/quit'; exit 1; }
}
needed network_alice machine alice 10.1.1.31
bob_is_there() { typed_on bob true; }
needed reach_bob eventually bob_is_there
needed begin begin
at=0
for number in $path; do
    at=$((at + 1))
    # check runs in a shell of its own: where the service is has to be known after it, too.
    needed "$at.step_$number" step "$number"
    case $number in 2) home=bob ;; 5) home=alice ;; esac
done
needed equal_copies finish
check kernel_log kernel_content
check kernel_is_well kernel_is_well
typed_on bob 'touch /run/quit'
logs
