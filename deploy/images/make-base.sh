#!/usr/bin/env bash
# Makes cwm-rl-base:local, the image that docker sandboxes start from: Debian, a full python3, git and patch.
#
#   make-base.sh [--new] [--method dockerfile|debootstrap]
#
# From the Dockerfile beside this where the registry answers; else with debootstrap, which needs root. Does nothing if
# the image is there, but with --new. Prints the content's hash: made by debootstrap from the same packages of a mirror
# it is the same each time.
#
#   DEBIAN_MIRROR=https://deb.debian.org/debian   where packages come from
#   DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg   who must have signed them
set -euo pipefail
image=cwm-rl-base:local
suite=bookworm
mirror=${DEBIAN_MIRROR:-https://deb.debian.org/debian}
keyring=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
new=
method=auto

stop() {
    echo "make-base: $*" >&2
    exit 1
}

content() { # of an image: its layers
    docker image inspect --format '{{json .RootFS.Layers}}' "$image" | sha256sum | cut -c1-64
}

registry_answers() {
    timeout 30 docker pull -q "$(sed -n 's/^FROM //p' "$here/Dockerfile")" >/dev/null 2>&1
}

from_dockerfile() {
    docker build -q -t "$image" "$here" >/dev/null
}

# What differs from one run to the next though the packages are the same: logs, caches, identities, times.
plain() {
    local root=$1 released
    released=$(sed -n 's/^Date: //p' "$root"/var/lib/apt/lists/*Release | head -n 1)
    rm -rf "$root"/var/log/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/ldconfig/aux-cache
    rm -f "$root"/etc/{hostname,resolv.conf,machine-id} "$root"/var/lib/dbus/machine-id "$root"/var/lib/dpkg/*-old
    rm -f "$root"/etc/{passwd,group,shadow,gshadow,subuid,subgid}-
    sed -i -E 's/^([^:]*:[^:]*):[0-9]+:/\1:1:/' "$root/etc/shadow" # the day a password was last changed
    tar -C "$root" --one-file-system --numeric-owner --sort=name --mtime="$released" --clamp-mtime \
        --pax-option=delete=atime,delete=ctime -c .
}

from_debootstrap() {
    [[ $(id -u) == 0 ]] || stop "debootstrap needs root: run this as root (sudo $0)."
    command -v debootstrap >/dev/null || stop "there is no debootstrap: apt-get install debootstrap."
    [[ -s $keyring ]] || stop "there is no keyring $keyring: apt-get install debian-archive-keyring."
    root=$(mktemp -d)
    trap 'rm -rf --one-file-system "$root"' EXIT
    debootstrap --force-check-gpg --keyring="$keyring" --variant=minbase --include=python3,git,patch \
        "$suite" "$root/base" "$mirror" >"$root/log" 2>&1 || {
        tail -n 15 "$root/log" >&2
        stop "debootstrap failed; is the mirror there? DEBIAN_MIRROR names another."
    }
    plain "$root/base" | docker import - "$image" >/dev/null
}

while (($#)); do
    case $1 in
    --new) new=1 ;;
    --method)
        method=${2:-nothing}
        (($# == 1)) || shift
        ;;
    *) stop "there is no option $1." ;;
    esac
    shift
done
docker info >/dev/null 2>&1 || stop "no container engine answers: deploy/install-docker.sh brings one."
if [[ -z $new ]] && docker image inspect "$image" >/dev/null 2>&1; then
    echo "make-base: $image is there, content $(content); --new makes it again."
    exit 0
fi
if [[ $method == auto ]]; then
    method=debootstrap
    if registry_answers; then method=dockerfile; fi
fi
echo "make-base: making $image by $method (about a minute)"
case $method in
dockerfile) from_dockerfile || stop "docker build failed; --method debootstrap needs no registry." ;;
debootstrap) from_debootstrap ;;
*) stop "--method is dockerfile or debootstrap, not '$method'." ;;
esac
docker run --rm --network none "$image" python3 -c 'import json, asyncio, tarfile, unittest'
echo "make-base: $image is ready, content $(content)"
