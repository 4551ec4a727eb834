#!/usr/bin/env bash
# systemd's opinion of deploy/systemd: unknown settings, wrong values, commands that are not there.
#
#   units.sh BINARY      the storaged that the units would start
set -euo pipefail
binary=$(readlink -f "$1")
cd "$(dirname "$0")/../../deploy/systemd"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for unit in *.service; do
  sed "s|=/usr/bin/storaged |=$binary |" "$unit" >"$tmp/$unit"
done
said=$(systemd-analyze verify --man=no "$tmp"/*.service 2>&1) && [ -z "$said" ] || {
  echo "systemd-analyze verify of deploy/systemd:"
  echo "$said"
  exit 1
}
