# For guest scripts. A result is one line on descriptor 3; everything else goes to the output log.
pass() { echo "TEST $1 ok" >&3; echo "== $1 ok"; }
fail() { echo "TEST $1 FAIL ${2:-see output.log}" >&3; echo "== $1 FAIL ${2:-}"; }
skip() { echo "TEST $1 SKIP $2" >&3; echo "== $1 SKIP $2"; }
# say TEXT: a line that the host can wait for.
say() { echo "SAY $*" >&3; }
# check NAME COMMAND...: passes if the command does. Runs it in a shell of its own, so that `set -e` works inside.
check() {
    check_name=$1
    shift
    echo "== $check_name: $*"
    : >/tmp/wrong
    # Not in a condition: there the shell ignores `set -e`, and everything would pass.
    ( set -e; "$@" )
    check_status=$?
    case $check_status in
    0) pass "$check_name" ;;
    77) skip "$check_name" "$(cat /tmp/not_here)" ;;
    *) fail "$check_name" "$* exited with $check_status: $(cat /tmp/wrong)" ;;
    esac
}
# not_here REASON: ends the check as skipped.
not_here() { echo "$*" >/tmp/not_here; exit 77; }
# wrong TEXT: fails, and the result says why.
wrong() { echo "$*" | tee /tmp/wrong; return 1; }
# equal WHAT GOT WANTED
equal() { [ "$2" = "$3" ] || wrong "$1 is '$2', should be '$3'"; }
# eventually COMMAND...: until it succeeds; gives up after a minute.
eventually() {
    eventually_tries=0
    until "$@"; do
        eventually_tries=$((eventually_tries + 1))
        [ "$eventually_tries" -ge 600 ] && { wrong "never: $*; $(cat /tmp/wrong)"; return 1; }
        sleep 0.1
    done
}
# Nothing that a kernel says when it is ill. A soft lockup is an emulated processor that the host did not run for half a minute.
kernel_is_well() {
    complaints=$(dmesg | grep -v 'soft lockup' | grep -E 'BUG:|WARNING:|Oops|hung task|blocked for more' | head -n 5 | tr '\n' ' ')
    [ -z "$complaints" ] || wrong "$complaints"
}
