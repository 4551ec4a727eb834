// Package volumetest is an in-memory cluster for tests of the gateway and of what stands on it.
//
// It has groups with extents, exactly-once windows, generations and sessions that decide as replicas do, and a
// catalog of volumes and sessions. A test scripts faults call by call: lost requests and answers, delays, copies that
// are delivered late, refusals, and flipped bits. It knows no replication and keeps nothing durable. It serves tests
// and benchmarks only.
//
// A Cluster and its Nodes may be used by any number of goroutines. It works in a testing/synctest bubble; Close ends
// its goroutines.
package volumetest
