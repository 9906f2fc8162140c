#!/bin/bash
# Installs the OHIF viewer, as it is built for npm, into the folder that is named. Needs npm.
set -eu
to=$1 version=3.13.2
sha512=5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3deea3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10

rm -rf "$to"
mkdir -p "$to"
npm pack --silent --pack-destination "$to" "@ohif/app@$version" >/dev/null
echo "$sha512  $to/ohif-app-$version.tgz" | sha512sum --check --quiet
# Without source maps and the models for segmentation, which are most of it.
tar -xzf "$to/ohif-app-$version.tgz" -C "$to" --strip-components=2 --exclude='*.map' --exclude='package/dist/ort' package/dist
rm "$to/ohif-app-$version.tgz"
