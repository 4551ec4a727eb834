package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// Limits of what arrives, checked before it is looked at.
const (
	maxRequestBytes = 1 << 20
	maxAnswerBytes  = 8 << 20
	maxFollowed     = 4096 // sessions, and volumes, in one follow request
	maxHostBytes    = 128
)

// followFor is how long a node holds a follow request back at most when nothing changes. It is far below the time in
// which the catalog forgets a session.
const followFor = time.Second

// openRequest is the body of MethodGatewayOpen.
type openRequest struct {
	Volume     string               `json:"volume"`
	Host       string               `json:"host"`
	Instance   string               `json:"instance"`
	Machine    catalog.Machine      `json:"machine,omitempty"`
	Name       string               `json:"name,omitempty"` // the host's, for people
	Attachment storage.AttachmentID `json:"attachment"`
	After      storage.SessionID    `json:"after,omitempty"`
	ReadOnly   bool                 `json:"read_only,omitempty"`

	from string // the address that the request came from
}

// openAnswer is what volume.SessionInfo says.
type openAnswer struct {
	Session      storage.SessionID   `json:"session"`
	Volume       storage.VolumeID    `json:"volume"`
	SizeBytes    int64               `json:"size_bytes"`
	Groups       []storage.GroupID   `json:"groups"`
	Epoch        storage.Epoch       `json:"epoch,omitempty"`
	Generation   storage.Generation  `json:"generation"`
	Predecessors []storage.SessionID `json:"predecessors,omitempty"`

	Limits   storage.VolumeLimits `json:"limits,omitzero"`
	Revision uint64               `json:"revision,omitempty"`
}

// closeRequest is the body of MethodGatewayClose; the answer is empty.
type closeRequest struct {
	Host    string            `json:"host"`
	Session storage.SessionID `json:"session"`
}

// followRequest is the body of MethodGatewayFollow.
type followRequest struct {
	Host     string              `json:"host"`
	Sessions []storage.SessionID `json:"sessions,omitempty"`
	Volumes  []followed          `json:"volumes,omitempty"` // those that are open
	// Routes is the version of the routes that the gateway knows, at whichever node; 0: none.
	Routes uint64 `json:"routes,omitempty"`
	// Wait is how long the answer may be held back while there is nothing new.
	Wait time.Duration `json:"wait_ns,omitempty"`
}

// followed is an open volume as its gateway knows it.
type followed struct {
	watchKey
	Revision uint64 `json:"revision,omitempty"`
}

// watchKey is a volume as the holder of an attachment sees it.
type watchKey struct {
	Volume     storage.VolumeID     `json:"volume"`
	Attachment storage.AttachmentID `json:"attachment,omitempty"`
}

// followAnswer holds what is new.
type followAnswer struct {
	Volumes []volumeState `json:"volumes,omitempty"`
	// Routes is nil when they are those that the gateway has named.
	Routes *routes `json:"routes,omitempty"`
}

// volumeState is what volume.VolumeState says.
type volumeState struct {
	watchKey
	Revision   uint64               `json:"revision"`
	SizeBytes  int64                `json:"size_bytes"`
	Epoch      storage.Epoch        `json:"epoch,omitempty"`
	Generation storage.Generation   `json:"generation"`
	Limits     storage.VolumeLimits `json:"limits,omitzero"`
	Deleted    bool                 `json:"deleted,omitempty"`
	Lost       string               `json:"lost,omitempty"`
}

// routes say where everything is.
type routes struct {
	// Version is a checksum of the rest: equal routes have equal versions at every node.
	Version uint64 `json:"version"`
	// Nodes are the peer addresses of all nodes.
	Nodes map[storage.NodeID]string `json:"nodes"`
	// Groups are the nodes with a voter of each group.
	Groups map[storage.GroupID][]storage.NodeID `json:"groups"`
	// HeartbeatTimeout is the cluster's; 0 from nodes of a version that does not say it.
	HeartbeatTimeout time.Duration `json:"heartbeat_timeout_ns,omitempty"`
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, storage.E("encode", storage.KindInternal, fmt.Sprintf("%T", v), err)
	}
	return b, nil
}

func decode(b []byte, limit int, v any) error {
	if len(b) > limit {
		return storage.E("decode", storage.KindInvalid, fmt.Sprintf("%T", v), fmt.Errorf("%d bytes, at most %d are allowed", len(b), limit))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return storage.E("decode", storage.KindInvalid, fmt.Sprintf("%T", v), err)
	}
	return nil
}

func checkHost(host string) error {
	if host == "" || len(host) > maxHostBytes {
		return errors.New("the gateway does not say which host it is of")
	}
	return nil
}

func (r *openRequest) check() error {
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

func (r *followRequest) check() error {
	if n := max(len(r.Sessions), len(r.Volumes)); n > maxFollowed {
		return fmt.Errorf("%d sessions or volumes; at most %d are allowed", n, maxFollowed)
	}
	return checkHost(r.Host)
}
