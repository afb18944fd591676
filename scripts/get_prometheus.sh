#!/bin/sh
# Unpacks the distribution's `prometheus` package (promtool and the server) into a folder.
# Installs nothing and needs no root; fails where there is no apt or no such package.
set -eu
folder=${1:?usage: get_prometheus.sh FOLDER}
if [ -x "$folder/usr/bin/promtool" ]; then exit 0; fi
command -v apt-get >/dev/null || { echo "get_prometheus: no apt-get on this machine" >&2; exit 1; }
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
cd "$download"
apt-get download -qq prometheus 2>/dev/null ||
    { apt-get update -qq >/dev/null 2>&1 && apt-get download -qq prometheus 2>/dev/null; } ||
    { echo "get_prometheus: apt offers no package 'prometheus'" >&2; exit 1; }
cd - >/dev/null
mkdir -p "$folder"
dpkg-deb -x "$download"/prometheus_*.deb "$folder"
"$folder/usr/bin/promtool" --version 2>&1 | head -n 1
