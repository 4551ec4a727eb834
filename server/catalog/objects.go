package catalog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	storage "github.com/storaged/storaged"
)

// Cluster holds the settings that are one per cluster.
type Cluster struct {
	ID storage.ClusterID `json:"id"`
	// Version is what the nodes may say to each other and write to their disks: the version in force, see State.InForce. It never
	// falls, and a build that does not know it does not run in the cluster.
	Version int `json:"version"`
	// HeartbeatTimeout is the one value that elections, promises and leases of all groups build on.
	HeartbeatTimeout time.Duration `json:"heartbeat_timeout_ns"`
	Replicas         int           `json:"replicas"` // replicas wanted of every group, odd
	Groups           int           `json:"groups"`   // groups wanted at the start
	CreatedAt        time.Time     `json:"created_at"`
}

// Wanted returns how many voters a group should have on so many nodes: the largest odd number up to Replicas.
func (c Cluster) Wanted(nodes int) int { return OddAtMost(min(nodes, c.Replicas)) }

// OddAtMost returns the largest odd number that is at most n, and at least 1.
func OddAtMost(n int) int { return max(1, n-(n+1)%2) }

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
	Machine    storage.Machine    `json:"machine,omitempty"`
	From       string             `json:"from,omitempty"`
	Generation storage.Generation `json:"generation"`
	ReadOnly   bool               `json:"read_only,omitempty"`
	State      SessionState       `json:"state"`
	OpenedAt   time.Time          `json:"opened_at"`
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
