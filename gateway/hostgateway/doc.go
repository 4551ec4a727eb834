// Package hostgateway is the composition root of a host's gateway (`storaged gateway`): one process per host that holds
// the host's block devices and serves them from the cluster. It puts together the gateway (gateway/volume), its way to
// the cluster (gateway/remote), the drivers of devices (nbd/attach) and a socket (api/host). Over the socket storagectl, the
// CSI node service and the Docker plugin ask for volumes.
//
// What it keeps true:
//
//   - Every attachment is written down, durably, before anything depends on it, and every step may be repeated. So a gateway that
//     is killed at any moment and started again goes on with what it had (docs/design.md section 9, invariant I8).
//   - A device is served under a session that this process opened, after the sessions of its predecessors were closed in every
//     group. So a request that the kernel sends again lands once, and no older copy of it lands afterwards (I3).
//   - One gateway at a time uses a state directory.
//   - An attachment that is gone (taken over, detached by others) makes its device answer errors, and says why; it never
//     comes back by itself.
//
// It does not mount or format anything; it unmounts what is mounted from its devices when the host goes down
// (host.Gateway.HostDown). Gateway's methods may be called concurrently.
package hostgateway
