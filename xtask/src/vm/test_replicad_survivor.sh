# bob, who takes over when alice is gone, and later gives her what she missed.
ip addr add 10.77.0.2/24 dev eth0
ip link set eth0 up
configure C /dev/vdb 10.77.0.1 /dev/vdb 10.77.0.2
begin() {
    ctl bob create-md r0
    start bob
    ctl bob up r0
    wait_sync bob
}
connected() { [ "$(ctl bob cstate r0)" = Connected ]; }
take_over() {
    while connected; do sleep 0.5; done
    promote bob
    # Replays the journal.
    mount -t ext4 $dev /mnt/a
    for file in /mnt/a/durable.*; do say "found ${file##*.} $(sha256sum <"$file" | cut -c 1-64)"; done
    head -c 1000000 /dev/urandom >/mnt/a/later
    umount /mnt/a
    e2fsck -fn $dev
}
give_back() {
    say survived
    # Hers is an older generation: no split brain.
    ctl bob wait-connect r0
    wait_sync bob
    equal state "$(ctl bob dstate r0)" UpToDate/UpToDate
    say "size $(size_bytes bob)"
    demote bob
    ctl bob down r0
    end bob
}
check begin begin
check take_over take_over
check give_back give_back
check kernel_is_well kernel_is_well
logs
