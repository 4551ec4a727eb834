package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
	"github.com/storaged/storaged/server/catalog"
)

const (
	identityFile = "node.json"
	bookFile     = "peers.json"
	// maxFileBytes bounds both files before they are read.
	maxFileBytes = 4 << 20
	fileVersion  = 1
)

// Identity is who a node is: it is written once, when the node bootstraps a cluster or has joined one.
type Identity struct {
	Cluster storage.ClusterID
	Node    storage.NodeID
	// HeartbeatTimeout is the cluster's.
	HeartbeatTimeout time.Duration
	// Bootstrap is set on the node that made the cluster, with the settings it was made with.
	Bootstrap *catalog.Cluster
	// Recovery is the recovery of the cluster that the node follows (Recover, Follow), 0: none.
	Recovery uint32
	// Unfinished is set while the directory is being changed by one: the node does not run with what is in it.
	Unfinished bool
}

// Usable returns why a node does not run with the directory: a recovery was begun in it and did not end. KindConflict.
func (id Identity) Usable(dir string) error {
	if !id.Unfinished {
		return nil
	}
	return storage.E("start", storage.KindConflict, dir, fmt.Errorf("a recovery (%08x) was begun here and did not end: run `storaged recover` once more, "+
		"with the same flags", id.Recovery))
}

// NewCluster is the identity of the first node of a new cluster. Zero settings take the catalog's defaults.
func NewCluster(c catalog.Cluster) (Identity, error) {
	c.Version = cmp.Or(c.Version, catalog.Version)
	if _, err := catalog.Encode(catalog.InitCluster{Cluster: c}); err != nil {
		return Identity{}, err
	}
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = catalog.DefaultHeartbeatTimeout
	}
	return Identity{Cluster: c.ID, Node: 1, HeartbeatTimeout: c.HeartbeatTimeout, Bootstrap: &c}, nil
}

type identityJSON struct {
	Version          int              `json:"version"`
	Cluster          string           `json:"cluster"`
	Node             storage.NodeID   `json:"node"`
	HeartbeatTimeout time.Duration    `json:"heartbeat_timeout_ns"`
	Bootstrap        *catalog.Cluster `json:"bootstrap,omitempty"`
	// What follows came with version 2, which is written when there is any of it: builds that do not know it must not run here.
	Recovery   uint32 `json:"recovery,omitempty"`
	Unfinished bool   `json:"unfinished,omitempty"`
}

// recoveryVersion is the version of the file from which on it says which recovery is followed.
const recoveryVersion = 2

// writeIdentity replaces what a directory says of its node.
func writeIdentity(fsys vfs.FS, dir string, id Identity) error {
	w := identityJSON{Version: fileVersion, Cluster: id.Cluster.String(), Node: id.Node, HeartbeatTimeout: id.HeartbeatTimeout,
		Bootstrap: id.Bootstrap, Recovery: id.Recovery, Unfinished: id.Unfinished}
	if id.Recovery != 0 {
		w.Version = recoveryVersion
	}
	return writeJSON(fsys, dir, identityFile, w)
}

// SaveIdentity writes the identity into dir, which is created. A directory that has another identity is refused.
func SaveIdentity(fsys vfs.FS, dir string, id Identity) error {
	const op = "save identity"
	if id.Cluster.IsZero() || id.Node == 0 || id.HeartbeatTimeout <= 0 {
		return storage.E(op, storage.KindInvalid, dir, errors.New("cluster, node or heartbeat timeout is not set"))
	}
	if old, err := LoadIdentity(fsys, dir); err == nil {
		if old.Cluster != id.Cluster || old.Node != id.Node {
			return storage.E(op, storage.KindConflict, dir, fmt.Errorf(
				"it belongs to node %s of cluster %s; use an empty data directory to join another cluster", old.Node, old.Cluster))
		}
		return nil
	} else if !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err := fsys.MkdirAll(dir, 0o750); err != nil {
		return storage.E(op, storage.KindIO, dir, err)
	}
	if err := diskio.SyncDir(fsys, fsys.PathDir(dir)); err != nil { // the directory may be new
		return storage.E(op, storage.KindIO, dir, err)
	}
	return writeIdentity(fsys, dir, id)
}

