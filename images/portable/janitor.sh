#!/bin/bash
# janitor.sh TMP: ends the worker of build.sh and removes TMP when build.sh is gone, SIGKILL included.
# Its stdin is a pipe that only build.sh holds open, and that tells the worker's process id.
set -u

tmp=$1 worker=''
# In tenths of a second: what a polite signal may take, and when to give up.
readonly POLITE=50 GIVE_UP=200

trap '' INT TERM HUP
while read -r line; do worker=$line; done
for ((tries = 0; tries < GIVE_UP; tries++)); do
    { [ -n "$worker" ] && kill -0 "$worker"; } 2>/dev/null || break
    # The group is written by the worker itself, which may not have come to it yet.
    if group=$(cat "$tmp/group" 2>/dev/null) && [ -n "$group" ]; then
        signal=TERM
        [ $tries -lt $POLITE ] || signal=KILL
        kill -$signal -- "-$group" 2>/dev/null
    fi
    sleep 0.1
done
rm -rf "$tmp"
