#!/bin/bash
# Installs, into the folder that is named, the implementations that tests/interop/test_interop_more.py is about.
# Needs Debian's packages nodejs, npm, default-jdk-headless, libpixelmed-java and odil; 'make interop' installs these.
set -eu
to=$1 here=$(dirname "$(readlink -f "$0")")
mkdir -p "$to"

npm install --silent --no-audit --no-fund --prefix "$to" dcmjs-dimse@0.3.3

python3 -m venv "$to/tiny-pacs"
"$to/tiny-pacs/bin/pip" install --quiet --disable-pip-version-check tiny-pacs==0.4.1

# dcmfetch has dcm4che's libraries in it, as a Java archive behind a shell script.
"$to/tiny-pacs/bin/pip" download --quiet --disable-pip-version-check --no-deps -d "$to" dcmfetch==0.3.2
python3 - "$to" <<'EOF'
import io, sys, zipfile
from pathlib import Path
to = Path(sys.argv[1])
wheel = zipfile.ZipFile(next(to.glob("dcmfetch-*.whl")))
program = zipfile.ZipFile(io.BytesIO(wheel.read("dcmfetch/ext/getscu")))
with zipfile.ZipFile(to / "dcm4che.jar", "w", zipfile.ZIP_DEFLATED) as jar:
    for name in program.namelist():
        jar.writestr(name, program.read(name))
EOF
mkdir -p "$to/classes"
javac -Xlint:none -cp "$to/dcm4che.jar" -d "$to/classes" "$here/Dcm4cheNode.java"
