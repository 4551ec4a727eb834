package tableset

import (
	"cmp"
	"maps"
	"math"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// Scanner is the database, or a snapshot of it.
type Scanner interface {
	Scan(from, to []byte, fn func(key, value []byte) (more bool, err error)) error
}

// Batch is what is stored as one: tabledb.Batch. It does not keep the slices.
type Batch interface {
	Set(key, value []byte)
	Delete(key []byte)
}

var _ Batch = (*tabledb.Batch)(nil)

// FirstExtent returns the first extent of the set at or after id that has a table.
func FirstExtent(r Scanner, set table.SetID, id table.ExtentID) (found table.ExtentID, ok bool, err error) {
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

// Page makes p the newest version of a page with an epoch in [low, e], whole; found is false if there is none. It goes down the older
// versions until all that the page maps is found.
func Page(r Scanner, set table.SetID, k table.PageKey, low, e storage.Epoch, p *table.Page) (found bool, err error) {
	var room [2 * table.PageKeyLen]byte
	from := table.AppendPageKey(room[:0], set, k, e)
	to := append(table.AppendPageKey(room[table.PageKeyLen:table.PageKeyLen], set, k, 0), 0)
	err = r.Scan(from, to, func(key, value []byte) (bool, error) {
		if found {
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
		found = true
		err := p.Decode(key, value)
		return p.Missing != 0, err
	})
	if err == nil && found && p.Missing != 0 {
		err = p.Inherit(&table.Page{})
	}
	return found, err
}

// Extent returns an extent's table as of epoch e, of pages that were written at low or since.
func Extent(r Scanner, set table.SetID, id table.ExtentID, low, e storage.Epoch) (*table.Version, error) {
	t := &table.Version{VersionID: table.VersionID{ExtentID: id, Epoch: e}}
	for i := range t.Pages {
		p := new(table.Page)
		found, err := Page(r, set, table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: uint8(i)}, low, e, p)
		if err != nil {
			return nil, err
		}
		if found {
			t.Pages[i] = p
		}
	}
	return t, nil
}

// Version returns one version of an extent's table: the pages that were written at its epoch, whole.
func Version(r Scanner, set table.SetID, id table.VersionID) (*table.Version, error) {
	return Extent(r, set, id.ExtentID, id.Epoch, id.Epoch)
}

// Older returns an extent's table as it was before the version.
func Older(r Scanner, set table.SetID, id table.VersionID) (*table.Version, error) {
	if id.Epoch == 0 {
		return &table.Version{}, nil
	}
	return Extent(r, set, id.ExtentID, 0, id.Epoch-1)
}

// Versions returns all versions of an extent's table, whole, in ascending order of epoch.
func Versions(r Scanner, set table.SetID, id table.ExtentID) ([]*table.Version, error) {
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

// Live returns the live counts of a set.
func Live(r Scanner, set table.SetID) (table.Counts, error) {
	live := table.Counts{}
	prefix := table.SetPrefix(table.KeyLive, set)
	err := r.Scan(prefix, table.AfterPrefix(prefix), func(k, v []byte) (bool, error) {
		_, no, n, err := table.DecodeLive(k, v)
		live[no] = n
		return true, err
	})
	return live, err
}

// SetLive stores live counts, in the order of keys; those of segments without references are removed.
func SetLive(b Batch, set table.SetID, live table.Counts, byEpoch bool) {
	for _, no := range slices.Sorted(maps.Keys(live)) {
		k, n := table.LiveKey(set, no), live[no]
		if n.Refs == 0 {
			b.Delete(k)
		} else {
			b.Set(k, table.LiveValue(k, n, byEpoch))
		}
	}
}

// PageWriter puts pages of a set into a batch.
type PageWriter struct {
	Batch   Batch
	Set     table.SetID
	ByEpoch bool // the form that is written

	key, value []byte // used again
}

// Put stores a version of a page, and its index key if it is the first time that the form by epoch asks for one.
func (w *PageWriter) Put(v table.VersionKey, p *table.Page) {
	w.key = table.AppendPageKey(w.key[:0], w.Set, v.PageKey, v.Epoch)
	w.value = p.AppendValue(w.value[:0], w.key, w.ByEpoch)
	w.Batch.Set(w.key, w.value)
	if w.ByEpoch && !p.Indexed && v.Epoch > table.FirstEpoch {
		w.key = table.AppendIndexKey(w.key[:0], w.Set, v)
		w.value = table.Seal(w.key, w.value[:0])
		w.Batch.Set(w.key, w.value)
	}
}

// SetVolumes stores what a group knows of volumes, and removes what it has forgotten.
func SetVolumes(b Batch, changes []table.Change) {
	for _, c := range changes {
		if c.Value == nil {
			b.Delete(c.Key)
		} else {
			b.Set(c.Key, c.Value)
		}
	}
}

// SetGroup makes the record the group's checkpoint.
func SetGroup(b Batch, key segment.GroupKey, record *table.GroupRecord) {
	k := table.GroupKey(table.KeyGroup, key)
	b.Set(k, record.AppendValue(nil, k))
}

// Kinds are the kinds of keys that a table set has.
func Kinds() []byte {
	return []byte{table.KeyPage, table.KeyIndex, table.KeyLive, table.KeyVolume, table.KeyPurge}
}

// SetStaged names a set that is staged for a replica. It is in the batch of all that the set is to be found with.
func SetStaged(b Batch, key segment.GroupKey, set table.SetID, staged table.Staged) {
	k := table.StagedKey(key, set)
	b.Set(k, table.StagedValue(k, staged))
}

// DropStaged removes everything of a set that is staged for a replica, and its name.
func DropStaged(b *tabledb.Batch, key segment.GroupKey, set table.SetID) {
	b.Delete(table.StagedKey(key, set))
	Drop(b, set)
}

// Drop removes everything of a table set.
func Drop(b *tabledb.Batch, set table.SetID) {
	for _, kind := range Kinds() {
		prefix := table.SetPrefix(kind, set)
		b.DeleteRange(prefix, table.AfterPrefix(prefix))
	}
}

// maxMappedPages bounds the pages that one question of MappedExtents has looked at in Pebble, about.
const maxMappedPages = 4096

// MappedExtents returns the extents in [q.First, next) of a volume whose newest version maps a block, in ascending order. It looks at
// maxMappedPages at most, about.
func MappedExtents(r Scanner, set table.SetID, q op.MappedRequest) (found []storage.ExtentIndex, next storage.ExtentIndex, err error) {
	first := table.PageKey{Volume: q.Volume, Extent: q.First}
	from := table.AppendPageKey(nil, set, first, storage.Epoch(math.MaxUint64))
	to := table.AppendPageKey(nil, set, table.PageKey{Volume: q.Volume, Extent: q.End}, storage.Epoch(math.MaxUint64))
	next = q.End
	last, pages := table.PageKey{}, 0 // volumes count from 1
	err = r.Scan(from, to, func(key, value []byte) (bool, error) {
		_, v, ok := table.ParsePageKey(key)
		if !ok {
			return false, table.Corrupt("mapped extents", "the key %x is not of a page", key)
		}
		if v.PageKey == last { // an older version
			return true, nil
		}
		if v.Extent != last.Extent && (pages >= maxMappedPages || len(found) == op.MaxMappedExtents) {
			next = v.Extent
			return false, nil
		}
		last = v.PageKey
		pages++
		if n := len(found); n > 0 && found[n-1] == v.Extent {
			return true, nil
		}
		var p table.Page
		err := p.Decode(key, value)
		if err == nil && p.Bitmap() != 0 {
			found = append(found, v.Extent)
		}
		return true, err
	})
	return found, next, err
}
