// Package upgrade restarts three real nodes, and the gateway of a host, one by one with another release and back, while clients
// work, and checks what the clients saw, what the volumes hold and what the stores hold. It needs build tag upgrade and the binaries
// of both releases (`make upgrade-test`), and root with FUSE and loop devices for the host.
package upgrade
