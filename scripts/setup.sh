#!/bin/sh
# Make .venv and install Chorus into it, once:  scripts/setup.sh run|dev
#
# run: what `make serve` needs; dev: the tools of the tests beside. .venv/.installed remembers which of the two, and the
# checksum of what they were made from, so that a second call does nothing and a changed pyproject.toml installs anew.
# CHORUS_TORCH=cuda takes torch with CUDA. PYTHON names the interpreter (python3).
set -eu

kind=${1:-dev}
venv=.venv
stamp=$venv/.installed
want=$(cat pyproject.toml constraints.txt "$0" | cksum | cut -d ' ' -f 1)-${CHORUS_TORCH:-cpu}

case "$(cat "$stamp" 2>/dev/null || true)" in
    "dev $want") exit 0 ;;
    "run $want") [ "$kind" = run ] && exit 0 ;;
esac

fail() {
    echo "setup: $1" >&2
    exit 1
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is missing. Fix: install Python 3.11 or newer (Debian: sudo apt install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$("$python" --version) is too old. Fix: install Python 3.11 or newer and run: make setup PYTHON=python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null \
    || fail "Python's venv module is missing. Fix: sudo apt install python3-venv (or your system's package of that name)"
command -v git >/dev/null || echo "setup: git is missing; Chorus runs without it, working on it needs it. Fix: sudo apt install git" >&2

[ -x $venv/bin/python ] || "$python" -m venv $venv
pip() {
    $venv/bin/python -m pip --disable-pip-version-check install --constraint constraints.txt "$@"
}

# torch first and alone: its CPU build is a tenth of the size of the one with CUDA, and lies on an index of its own.
torch=$(grep '^torch==' constraints.txt)
index=https://download.pytorch.org/whl/cpu
probe="import signal, urllib.request as r; signal.alarm(5); r.urlopen('$index/torch/', timeout=4).read(1)"
if $venv/bin/python -c "from importlib.metadata import version as v; exit(v('torch').split('+')[0] != '${torch#torch==}')" 2>/dev/null; then
    :
elif [ "${CHORUS_TORCH:-cpu}" = cpu ] && [ "$(uname)" != Darwin ] && $venv/bin/python -c "$probe" 2>/dev/null; then
    pip --no-deps --index-url "$index" "$torch"
else
    pip "$torch"
fi

if [ "$kind" = dev ]; then
    pip --editable '.[dev]'
else
    pip --editable .
fi
echo "$kind $want" > "$stamp"
