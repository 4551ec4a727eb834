package peer

import "strconv"

// Lane selects the connection of a peer on which a request travels. Lanes do not wait for one another.
type Lane uint8

// The lanes.
const (
	// Control carries what must never wait behind data: heartbeats, votes, keepalives.
	Control Lane = iota
	// Data carries log entries, proposals and reads.
	Data
	// Bulk carries repair and everything else that is large and patient.
	Bulk

	laneCount = 3
)

var laneNames = [laneCount]string{"control", "data", "bulk"}

// String returns the lane's name, as in metrics.
func (l Lane) String() string {
	if l < laneCount {
		return laneNames[l]
	}
	return "lane " + strconv.Itoa(int(l))
}

// Method says what a request asks for. Numbers are part of the protocol and never reused.
type Method uint16

// The methods. Zero is not valid. The lane in brackets is the one the callers use; any lane is accepted.
const (
	MethodRaftAppend          Method = 1 // AppendEntries (Data)
	MethodRaftHeartbeats      Method = 2 // heartbeats of all groups between two nodes (Control)
	MethodRaftVote            Method = 3 // RequestVote (Control)
	MethodRaftPreVote         Method = 4 // RequestPreVote (Control)
	MethodRaftTimeoutNow      Method = 5 // leadership transfer (Control)
	MethodRaftInstallSnapshot Method = 6 // manifest of a snapshot (Bulk)

	MethodPropose Method = 16 // an operation for a group's leader (Data)
	MethodRead    Method = 17 // blocks from a group's leader (Data)
	MethodStatus  Method = 18 // block status from a group's leader (Data)

	MethodMappedExtents Method = 19 // which extents of a volume hold anything, from a group's leader (Data)
	MethodReadCopy      Method = 20 // one block as this replica has it, whoever leads: for a member who cannot read its own (Data)

	MethodGatewayOpen   Method = 24 // a gateway outside of the nodes asks for a session (Control)
	MethodGatewayClose  Method = 25 // and says that one is closed in every group (Control)
	MethodGatewayFollow Method = 26 // keeps its sessions alive, and learns what has changed (Control)

	MethodManifest Method = 32 // open or renew a manifest for a pull (Bulk)
	MethodTable    Method = 33 // extent tables of a manifest (Bulk)
	MethodBlocks   Method = 34 // blocks of a manifest (Bulk)

	MethodCatalogPropose Method = 48 // a command for the catalog's leader
	MethodCatalogRead    Method = 49 // a view of the catalog
	MethodNodeReport     Method = 50 // what a node tells the catalog's leader about itself
	MethodReplicaCreate  Method = 51 // create a replica of a group
	MethodMembership     Method = 52 // change a group's members
	MethodTransferLeader Method = 53 // move a group's leadership
	MethodJoin           Method = 54 // a node without an id asks for one
	MethodNodeInfo       Method = 55 // who is there: cluster, node, addresses
	MethodMappedBlocks   Method = 56 // how many blocks of volumes a node's replicas map (Control)
)

// openToStrangers reports whether the method may be called by a node that has no id in the cluster yet.
func (m Method) openToStrangers() bool { return m == MethodJoin || m == MethodNodeInfo }

// openToClients reports whether the method may be called by a gateway outside of the nodes: what a gateway does, and
// nothing that concerns membership or replication.
func (m Method) openToClients() bool {
	switch m {
	case MethodPropose, MethodRead, MethodStatus, MethodMappedExtents, MethodNodeInfo, MethodGatewayOpen, MethodGatewayClose, MethodGatewayFollow:
		return true
	}
	return false
}

// asksOwnSums reports whether the payload of the method's requests may carry checksums of its own, which the handler
// verifies: operations do, with the sums in their headers.
func (m Method) asksOwnSums() bool { return m == MethodRaftAppend || m == MethodPropose }

// answersOwnSums reports whether the payload of the method's answers carries checksums of its own, which the caller
// verifies: blocks do, with the sums in the answer's header or in the table.
func (m Method) answersOwnSums() bool {
	return m == MethodRead || m == MethodReadCopy || m == MethodBlocks
}

// Order says how the requests of a method are handed to its handler.
type Order uint8

const (
	// Ordered: requests of one (peer, group) in the order of their arrival, the next after the handler returned.
	// The reply may be given later. All Ordered methods of a group share one queue.
	Ordered Order = 1 + iota
	// Concurrent: each request on a goroutine of its own, within limits.
	Concurrent
)
