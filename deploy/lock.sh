#!/usr/bin/env bash
# `make lock`: resolves deploy/requirements/{cpu,cuda}.in into complete, hashed locks for Linux x86_64 and Python 3.11.
# Versions that a lock holds already stay where they can; delete the lock first to have everything new.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/requirements"

# torch's CPU build is not on the default index. Its own page of links brings torch and nothing else.
read -ra places <<<"${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}"

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3.11}" -m venv "$tools"
"$tools/bin/pip" --quiet --disable-pip-version-check install uv

resolve() { # name, further options
    local name=$1
    shift
    # Resolved beside the lock and moved over it: a failure leaves the old one whole.
    [[ ! -e $name.txt ]] || cp "$name.txt" "$tools/$name.txt"
    "$tools/bin/uv" --quiet pip compile "$name.in" --output-file "$tools/$name.txt" "$@" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-emit-find-links --custom-compile-command "make lock"
    mv "$tools/$name.txt" "$name.txt"
    echo "deploy/requirements/$name.txt: $(grep -c '^[a-z0-9].*==' "$name.txt") packages"
}

resolve cpu "${places[@]/#/--find-links=}" --override cpu-overrides.txt
resolve cuda
