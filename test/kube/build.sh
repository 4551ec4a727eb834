#!/usr/bin/env bash
# Builds what the lab runs into bin/kube/bin, from Go modules in pinned versions. The first time it takes about half an hour on
# two cores (kube-apiserver alone 11 minutes), afterwards seconds.
#
#   build.sh DIRECTORY
set -euo pipefail
mkdir -p "$1/bin"
out=$(cd "$1/bin" && pwd)
cd "$(dirname "$0")/../.."
kube=k8s.io/kubernetes
# Programs from modules do not know their version, and Helm asks the API server for it.
release=$(go list -C test/kube/kubernetes -m -f '{{.Version}}' $kube)
IFS=. read -r major minor _ <<<"${release#v}"
v=k8s.io/component-base/version
go build -C test/kube/kubernetes -ldflags "-X $v.gitVersion=$release -X $v.gitMajor=$major -X $v.gitMinor=$minor" -o "$out/" $kube/cmd/{kubectl,kubelet,kube-proxy,kube-scheduler,kube-controller-manager,kube-apiserver}
go test -C test/kube/kubernetes -c -o "$out/e2e.test" $kube/test/e2e
CGO_ENABLED=0 go build -C test/kube/kubernetes -o "$out/" $kube/test/images/agnhost
csi=github.com/kubernetes-csi
CGO_ENABLED=0 go build -C test/kube/sidecars -o "$out/" $csi/external-provisioner/v6/cmd/csi-provisioner \
  $csi/external-attacher/v4/cmd/csi-attacher $csi/external-resizer/v2/cmd/csi-resizer
CGO_ENABLED=0 go build -C tools/deploy -o "$out/" helm.sh/helm/v3/cmd/helm
CGO_ENABLED=0 go build -o "$out/" ./cmd/storaged ./cmd/storagectl ./test/lab/journal ./test/kube/pause
go test -tags kube -c -o "$out/kube.test" ./test/kube
