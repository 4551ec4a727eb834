// Package api is the cluster's interface for tools: what storagectl, programs and the orchestrator's driver ask of a
// node over gRPC.
//
// It holds the structs that the cluster is described in (Volume, Node, Group, Status), and the interface Cluster that a node
// implements over its catalog. The gRPC server checks requests and hands them to it, and one table translates error kinds
// to gRPC codes. Package client is the other end and gives the same structs back, so protocol buffers stay
// between the two.
//
// It does not decide anything: names, sizes and limits are checked here because the caller deserves a helpful answer
// early, and checked again by the catalog because only that is authoritative. It serves no data; that is package nbd.
//
// It keeps true: every error that leaves is a status with an ErrorDetail. From it the client rebuilds the storage.Error with
// the same operation, kind, subject and cause. No request takes more than Limits allow.
//
// Server may be used concurrently. Structs are plain values: whoever returns one does not touch it again.
package api
