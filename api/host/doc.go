// Package host is the interface of a host's gateway (`storaged gateway`): what storagectl, the CSI node service and the
// Docker plugin ask of the process that holds the host's block devices.
//
// It holds the structs that attachments are described in, the interface Gateway that package gateway/hostgateway
// implements, and the gRPC server that checks requests and hands them to it. Package api/hostclient is the other end and
// implements the same interface, so that a user of Gateway does not see which side of the socket it is on, and a fake
// serves in tests. Errors travel as those of package api do.
//
// It decides nothing, and it authenticates nobody: the permissions of the socket say who may speak to it (root, as the
// devices that it makes are root's). Server may be used concurrently; structs are plain values.
package host
