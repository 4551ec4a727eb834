package storage

import (
	"slices"
	"time"
)

// NodeState says what the cluster thinks of a node.
type NodeState string

// The states of a node. Up, suspect and down are found out, removed is set by people.
const (
	NodeUp NodeState = "up"
	// NodeSuspect missed its last reports; it keeps everything.
	NodeSuspect NodeState = "suspect"
	// NodeDown missed them for long; its replicas count as lost after a while.
	NodeDown NodeState = "down"
	// NodeRemoved is for ever; the node's id and stores are not used again.
	NodeRemoved NodeState = "removed"
	// NodeUnknown is how a node is shown that nobody can tell about now. The catalog never holds it.
	NodeUnknown NodeState = "unknown"
)

// NodeIntent is what people want of a node, whatever its state.
type NodeIntent string

// The intents.
const (
	// IntentServe: the node takes its part.
	IntentServe NodeIntent = ""
	// IntentDrain: it gets nothing new, and what it holds moves elsewhere.
	IntentDrain NodeIntent = "drain"
	// IntentMaintenance: it may be down until Node.IntentUntil. It keeps what it holds, gets nothing new, and leads nothing.
	IntentMaintenance NodeIntent = "maintenance"
)

// String returns the intent in words, as after the state of a node; empty: there is nothing to say.
func (i NodeIntent) String() string {
	if i == IntentDrain {
		return "draining"
	}
	return string(i)
}

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
	// SilentSince is when a node that is suspect or down was heard last, by the clock of the catalog's leader; zero if it is up, or if
	// that is not known.
	SilentSince time.Time  `json:"silent_since,omitzero"`
	Intent      NodeIntent `json:"intent,omitempty"`
	// IntentUntil is when maintenance ends; zero for other intents.
	IntentUntil time.Time `json:"intent_until,omitzero"`
}

// Usable reports whether the node may keep replicas: it is neither draining nor removed.
func (n Node) Usable() bool { return n.Intent != IntentDrain && n.State != NodeRemoved }

// MayTake reports whether the node may be given replicas and leaders once it is up.
func (n Node) MayTake() bool { return n.Intent == IntentServe && n.State != NodeRemoved }

// At returns the node as it is to be seen at a moment: a maintenance that is over has ended.
func (n Node) At(now time.Time) Node {
	if n.Intent == IntentMaintenance && !now.Before(n.IntentUntil) {
		n.Intent, n.IntentUntil = IntentServe, time.Time{}
	}
	return n
}

// Clone returns a copy that shares nothing with n.
func (n Node) Clone() Node {
	n.Stores = slices.Clone(n.Stores)
	return n
}
