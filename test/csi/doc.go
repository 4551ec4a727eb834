// Package csi runs the official CSI suite on everything real: a cluster of three processes, a host's gateway, and this
// machine's kernel, which mounts (build tag e2e; root, /dev/fuse or the module nbd, and the tools of ext4). api/csi runs the
// same suite on fakes.
package csi
