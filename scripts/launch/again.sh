#!/usr/bin/env bash
# Runs a command, and runs it again while it ends with a status that means "the same command goes on":
# 75 (stopped and saved) or 69 (another process of the run died).
#
#   scripts/launch/again.sh python scripts/train.py --config FILE --workdir DIR --distributed
#
# SIGTERM and SIGINT to this script are passed on and end it: the run saves and does not start again. SIGUSR1: the run saves.
# TIMES: at most so many starts (default 100). PAUSE: seconds between them (default 10).
set -uo pipefail
if [ $# -eq 0 ] || [ "$1" = --help ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
stopped= child= early=
# A signal may come before the child's number is known.
pass_on() { if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null; else early=$1; fi; }
trap 'stopped=yes; pass_on TERM' TERM INT
trap 'pass_on USR1' USR1

for ((start = 1; start <= ${TIMES:-100}; start++)); do
  early=
  "$@" &
  child=$!
  [ -n "$early" ] && pass_on "$early"
  # A signal interrupts `wait`, which then has to be asked again until the child is gone.
  while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
  child=
  case $status in
    69 | 75) [ -n "$stopped" ] && break ;;
    *) break ;;
  esac
  echo "again.sh: status $status, start $((start + 1)) of ${TIMES:-100} in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}"
  [ -n "$stopped" ] && break
done
exit "$status"
