package tabledb

import (
	"errors"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestFailedIsFrozen: once the database has failed nothing changes on the disk of what Pebble recovers from, whatever Pebble goes on to do,
// and Pebble is told that all is well. Tables may still be written: nothing refers to them.
//
// Guards, in fs.go: Remove's look at the failure; each part of recoveredFrom and frozen. Without any of them a case fails.
func TestFailedIsFrozen(t *testing.T) {
	disk := vfs.NewMem()
	m, err := Open(Config{FS: disk, Dir: "/tables", OnFailure: func(error) {}})
	if err == nil {
		err = m.Opened(func() bool { return false })
	}
	if err != nil {
		t.Fatal(err)
	}
	fs := metaFS{disk, m}
	const text = "as it was"
	files := map[string]vfs.DiskWriteCategory{"manifest": "pebble-manifest", "log": logging, "other": vfs.WriteCategoryUnspecified, "flushed": flushing}
	open := map[string]vfs.File{}
	for name, category := range files {
		f, err := fs.Create("/tables/x-"+name, category)
		if err == nil {
			_, err = f.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
		open[name] = f
	}
	content := func(name string) string {
		f, err := disk.Open("/tables/x-" + name)
		if err != nil {
			return "gone"
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	m.fail(errors.New("the disk"))
	for name, f := range open {
		if n, err := f.Write([]byte(", and more")); err != nil || n != len(", and more") {
			t.Errorf("%s: %d bytes written, and %v", name, n, err)
		}
		want := text
		if name == "flushed" {
			want += ", and more"
		}
		if got := content(name); got != want {
			t.Errorf("after a write %s is %q, want %q", name, got, want)
		}
	}
	if err := fs.Rename("/tables/x-manifest", "/tables/x-moved"); err != nil || content("manifest") != text || content("moved") != "gone" {
		t.Errorf("after a rename the manifest is %q, and at its new name %q; error %v", content("manifest"), content("moved"), err)
	}
	for name := range open {
		if err := fs.Remove("/tables/x-" + name); err != nil || content(name) == "gone" {
			t.Errorf("after its removal %s is %s, error %v", name, content(name), err)
		}
	}
	for _, f := range open {
		_ = f.Close()
	}
	_ = m.Close() // it has failed
}
