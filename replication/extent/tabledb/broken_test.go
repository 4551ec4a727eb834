package tabledb

import (
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	storage "github.com/storaged/storaged"
)

// broken is a disk on which the first call of a kind fails once on is set, and every one after it.
type broken struct {
	kind func(errorfs.Op) bool
	on   atomic.Bool
	hit  atomic.Int64
}

func (b *broken) String() string { return "broken" }

func (b *broken) MaybeError(o errorfs.Op) error {
	if !b.on.Load() || !b.kind(o) {
		return nil
	}
	b.hit.Add(1)
	return syscall.EIO
}

// TestBrokenLog: what fails when Pebble goes on to its next log, which it does between an unlock and the deferred unlock of a lock, fails
// the database and not the process. What was committed is there after a power cut.
//
// Lines, in fs.go: what attempt makes of errors of the log, and metaDirFile.Sync of a directory. Each was taken out once, and the process
// ended: "sync: unlock of unlocked mutex".
func TestBrokenLog(t *testing.T) {
	isLog := func(o errorfs.Op) bool { return strings.HasSuffix(o.Path, ".log") }
	for name, kind := range map[string]func(errorfs.Op) bool{
		"create": func(o errorfs.Op) bool {
			return isLog(o) && (o.Kind == errorfs.OpCreate || o.Kind == errorfs.OpReuseForWrite)
		},
		"write": func(o errorfs.Op) bool { return isLog(o) && o.Kind == errorfs.OpFileWrite },
		"sync": func(o errorfs.Op) bool {
			return isLog(o) && (o.Kind == errorfs.OpFileSync || o.Kind == errorfs.OpFileSyncData)
		},
		"directory": func(o errorfs.Op) bool { return strings.HasSuffix(o.Path, "tables") && o.Kind == errorfs.OpFileSync },
	} {
		for _, synced := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				disk := vfs.NewCrashableMem()
				b := &broken{kind: kind}
				var failures atomic.Int64
				c := Config{FS: errorfs.Wrap(disk, b), Dir: "/tables", MemTableBytes: 64 << 10, OnFailure: func(error) { failures.Add(1) }}
				m, err := Open(c)
				if err == nil {
					err = m.Opened(func() bool { return false })
				}
				if err != nil {
					t.Fatal(err)
				}
				commit := m.Commit
				if !synced {
					commit = m.CommitNoSync
				}
				key := func(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }
				const before = 50
				for i := range 1000 {
					if i == before {
						b.on.Store(true)
						if err := m.Commit(func(b *Batch) { b.Set([]byte("last"), nil) }); err != nil {
							break // the log itself is what is broken
						}
					}
					commit := commit
					if i < before {
						commit = m.Commit
					}
					if err = commit(func(b *Batch) { b.Set(key(i), make([]byte, 1000)) }); err != nil {
						break
					}
				}
				if b.hit.Load() == 0 {
					t.Fatal("nothing failed: the test shows nothing")
				}
				if err := m.Commit(func(b *Batch) { b.Set(key(0), nil) }); !errors.Is(err, storage.ErrIO) {
					t.Errorf("a commit after the failure: %v", err)
				}
				if err := m.Close(); err == nil || failures.Load() != 1 {
					t.Errorf("closed: %v; %d failures told", err, failures.Load())
				}
				c.FS = disk.CrashClone(vfs.CrashCloneCfg{})
				if m, err = Open(c); err != nil {
					t.Fatal(err)
				}
				for i := range before {
					if v, err := m.Get(key(i)); err != nil || len(v) != 1000 {
						t.Fatalf("key %d: %d bytes, %v", i, len(v), err)
					}
				}
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
