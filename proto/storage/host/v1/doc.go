// Package hostv1 is the wire form of the host gateway's interface: protocol buffers and gRPC stubs generated from
// host.proto by tools/generate.sh.
//
// Only packages api/host and api/hostclient look at these types; everyone else speaks in the structs of api/host.
// Generated messages are not safe for concurrent modification.
package hostv1
