# alice again, after the power cut: Secondary, and resynced.
ip addr add 10.77.0.1/24 dev eth0
ip link set eth0 up
configure C /dev/vdb 10.77.0.1 /dev/vdb 10.77.0.2
return_as_secondary() {
    start alice
    ctl alice up r0
    wait_sync alice
    equal role "$(ctl alice role r0)" Secondary
    received=$(number alice received)
    size=$(($(size_bytes alice) / 1024))
    echo "resynced $received KiB of $size"
    above "KiB resynced" "$received" 0
    # Hot extents and set bits alone.
    below "KiB resynced" "$received" $((size / 2))
    while [ "$(ctl alice cstate r0)" = Connected ]; do sleep 0.5; done
    ctl alice down r0
    end alice
}
check return_as_secondary return_as_secondary
check kernel_is_well kernel_is_well
logs
