package storage

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// GroupState says whether a group may hold data.
type GroupState string

// The states of a group.
const (
	// GroupCreating: the first replica may still have to be bootstrapped. No volume uses the group, so
	// bootstrapping it once more loses nothing. This is never true again after GroupReady.
	GroupCreating GroupState = "creating"
	// GroupReady: the group was bootstrapped; it must never be bootstrapped again.
	GroupReady GroupState = "ready"
)

// ReplicaRole says what a replica does in its group. The Raft configuration is the truth; the catalog follows it.
type ReplicaRole string

// The roles, in the order in which a replica goes through them.
const (
	// RolePulling is planned: its node fetches what the group holds, and the group does not know it yet.
	RolePulling ReplicaRole = "pulling"
	// RoleLearner receives the log and does not vote.
	RoleLearner ReplicaRole = "learner"
	// RoleVoter votes and acknowledges.
	RoleVoter ReplicaRole = "voter"
	// RoleLeaving is to be taken out of the configuration, then dropped.
	RoleLeaving ReplicaRole = "leaving"
)

// ReplicaKey names a replica of a group for ever: a store and the incarnation it holds the group under. Its String
// is the ServerID in the group's Raft configuration.
type ReplicaKey struct {
	Store       StoreID
	Incarnation Incarnation
}

// String returns "store uuid/incarnation".
func (k ReplicaKey) String() string {
	return k.Store.String() + "/" + strconv.FormatUint(uint64(k.Incarnation), 10)
}

// ParseReplicaKey is the inverse of ReplicaKey.String.
func ParseReplicaKey(s string) (ReplicaKey, error) {
	id, inc, ok := strings.Cut(s, "/")
	if !ok {
		return ReplicaKey{}, fmt.Errorf("replica key %q: want a store uuid, a slash and an incarnation", s)
	}
	store, err := ParseStoreID(id)
	if err != nil {
		return ReplicaKey{}, fmt.Errorf("replica key %q: %w", s, err)
	}
	n, err := strconv.ParseUint(inc, 10, 32)
	if err != nil {
		return ReplicaKey{}, fmt.Errorf("replica key %q: %w", s, err)
	}
	return ReplicaKey{Store: store, Incarnation: Incarnation(n)}, nil
}

// MarshalText implements encoding.TextMarshaler.
func (k ReplicaKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *ReplicaKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParseReplicaKey(string(b))
	return err
}

// Replica is one member of a group.
type Replica struct {
	Node NodeID      `json:"node"`
	Key  ReplicaKey  `json:"key"`
	Role ReplicaRole `json:"role"`
	// ConfigIndex is the log index of the group's configuration that Role was taken from; 0: not known. A configuration
	// above it that says otherwise is newer than the record, one below it older.
	ConfigIndex uint64 `json:"config_index,omitempty"`
}

// Group is one Raft group.
type Group struct {
	ID       GroupID    `json:"id"`
	State    GroupState `json:"state"`
	Replicas []Replica  `json:"replicas"` // by ascending incarnation
	// LastIncarnation is the highest incarnation ever given out: every replica's is <= LastIncarnation.
	LastIncarnation Incarnation `json:"last_incarnation"`
}

// Replica returns the replica with that key.
func (g Group) Replica(key ReplicaKey) (Replica, bool) {
	for _, r := range g.Replicas {
		if r.Key == key {
			return r, true
		}
	}
	return Replica{}, false
}

// OnNode returns the replica that lies on the node; there is at most one.
func (g Group) OnNode(id NodeID) (Replica, bool) {
	for _, r := range g.Replicas {
		if r.Node == id {
			return r, true
		}
	}
	return Replica{}, false
}

// Count returns the number of replicas in the role.
func (g Group) Count(role ReplicaRole) int {
	n := 0
	for _, r := range g.Replicas {
		if r.Role == role {
			n++
		}
	}
	return n
}

// Clone returns a copy that shares nothing with g.
func (g Group) Clone() Group {
	g.Replicas = slices.Clone(g.Replicas)
	return g
}
