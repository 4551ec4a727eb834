package tabledb

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// counted are syncs that know whether they are on their way to the file.
type counted struct {
	within atomic.Int64
	closed atomic.Int64

	mu   sync.Mutex // guards kinds
	kind map[string]int
}

func (c *counted) run(kind string, sync func() error) error {
	c.mu.Lock()
	if c.kind == nil {
		c.kind = map[string]int{}
	}
	c.kind[kind]++
	c.mu.Unlock()
	c.within.Add(1)
	defer c.within.Add(-1)
	return sync()
}

func (c *counted) kinds() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.kind))
}

func (c *counted) Sync(f vfs.File) error     { return c.run("sync", f.Sync) }
func (c *counted) SyncData(f vfs.File) error { return c.run("data", f.SyncData) }
func (c *counted) SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return c.run("directory", d.Sync)
}
func (c *counted) Close() { c.closed.Add(1) }

// TestSyncsHoldUpNoProcessor: each sync that Pebble does goes by way of diskio.Syncers, which wait for it as for a descriptor, and none blocks
// a thread in the kernel.
//
// Guards, in fs.go: metaFile.Sync and SyncData, metaDirFile.Sync, and the directory in metaFS.Create. Each was made the file's own call
// once, and failed here.
func TestSyncsHoldUpNoProcessor(t *testing.T) {
	by := &counted{}
	var past atomic.Int64
	disk := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(o errorfs.Op) error {
		if (o.Kind == errorfs.OpFileSync || o.Kind == errorfs.OpFileSyncData) && by.within.Load() == 0 {
			past.Add(1)
		}
		return nil
	}))
	m, err := Open(Config{FS: disk, Dir: "/tables", MemTableBytes: 64 << 10, syncs: by})
	if err == nil {
		err = m.Opened(func() bool { return false })
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(500) { // a few logs, tables and compactions
		if err := m.Commit(func(b *Batch) { b.Set(binary.BigEndian.AppendUint32(nil, i*7919), make([]byte, 1000)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if n := past.Load(); n > 0 {
		t.Errorf("%d syncs held up a thread", n)
	}
	// Each way has to be there, or the test shows nothing of it.
	if got := by.kinds(); !slices.Equal(got, []string{"data", "directory", "sync"}) {
		t.Errorf("only these were synced: %v", got)
	}
	if n := by.closed.Load(); n != 1 {
		t.Errorf("closed %d times", n)
	}
}

// TestFailedOpenFreesOnce: what syncs hold of the kernel is freed once when the database cannot be opened, wherever that fails.
func TestFailedOpenFreesOnce(t *testing.T) {
	refused := 0
	for at, reached := int64(1), true; reached; at++ {
		by := &counted{}
		var n atomic.Int64
		disk := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(o errorfs.Op) error {
			if o.Kind.ReadOrWrite() == errorfs.OpIsWrite && n.Add(1) == at {
				return errorfs.ErrInjected
			}
			return nil
		}))
		m, err := Open(Config{FS: disk, Dir: "/tables", syncs: by})
		reached = n.Load() >= at
		if err == nil {
			_ = m.Close() // what has failed may be told here
		} else {
			refused++
		}
		if n := by.closed.Load(); n != 1 {
			t.Errorf("call %d fails: freed %d times; %v", at, n, err)
		}
	}
	if refused < 10 {
		t.Errorf("%d attempts failed: the test shows little", refused)
	}
}

// TestFlushesGiveWayForAWhile: the flush of a file gives way to others for flushGivesWay in all, since commits wait for flushes in the end;
// then it is written without a pause. A compaction gives way whatever it takes, and the log never.
//
// Guards, in fs.go: each case of metaFile.giveWay, and what it adds up. Each was taken out once, and failed here.
func TestFlushesGiveWayForAWhile(t *testing.T) {
	const turn, writes = 100 * time.Millisecond, 50
	for category, want := range map[vfs.DiskWriteCategory]time.Duration{
		flushing: flushGivesWay, compacting: writes * turn, logging: 0, "pebble-manifest": 0,
	} {
		t.Run(string(category), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &DB{cfg: Config{yield: func() { time.Sleep(turn) }}, failed: make(chan struct{}), space: shortage{stop: make(chan struct{})}}
				fs := metaFS{vfs.NewMem(), m}
				for _, name := range []string{"one", "another"} { // the time is a file's own
					f, err := fs.Create(name, category)
					if err != nil {
						t.Fatal(err)
					}
					from := time.Now()
					for range writes {
						if _, err := f.Write([]byte("a part of a table")); err != nil {
							t.Fatal(err)
						}
					}
					if gave := time.Since(from); gave != want {
						t.Errorf("%s gave way for %v, want %v", name, gave, want)
					}
					if err := f.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}
