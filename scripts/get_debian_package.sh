#!/bin/sh
# Unpacks a package of the distribution into a folder: get_debian_package.sh PACKAGE PROGRAM FOLDER.
# PROGRAM is what it is wanted for, as a path in the package; where the folder has it, nothing is done.
# Installs nothing and needs no root; fails where there is no apt or no such package.
set -eu
package=${1:?usage: get_debian_package.sh PACKAGE PROGRAM FOLDER}
program=${2:?usage: get_debian_package.sh PACKAGE PROGRAM FOLDER}
folder=${3:?usage: get_debian_package.sh PACKAGE PROGRAM FOLDER}
if [ -x "$folder/$program" ]; then exit 0; fi
command -v apt-get >/dev/null || { echo "there is no apt-get on this machine to get '$package' with" >&2; exit 1; }
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
(
    cd "$download"
    apt-get download -qq "$package" 2>/dev/null ||
        { apt-get update -qq >/dev/null 2>&1 && apt-get download -qq "$package" 2>/dev/null; } ||
        { echo "apt offers no package '$package'" >&2; exit 1; }
)
mkdir -p "$folder"
dpkg-deb -x "$download/$package"_*.deb "$folder"
test -x "$folder/$program"
