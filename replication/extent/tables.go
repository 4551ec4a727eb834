package extent

import (
	"cmp"
	"maps"
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

// loadPage returns the newest version of a page with an epoch in [low, e], whole; nil if there is none. It goes down the older
// versions until all that the page maps is found.
func loadPage(r scanner, set table.SetID, k table.PageKey, low, e storage.Epoch) (*page, error) {
	var room [2 * table.PageKeyLen]byte
	from := table.AppendPageKey(room[:0], set, k, e)
	to := append(table.AppendPageKey(room[table.PageKeyLen:table.PageKeyLen], set, k, 0), 0)
	var p *page
	err := r.Scan(from, to, func(key, value []byte) (bool, error) {
		if p != nil {
			var older table.Page
			err := older.Decode(key, value)
			if err == nil {
				err = p.Inherit(&older)
			}
			return p.Missing != 0, err
		}
		if _, v, ok := table.ParsePageKey(key); ok && v.Epoch < low {
			return false, nil
		}
		p = new(page)
		err := p.Decode(key, value)
		return p.Missing != 0, err
	})
	if err == nil && p != nil && p.Missing != 0 {
		err = p.Inherit(&table.Page{})
	}
	return p, err
}

// loadExtent returns an extent's table as of epoch e, of pages that were written at low or since.
func loadExtent(r scanner, set table.SetID, id table.ExtentID, low, e storage.Epoch) (*table.Version, error) {
	t := &table.Version{VersionID: table.VersionID{ExtentID: id, Epoch: e}}
	for i := range t.Pages {
		p, err := loadPage(r, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: uint8(i)}, low, e)
		if err != nil {
			return nil, err
		}
		if p != nil {
			t.Pages[i] = &p.Page
		}
	}
	return t, nil
}

// loadVersion returns one version of an extent's table: the pages that were written at its epoch, whole.
func loadVersion(r scanner, set table.SetID, id table.VersionID) (*table.Version, error) {
	return loadExtent(r, set, id.ExtentID, id.Epoch, id.Epoch)
}

// loadOlder returns an extent's table as it was before the version.
func loadOlder(r scanner, set table.SetID, id table.VersionID) (*table.Version, error) {
	if id.Epoch == 0 {
		return &table.Version{}, nil
	}
	return loadExtent(r, set, id.ExtentID, 0, id.Epoch-1)
}

// loadTables returns all versions of an extent's table, whole, in ascending order of epoch.
func loadTables(r scanner, set table.SetID, id table.ExtentID) ([]*table.Version, error) {
	from := table.AppendPageKey(nil, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: 0}, storage.Epoch(math.MaxUint64))
	to := append(table.AppendPageKey(nil, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: table.PagesPerExtent - 1}, 0), 0)
	byEpoch := map[storage.Epoch]*table.Version{}
	err := r.Scan(from, to, func(k, v []byte) (bool, error) {
		p := new(table.Page)
		if err := p.Decode(k, v); err != nil {
			return false, err
		}
		t := byEpoch[p.Epoch]
		if t == nil {
			t = &table.Version{VersionID: table.VersionID{ExtentID: id, Epoch: p.Epoch}}
			byEpoch[p.Epoch] = t
		}
		_, key, _ := table.ParsePageKey(k)
		t.Pages[key.Page] = p
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	tables := slices.SortedFunc(maps.Values(byEpoch), func(a, b *table.Version) int { return cmp.Compare(a.Epoch, b.Epoch) })
	for i := range table.PagesPerExtent {
		before := &table.Page{}
		for _, t := range tables {
			if p := t.Pages[i]; p != nil {
				if err := p.Inherit(before); err != nil {
					return nil, err
				}
				before = p
			}
		}
	}
	return tables, nil
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

// setLive stores live counts; those of segments without references are removed.
func setLive(b *tabledb.Batch, set table.SetID, live table.Counts, byEpoch bool) {
	for no, n := range live {
		k := table.LiveKey(set, no)
		if n.Refs == 0 {
			b.Delete(k)
		} else {
			b.Set(k, table.LiveValue(k, n, byEpoch))
		}
	}
}

// pageWriter puts pages of a set into a batch.
type pageWriter struct {
	b          *tabledb.Batch
	set        table.SetID
	byEpoch    bool
	key, value []byte // used again
}

// put stores a version of a page, and its index key if it is the first time that the form by epoch asks for one.
func (w *pageWriter) put(v table.VersionKey, p *table.Page) {
	w.key = table.AppendPageKey(w.key[:0], w.set, v.PageKey, v.Epoch)
	w.value = p.AppendValue(w.value[:0], w.key, w.byEpoch)
	w.b.Set(w.key, w.value)
	if w.byEpoch && !p.Indexed && v.Epoch > table.FirstEpoch {
		w.key = table.AppendIndexKey(w.key[:0], w.set, v)
		w.value = table.Seal(w.key, w.value[:0])
		w.b.Set(w.key, w.value)
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

// setKinds are the kinds of keys that a table set has.
func setKinds() []byte {
	return []byte{table.KeyPage, table.KeyIndex, table.KeyLive, table.KeyVolume, table.KeyPurge}
}

// dropSet removes everything of a table set.
func dropSet(b *tabledb.Batch, set table.SetID) {
	for _, kind := range setKinds() {
		prefix := table.SetPrefix(kind, set)
		b.DeleteRange(prefix, table.AfterPrefix(prefix))
	}
}
