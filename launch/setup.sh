#!/usr/bin/env bash
# Install everything into .venv at the repository's root; done in a moment if nothing has changed.
#
# Usage: launch/setup.sh [--cpu | --gpu] [--dev] [--force]
#
#   --cpu, --gpu   packages for a machine without or with an NVIDIA GPU
#                  (default: what nvidia-smi says, or what .venv already holds)
#   --dev          what the tests need, too
#   --force        install again even if nothing has changed
#
# Environment:
#   PYTHON         interpreter for a new .venv (default: python3.11 or python3.12, the first that
#                  works)
#
# The versions are in launch/requirements/. pip runs with its ordinary configuration (pip.conf,
# PIP_* variables).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

REQUIREMENTS="$ROOT/launch/requirements"
LOG="$VENV/setup.log"
SUPPORTED='sys.version_info[:2] in ((3, 11), (3, 12))'

main() {
    local device="" dev="" force=""
    while (($#)); do
        case "$1" in
            --cpu | --gpu) device="${1#--}" ;;
            --dev) dev=yes ;;
            --force) force=yes ;;
            -h | --help) usage && exit ;;
            *) die "unknown option '$1'; see --help" ;;
        esac
        shift
    done
    check_venv
    device="${device:-$(default_device)}"
    if [[ -z "$force" ]] && is_current base "$device" && { [[ -z "$dev" ]] || is_current dev "$device"; }; then
        check "$device" --versions-only
        return
    fi
    [[ -x "$VENV/bin/python" ]] || make_venv
    install "$device" "$dev"
    check "$device"
    key base "$device" >"$VENV/.setup-base"
    if [[ -n "$dev" ]]; then key dev "$device" >"$VENV/.setup-dev"; fi
    echo "$device" >"$VENV/.setup-device"
}

# Refuse a .venv that cannot be used, before anything is installed.
check_venv() {
    [[ -e "$VENV" ]] || return 0
    local found wanted
    found="$("$VENV/bin/python" -c "$(version_code)" 2>/dev/null)" ||
        die ".venv has no Python that runs; remove it (rm -r $VENV) and run this again"
    "$VENV/bin/python" -c "import sys; sys.exit(not $SUPPORTED)" ||
        die ".venv has Python $found, but 3.11 or 3.12 is needed; remove it (rm -r $VENV) and run this again"
    [[ -n "${PYTHON:-}" ]] || return 0
    wanted="$("$PYTHON" -c "$(version_code)" 2>/dev/null)" || die "PYTHON: $PYTHON does not run"
    [[ "$found" == "$wanted" ]] ||
        die ".venv has Python $found, but PYTHON is $wanted; remove it (rm -r $VENV) or unset PYTHON"
}

version_code() { echo 'import sys; print("%d.%d.%d" % sys.version_info[:3])'; }

default_device() {
    if [[ -f "$VENV/.setup-device" ]]; then
        cat "$VENV/.setup-device"
    elif has_gpu; then
        echo gpu
    else
        echo cpu
    fi
}

# What an installation depends on; a stamp in .venv with the same key means nothing is to be done.
key() {
    local part="$1" device="$2" files=("$ROOT/pyproject.toml" "$REQUIREMENTS"/{common,torchrec}.txt)
    files+=("$REQUIREMENTS/$device.txt")
    if [[ "$part" == dev ]]; then files+=("$REQUIREMENTS/dev.txt"); fi
    echo "$ROOT $device $(cat "${files[@]}" | cksum)"
}

is_current() {
    [[ -f "$VENV/.setup-$1" && "$(<"$VENV/.setup-$1")" == "$(key "$1" "$2")" ]]
}

make_venv() {
    local python
    python="$(find_python)"
    say "making .venv with Python $("$python" -c "$(version_code)")"
    local output
    if ! output="$("$python" -m venv "$VENV" 2>&1)"; then
        rm -rf "$VENV"
        if [[ "$output" == *ensurepip* ]]; then
            die "$python has no venv module with pip; install it (Debian, Ubuntu: python3-venv) or set PYTHON"
        fi
        die "$python -m venv failed: ${output##*$'\n'}"
    fi
}

# A command may exist and still not run (pyenv's shims), so each is tried.
find_python() {
    local name version
    for name in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
        if version="$("$name" -c "$(version_code)" 2>/dev/null)"; then
            if "$name" -c "import sys; sys.exit(not $SUPPORTED)"; then
                echo "$name"
                return
            fi
            [[ "$name" != "${PYTHON:-}" ]] || die "PYTHON: $name is Python $version, but 3.11 or 3.12 is needed"
        fi
        [[ "$name" != "${PYTHON:-}" ]] || die "PYTHON: $name does not run"
    done
    die "no Python 3.11 or 3.12 found; install one, or set PYTHON to its path"
}

install() {
    local device="$1" dev="$2" other=fbgemm-gpu files
    files=(-r "$REQUIREMENTS/$device.txt" -r "$REQUIREMENTS/common.txt")
    if [[ -n "$dev" ]]; then files+=(-r "$REQUIREMENTS/dev.txt"); fi
    rm -f "$VENV"/.setup-*
    : >"$LOG"
    if [[ "$device" == gpu ]]; then other=fbgemm-gpu-cpu; fi
    # Both builds of FBGEMM are one Python package: the second would overwrite the first.
    if "$VENV/bin/python" -m pip show -q "$other" >>"$LOG" 2>&1; then
        say "removing $other"
        run_pip uninstall -y "$other" fbgemm-gpu fbgemm-gpu-cpu torch
    fi
    say "installing ${device^^} packages (log: $LOG)"
    run_pip install "${files[@]}"
    run_pip install --no-deps --no-build-isolation -r "$REQUIREMENTS/torchrec.txt" -e "$ROOT"
}

run_pip() {
    "$VENV/bin/python" -m pip "$@" >>"$LOG" 2>&1 && return
    die "pip failed: $(grep '^ERROR' "$LOG" | tail -n 1 | cut -c -200) (log: $LOG)"
}

# One line: what is installed, or what does not fit.
check() {
    local line hint=""
    if [[ "$*" == *--versions-only ]]; then hint="; launch/setup.sh --force installs what fits"; fi
    line="$("$VENV/bin/python" "$ROOT/launch/check.py" "$@" 2>&1)" || die "${line##*$'\n'}$hint"
    say "$line"
}

main "$@"
