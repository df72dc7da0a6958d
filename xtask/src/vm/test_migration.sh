# docs/migrate-from-drbd.md, typed on two machines. Functions of both guests; in their image as /usr/lib/migration.sh.
#
# One machine types; what belongs to the other one goes to a shell that listens there. Each command runs as it stands in the document. Only
# systemd is not there: `systemctl` below starts what the unit says.

shell_port=7000
unit=/etc/systemd/system/replicad.service
functions='. /run/vm/lib.sh; . /usr/lib/migration.sh; set -e'

# machine NAME ADDRESS
machine() {
    hostname "$1"
    ip addr add "$2/24" dev eth0
    ip link set eth0 up
    # drbdadm's and drbdmeta's own.
    mkdir -p /dev/vg0 /var/lock /var/run /var/lib/drbd
    ln -s /dev/vdb /dev/vg0/r0
    echo "migration: from here" >/dev/kmsg
}

# The node as it is before the first step.
cluster_up() {
    drbdmeta --force 0 v08 /dev/vg0/r0 internal create-md
    drbdadm up r0
}

# ---- what is typed

# type_in COMMAND [says|soon TEXT]
type_in() {
    echo "$(hostname)# $1"
    case ${2:-} in
    '') ( eval "$1" ) ;;
    says) says "$1" "$3" ;;
    soon) eventually says "$1" "$3" ;;
    *) wrong "no such expectation: $2" ;;
    esac
}
says() {
    said=$( (eval "$1") 2>&1) || { wrong "$1 failed: $said"; return 1; }
    echo "$said"
    case $said in *"$2"*) ;; *) wrong "$(hostname): $1 says '$said', should say '$2'" ;; esac
}
# typed_on NODE SCRIPT: lines of type_in and others, here or there.
typed_on() {
    case $1 in
    "$(hostname)")
        dash -c "$functions; $2" 3>&-
        return
        ;;
    alice) other=10.1.1.31 ;;
    *) other=10.1.1.32 ;;
    esac
    { printf '%s' "$2" | base64 -w 0; echo; } >/run/asked
    nc $other $shell_port </run/asked >/run/answered || { wrong "nobody listens on $1"; return 1; }
    sed -E '/^(STATUS|WRONG) /d' /run/answered
    typed_status=$(sed -n 's/^STATUS //p' /run/answered)
    [ "$typed_status" = 0 ] || wrong "$1: status ${typed_status:-none}: $(sed -n 's/^WRONG //p' /run/answered)"
}
# A shell for the other machine.
listen() { nc -ll -p $shell_port -e dash -c '. /run/vm/lib.sh; . /usr/lib/migration.sh; serve' >/dev/null 2>&1 3>&- & }
# One call of that shell: a line of base64 on standard input, the answer on standard output.
serve() {
    read -r asked
    printf '%s' "$asked" | base64 -d >/run/served
    : >/tmp/wrong
    served_status=0
    dash -c "$functions; . /run/served" >/run/served.out 2>&1 </dev/null 3>&- || served_status=$?
    cat /run/served.out
    [ $served_status = 0 ] || sed 's/^/WRONG /' /tmp/wrong
    echo "STATUS $served_status"
}

# ---- systemd's part

systemctl() {
    case "$*" in
    'enable --now replicad') daemon_start ;;
    'disable --now replicad') daemon_stop ;;
    # Nothing here boots.
    'enable drbd' | 'disable drbd') ;;
    'start my-service') service_start ;;
    'stop my-service') service_stop ;;
    *) wrong "no stand-in for: systemctl $*" ;;
    esac
}
daemon_start() {
    $(sed -n 's/^ExecStart=//p' $unit) >>/tmp/replicad.log 2>&1 </dev/null 3>&- &
    echo $! >/run/replicad.pid
    eventually daemon_answers
    $(sed -n 's/^ExecStartPost=-//p' $unit)
}
daemon_answers() { replicactl status >/dev/null 2>&1; }
daemon_stop() {
    kill -TERM "$(cat /run/replicad.pid)"
    eventually daemon_is_gone
}
daemon_is_gone() { [ ! -d "/proc/$(cat /run/replicad.pid)" ]; }

# ---- the service: writes files and their sums, syncs each, never stops by itself

# A hundred files that are written over and over.
service_files=100
service_start() {
    rm -f /run/service.*
    service_check
    service_count >/run/service.found
    service_run </dev/null >>/tmp/service.log 2>&1 3>&- &
    echo $! >/run/service.pid
}
service_count() { cat /srv/count 2>/dev/null || echo 0; }
service_run() {
    service_at=$(service_count)
    while [ ! -e /run/service.stop ]; do
        service_at=$((service_at + 1))
        if ! service_write $service_at; then
            echo "write $service_at failed" >/run/service.failed
            return 1
        fi
    done
}
service_write() {
    service_file=/srv/file$(($1 % service_files))
    dd if=/dev/urandom of=/run/piece bs=4k count=$((1 + $1 % 8)) 2>/dev/null &&
        dd if=/run/piece of="$service_file.new" bs=32k conv=fsync 2>/dev/null &&
        { sha1sum </run/piece && cat "$service_file.new"; } >"$service_file.both" && sync "$service_file.both" &&
        mv "$service_file.both" "$service_file" && rm "$service_file.new" &&
        echo "$1" >/srv/count.new && sync -f /srv/count.new && mv /srv/count.new /srv/count && sync -f /srv
}
# Every file has the sum that stands in its first line.
service_check() {
    service_checked=0
    for service_file in /srv/file*; do
        case $service_file in *.new | *.both | '/srv/file*') continue ;; esac
        service_sum=$(head -n 1 "$service_file")
        equal "the sum of $service_file" "$(tail -n +2 "$service_file" | sha1sum)" "$service_sum" || return 1
        service_checked=$((service_checked + 1))
    done
    echo "my-service: $service_checked files are whole"
}
service_stop() {
    touch /run/service.stop
    eventually service_is_gone
    [ ! -e /run/service.failed ] || wrong "$(cat /run/service.failed)"
    service_count >/run/service.last
}
service_is_gone() { [ ! -d "/proc/$(cat /run/service.pid)" ]; }

# ---- looks at the machine

disk_sum() { dd if=/dev/vdb bs=1M iflag=direct,count_bytes count="$1" 2>/dev/null | sha1sum; }
# From here on resyncs are counted.
mark_step() {
    echo "migration: step" >/dev/kmsg
    echo "migration: step" >>/tmp/replicad.log
}
# Blocks of each resync since then, as the kernel counts them, as replicad does.
kernel_resyncs() { dmesg | since_step | sed -n '/drbd0: Began resync/s/.*\[\([0-9]*\) bits set\].*/\1/p' | as_line; }
our_resyncs() { since_step </tmp/replicad.log | sed -n 's/.*resync [a-z]* peer [01] of \([0-9]*\) blocks.*/\1/p' | as_line; }
since_step() { sed -n 'H; /migration: step/{s/.*//; x;}; ${x; p;}'; }
as_line() { tr '\n' ' ' | sed 's/ $//'; echo; }
kernel_content() {
    complaints=$(dmesg | sed -n '/migration: from here/,$p' | grep -vE 'sock was shut down|meta connection shut down' |
        grep -E 'drbd.*(error|unexpected|ASSERT|unknown|Unexpected|BAD!|wrong|magic|FIXME|did not arrive)' | head -n 5) || return 0
    [ -z "$complaints" ] || wrong "$complaints"
}
