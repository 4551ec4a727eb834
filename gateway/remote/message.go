package remote

import (
	"errors"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/peer/rpc"
)

// The methods by which a gateway outside of the nodes asks them. Any node answers.
var (
	// Open asks for a session.
	Open = rpc.Method[OpenRequest, volume.SessionInfo]{Name: "open session", Number: 24, Lane: peer.Control, From: peer.Members | peer.Gateways,
		MaxRequestBytes: maxRequestBytes, MaxAnswerBytes: maxAnswerBytes}
	// Close says that a session is closed in every group.
	Close = rpc.Method[CloseRequest, struct{}]{Name: "close session", Number: 25, Lane: peer.Control, From: peer.Members | peer.Gateways,
		MaxRequestBytes: maxRequestBytes, MaxAnswerBytes: maxAnswerBytes}
	// Follow keeps sessions alive, and learns what has changed.
	Follow = rpc.Method[FollowRequest, FollowAnswer]{Name: "follow", Number: 26, Lane: peer.Control, From: peer.Members | peer.Gateways,
		MaxRequestBytes: maxRequestBytes, MaxAnswerBytes: maxAnswerBytes}
)

// Limits of what arrives, checked before it is looked at.
const (
	maxRequestBytes = 1 << 20
	maxAnswerBytes  = 8 << 20
	maxFollowed     = 4096 // sessions, and volumes, in one follow request
	maxHostBytes    = 128
)

// FollowFor is how long a node holds a follow request back at most when nothing changes. It is far below the time in
// which the catalog forgets a session.
const FollowFor = time.Second

// OpenRequest asks for a session of a volume.
type OpenRequest struct {
	Volume     string               `json:"volume"`
	Host       string               `json:"host"`
	Instance   string               `json:"instance"`
	Machine    storage.Machine      `json:"machine,omitempty"`
	Name       string               `json:"name,omitempty"` // the host's, for people
	Attachment storage.AttachmentID `json:"attachment"`
	After      storage.SessionID    `json:"after,omitempty"`
	ReadOnly   bool                 `json:"read_only,omitempty"`
}

// CloseRequest names a session that is closed in every group of its volume.
type CloseRequest struct {
	Host    string            `json:"host"`
	Session storage.SessionID `json:"session"`
}

// FollowRequest says what a gateway has and knows.
type FollowRequest struct {
	Host     string              `json:"host"`
	Sessions []storage.SessionID `json:"sessions,omitempty"`
	Volumes  []Followed          `json:"volumes,omitempty"` // those that are open
	// Routes is the version of the routes that the gateway knows, at whichever node; 0: none.
	Routes uint64 `json:"routes,omitempty"`
	// Wait is how long the answer may be held back while there is nothing new.
	Wait time.Duration `json:"wait_ns,omitempty"`
}

// Followed is an open volume as its gateway knows it.
type Followed struct {
	Watch
	Revision uint64 `json:"revision,omitempty"`
}

// Watch names a volume as the holder of an attachment sees it.
type Watch struct {
	Volume     storage.VolumeID     `json:"volume"`
	Attachment storage.AttachmentID `json:"attachment,omitempty"`
}

// FollowAnswer holds what is new.
type FollowAnswer struct {
	Volumes []News `json:"volumes,omitempty"`
	// Routes is nil when they are those that the gateway has named.
	Routes *Routes `json:"routes,omitempty"`
}

// News is how a watched volume is.
type News struct {
	Watch
	volume.VolumeState
}

// Routes say where nodes and groups are.
type Routes struct {
	// Version is a checksum of the rest: equal routes have equal versions at every node.
	Version uint64 `json:"version"`
	// Nodes are the peer addresses of all nodes.
	Nodes map[storage.NodeID]string `json:"nodes"`
	// Groups are the nodes with a voter of each group.
	Groups map[storage.GroupID][]storage.NodeID `json:"groups"`
	// HeartbeatTimeout is the cluster's; 0 from nodes of a version that does not say it.
	HeartbeatTimeout time.Duration `json:"heartbeat_timeout_ns,omitempty"`
}

func checkHost(host string) error {
	if host == "" || len(host) > maxHostBytes {
		return errors.New("the gateway does not say which host it is of")
	}
	return nil
}

// Check returns what is wrong with a request.
func (r *OpenRequest) Check() error {
	if err := checkHost(r.Host); err != nil {
		return err
	}
	if r.Instance == "" || len(r.Instance) > maxHostBytes {
		return errors.New("the gateway does not say which instance it is")
	}
	if len(r.Machine) > maxHostBytes || len(r.Name) > maxHostBytes {
		return errors.New("the names of the gateway's machine are too long")
	}
	return storage.CheckVolumeName(r.Volume)
}

// Check returns what is wrong with a request.
func (r *CloseRequest) Check() error { return checkHost(r.Host) }

// Check returns what is wrong with a request.
func (r *FollowRequest) Check() error {
	if n := max(len(r.Sessions), len(r.Volumes)); n > maxFollowed {
		return fmt.Errorf("%d sessions or volumes; at most %d are allowed", n, maxFollowed)
	}
	return checkHost(r.Host)
}
