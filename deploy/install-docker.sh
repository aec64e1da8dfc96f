#!/usr/bin/env bash
# Brings the `docker` sandbox to a Debian or Ubuntu machine, as root: engine, its start, and the base image.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pid_file=/var/run/docker.pid
log=/var/log/cwm-rl-dockerd.log

stop() {
    echo "install-docker: $*" >&2
    exit 1
}

answers() {
    timeout 10 docker info >/dev/null 2>&1
}

answers_soon() {
    local deadline=$((SECONDS + 60))
    until answers; do
        ((SECONDS < deadline)) || return 1
        sleep 0.5
    done
}

install_packages() {
    local missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v debootstrap >/dev/null || missing+=(debootstrap debian-archive-keyring)
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || stop "this is neither Debian nor Ubuntu: install ${missing[*]} by hand."
    echo "install-docker: installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

start_by_hand() { # for machines without an init system, such as containers
    local old
    old=$(cat "$pid_file" 2>/dev/null || echo 0)
    # A pid file that outlived its engine stops the next one if the number is somebody else's by now.
    [[ $(cat "/proc/$old/comm" 2>/dev/null) == dockerd ]] || rm -f "$pid_file"
    setsid --fork dockerd --pidfile "$pid_file" </dev/null >"$log" 2>&1
    answers_soon || stop "dockerd does not answer within a minute; it says: $(tail -n 3 "$log")"
    echo "install-docker: started dockerd by hand; it ends with: kill $(<"$pid_file")"
}

start_engine() {
    if answers; then return; fi
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker
        answers_soon || stop "the engine does not answer within a minute: see journalctl -u docker"
    else
        start_by_hand
    fi
}

[[ $(id -u) == 0 ]] || stop "this installs packages and starts a service: run it as root (sudo $0)."
install_packages
start_engine
"$here/images/make-base.sh"
