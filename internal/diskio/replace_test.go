package diskio

import (
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestReplaceWithoutRoom: whichever call finds no room, or too little of the quota, the file holds what it did, nothing is left beside it, and
// the next attempt replaces it. Guards the Remove; taken out once, a file was left.
func TestReplaceWithoutRoom(t *testing.T) {
	for _, lack := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		for _, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpRename} {
			full := false
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(o errorfs.Op) error {
				if full && o.Kind == kind {
					return lack
				}
				return nil
			}))
			replace := func(text string) error { return Replace(fs, "/state", ".tmp", []byte(text)) }
			want := func(text string) {
				t.Helper()
				f, err := fs.Open("/state")
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if b, err := io.ReadAll(f); err != nil || string(b) != text {
					t.Errorf("%v: it holds %q (%v), want %q", kind, b, err, text)
				}
			}
			if err := replace("old"); err != nil {
				t.Fatal(err)
			}
			full = true
			if err := replace("new"); !errors.Is(err, lack) {
				t.Errorf("%v: %v", kind, err)
			}
			full = false
			want("old")
			if _, err := fs.Stat("/state.tmp"); err == nil {
				t.Errorf("%v: something is left beside it", kind)
			}
			if err := replace("new"); err != nil {
				t.Errorf("%v: with room: %v", kind, err)
			}
			want("new")
		}
	}
}
