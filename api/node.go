package api

import (
	"time"

	storage "github.com/storaged/storaged"
)

// Node is a node with what was heard from it; its State may be NodeUnknown.
type Node struct {
	storage.Node
	// Stores are those of the node with what was heard from them; they stand before those of storage.Node, which the API does not show.
	Stores []Store
	// Version is what the node runs; empty when it was never heard of.
	Version string
	// Replicas counts the replicas of data groups on the node, Leaders those of them that lead.
	Replicas int
	Leaders  int
	// SeenAt is when the node was last heard of; zero: never.
	SeenAt time.Time
}

// Heard reports whether Version, Replicas and Leaders say anything: they do not while the node was not heard.
func (n Node) Heard() bool { return n.Version != "" }

// Known reports whether each store of the node has told what takes its room.
func (n Node) Known() bool {
	for _, s := range n.Stores {
		if !s.Known() {
			return false
		}
	}
	return n.SpaceKnown()
}

// GarbageBytes sums the stores of the node.
func (n Node) GarbageBytes() int64 { return n.sum(func(s Store) int64 { return s.GarbageBytes }) }

// LiveBytes sums the stores of the node.
func (n Node) LiveBytes() int64 { return n.sum(func(s Store) int64 { return s.LiveBytes }) }

// SpaceKnown reports whether UsedBytes and FreeBytes say anything: they do not while the node was not heard.
func (n Node) SpaceKnown() bool {
	for _, s := range n.Stores {
		if s.State == StoreUnknown {
			return false
		}
	}
	return true
}

// CapacityBytes sums the stores of the node.
func (n Node) CapacityBytes() int64 { return n.sum(func(s Store) int64 { return s.CapacityBytes }) }

// UsedBytes sums the stores of the node.
func (n Node) UsedBytes() int64 { return n.sum(func(s Store) int64 { return s.UsedBytes }) }

// FreeBytes sums the stores of the node.
func (n Node) FreeBytes() int64 { return n.sum(func(s Store) int64 { return s.FreeBytes }) }

func (n Node) sum(of func(Store) int64) (total int64) {
	for _, s := range n.Stores {
		total += of(s)
	}
	return total
}

// Store is one data directory of a node with what was heard from it.
type Store struct {
	storage.Store
	State     StoreState
	UsedBytes int64
	// FreeBytes is what may still be written; the reserve is not part of it. A store that has failed has none.
	FreeBytes int64
	// What takes the room; it is not known of nodes that do not tell it.
	storage.StoreSpace
	// Scrub is what the scrub has found; zero of nodes that do not tell it.
	Scrub storage.StoreScrub
}

// StoreState says whether a store takes writes.
type StoreState string

// The states of a store.
const (
	StoreOK StoreState = "ok"
	// StoreFull is below its reserve: writes that need room are refused.
	StoreFull StoreState = "full"
	// StoreFailed: the disk refused a read, a write or a sync; the store is out of use until the node starts again.
	StoreFailed StoreState = "failed"
	// StoreUnknown: its node was not heard; how much is used and free is not known.
	StoreUnknown StoreState = "unknown"
)

// IntentChange says what is wanted of a node.
type IntentChange struct {
	Intent storage.NodeIntent
	Until  time.Time // of maintenance
	// From, if it is set, must be what is wanted of the node now.
	From storage.NodeIntent
}

// NodeAction is what may be planned for a node.
type NodeAction string

// The actions.
const (
	ActDrain       NodeAction = "drain"
	ActMaintenance NodeAction = "maintenance"
	ActRemove      NodeAction = "remove"
)

// NodePlan is what an action would do to a node, as things are.
type NodePlan struct {
	Action NodeAction
	Node   storage.NodeID
	Name   string
	// Refused says why it would be refused, and what to do first; empty: it would not.
	Refused string
	// Moves says where the node's replicas would go, by group; none for maintenance.
	Moves []NodeMove
	// Stopped are groups without a majority while the node is down, Thinner those that go on with one working copy fewer.
	Stopped, Thinner []storage.GroupID
	// Volumes are attached through the node by plain NBD clients.
	Volumes []string
}

// Bytes is how many bytes would move, as far as that is known.
func (p NodePlan) Bytes() (n int64) {
	for _, m := range p.Moves {
		if m.To != 0 {
			n += m.Bytes
		}
	}
	return n
}

// NodeMove is where one replica would go.
type NodeMove struct {
	Group  storage.GroupID
	Bytes  int64          // that live in the group; 0: not known
	To     storage.NodeID // 0: nowhere, and Why says why
	ToName string
	Why    string
}
