package extent

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/segment"
)

// Stable keeps a replica's term and vote on the disk of its log, durably. It is what the Raft library calls a stable
// store, but for numbers. An error of Set means that the disk has failed for good.
type Stable struct {
	store *Store
	key   segment.GroupKey
}

// MaxStableBytes bounds a value.
const MaxStableBytes = 64 << 10

// Stable returns the replica's stable store. It needs no group of that key yet.
func (s *Store) Stable(key segment.GroupKey) *Stable { return &Stable{s, key} }

func (t *Stable) name(key []byte) []byte {
	return append(table.GroupKey(table.KeyStable, t.key), key...)
}

// Set stores a value; it is durable when Set returns.
func (t *Stable) Set(key, value []byte) error {
	if len(value) > MaxStableBytes || len(key) > MaxStableBytes {
		return storage.E("set", storage.KindInvalid, string(key), nil)
	}
	k := t.name(key)
	v := table.Seal(k, append([]byte(nil), value...))
	return t.store.db.Commit(func(b *tabledb.Batch) { b.Set(k, v) })
}

// Get returns the value, or nil if none was set.
func (t *Stable) Get(key []byte) ([]byte, error) {
	k := t.name(key)
	v, err := t.store.db.Get(k)
	if err != nil || v == nil {
		return nil, err
	}
	body, err := table.Unseal(k, v)
	if err != nil {
		return nil, table.Corrupt("get", "%q of group %s: %w", key, t.key, err)
	}
	return body, nil
}
