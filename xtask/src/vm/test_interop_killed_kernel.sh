# The machine with the kernel's DRBD. Before this stands `life`: how often this machine was switched on before.
. /usr/lib/migration.sh
set -u
check "alice_is_up_$life" machine alice 10.1.1.31
[ "$life" != 0 ] || drbdmeta --force 0 v08 /dev/vg0/r0 internal create-md
drbdadm up r0
listen
until [ -e /run/quit ]; do sleep 0.5; done
check kernel_log kernel_content
check kernel_is_well kernel_is_well
dmesg | grep -i drbd
true
