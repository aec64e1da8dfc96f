#!/usr/bin/env bash
# Brings the `docker` and `gvisor` sandboxes to a Debian or Ubuntu machine, as root: engine, runtime, base image.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pid_file=/var/run/docker.pid
log=/var/log/cwm-rl-dockerd.log
settings=/etc/docker/daemon.json
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

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
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    # Recommended by debootstrap only, and without them it would take packages that nobody signed.
    [[ -s $keyring ]] || missing+=(debian-archive-keyring)
    command -v gpgv >/dev/null || missing+=(gpgv)
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || stop "this is neither Debian nor Ubuntu: install ${missing[*]} by hand."
    echo "install-docker: installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

install_gvisor() { # Debian packages it; elsewhere it is gvisor.dev's own archive
    command -v runsc >/dev/null && return
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends runsc; } >/dev/null 2>&1 ||
        echo "install-docker: there is no package runsc here; gVisor is left out, see gvisor.dev to bring it." >&2
}

# Makes the engine know the runtime, keeping what its settings say already. No network: no sandbox has one.
configure_gvisor() {
    command -v runsc >/dev/null || return 0
    mkdir -p "$(dirname "$settings")"
    python3 - "$settings" "$(command -v runsc)" <<'PYTHON'
import json, os, pathlib, shutil, sys

path, runsc = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
try:
    known = json.loads(path.read_text() or "{}") if path.exists() else {}
    runtimes = known.setdefault("runtimes", {})
    if "runsc" not in runtimes:
        runtimes["runsc"] = {"path": runsc, "runtimeArgs": ["--network=none"]}
        made = path.with_name(path.name + ".new")  # moved over the old one, which an engine may read meanwhile
        made.write_text(json.dumps(known, indent=2) + "\n")
        if path.exists():
            shutil.copymode(path, made)
        os.replace(made, path)
except (ValueError, AttributeError, TypeError) as error:
    sys.exit(f"install-docker: {path} is no JSON object with objects in it ({error}): mend it, then run this again.")
PYTHON
    if [[ -s $pid_file ]] && answers && ! docker info --format '{{json .Runtimes}}' | grep -q runsc; then
        kill -HUP "$(cat "$pid_file")" # reads its runtimes again; containers go on
        sleep 1
    fi
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
install_gvisor
configure_gvisor
start_engine
"$here/images/make-base.sh"
