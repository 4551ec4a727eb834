// Package kube proves that storaged works under a real Kubernetes: control plane, kubelets and CSI sidecars built from Go
// modules, Debian's containerd, on nodes that are namespaces of one machine (build tag kube, root). README.md says what is
// proved and how to run it; `make kube` does.
package kube
