package replication

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/runner"
)

// snapshotStore is raft.SnapshotStore over a group's checkpoints.
//
// List returns exactly the checkpoint that is durable in the store. What a pull has staged can be opened by its name
// only: after a crash between a received manifest and its Restore, the replica must look like what it was.
type snapshotStore struct {
	extents *extent.Group
	// installing is told the configuration of a received manifest, just before Restore.
	installing func(index uint64, c raft.Configuration)
	// open opens a manifest for a lagging follower and returns the name under which it can be pulled.
	open func() (m *extent.Manifest, name string, closeManifest func(), err error)

	mu     sync.Mutex
	staged map[string]*raft.SnapshotMeta // received, not yet restored; guarded by mu
}

const checkpointID = "checkpoint"

// Create begins a checkpoint, or the receipt of a staged manifest: which of the two, Persist or Write tells.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, config raft.Configuration,
	configIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != runner.SnapshotVersion {
		return nil, fmt.Errorf("snapshot version %d is not supported", version)
	}
	return &checkpointSink{store: s, index: index, term: term, config: config, configIndex: configIndex}, nil
}

// List returns the durable checkpoint, or nothing.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	c := s.extents.Checkpointed()
	if c.Index == 0 {
		return nil, nil
	}
	m, err := metaOf(checkpointID, c.Index, c.Term, c.Config, c.ConfigIndex)
	if err != nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{m}, nil
}

func metaOf(id string, index, term uint64, config []byte, configIndex uint64) (*raft.SnapshotMeta, error) {
	if !runner.ValidConfiguration(config) {
		return nil, fmt.Errorf("the configuration of checkpoint %d cannot be read", index)
	}
	return &raft.SnapshotMeta{Version: runner.SnapshotVersion, ID: id, Index: index, Term: term,
		Configuration: raft.DecodeConfiguration(config), ConfigurationIndex: configIndex}, nil
}

// Open opens a manifest of this replica for a follower, or what was staged under the name.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	meta := s.staged[id]
	delete(s.staged, id)
	s.mu.Unlock()
	if meta != nil {
		s.installing(meta.ConfigurationIndex, meta.Configuration)
		return meta, io.NopCloser(bytes.NewReader([]byte(id))), nil
	}
	if id != checkpointID {
		return nil, nil, fmt.Errorf("snapshot %q is not known", id)
	}
	m, name, closeManifest, err := s.open()
	if err != nil {
		return nil, nil, err
	}
	meta, err = metaOf(id, m.Index, m.Term, m.Config, m.ConfigIndex)
	if err != nil {
		closeManifest()
		return nil, nil, err
	}
	meta.Size = int64(len(name))
	return meta, &manifestReader{bytes.NewReader([]byte(name)), closeManifest}, nil
}

// manifestReader reads a manifest's name and gives the manifest up when it is closed.
type manifestReader struct {
	*bytes.Reader
	closeManifest func()
}

func (r *manifestReader) Close() error {
	r.closeManifest()
	return nil
}

// checkpointSink carries a checkpoint's description to Persist, or takes the name of a staging area from the library.
type checkpointSink struct {
	store       *snapshotStore
	index, term uint64
	config      raft.Configuration
	configIndex uint64
	name        []byte
}

// Write takes the name of a staging area.
func (k *checkpointSink) Write(p []byte) (int, error) {
	if len(k.name)+len(p) > maxStagingNameBytes {
		return 0, fmt.Errorf("the name of a staging area is longer than %d bytes", maxStagingNameBytes)
	}
	k.name = append(k.name, p...)
	return len(p), nil
}

// Close makes what was received openable by its name.
func (k *checkpointSink) Close() error {
	if len(k.name) == 0 {
		return nil
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	if k.store.staged == nil {
		k.store.staged = map[string]*raft.SnapshotMeta{}
	}
	k.store.staged[string(k.name)] = &raft.SnapshotMeta{Version: runner.SnapshotVersion, ID: string(k.name), Index: k.index,
		Term: k.term, Configuration: k.config, ConfigurationIndex: k.configIndex, Size: int64(len(k.name))}
	return nil
}

// ID is the staging area's name, or that of the checkpoint.
func (k *checkpointSink) ID() string {
	if len(k.name) > 0 {
		return string(k.name)
	}
	return checkpointID
}

// Cancel drops the description; what was staged is found and dropped by the store.
func (k *checkpointSink) Cancel() error { return nil }
