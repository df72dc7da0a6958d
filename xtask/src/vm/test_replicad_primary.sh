# alice, who will lose her power: writes files, and says which are durable.
ip addr add 10.77.0.1/24 dev eth0
ip link set eth0 up
configure C /dev/vdb 10.77.0.1 /dev/vdb 10.77.0.2
begin() {
    ctl alice create-md r0
    start alice
    ctl alice up r0
    promote alice --force
    wait_sync alice
    # A discard of everything would make every extent of the activity log hot, and all of them be resynced.
    mkfs.ext4 -q -F -E nodiscard $dev
    mount -t ext4 $dev /mnt/a
    sync
}
check begin begin
fio --name=load --directory=/mnt/a --rw=randwrite --bs=4k --size=8m --fsync=8 --time_based --runtime=100000 \
    >/tmp/load.log 2>&1 3>&- &
number=0
while sleep 0.2; do
    number=$((number + 1))
    head -c 20000 /dev/urandom >/tmp/file
    # The folder, too: a file that was synced may still have no name.
    dd if=/tmp/file of=/mnt/a/durable.$number bs=20000 conv=fsync 2>/dev/null && sync /mnt/a || break
    say "durable $number $(sha256sum </tmp/file | cut -c 1-64)"
    [ $number -ne 10 ] || say enough
done
logs
fail writing "stopped at file $number"
