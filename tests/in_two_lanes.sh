#!/usr/bin/env bash
# The whole test suite in two pytest processes side by side: tests/system, which mostly waits, and everything else.
#
#   tests/in_two_lanes.sh PYTHON [PYTEST ARGUMENT]…
#
# The system tests' output is shown as it comes, the others' when both are done. Exit code 0: all that was selected
# passed; 5: nothing was selected; 130: interrupted; 1: anything else. Where the arguments name a path, or ask for the
# debugger, one process does it all.
set -uo pipefail
cd "$(dirname "$0")/.."

python=$1
shift
for argument in "$@"; do
  if [[ -e ${argument%%::*} || $argument == --pdb || $argument == --trace ]]; then
    exec "$python" -m pytest "$@"
  fi
done

others_log=$(mktemp)
interrupted=
lanes=()
# Without job control the shell would start its background jobs deaf to SIGINT. With it they are in groups of their own:
# Ctrl-C reaches this shell only, which hands it on, so that each pytest stops the systems that it started.
set -m
trap 'interrupted=yes; kill -INT "${lanes[@]}" 2>/dev/null' INT TERM HUP
trap 'rm -f "$others_log"' EXIT

# A thread that spins while it waits for another takes the core that the other lane has work for: tests that train were
# three times slower for it.
export OMP_WAIT_POLICY=PASSIVE

# Unit tests come first: they need no models, which the other lane converts meanwhile.
others=(tests/unit)
for folder in tests/*/; do
  case $folder in tests/unit/ | tests/system/ | */__pycache__/) ;; *) others+=("${folder%/}") ;; esac
done

"$python" -m pytest "${others[@]}" -o cache_dir=.pytest_cache/others "$@" </dev/null >"$others_log" 2>&1 &
lanes+=($!)
"$python" -m pytest tests/system -o cache_dir=.pytest_cache/system "$@" </dev/null &
lanes+=($!)

# The exit code of one lane. A signal ends `wait` early, with the lane still there.
ended() {
  local code
  while true; do
    wait "$1"
    code=$?
    kill -0 "$1" 2>/dev/null || return "$code"
  done
}

ended "${lanes[1]}"
system_code=$?
ended "${lanes[0]}"
others_code=$?
cat "$others_log"

if [[ $interrupted ]]; then exit 130; fi
case "$system_code $others_code" in
  "0 0" | "0 5" | "5 0") exit 0 ;; # 5: nothing selected in that lane
  "5 5") exit 5 ;;
  *) exit 1 ;;
esac
