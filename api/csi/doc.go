// Package csi is the orchestrator's front door: the Identity, Controller and Node services of the Container Storage
// Interface (version 1.13), which `storaged csi` serves on a unix socket.
//
// The controller makes, grows, lists and removes volumes and says who may use them: ControllerPublishVolume attaches a
// volume for a host, ControllerUnpublishVolume detaches it, and that is where the volume's generation moves, so that
// after an unpublish nothing the old host has in flight can land (docs/architecture.md, "Fencing"). The node service
// makes file systems and mounts. It holds no device: the host's gateway does (package api/host), so that a driver that
// is restarted or updated touches nothing that is mounted.
//
// What it keeps true: the services keep nothing in memory or on disk but a lock per volume while a call runs. What there
// is to know is asked anew of the cluster, of the host's gateway and of the kernel's table of mounts. A call that was
// interrupted at any point, by an error or by the end of the process, is therefore finished by repeating it, here or in
// another process. Two calls about one volume at the same time: the second is answered with ABORTED. A device that is
// not blank, or that cannot be read, is never formatted.
//
// It does not speak NBD, it starts no device, it knows no orchestrator by name, and it stores no secrets. Snapshots and
// clones are not offered. Errors leave with the codes of the CSI specification (code in errors.go).
//
// The services may be used concurrently. Cluster, Devices and Mounts are called concurrently too, but never twice at a
// time about the same volume by one service.
package csi