// LoadIdentity reads the identity in dir: KindNotFound if there is none, KindCorrupt if it cannot be read.
func LoadIdentity(fsys vfs.FS, dir string) (Identity, error) {
	const op = "load identity"
	var w identityJSON
	if err := readJSON(fsys, dir, identityFile, &w); err != nil {
		return Identity{}, err
	}
	if w.Version < fileVersion || w.Version > recoveryVersion {
		return Identity{}, storage.E(op, storage.KindUnsupported, dir, fmt.Errorf("version %d, this storaged knows %d to %d",
			w.Version, fileVersion, recoveryVersion))
	}
	if (w.Recovery != 0) != (w.Version == recoveryVersion) {
		return Identity{}, storage.E(op, storage.KindCorrupt, dir, fmt.Errorf("recovery %d in version %d", w.Recovery, w.Version))
	}
	cluster, err := storage.ParseClusterID(w.Cluster)
	if err != nil || cluster.IsZero() || w.Node == 0 || w.HeartbeatTimeout <= 0 {
		return Identity{}, storage.E(op, storage.KindCorrupt, dir, errors.New("cluster, node or heartbeat timeout is missing"))
	}
	return Identity{Cluster: cluster, Node: w.Node, HeartbeatTimeout: w.HeartbeatTimeout, Bootstrap: w.Bootstrap, Recovery: w.Recovery,
		Unfinished: w.Unfinished}, nil
}

// writeJSON replaces a file.
func writeJSON(fsys vfs.FS, dir, name string, v any) error {
	path := fsys.PathJoin(dir, name)
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return storage.E("write", storage.KindInternal, path, err)
	}
	if err := diskio.Replace(fsys, path, ".tmp", append(b, '\n')); err != nil {
		return storage.E("write", storage.KindIO, path, err)
	}
	return nil
}

func readJSON(fsys vfs.FS, dir, name string, v any) error {
	path := fsys.PathJoin(dir, name)
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return storage.E("read", storage.KindNotFound, path, nil)
	} else if err != nil {
		return storage.E("read", storage.KindIO, path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return storage.E("read", storage.KindIO, path, err)
	}
	if len(b) > maxFileBytes {
		return storage.E("read", storage.KindCorrupt, path, fmt.Errorf("it has more than %d bytes", maxFileBytes))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return storage.E("read", storage.KindCorrupt, path, err)
	}
	return nil
}

// book remembers the nodes' peer addresses across a restart. A restarted node does not know its catalog before a
// leader tells it what is committed, and none can be elected before the nodes can reach one another.
type book struct {
	fs  vfs.FS
	dir string

	mu    sync.Mutex // guards the fields below, also across the write of the file: writes are rare and small
	index uint64     // of the catalog's state that addrs is from
	addrs map[storage.NodeID]string
	// unwritten says that the file could not be written when addrs was taken.
	unwritten bool
}

type bookJSON struct {
	Version int                       `json:"version"`
	Index   uint64                    `json:"index"`
	Addrs   map[storage.NodeID]string `json:"addrs"`
}

func openBook(fsys vfs.FS, dir string) (*book, error) {
	b := &book{fs: fsys, dir: dir, addrs: map[storage.NodeID]string{}}
	var w bookJSON
	err := readJSON(fsys, dir, bookFile, &w)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return b, nil
	case err != nil:
		return nil, err
	case w.Version != fileVersion:
		return nil, storage.E("read", storage.KindUnsupported, dir, fmt.Errorf("%s has version %d", bookFile, w.Version))
	}
	b.index = w.Index
	if w.Addrs != nil {
		b.addrs = w.Addrs
	}
	return b, nil
}

func (b *book) lookup(id storage.NodeID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[id]
	return a, ok
}

// nodes returns all nodes of the book, in order.
func (b *book) nodes() []storage.NodeID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.addrs))
}

// update takes the addresses of a state, if it is not older than the book, and writes them down if they differ from what the file
// has.
func (b *book) update(index uint64, nodes []storage.Node) error {
	addrs := make(map[storage.NodeID]string, len(nodes))
	for _, n := range nodes {
		if n.State != storage.NodeRemoved {
			addrs[n.ID] = n.Addrs.Peer
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if index < b.index {
		return nil
	}
	b.index = index
	if maps.Equal(b.addrs, addrs) && !b.unwritten {
		return nil
	}
	b.addrs = addrs
	err := writeJSON(b.fs, b.dir, bookFile, bookJSON{Version: fileVersion, Index: index, Addrs: addrs})
	b.unwritten = err != nil
	return err
}
