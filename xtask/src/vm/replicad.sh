# What the replicad tests share: a configuration, daemons, questions to them. Waits end by what they wait for.
conf=/tmp/replicad.toml
dev=/dev/ublkb1

# configure PROTOCOL DISK_A ADDRESS_A DISK_B ADDRESS_B: emulation is slow, so every timeout is far above the default.
configure() {
    cat >"$conf" <<TOML
[[resource]]
name = "r0"
net = { protocol = "$1", timeout = 100, ping-timeout = 50, connect-int = 11, ping-int = 11, cram-hmac-alg = "sha256", shared-secret = "for tests" }
[[resource.volume]]
number = 0
device = "ublk:1"
disk = "/nowhere"
[[resource.on]]
node = "alice"
node-id = 0
address = "$3:7789"
volume = [{ number = 0, disk = "$2" }]
[[resource.on]]
node = "bob"
node-id = 1
address = "$5:7789"
volume = [{ number = 0, disk = "$4" }]
TOML
}
# start NODE [PREFIX...]: a daemon; returns when it answers. Its process number is in /tmp/NODE.pid. It is given
# $replicad_options.
start() {
    started=$1
    shift
    # The test channel must not be held open by a daemon.
    # shellcheck disable=SC2086 # words
    "$@" replicad --config "$conf" --node "$started" --run-dir "/run/$started" ${replicad_options:-} >>"/tmp/$started.log" 2>&1 3>&- &
    echo $! >"/tmp/$started.pid"
    eventually answers "$started"
}
answers() { ctl "$1" status >/dev/null 2>&1; }
# ctl NODE COMMAND...
ctl() {
    asked=$1
    shift
    replicactl --config "$conf" --run-dir "/run/$asked" --node "$asked" "$@"
}
end() {
    ended=$(cat "/tmp/$1.pid")
    kill -TERM "$ended"
    eventually gone "$ended"
}
gone() { [ ! -d "/proc/$1" ]; }
# promote NODE [--force]: and the device is there.
promote() {
    ctl "$1" promote r0 ${2:+"$2"}
    eventually test -b "$dev"
}
demote() {
    ctl "$1" demote r0
    eventually test ! -e "$dev"
}
refused() { if "$@"; then wrong "succeeded: $*"; fi; }
# number NODE KEY: the first such number of the statistics.
number() {
    ctl "$1" --json status r0 --statistics | tr ',{}[]' '\n\n\n\n\n' | sed -n "s/^ *\"$2\": *\([0-9]*\).*/\1/p" | head -n 1
}
size_bytes() { echo $(($(number "$1" size) * 1024)); }
below() { [ "$2" -lt "$3" ] || wrong "$1 is $2, should be below $3"; }
above() { [ "$2" -gt "$3" ] || wrong "$1 is $2, should be above $3"; }
# wait_sync NODE: connected and in sync.
wait_sync() {
    ctl "$1" wait-connect r0 --timeout 240
    ctl "$1" wait-sync r0 --timeout 240
}
logs() { for log in /tmp/alice.log /tmp/bob.log; do [ ! -e "$log" ] || { echo "---- $log"; cat "$log"; }; done; }
