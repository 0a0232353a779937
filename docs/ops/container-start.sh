#!/bin/sh
# Starts netcls (or netcls-capture, which may open interfaces) with numba's compiled code at hand.
#
# That code is a pickle: whoever can change it runs code in netcls. So the image ships it owned by root; but numba uses a
# cache only where it may write. It is copied to memory that only this user can write to.
set -eu
umask 077
NUMBA_CACHE_DIR=$(mktemp -d)
export NUMBA_CACHE_DIR
cp -R /opt/netcls/numba/. "$NUMBA_CACHE_DIR"
case "${1:-}" in
netcls | netcls-capture) ;;
*) set -- netcls "$@" ;;
esac
exec "$@"
