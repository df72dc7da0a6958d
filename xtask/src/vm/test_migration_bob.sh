# bob: a shell that does what alice asks.
. /usr/lib/migration.sh
set -u
check network_bob machine bob 10.1.1.32
listen
until [ -e /run/quit ]; do sleep 0.5; done
check kernel_log kernel_content
check kernel_is_well kernel_is_well
echo '---- bob, daemon'; cat /tmp/replicad.log
echo '---- bob, kernel'; dmesg | grep -i drbd
true
