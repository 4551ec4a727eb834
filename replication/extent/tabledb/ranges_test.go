package tabledb

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestScanRanges: it finds what a Scan of each range finds, in tables and in memory, for ranges that hold nothing, that begin where the one
// before ends, and that lie behind the last key; and it ends with the error of fn.
func TestScanRanges(t *testing.T) {
	m, err := Open(Config{FS: vfs.NewMem(), Dir: "/tables"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	key := func(i int) []byte { return fmt.Appendf(nil, "%03d", i) }
	put := func(first int) {
		if err := m.Commit(func(b *Batch) {
			for i := first; i < 200; i += 2 {
				b.Set(key(i), key(1000-i))
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	if err := m.db.Flush(); err != nil {
		t.Fatal(err)
	}
	put(1)
	ranges := []Range{{key(0), key(3)}, {key(3), key(4)}, {key(10), key(10)}, {key(10), key(20)}, {key(150), key(400)}, {key(500), key(600)}}
	var want, got []string
	for i, r := range ranges {
		if err := m.Scan(r.From, r.To, func(k, v []byte) (bool, error) {
			want = append(want, fmt.Sprintf("%d %s %s", i, k, v))
			return true, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.ScanRanges(ranges, func(i int, k, v []byte) error {
		got = append(got, fmt.Sprintf("%d %s %s", i, k, v))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(want) != 3+1+10+50 || !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d: %q", len(got), len(want), got)
	}
	stop, calls := errors.New("stop"), 0
	if err := m.ScanRanges(ranges, func(int, []byte, []byte) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("error %v after %d calls, want %v after one", err, calls, stop)
	}
	if err := m.ScanRanges(nil, nil); err != nil {
		t.Error(err)
	}
}
