package storedir

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	storage "github.com/storaged/storaged"
)

// TestIdentityFormats: what is written is read, the first format as it has always been written, and numbers that nobody writes are
// damage or of a later build.
func TestIdentityFormats(t *testing.T) {
	fs := vfs.NewMem()
	id := Identity{Cluster: storage.ClusterID{1}, Store: storage.StoreID{9}, Format: FirstFormat}
	for _, format := range []int{FirstFormat, NewestFormat} {
		id.Format = format
		if err := WriteIdentity(fs, "", id); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadIdentity(fs, ""); err != nil || got != id {
			t.Errorf("%+v, want %+v: %v", got, id, err)
		}
	}
	const file = `{"magic": "storaged store", "version": %s, "cluster": "01000000-0000-0000-0000-000000000000", "store": "09000000-0000-0000-0000-000000000000"}`
	for _, c := range []struct {
		version string
		format  int
		err     error
	}{
		{`1`, 1, nil},
		{`1, "format": 7`, 1, nil}, // builds that write version 1 know no formats
		{`2, "format": 1`, 1, nil},
		{`2, "format": 2, "build": "v1"`, 2, nil},
		{`2, "format": 3`, 3, nil},
		{`2, "format": 4`, 0, storage.ErrUnsupported},
		{`3`, 0, storage.ErrUnsupported},
		{`2`, 0, storage.ErrCorrupt},
		{`2, "format": -1`, 0, storage.ErrCorrupt},
		{`0`, 0, storage.ErrCorrupt},
		{`-1, "format": 1`, 0, storage.ErrCorrupt},
	} {
		id, err := parseIdentity(fmt.Appendf(nil, file, c.version))
		if id.Format != c.format || !errors.Is(err, c.err) {
			t.Errorf("version %s: format %d, %v; want %d, %v", c.version, id.Format, err, c.format, c.err)
		}
	}
}

// A store of the first format is one for earlier builds, byte by byte.
func TestFirstFormatIsOld(t *testing.T) {
	fs := vfs.NewMem()
	if err := WriteIdentity(fs, "", Identity{Cluster: storage.ClusterID{1}, Store: storage.StoreID{9}, Format: FirstFormat}); err != nil {
		t.Fatal(err)
	}
	f, err := fs.Open(identityName)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, maxIdentityLen)
	n, _ := f.Read(got)
	const want = `{
  "magic": "storaged store",
  "version": 1,
  "cluster": "01000000-0000-0000-0000-000000000000",
  "store": "09000000-0000-0000-0000-000000000000"
}
`
	if diff := cmp.Diff(want, string(got[:n])); diff != "" {
		t.Error(diff)
	}
}
