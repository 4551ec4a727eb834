// Package hostfs makes file systems on the devices of a host's gateway (package api/host), and mounts them: what the CSI node
// service and the Docker plugin have in common.
//
// What it keeps true: a device that is not blank, or that cannot be read, is never formatted. Every call may be repeated: after an
// error, after the end of the process, and while the earlier call goes on (InSlots). A tool that hangs delays neither its caller
// nor another device, and is not started twice. Every call asks the gateway and the kernel's table of mounts again.
//
// It starts no device and attaches nothing. Mounts may be used concurrently.
package hostfs
