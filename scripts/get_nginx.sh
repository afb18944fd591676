#!/bin/sh
# Unpacks the distribution's `nginx` package into a folder, for the test of deploy/nginx.
# Installs nothing and needs no root; fails where there is no apt or no such package.
set -eu
folder=${1:?usage: get_nginx.sh FOLDER}
if [ -x "$folder/usr/sbin/nginx" ]; then exit 0; fi
command -v apt-get >/dev/null || { echo "get_nginx: no apt-get on this machine" >&2; exit 1; }
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
(
    cd "$download"
    apt-get download -qq nginx 2>/dev/null ||
        { apt-get update -qq >/dev/null 2>&1 && apt-get download -qq nginx 2>/dev/null; } ||
        { echo "get_nginx: apt offers no package 'nginx'" >&2; exit 1; }
)
mkdir -p "$folder"
dpkg-deb -x "$download"/nginx_*.deb "$folder"
"$folder/usr/sbin/nginx" -v
