package extent

import (
	"math"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/segment"
)

// scanner is the database, or a snapshot of it.
type scanner interface {
	Scan(from, to []byte, fn func(key, value []byte) (more bool, err error)) error
}

// firstExtent returns the first extent of the set at or after id that has a table.
func firstExtent(r scanner, set table.SetID, id table.ExtentID) (found table.ExtentID, ok bool, err error) {
	from := table.AppendPageKey(nil, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: 0}, storage.Epoch(math.MaxUint64))
	err = r.Scan(from, table.AfterPrefix(table.SetPrefix(table.KeyPage, set)), func(k, _ []byte) (bool, error) {
		_, v, valid := table.ParsePageKey(k)
		if !valid {
			return false, table.Corrupt("read tables", "key %x", k)
		}
		found, ok = table.ExtentID{Volume: v.Volume, Extent: v.Extent}, true
		return false, nil
	})
	return found, ok, err
}

// loadTables returns all versions of an extent's table, in ascending order of epoch.
func loadTables(r scanner, set table.SetID, id table.ExtentID) ([]*table.Version, error) {
	from := table.AppendPageKey(nil, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: 0}, storage.Epoch(math.MaxUint64))
	to := append(table.AppendPageKey(nil, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: table.PagesPerExtent - 1}, 0), 0)
	byEpoch := map[storage.Epoch]*table.Version{}
	var tables []*table.Version
	err := r.Scan(from, to, func(k, v []byte) (bool, error) {
		p := new(table.Page)
		if err := p.Decode(k, v); err != nil {
			return false, err
		}
		t := byEpoch[p.Epoch]
		if t == nil {
			t = &table.Version{VersionID: table.VersionID{ExtentID: id, Epoch: p.Epoch}}
			byEpoch[p.Epoch] = t
			tables = append(tables, t)
		}
		_, key, _ := table.ParsePageKey(k)
		t.Pages[key.Page] = p
		return true, nil
	})
	slices.SortFunc(tables, func(a, b *table.Version) int {
		if a.Epoch < b.Epoch {
			return -1
		}
		return 1
	})
	return tables, err
}

// loadLive returns the live counts of a set.
func loadLive(r scanner, set table.SetID) (table.Counts, error) {
	live := table.Counts{}
	prefix := table.SetPrefix(table.KeyLive, set)
	err := r.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		_, no, n, err := table.DecodeLive(k, v)
		live[no] = n
		return true, err
	})
	return live, err
}

// setLive stores live counts; those that are 0 are removed.
func setLive(b *tabledb.Batch, set table.SetID, live table.Counts) {
	for no, n := range live {
		k := table.LiveKey(set, no)
		if n == 0 {
			b.Delete(k)
		} else {
			b.Set(k, table.LiveValue(k, n))
		}
	}
}

// setVolumes stores what a group knows of volumes, and removes what it has forgotten.
func setVolumes(b *tabledb.Batch, changes []table.Change) {
	for _, c := range changes {
		if c.Value == nil {
			b.Delete(c.Key)
		} else {
			b.Set(c.Key, c.Value)
		}
	}
}

// setGroup makes the record the group's checkpoint.
func setGroup(b *tabledb.Batch, key segment.GroupKey, record *table.GroupRecord) {
	k := table.GroupKey(table.KeyGroup, key)
	b.Set(k, record.AppendValue(nil, k))
}

// dropSet removes everything of a table set.
func dropSet(b *tabledb.Batch, set table.SetID) {
	for _, kind := range []byte{table.KeyPage, table.KeyLive, table.KeyVolume, table.KeyPurge} {
		prefix := table.SetPrefix(kind, set)
		b.DeleteRange(prefix, table.AfterPrefix(prefix))
	}
}
