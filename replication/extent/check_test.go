package extent

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
)

// TestCheckFindsWrongTables changes the tables of a sound store, under good checksums, and wants the check to say what is wrong.
func TestCheckFindsWrongTables(t *testing.T) {
	s := epochsRig(t, 20)
	set := s.g.set.id
	if found := s.findings(); len(found) > 0 {
		t.Fatalf("%q", found)
	}
	version := func(e storage.Epoch) table.VersionKey {
		return table.VersionKey{PageKey: table.PageKey{Volume: 1}, Epoch: e}
	}
	// edit changes the page of an epoch.
	edit := func(e storage.Epoch, change func(p *table.Page)) func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
		return func(t *testing.T, db *tabledb.DB) func(*tabledb.Batch) {
			key := table.AppendPageKey(nil, set, version(e).PageKey, e)
			value, err := db.Get(key)
			var p table.Page
			if err == nil {
				err = p.Decode(key, value)
			}
			if err != nil {
				t.Fatal(err)
			}
			change(&p)
			return func(b *tabledb.Batch) { b.Set(key, p.AppendValue(nil, key, true)) }
		}
	}
	live := func(change func(n *table.Count)) func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
		return func(t *testing.T, db *tabledb.DB) func(*tabledb.Batch) {
			key, value, _, err := db.First(table.SetPrefix(table.KeyLive, set), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _, n, err := table.DecodeLive(key, value)
			if err != nil {
				t.Fatal(err)
			}
			change(&n)
			return func(b *tabledb.Batch) { b.Set(key, table.LiveValue(key, n, true)) }
		}
	}
	index := func(e storage.Epoch) []byte { return table.AppendIndexKey(nil, set, version(e)) }
	for _, c := range []struct {
		name   string
		change func(*testing.T, *tabledb.DB) func(*tabledb.Batch)
		say    string
	}{
		{"an own block more", live(func(n *table.Count) { n.Own-- }), "live blocks"},
		{"a reference more", live(func(n *table.Count) { n.Refs++ }), "live blocks"},
		{"a version without index", func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
			return func(b *tabledb.Batch) { b.Delete(index(7)) }
		}, "(epoch 7) is not in the index"},
		{"an index without version", func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
			return func(b *tabledb.Batch) { b.Set(index(21), table.Seal(index(21), nil)) }
		}, "there is no such page"},
		{"an index of the first epoch", func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
			return func(b *tabledb.Batch) { b.Set(index(1), table.Seal(index(1), nil)) }
		}, "page 0 of epoch 1"},
		{"an index with something in it", func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
			return func(b *tabledb.Batch) { b.Set(index(7), table.Seal(index(7), []byte{1})) }
		}, "1 bytes, not 0"},
		{"the oldest is gone", func(*testing.T, *tabledb.DB) func(*tabledb.Batch) {
			return func(b *tabledb.Batch) { b.Delete(table.AppendPageKey(nil, set, table.PageKey{Volume: 1}, 1)) }
		}, "are not mapped at epoch 0"},
		{"one has lost a block that later ones inherit", edit(3, func(p *table.Page) { p.Unmap(2, table.Counts{}) }), "are not mapped at epoch 3"},
		{"one is at a wrong place of its chain", edit(5, func(p *table.Page) { p.Chain = 1 }), "needs 1 older versions at most"},
		{"one has inherited what nobody has", edit(17, func(p *table.Page) { p.Entries[2].Sum++ }), "has inherited block 2 with"},
		{"one has an inherited block at a wrong place", edit(17, func(p *table.Page) { p.Entries[2].Offset += 4096 }), "block 2 of extent 0 of volume 1 (epoch 17) at"},
		{"one has a wrong sum", edit(20, func(p *table.Page) { p.Entries[19].Sum++ }), "checksum"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := s.fs.CrashClone(vfs.CrashCloneCfg{})
			db, err := tabledb.Open(tabledb.Config{FS: fs, Dir: storedir.TablesDir(fs, testDir)})
			if err == nil {
				err = db.Opened(func() bool { return false })
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Commit(c.change(t, db)); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if found := strings.Join(findings(t, fs), "\n"); !strings.Contains(found, c.say) {
				t.Errorf("found %q, want %q", found, c.say)
			}
		})
	}
	t.Run("a format that was not raised", func(t *testing.T) {
		fs := s.fs.CrashClone(vfs.CrashCloneCfg{})
		if err := storedir.WriteIdentity(fs, testDir, storedir.Identity{Cluster: testCluster, Store: storage.StoreID{9}, Format: storedir.FirstFormat}); err != nil {
			t.Fatal(err)
		}
		if found := findings(t, fs); len(found) != 20 || !strings.Contains(found[0], "by epoch, in a store of format 1") {
			t.Errorf("%q", found)
		}
	})
}
