# Blocks that are compared by their digests: online verify and resyncs with csums-alg, with a kernel's DRBD 8.4.

# One block of one copy changes behind both programs' backs: spoil DISK BLOCK.
spoil() { dd if=/dev/urandom of="$1" bs=4k count=1 seek="$2" oflag=direct conv=notrunc 2>/dev/null; }
kern_verify() { dr verify 0; }
our_verify() { bob verify r0; }
verifies_of_ours() { grep -c 'verify [a-z]* peer 0 finished' /tmp/bob.log || true; }
is_verified() { [ "$(verifies_of_ours)" -gt "$1" ] && is_kern cs Connected; }
# verified VERIFY: one, from its start to its end on both.
verified() {
    verified_before=$(verifies_of_ours)
    "$1"
    eventually is_verified "$verified_before"
    agree
}
# differ KIB: so much, both say.
differ() {
    equal "out of sync at the kernel" "$(kern_number oos)" "$1"
    equal "out of sync here" "$(number bob out-of-sync)" "$1"
}
# verify_finds VERIFY: nothing on equal copies, at rest and under either Primary's writes; then just what was spoiled on
# one side or the other. The next resync fetches it.
verify_finds() {
    synced "$protocol" 'verify-alg = "sha1"' --verify-alg=sha1
    verified "$1"
    differ 0
    kern_promote
    writes $kern &
    verify_finds_load=$!
    verified "$1"
    wait $verify_finds_load
    differ 0
    kern_demote
    our_promote
    writes $dev &
    verify_finds_load=$!
    verified "$1"
    wait $verify_finds_load
    differ 0
    spoil $our_disk 3000
    spoil $kern_disk 6000
    spoil $kern_disk 6001
    verified "$1"
    differ 12
    part link
    scribble $dev 4 40
    join link
    both_in_sync
    only_the_difference 43
    our_demote
}
verify_by_kernel() { verify_finds kern_verify; }
verify_by_us() { verify_finds our_verify; }
# Every hash that both know finds a block. A kernel 7 has crc32c and md5 in modules that nothing here loads.
verify_hashes() {
    for hash in crc32c md5 sha1 sha256; do
        grep -q "^name *: $hash\$" /proc/crypto || { echo "SKIPPED: this kernel has no $hash"; continue; }
        synced "$protocol" "verify-alg = \"$hash\"" --verify-alg=$hash
        spoil $our_disk 3000
        verified kern_verify
        differ 4
        verified our_verify
        differ 4
    done
}
# Without a verify-alg nobody verifies, and both stay connected. (With two different ones 8.4 does not connect.)
verify_is_refused() {
    synced "$protocol"
    refused dr verify 0
    refused bob verify r0
    equal "connection" "$(kern_says cs)" Connected
    equal "connection" "$(our_cstate)" Connected
}

# half_is_equal DEVICE: 40 blocks are written while nobody listens, 20 of them with what they had.
half_is_equal() {
    dd if="$1" of=/tmp/same bs=4k skip=1024 count=20 iflag=direct 2>/dev/null
    part link
    dd if=/tmp/same of="$1" bs=4k seek=1024 count=20 oflag=direct conv=notrunc 2>/dev/null
    dd if=/dev/urandom of="$1" bs=4k seek=2048 count=20 oflag=direct conv=notrunc 2>/dev/null
    join link
    both_in_sync
    only_the_difference 40
}
# The kernel is the target, and asks with digests.
checksum_resync_to_kernel() {
    synced "$protocol" 'csums-alg = "sha1"' --csums-alg=sha1
    our_promote
    received_before=$(kern_number nr)
    half_is_equal $dev
    equal "KiB that the kernel received" $(($(kern_number nr) - received_before)) 80
    our_demote
}
# We are.
checksum_resync_to_us() {
    synced "$protocol" 'csums-alg = "sha1"' --csums-alg=sha1
    kern_promote
    received_before=$(number bob received)
    half_is_equal $kern
    equal "KiB that we received" $(($(number bob received) - received_before)) 80
    kern_demote
}
