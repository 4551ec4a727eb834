package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
)

// Cluster holds the settings that are one per cluster.
type Cluster struct {
	ID      storage.ClusterID
	Version int // rules in force; <= Version of the binary
	// HeartbeatTimeout is the one value that elections, promises and leases of all groups build on.
	HeartbeatTimeout time.Duration
	Replicas         int // replicas wanted of every group, odd
	Groups           int // groups wanted at the start
	CreatedAt        time.Time
}

// NodeState says what the cluster thinks of a node.
type NodeState string

// The states of a node. Up, suspect and down are set by the liveness reconciler; draining and removed by people.
const (
	NodeUp       NodeState = "up"
	NodeSuspect  NodeState = "suspect"  // missed its last reports; keeps everything
	NodeDown     NodeState = "down"     // missed them for long; its replicas count as lost after --repair-after
	NodeDraining NodeState = "draining" // gets nothing new, its replicas move away
	NodeRemoved  NodeState = "removed"  // for ever; its id and stores are not used again
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
	ID            storage.StoreID
	CapacityBytes int64
}

// Node is one storaged process and its stores.
type Node struct {
	ID      storage.NodeID `json:"id"`
	Name    string         `json:"name"`
	Zone    string         `json:"zone,omitempty"`
	Addrs   Addrs          `json:"addrs"`
	Stores  []Store        `json:"stores"`
	State   NodeState      `json:"state"`
	AddedAt time.Time      `json:"added_at"`
}

// Usable reports whether the node may be given new replicas once it is up: it is neither draining nor removed.
func (n Node) Usable() bool { return n.State != NodeDraining && n.State != NodeRemoved }

// ReplicaKey names a replica of a group for ever: a store and the incarnation it holds the group under. Its String
// is the ServerID in the group's Raft configuration.
type ReplicaKey struct {
	Store       storage.StoreID
	Incarnation storage.Incarnation
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
	store, err := storage.ParseStoreID(id)
	if err != nil {
		return ReplicaKey{}, fmt.Errorf("replica key %q: %w", s, err)
	}
	n, err := strconv.ParseUint(inc, 10, 32)
	if err != nil {
		return ReplicaKey{}, fmt.Errorf("replica key %q: %w", s, err)
	}
	return ReplicaKey{Store: store, Incarnation: storage.Incarnation(n)}, nil
}

// MarshalText implements encoding.TextMarshaler.
func (k ReplicaKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *ReplicaKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParseReplicaKey(string(b))
	return err
}

// Role is what a replica is in its group. The Raft configuration is the truth; the catalog follows it.
type Role string

// The roles, in the order a replica goes through them.
const (
	RolePulling Role = "pulling" // planned; its node pulls a manifest, the group does not know it yet
	RoleLearner Role = "learner" // non-voter in the group's configuration
	RoleVoter   Role = "voter"   // votes and acknowledges
	RoleLeaving Role = "leaving" // to be taken out of the configuration, then dropped
)

// Replica is one member of a group.
type Replica struct {
	Node storage.NodeID `json:"node"`
	Key  ReplicaKey     `json:"key"`
	Role Role           `json:"role"`
	// ConfigIndex is the log index of the group's configuration that Role was taken from; 0: not known. A configuration
	// above it that says otherwise is newer than the record, one below it older.
	ConfigIndex uint64 `json:"config_index,omitempty"`
}

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

