package replication

import (
	"encoding/binary"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/table"
)

// stableStore is raft.StableStore in the store's Pebble: every Set is synced before it returns, so a vote lives on
// the disk of its log. The library panics on an error here, so there is none: the store is failed, and the caller
// parked until the instance stops.
type stableStore struct {
	store   *extent.Stable
	pending *pendingSets
	parked  func(error) error
}

var _ raft.StableStore = (*stableStore)(nil)

// Set stores a value.
func (s *stableStore) Set(key, val []byte) error {
	defer s.pending.begin()()
	if err := s.store.Set(key, val); err != nil {
		return s.parked(err)
	}
	return nil
}

// SetUint64 stores a number.
func (s *stableStore) SetUint64(key []byte, val uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// Get returns a value, empty when there is none.
func (s *stableStore) Get(key []byte) (v []byte, err error) {
	if v, err = s.store.Get(key); err != nil {
		return nil, s.parked(err)
	}
	return v, nil
}

// GetUint64 returns a number, 0 when there is none.
func (s *stableStore) GetUint64(key []byte) (v uint64, err error) {
	b, err := s.Get(key)
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, s.parked(table.Corrupt("get", "%q has %d bytes", key, len(b)))
	}
	return binary.BigEndian.Uint64(b), nil
}
