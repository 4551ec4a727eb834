package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestStartWithoutRoom: a node that does not start because its file system is full says what to do, and what is otherwise wrong is said
// as it is.
func TestStartWithoutRoom(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		inner := storage.E("open tables of", storage.KindIO, "store /data/store", &os.PathError{Op: "write", Path: "/data/store/meta/MANIFEST-1", Err: cause})
		err := Dir("/data").WithoutRoom(inner, "start the node again")
		for _, want := range []string{inner.Error(), "data directory /data", "is full", "start the node again"} {
			if !errors.Is(err, storage.ErrNoSpace) || !errors.Is(err, cause) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v (%v), want it to say %q", cause, err, storage.KindOf(err), want)
			}
		}
	}
	if other := storage.E("open", storage.KindIO, "store", syscall.EIO); Dir("/data").WithoutRoom(other, "") != error(other) {
		t.Error("another error is told otherwise than it is")
	}
}

// TestStarts: each start counts one more, from 1 on; a file that is no number is told.
func TestStarts(t *testing.T) {
	d := Dir(t.TempDir())
	if err := os.MkdirAll(d.Catalog(), 0o750); err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want <= 3; want++ {
		if got, err := d.CountStart(); err != nil || got != want {
			t.Errorf("start %d is counted as %d, %v", want, got, err)
		}
	}
	if err := os.WriteFile(d.starts(), []byte("many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CountStart(); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a file that is no number: %v", err)
	}
}

// TestPromisedStore: an id that was told to a cluster stays the store's, however often the node asks to be taken in.
func TestPromisedStore(t *testing.T) {
	d := Dir(t.TempDir())
	if id, err := d.PromisedStore(); err != nil || !id.IsZero() {
		t.Errorf("nothing was promised, and it is %v, %v", id, err)
	}
	first, err := d.PromiseStore()
	if err != nil || first.IsZero() {
		t.Fatal(first, err)
	}
	for what, ask := range map[string]func() (storage.StoreID, error){"promised again": d.PromiseStore, "asked for": d.PromisedStore} {
		if id, err := ask(); err != nil || id != first {
			t.Errorf("%s it is %v, %v; want %v", what, id, err, first)
		}
	}
	if err := os.WriteFile(d.pending(), []byte("7"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, ask := range map[string]func() (storage.StoreID, error){"promised again": d.PromiseStore, "asked for": d.PromisedStore} {
		if id, err := ask(); !errors.Is(err, storage.ErrCorrupt) || !id.IsZero() {
			t.Errorf("a file that is no id, %s: %v, %v", what, id, err)
		}
	}
}

// TestMake: a directory is made; one that cannot be, or whose file system the reserve takes, is told with the reason.
func TestMake(t *testing.T) {
	dangling := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/nowhere/at/all", dangling); err != nil {
		t.Fatal(err)
	}
	d := Dir(filepath.Join(t.TempDir(), "a", "b"))
	if err := d.Make(1 << 20); err != nil {
		t.Error(err)
	}
	if has, err := d.HasStore(); has || err != nil || d.CheckEmpty() != nil {
		t.Errorf("an empty directory has a store: %v, %v, %v", has, err, d.CheckEmpty())
	}
	for want, err := range map[string]error{
		"symbolic link to /nowhere/at/all": Dir(dangling).Make(1 << 20),
		"--reserve: 900TiB":                d.Make(900 << 40),
	} {
		if !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to say %q", err, want)
		}
	}
	if err := os.Mkdir(d.Store(), 0o750); err != nil {
		t.Fatal(err)
	}
	if has, err := d.HasStore(); !has || err != nil {
		t.Errorf("a directory with a store: %v, %v", has, err)
	}
	if err := d.CheckEmpty(); !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "node.json") {
		t.Errorf("a store without its node: %v", err)
	}
}
