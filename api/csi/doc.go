// Package csi is the way in for orchestrators: the Identity, Controller and Node services of the Container Storage Interface
// (version 1.13), which `storaged csi` serves on a unix socket.
//
// The controller makes, grows, lists and removes volumes and says who may use them. ControllerPublishVolume attaches a volume for a
// host. ControllerUnpublishVolume detaches it and raises the volume's generation, so that after an unpublish nothing the old host
// has in flight can land (docs/architecture.md, "Fencing"). The node service makes file systems and mounts. It holds no device: the
// host's gateway does (package api/host), so a restart or update of the driver touches nothing that is mounted.
//
// What it keeps true: the services keep nothing on disk. In memory they keep a lock per volume while a call runs, and the slots of
// work that has outlived its call (package hostfs): a tool that hangs delays neither its caller nor another volume, and is not
// started twice. Every call asks the cluster, the host's gateway and the kernel's table of mounts again. A call that was
// interrupted at any point, by an error or by the end of the process, is therefore finished by repeating it, here or in another
// process. Two calls about one volume at the same time: the second is answered with ABORTED. A device that is not blank, or that
// cannot be read, is never formatted.
//
// It does not speak NBD, it starts no device, it knows no orchestrator by name, and it stores no secrets. Snapshots and
// clones are not offered. Errors leave with the codes of the CSI specification (code in errors.go).
//
// The services may be used concurrently. Cluster, Devices and Mounts are called concurrently too, but never twice at a
// time about the same volume by one service.
package csi
