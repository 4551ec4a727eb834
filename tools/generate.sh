#!/bin/sh
# Writes all generated files of the module anew: Go code from the .proto files, docs/storagectl.md and docs/storaged.md
# from the commands' own help. Needs Go only; the compiler and its plugins are pinned in tools/go.mod. CI runs it and demands a clean diff.
set -eu
cd "$(dirname "$0")"
go run ./protogen -root ..
cd ..
go generate ./cmd/...
