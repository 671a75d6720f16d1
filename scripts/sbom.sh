#!/bin/sh
# Write dist/chorus-VERSION.cdx.json: the packages that serving needs, as CycloneDX, out of .venv as it is installed.
#   EXTRAS="s3 tracing"   adds what these extras bring
# The tool has an environment of its own, so that it does not list itself.
set -eu

tool=.peers/sbom
want=$(grep '^cyclonedx-bom==' constraints.txt)
if [ "$(cat $tool/.installed 2>/dev/null || true)" != "$want" ]; then
    .venv/bin/python -m venv $tool
    $tool/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt "$want"
    echo "$want" > $tool/.installed
fi
version=$(.venv/bin/python -c "import tomllib; print(tomllib.load(open('pyproject.toml', 'rb'))['project']['version'])")
mkdir -p dist
all=$(mktemp)
trap 'rm -f "$all"' EXIT
$tool/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml --output-reproducible -o "$all"
# shellcheck disable=SC2086
.venv/bin/python scripts/sbom.py "$all" "dist/chorus-$version.cdx.json" ${EXTRAS:-}
