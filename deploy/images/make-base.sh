#!/usr/bin/env bash
# Makes cwm-rl-base:local, the image that docker sandboxes start from, without a registry: Debian and a full python3,
# git and patch. Needs root, debootstrap and an engine that answers (../install-docker.sh). Does nothing if it is there.
#
#   DEBIAN_MIRROR=https://deb.debian.org/debian   where packages come from
set -euo pipefail
image=cwm-rl-base:local

if docker image inspect "$image" >/dev/null 2>&1; then
    echo "make-base: $image is there; docker rmi $image and run this again to have it new."
    exit 0
fi
[[ $(id -u) == 0 ]] || {
    echo "make-base: debootstrap needs root: run it as root (sudo $0)." >&2
    exit 1
}
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
echo "make-base: making $image (about a minute)"
debootstrap --variant=minbase --include=python3,git,patch bookworm "$root/base" \
    "${DEBIAN_MIRROR:-https://deb.debian.org/debian}" >"$root/log" 2>&1 || {
    tail -n 15 "$root/log" >&2
    echo "make-base: debootstrap failed; is the mirror there? DEBIAN_MIRROR names another." >&2
    exit 1
}
tar -C "$root/base" --one-file-system --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' -c . |
    docker import - "$image" >/dev/null
docker run --rm --network none "$image" python3 -c 'import json, asyncio, tarfile'
echo "make-base: $image is ready."
