package placement

import (
	"time"

	storage "github.com/storaged/storaged"
)

// PromotionLag is how many entries a replica may be behind to count as caught up, where nobody says so (Member.CaughtUp).
const PromotionLag = 64

// ReplicaState says what a replica does, as its own node sees it.
type ReplicaState string

// The states of a replica.
const (
	ReplicaLeader    ReplicaState = "leader"
	ReplicaFollower  ReplicaState = "follower"
	ReplicaCandidate ReplicaState = "candidate"
	ReplicaPulling   ReplicaState = "pulling" // fetches a manifest, before its group knows it
	ReplicaStopped   ReplicaState = "stopped" // for a moment; with a Reason for good
	// ReplicaDamaged has lost something it may have acknowledged: it keeps out until a new member takes its place.
	ReplicaDamaged ReplicaState = "damaged"
)

// Member is one server of a group's Raft configuration.
type Member struct {
	Key   storage.ReplicaKey `json:"key"`
	Node  storage.NodeID     `json:"node"`
	Voter bool               `json:"voter,omitempty"`
	// AckedIndex is the highest index the member has acknowledged in the leader's term; only leaders know it.
	AckedIndex uint64 `json:"acked,omitempty"`
	// CaughtUp: it has acknowledged all of the leader's log, or is behind by no more than a heartbeat time-out. Only leaders know it,
	// and releases before do not say.
	CaughtUp bool `json:"caught_up,omitempty"`
}

// ReplicaReport is what a node says about one replica it holds.
type ReplicaReport struct {
	Group   storage.GroupID    `json:"group"`
	Key     storage.ReplicaKey `json:"key"`
	State   ReplicaState       `json:"state"`
	Reason  string             `json:"reason,omitempty"` // why it is stopped for good, or damaged
	Term    uint64             `json:"term,omitempty"`
	Leader  storage.NodeID     `json:"leader,omitempty"` // whom it follows; 0: nobody
	Last    uint64             `json:"last,omitempty"`   // last index of its log
	Commit  uint64             `json:"commit,omitempty"`
	Applied uint64             `json:"applied,omitempty"`
	// Members is the newest configuration it knows, ConfigIndex that entry's index (0: not known).
	Members     []Member `json:"members,omitempty"`
	ConfigIndex uint64   `json:"config_index,omitempty"`
	// LiveBytes is what the blocks of the group take at least. Releases before do not say.
	LiveBytes int64 `json:"live_bytes,omitempty"`
	// Of a pull on its way: bytes done, bytes in all (0: not known), and since when.
	PulledBytes   int64     `json:"pulled_bytes,omitempty"`
	PullBytes     int64     `json:"pull_bytes,omitempty"`
	PullStartedAt time.Time `json:"pull_started_at,omitzero"`
}

// committed reports whether nothing can take the newest configuration back. A leader acts on it before, and may be the only one
// who ever does: what follows from it must wait.
func (r ReplicaReport) committed() bool { return r.Commit >= r.ConfigIndex }

// OutOfService reports whether the replica does nothing for its group, now or for good.
func (r ReplicaReport) OutOfService() bool {
	return r.State == ReplicaStopped || r.State == ReplicaDamaged
}

// Member finds a replica in the configuration.
func (r ReplicaReport) Member(key storage.ReplicaKey) (Member, bool) {
	for _, m := range r.Members {
		if m.Key == key {
			return m, true
		}
	}
	return Member{}, false
}

// StoreReport is what a node says about one store. Free + used <= capacity.
type StoreReport struct {
	ID            storage.StoreID `json:"id"`
	CapacityBytes int64           `json:"capacity_bytes"`
	UsedBytes     int64           `json:"used_bytes"`
	FreeBytes     int64           `json:"free_bytes"`       // what can still be written: above the reserve, or of what may live
	Failed        string          `json:"failed,omitempty"` // why the store is out of service
	// Displaced: files that are not the store's take the room that it lacks (room.Space). Releases before do not say.
	Displaced bool `json:"displaced,omitempty"`
	storage.StoreSpace
	// Scrub is zero of releases before.
	Scrub storage.StoreScrub `json:"scrub,omitzero"`
}

// MaxConnections bounds the connections that a report names.
const MaxConnections = 512

// MaxUnready bounds the reasons that a report gives for a node that is not ready.
const MaxUnready = 5

// Connection is a client of a node's NBD server.
type Connection struct {
	Volume   string    `json:"volume"`
	Client   string    `json:"client"`
	ReadOnly bool      `json:"read_only,omitempty"`
	Since    time.Time `json:"since"`
}

// Heard is the last report of a node, and how long ago the catalog's leader got it.
type Heard struct {
	Report NodeReport    `json:"report"`
	Age    time.Duration `json:"age_ns"`
}

// NodeReport is what every node tells the catalog's leader each second. It is not logged.
type NodeReport struct {
	Node     storage.NodeID  `json:"node"`
	Version  string          `json:"version,omitempty"`
	Stores   []StoreReport   `json:"stores,omitempty"`
	Replicas []ReplicaReport `json:"replicas,omitempty"`
	// Sessions are those that the node's gateway uses; one that is named nowhere for long expires.
	Sessions []storage.SessionID `json:"sessions,omitempty"`
	// Connections are the clients that have a volume open through this node, the oldest first, MaxConnections of them.
	Connections []Connection `json:"connections,omitempty"`
	// Unready is why the node is not ready, at most MaxUnready lines; empty: it is.
	Unready []string `json:"unready,omitempty"`
	// Refusing has a line for each of the node's ports that has lately closed connections for lack of room.
	Refusing []string `json:"refusing,omitempty"`
	// PullSteps changes while pulls into the node get on. Releases before do not say: nil.
	PullSteps *uint64 `json:"pull_steps,omitempty"`
	// Knows is the newest version of the cluster that the node's build knows; 0: it says none. Package control fills it in.
	Knows int `json:"knows,omitempty"`
	// CatalogIndex is the last index of the node's copy of the catalog's log. Package control fills it in.
	CatalogIndex uint64 `json:"catalog_index,omitempty"`
}

// Replica finds a group's replica in the report.
func (n NodeReport) Replica(group storage.GroupID, key storage.ReplicaKey) (ReplicaReport, bool) {
	for _, r := range n.Replicas {
		if r.Group == group && r.Key == key {
			return r, true
		}
	}
	return ReplicaReport{}, false
}

// Store finds a store in the report.
func (n NodeReport) Store(id storage.StoreID) (StoreReport, bool) {
	for _, s := range n.Stores {
		if s.ID == id {
			return s, true
		}
	}
	return StoreReport{}, false
}
