package segment

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestIdleLogIsClosed: an idle log gets one closing record, and no more. It guards the idle timer; time is virtual.
func TestIdleLogIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		l := openLog(t, testConfig(fs))
		g, err := l.CreateGroup(key(1), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := uint64(1); i <= 20; i++ {
			mustWait(t, l, mustAppend(t, g, testEntry(i, 1, 100)))
			time.Sleep(30 * time.Millisecond) // virtual
		}
		end := l.End()
		time.Sleep(time.Second)
		synctest.Wait()
		if l.End() != end+recordHeaderBytes || l.Durable() != l.End() {
			t.Fatalf("after a second the log ends at %s, durable %s; want one record after %s", l.End(), l.Durable(), end)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if l.End() != end+recordHeaderBytes {
			t.Fatal("an idle log got a second closing record")
		}
		if _, pending := l.OldestPending(); pending {
			t.Fatal("something is pending")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, testConfig(fs, GroupStart{Key: key(1)}))
		if l.End() != end+recordHeaderBytes {
			t.Fatalf("after a restart the log ends at %s, want %s", l.End(), end+recordHeaderBytes)
		}
		_ = l.Close()
	})
}
