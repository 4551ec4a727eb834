// Package storagev1 is the wire form of the cluster's interface: protocol buffers and gRPC stubs generated from
// storage.proto by tools/generate.sh.
//
// Only package api and its client look at these types; everyone else speaks in the structs of package api. Generated
// messages are not safe for concurrent modification.
package storagev1
