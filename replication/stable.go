package replication

import (
	"github.com/hashicorp/raft"

	"github.com/storaged/storaged/replication/extent"
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
	return s.write(func() error { return s.store.Set(key, val) })
}

// SetUint64 stores a number.
func (s *stableStore) SetUint64(key []byte, val uint64) error {
	return s.write(func() error { return s.store.SetUint64(key, val) })
}

func (s *stableStore) write(set func() error) error {
	defer s.pending.begin()()
	if err := set(); err != nil {
		return s.parked(err)
	}
	return nil
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
	if v, err = s.store.GetUint64(key); err != nil {
		return 0, s.parked(err)
	}
	return v, nil
}
