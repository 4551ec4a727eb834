// Package lab proves with real hosts what storaged exists for: a container's data outlives it, follows it to another host,
// and is shared (build tag lab, `make lab`; see README.md). The hosts are Debian kernels in QEMU, which attach volumes by the
// kernel's NBD client, through a gateway of their own; the cluster is three processes on this machine.
//
// It needs no root. It emulates its hosts and measures them on the side: its figures are upper bounds.
package lab
