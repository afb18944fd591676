#!/bin/sh
# Runs a command as compose.yml runs the daemon: nothing but the named folders can be written to, no
# capabilities, no way to get any.
#   read_only.sh FOLDER... -- COMMAND...
# Needs root, because it makes mounts of its own; the command keeps this process's id.
set -eu
if [ "$1" != --inside ]; then
    exec unshare --mount --propagation private "$0" --inside "$@"
fi
shift
while [ "$1" != -- ]; do
    mount --bind "$1" "$1"
    shift
done
shift
mount -o remount,ro,bind /
exec setpriv --no-new-privs --bounding-set -all "$@"
