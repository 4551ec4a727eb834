package storage

import (
	"slices"
	"time"
)

// NodeState says what the cluster thinks of a node.
type NodeState string

// The states of a node. Up, suspect and down are found out, draining and removed are set by people.
const (
	NodeUp NodeState = "up"
	// NodeSuspect missed its last reports; it keeps everything.
	NodeSuspect NodeState = "suspect"
	// NodeDown missed them for long; its replicas count as lost after a while.
	NodeDown NodeState = "down"
	// NodeDraining gets nothing new, and its replicas move elsewhere.
	NodeDraining NodeState = "draining"
	// NodeRemoved is for ever; the node's id and stores are not used again.
	NodeRemoved NodeState = "removed"
	// NodeUnknown is how a node is shown that nobody can tell about now. The catalog never holds it.
	NodeUnknown NodeState = "unknown"
)

// Addrs are the addresses under which other nodes and hosts reach a node, as host:port. Empty: not served.
type Addrs struct {
	Peer string `json:"peer"`
	API  string `json:"api,omitempty"`
	NBD  string `json:"nbd,omitempty"`
	HTTP string `json:"http,omitempty"`
}

// Store is one data directory of a node.
type Store struct {
	ID            StoreID `json:"id"`
	CapacityBytes int64   `json:"capacity_bytes"`
}

// Node is one storaged process and its stores.
type Node struct {
	ID      NodeID    `json:"id"`
	Name    string    `json:"name"`
	Zone    string    `json:"zone,omitempty"`
	Addrs   Addrs     `json:"addrs"`
	Stores  []Store   `json:"stores"`
	State   NodeState `json:"state"`
	AddedAt time.Time `json:"added_at"`
}

// Usable reports whether the node may be given new replicas once it is up: it is neither draining nor removed.
func (n Node) Usable() bool { return n.State != NodeDraining && n.State != NodeRemoved }

// Clone returns a copy that shares nothing with n.
func (n Node) Clone() Node {
	n.Stores = slices.Clone(n.Stores)
	return n
}