// Group is one Raft group.
type Group struct {
	ID       storage.GroupID `json:"id"`
	State    GroupState      `json:"state"`
	Replicas []Replica       `json:"replicas"` // by ascending incarnation
	// LastIncarnation is the highest incarnation ever given out: every replica's is <= LastIncarnation.
	LastIncarnation storage.Incarnation `json:"last_incarnation"`
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
func (g Group) OnNode(id storage.NodeID) (Replica, bool) {
	for _, r := range g.Replicas {
		if r.Node == id {
			return r, true
		}
	}
	return Replica{}, false
}

// Count returns the number of replicas in the role.
func (g Group) Count(role Role) int {
	n := 0
	for _, r := range g.Replicas {
		if r.Role == role {
			n++
		}
	}
	return n
}

// VolumeState says whether a volume can be opened.
type VolumeState string

// The states of a volume.
const (
	VolumeReady VolumeState = "ready"
	// VolumeDeleting: the name is free again, the groups are being told to forget the volume.
	VolumeDeleting VolumeState = "deleting"
)

// Volume is one block device.
type Volume struct {
	ID        storage.VolumeID `json:"id"`
	Name      string           `json:"name"`
	SizeBytes int64            `json:"size_bytes"`
	// Groups is the stripe list: extent i lives in Groups[i mod len(Groups)]. Its length is a power of two.
	Groups     []storage.GroupID  `json:"groups"`
	Epoch      storage.Epoch      `json:"epoch"`
	Generation storage.Generation `json:"generation"`
	State      VolumeState        `json:"state"`
	CreatedAt  time.Time          `json:"created_at"`
	// Limits are what each gateway holds the volume's users to.
	Limits storage.VolumeLimits `json:"limits,omitzero"`
	// Fenced is the generation that every group of the volume is known to refuse older ones than; Fenced <= Generation.
	// While it is less, nobody gets a session: what was sent under older generations may still land.
	Fenced storage.Generation `json:"fenced,omitempty"`
	// Moved is how the volume came to its generation; nil for the first.
	Moved *Move `json:"moved,omitempty"`
	// Revision is the log index of the last change, of its attachments too; it ascends with every change.
	Revision  uint64 `json:"revision"`
	RequestID string `json:"request_id,omitempty"` // of the CreateVolume that made it
}

// Move is why a volume's generation was raised.
type Move struct {
	// By is who has taken the volume over; zero when its holder was detached.
	By Holder    `json:"by,omitzero"`
	At time.Time `json:"at"`
}

// Access says who else may use a volume.
type Access string

// The access modes.
const (
	Exclusive Access = "exclusive" // nobody
	Shared    Access = "shared"    // others who share it too
)

// HolderKind says what a holder is.
type HolderKind string

// The kinds of holders.
const (
	HolderHost HolderKind = "host" // a host, by its own gateway
	HolderNBD  HolderKind = "nbd"  // a node, for the plain NBD clients that are connected to it
)

// Holder is who may use a volume.
type Holder struct {
	// ID names the holder: of a host as it calls itself, of a node as NBDHolder says.
	ID   string     `json:"id"`
	Kind HolderKind `json:"kind"`
	// Host is the host's name, for people.
	Host string         `json:"host,omitempty"`
	Node storage.NodeID `json:"node,omitempty"` // of kind nbd only
	// Machine is where the host's gateway runs; it does not make another holder.
	Machine Machine `json:"machine,omitempty"`
}

// Machine is what a gateway of a host says of where it runs: an id of the machine and of the gateway's state directory, a
// dot, and an id of the machine's present boot. Two machines that call themselves the same host are told apart by it, a copy of
// a machine from its original, and a gateway that was started again from both. Empty: not said, and equal to all.
type Machine string

// same reports whether both are one machine in one boot: a gateway of the one may follow that of the other at once.
func (m Machine) same(o Machine) bool { return m == "" || o == "" || m == o }

// kept reports whether both are one machine, whatever has been started since.
func (m Machine) kept(o Machine) bool {
	a, _, _ := strings.Cut(string(m), ".")
	b, _, _ := strings.Cut(string(o), ".")
	return a == "" || b == "" || a == b
}

// The ids of holders of kind nbd, and no others, begin with nbdPrefix; those of read-only clients end with nbdReadOnly,
// which no name of a node can hold.
const (
	nbdPrefix   = "nbd:"
	nbdReadOnly = "/read-only"
)

// NBDHolder returns the holder that a node is for the plain NBD clients that are connected to it. Read-only clients are
// another one: a node may have both, if they share the volume.
func NBDHolder(node storage.NodeID, name string, readOnly bool) Holder {
	h := Holder{ID: nbdPrefix + name, Kind: HolderNBD, Node: node}
	if readOnly {
		h.ID += nbdReadOnly
	}
	return h
}

// ForClient returns the holder that the node is for one of its clients alone, named as it is told apart from others: an
// address, or the subject of a certificate. Exclusive attachments are held so, because two clients of one node would write over
// each other as those of two do.
func (h Holder) ForClient(client string) Holder {
	sum := sha256.Sum256([]byte(client))
	id, readOnly := strings.CutSuffix(h.ID, nbdReadOnly)
	h.ID, h.Host = id+"/"+hex.EncodeToString(sum[:8]), client
	if readOnly {
		h.ID += nbdReadOnly
	}
	return h
}

// same reports whether two holders are one, whatever people call its host.
func (h Holder) same(o Holder) bool { return h.ID == o.ID && h.Kind == o.Kind && h.Node == o.Node }

// String returns "host web-1 (holder 4c4c…)", "NBD clients of node a", or "NBD client 10.0.0.7 of node a".
func (h Holder) String() string {
	switch {
	case h.Kind == HolderNBD:
		node, _, _ := strings.Cut(strings.TrimPrefix(h.ID, nbdPrefix), "/")
		if h.Host != "" {
			return "NBD client " + h.Host + " of node " + node
		}
		return "NBD clients of node " + node
	case h.Host == "" || h.Host == h.ID:
		return "host " + h.ID
	}
	return "host " + h.Host + " (holder " + h.ID + ")"
}

// Attachment is a holder's right to use a volume. Its generation is the volume's: when that moves, attachments end.
type Attachment struct {
	ID         storage.AttachmentID `json:"id"`
	Volume     storage.VolumeID     `json:"volume"`
	Holder     Holder               `json:"holder"`
	Access     Access               `json:"access"`
	ReadOnly   bool                 `json:"read_only,omitempty"`
	Generation storage.Generation   `json:"generation"`
	Since      time.Time            `json:"since"`
	// Silent: its sessions have expired, and it has opened none since.
	Silent bool `json:"silent,omitempty"`
}

// SessionState says whether a session may be used.
type SessionState string

// The states of a session.
const (
	SessionLive SessionState = "live"
	// SessionClosing: its gateway fell silent, or its attachment has ended. It is being closed in every group of the
	// volume and then forgotten.
	SessionClosing SessionState = "closing"
)

// Gateway names the process that serves a volume to hosts. A node's gateway has the node's id; the gateway of a host has
// the id that the host has as a holder. Exactly one of the two is set.
type Gateway struct {
	Node storage.NodeID `json:"node,omitempty"`
	Host string         `json:"host,omitempty"`
}

// String returns "node 3" or "host web-1".
func (g Gateway) String() string {
	if g.Node != 0 {
		return "node " + g.Node.String()
	}
	return "host " + g.Host
}

// Session is one volume opened at one gateway.
type Session struct {
	ID      storage.SessionID `json:"id"`
	Volume  storage.VolumeID  `json:"volume"`
	Gateway Gateway           `json:"gateway"`
	// Attachment is the right that it was opened under.
	Attachment storage.AttachmentID `json:"attachment,omitempty"`
	// Instance is new at every start of the gateway's process.
	Instance string `json:"instance"`
	// Machine is where the gateway of a host runs, From its name and address, for people.
	Machine    Machine            `json:"machine,omitempty"`
	From       string             `json:"from,omitempty"`
	Generation storage.Generation `json:"generation"`
	ReadOnly   bool               `json:"read_only,omitempty"`
	State      SessionState       `json:"state"`
	OpenedAt   time.Time          `json:"opened_at"`
}

// The JSON forms of types that hold uuids: the uuids are written as text.

type storeJSON struct {
	ID            string `json:"id"`
	CapacityBytes int64  `json:"capacity_bytes"`
}

// MarshalJSON implements json.Marshaler.
func (s Store) MarshalJSON() ([]byte, error) {
	return json.Marshal(storeJSON{ID: s.ID.String(), CapacityBytes: s.CapacityBytes})
}

// UnmarshalJSON implements json.Unmarshaler; unknown fields are refused.
func (s *Store) UnmarshalJSON(b []byte) error {
	var w storeJSON
	if err := decodeStrict(b, &w); err != nil {
		return err
	}
	id, err := storage.ParseStoreID(w.ID)
	*s = Store{ID: id, CapacityBytes: w.CapacityBytes}
	return err
}

type clusterJSON struct {
	ID               string        `json:"id"`
	Version          int           `json:"version"`
	HeartbeatTimeout time.Duration `json:"heartbeat_timeout_ns"`
	Replicas         int           `json:"replicas"`
	Groups           int           `json:"groups"`
	CreatedAt        time.Time     `json:"created_at"`
}

// MarshalJSON implements json.Marshaler.
func (c Cluster) MarshalJSON() ([]byte, error) {
	return json.Marshal(clusterJSON{ID: c.ID.String(), Version: c.Version, HeartbeatTimeout: c.HeartbeatTimeout,
		Replicas: c.Replicas, Groups: c.Groups, CreatedAt: c.CreatedAt})
}

// UnmarshalJSON implements json.Unmarshaler; unknown fields are refused.
func (c *Cluster) UnmarshalJSON(b []byte) error {
	var w clusterJSON
	if err := decodeStrict(b, &w); err != nil {
		return err
	}
	id, err := storage.ParseClusterID(w.ID)
	*c = Cluster{ID: id, Version: w.Version, HeartbeatTimeout: w.HeartbeatTimeout, Replicas: w.Replicas,
		Groups: w.Groups, CreatedAt: w.CreatedAt}
	return err
}

// decodeStrict decodes exactly one JSON value and refuses unknown fields and trailing bytes.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("bytes after the end of the value")
	}
	return nil
}

// StoreText is a storage.StoreID that is written as text in JSON.
type StoreText storage.StoreID

// MarshalText implements encoding.TextMarshaler.
func (t StoreText) MarshalText() ([]byte, error) { return []byte(storage.StoreID(t).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *StoreText) UnmarshalText(b []byte) error {
	id, err := storage.ParseStoreID(string(b))
	*t = StoreText(id)
	return err
}
