#!/usr/bin/env bash
# `make setup`: checks the machine, then makes .venv from a complete, hashed lock. A second call finds it ready.
#
#   PYTHON=/path/to/python3.11   which Python; else python3.11 or python3 on the PATH
#   CWM_RL_LOCK=cuda             which lock in deploy/requirements/; else the one .venv was made from, else cpu
#   CWM_RL_NEED_DISK_GIB=8  CWM_RL_NEED_MEMORY_GIB=6   for those who know better
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

need_disk_gib=${CWM_RL_NEED_DISK_GIB:-8}
need_memory_gib=${CWM_RL_NEED_MEMORY_GIB:-6}
made_from=.venv/made-from # lock's name and its digest, written when all packages are in
built_from=.venv/built-from # digest of what our own packages' metadata came from, written last
packages=(. tests/plugins/cwm_rl_printable)
# Links to torch alone: as a further index, PyTorch's would also compete for numpy and a dozen others.
torch_links=https://download.pytorch.org/whl/cpu/torch/

stop() {
    echo "setup: $*" >&2
    exit 1
}

phase() { # what it does, what to do if it fails, command...
    local what=$1 advice=$2 began=$SECONDS
    shift 2
    printf 'setup: %s ... ' "$what"
    if ! "$@" >"$log" 2>&1; then
        printf 'failed\n'
        tail -n 15 "$log" >&2
        stop "$what failed: $advice"
    fi
    printf '%d s\n' $((SECONDS - began))
}

# --- what cannot be undone later ------------------------------------------------------------------------------------

check_platform() {
    local here
    here="$(uname -s) on $(uname -m)"
    [[ $here == "Linux on x86_64" ]] || stop "the locks are for Linux on x86_64, and this is $here: use such a machine."
}

is_python_3_11() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() { # sets `python`
    local candidate
    python=
    for candidate in ${PYTHON:+"$PYTHON"} ${PYTHON:-python3.11 python3}; do
        if is_python_3_11 "$candidate"; then
            python=$candidate
            break
        fi
    done
    [[ -n $python ]] || stop "${PYTHON:-python3} is not Python 3.11, which the locks are for: install it" \
        "(Debian 12: apt-get install python3 python3-venv; Ubuntu: python3.11-venv from ppa:deadsnakes/ppa;" \
        "elsewhere: uv python install 3.11) or name it: make setup PYTHON=/path/to/python3.11"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "$python has no venv module: install it (Debian, Ubuntu: apt-get install python3.11-venv)."
}

check_disk() {
    local free_kib
    free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
    if [[ -d .venv ]]; then # which makes room for the next one
        free_kib=$((free_kib + $(du -skx .venv | cut -f1)))
    fi
    ((free_kib >= need_disk_gib * 1024 * 1024)) ||
        stop "$((free_kib / 1024)) MiB of disk are free at $PWD and .venv needs $need_disk_gib GiB: make room."
}

memory_kib() { # what this machine has, or this container may use
    local file bytes least
    least=$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)
    for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        if [[ -r $file ]]; then
            bytes=$(<"$file")
            if [[ $bytes != max ]] && ((bytes / 1024 < least)); then least=$((bytes / 1024)); fi
        fi
    done
    echo "$least"
}

check_memory() {
    local kib
    kib=$(memory_kib)
    ((kib >= need_memory_gib * 1024 * 1024)) ||
        stop "there are $((kib / 1024)) MiB of memory and a run needs $need_memory_gib GiB: use a larger machine."
}

install_by_apt() {
    apt-get -q update && apt-get -q install -y --no-install-recommends "$@"
}

check_system() { # what pip cannot bring; `$python` is needed to see whether a library loads
    local missing=() command
    command -v bwrap >/dev/null || missing+=(bubblewrap)
    command -v git >/dev/null || missing+=(git)
    if [[ $name == cpu ]] && ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
        missing+=(libnuma1)
    fi
    if ((${#missing[@]} == 0)); then return; fi
    command="apt-get install ${missing[*]}"
    [[ $(id -u) == 0 ]] || command="sudo $command"
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        stop "missing: ${missing[*]} (bubblewrap is the walls round what a model writes, git applies its patches," \
            "libnuma1 is a library of vLLM's CPU build). As on Debian and Ubuntu: $command"
    fi
    phase "installing ${missing[*]} by apt-get" "see the lines above, then: $command" install_by_apt "${missing[@]}"
}

# --- .venv ----------------------------------------------------------------------------------------------------------

digest() { # of files and of where .venv stands: it cannot be moved
    { pwd -P && cat "$@"; } | sha256sum | cut -d' ' -f1
}

has_packages() { # .venv's Python runs, and every package of this lock went in
    [[ -f $made_from && $(<"$made_from") == "$lock_state" ]] && is_python_3_11 .venv/bin/python
}

configured_sources_have() { # requirement of torch
    local offered
    offered=$(.venv/bin/python -m pip index versions torch 2>/dev/null || true)
    [[ " ${offered//[,$'\n']/ } " == *" ${1#torch==} "* ]]
}

install_packages() {
    local torch further=()
    torch=$(grep -o '^torch==[^ ]*+cpu' "$lock" || true)
    if [[ -n $torch ]] && ! configured_sources_have "$torch"; then further=(--find-links "$torch_links"); fi
    .venv/bin/python -m pip install --no-deps --require-hashes --only-binary :all: --no-compile \
        --progress-bar off "${further[@]}" -r "$lock"
}

compile_packages() { # on all cores, which pip would not; some packages carry templates that are no Python
    .venv/bin/python -m compileall -qq -j 0 .venv/lib/python3.11/site-packages || true
}

install_own() {
    local targets=() package
    for package in "${packages[@]}"; do targets+=(-e "$package"); done
    .venv/bin/python -m pip install --no-deps --no-build-isolation "${targets[@]}"
}

make_venv() {
    check_disk
    check_memory
    check_system
    local count
    count=$(grep -c '^[A-Za-z0-9].*==' "$lock" || true)
    rm -rf .venv
    phase "making .venv" "see the lines above" "$python" -m venv .venv
    phase "installing $count packages from $lock (some minutes)" \
        "is the network there, and does the disk have room? Then run it again." install_packages
    phase "compiling them" "see the lines above" compile_packages
    echo "$lock_state" >"$made_from"
}

main() {
    check_platform
    exec 9<. # two setups at once would tear each other's .venv down
    flock --wait 1800 9 || stop "another setup has been at work here for half an hour: end it, then run this again."
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT

    local own
    name=${CWM_RL_LOCK:-$(cut -d' ' -f1 "$made_from" 2>/dev/null || true)}
    name=${name:-cpu}
    lock=deploy/requirements/$name.txt
    [[ -f $lock ]] || stop "there is no lock $lock: CWM_RL_LOCK is cpu or cuda."
    lock_state="$name $(digest "$lock" deploy/setup.sh)"
    own=$(digest "${packages[@]/%//pyproject.toml}")

    if has_packages; then
        python=.venv/bin/python
        check_system
        if [[ -f $built_from && $(<"$built_from") == "$own" ]]; then return; fi
    else
        find_python
        make_venv
    fi
    rm -f "$built_from"
    phase "installing cwm-rl itself" "see the lines above" install_own
    echo "$own" >"$built_from"
    echo "setup: ready; \`.venv/bin/cwm-rl doctor\` says what this machine can do."
}

main
