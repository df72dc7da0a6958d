# Two volumes of one resource, and metadata on disks of their own. Functions for test_interop.sh, which comes after this.

dev_1=/dev/ublkb2
kern_1=/dev/drbd2
kern_disk_1=/dev/ram2
our_disk_1=/dev/ram3

# our_volumes NUMBERS VOLUME_TABLES_OF_BOB: as our_config, with other volumes.
our_volumes() {
    our_config "$protocol"
    {
        sed '/^\[\[resource.volume\]\]/,$d' "$conf"
        for volume in $1; do
            printf '[[resource.volume]]\nnumber = %s\ndevice = "ublk:%s"\ndisk = "/nowhere%s"\n' "$volume" $((volume + 1)) "$volume"
        done
        sed -n '/^\[\[resource.on\]\]/,$p' "$conf" | sed "s|^volume = .*|volume = [$2]|"
    } >"$conf.new"
    mv "$conf.new" "$conf"
}
# The second volume at the kernel: minor 2.
volume_1_says() { sed -n 's/^ *2: //p' /proc/drbd | tr ' ' '\n' | sed -n "s/^$1://p"; }
volume_1_oos() { sed -n '/^ *2: cs:/{n;p;}' /proc/drbd | tr ' ' '\n' | sed -n "s/^oos://p"; }
volume_1_is_up_to_date() { [ "$(volume_1_says ds)" = UpToDate/UpToDate ]; }
volumes_in_sync() {
    bob wait-sync r0 --timeout 240
    eventually is_kern ds UpToDate/UpToDate
    eventually volume_1_is_up_to_date
    equal "out of sync at the kernel" "$(kern_number oos) $(volume_1_oos)" "0 0"
    equal "our disks" "$(bob dstate r0 | tr '\n' ' ')" "UpToDate/UpToDate UpToDate/UpToDate "
    same_bytes
    cmp -n $(($(cat /sys/block/drbd2/size) * 512)) $kern_disk_1 $our_disk_1
}
volumes_promote_kernel() { for minor in 0 2; do dr primary $minor "$@"; done; }
volumes_demote_kernel() { for minor in 0 2; do dr secondary $minor; done; }
volumes_promote_us() {
    our_promote "$@"
    eventually test -b $dev_1
}
volumes_demote_us() {
    our_demote
    eventually test ! -e $dev_1
}
# Blocks of the last resync of each volume.
volume_resync() { sed -n "s/.*volume $1: resync [a-z]* peer 0 of \([0-9]*\) blocks.*/\1/p" /tmp/bob.log | tail -n 1; }
# Initial sync, an outage with other writes on each, and a fail-over, either side Primary.
two_volumes() {
    down
    for disk in $kern_disk $our_disk $kern_disk_1 $our_disk_1; do
        dd if=/dev/urandom of=$disk bs=1M count=32 oflag=direct 2>/dev/null
    done
    our_volumes "0 1" "{ number = 0, disk = \"$our_disk\" }, { number = 1, disk = \"$our_disk_1\" }"
    kern_new
    drbdmeta --force 2 v08 $kern_disk_1 internal create-md >/dev/null
    dr new-minor r0 2 1
    dr attach 2 $kern_disk_1 $kern_disk_1 internal --c-plan-ahead=0 --resync-rate=100000
    our_new
    kern_connect "$protocol"
    bob up r0
    connected
    volumes_promote_kernel --force
    volumes_in_sync
    writes $kern
    writes $kern_1
    link down
    disconnected
    scribble $kern 4 40
    scribble $kern_1 4 7
    link up
    connected
    volumes_in_sync
    equal "blocks of the resync of volume 0" "$(volume_resync 0)" 40
    equal "blocks of the resync of volume 1" "$(volume_resync 1)" 7
    volumes_demote_kernel
    link down
    disconnected
    volumes_promote_us
    scribble $dev 6 5
    scribble $dev_1 6 30
    link up
    connected
    volumes_in_sync
    equal "blocks of the resync of volume 0" "$(volume_resync 0)" 5
    equal "blocks of the resync of volume 1" "$(volume_resync 1)" 30
    writes $dev_1
    volumes_demote_us
    volumes_in_sync
}
# Both with metadata elsewhere, so the volume is as large as the disk: sync, an outage either way.
external_metadata() {
    down
    wipe
    our_volumes 0 "{ number = 0, disk = \"$our_disk\", meta-disk = \"$our_disk_1\" }"
    drbdmeta --force 0 v08 $kern_disk_1 flex-external create-md >/dev/null
    dr new-resource r0
    dr new-minor r0 0 0
    dr attach 0 $kern_disk $kern_disk_1 flexible --c-plan-ahead=0 --resync-rate=100000
    our_new
    kern_connect "$protocol"
    bob up r0
    connected
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
