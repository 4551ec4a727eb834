// Package hostgateway is the composition root of a host's gateway (`storaged gateway`): one process per host that holds
// the host's block devices and serves them from the cluster. It puts together the gateway (server/volume), its way to
// the cluster (server/remote), the drivers of devices (nbd/attach) and the socket over which storagectl, the CSI node
// service and the Docker plugin ask for volumes (api/host).
//
// What it keeps true:
//
//   - What is attached is written down, durably, before anything depends on it, and every step may be repeated: a gateway
//     that is killed at any moment and started again goes on with what it had (design.md section 9, invariant I8).
//   - A device is served under a session that was opened by this process, after the sessions of its predecessors were
//     closed in every group: what the kernel sends again lands once, and no older copy of it lands after it (I3).
//   - One gateway at a time uses a state directory.
//   - An attachment that is gone (taken over, detached by others) makes its device answer errors, and says why; it never
//     comes back by itself.
//
// It does not mount or format anything. Gateway's methods may be called concurrently.
package hostgateway
