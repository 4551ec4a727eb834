package control

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

// TestSealedSnapshots guards what a node starts from (tried: without the comparison in Open a flipped digit in meta.json is
// another index, term or member): index, term and configuration of a snapshot are those that it was made with. Snapshots
// from before are read as they are.
func TestSealedSnapshots(t *testing.T) {
	dir := t.TempDir()
	files, err := raft.NewFileSnapshotStore(dir, 3, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("1")
	conf := raft.Configuration{Servers: []raft.Server{{ID: "1", Address: "1"}, {ID: "2", Address: "2"}}}
	write := func(s raft.SnapshotStore, index uint64) string {
		t.Helper()
		sink, err := s.Create(1, index, 3, conf, 5, trans)
		if err == nil {
			_, err = io.WriteString(sink, "content")
		}
		if err == nil {
			err = sink.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return sink.ID()
	}
	var configs []uint64
	sealed := sealedSnapshots{SnapshotStore: files, noteConfig: func(index uint64) { configs = append(configs, index) }}
	read := func(id string) (*raft.SnapshotMeta, string, error) {
		meta, r, err := sealed.Open(id)
		if err != nil {
			return nil, "", err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return meta, string(b), err
	}
	old, id := write(files, 6), write(sealed, 7)
	for _, id := range []string{old, id} {
		if meta, content, err := read(id); err != nil || content != "content" || meta.Size != int64(len(content)) {
			t.Errorf("%s: %q, %+v: %v", id, content, meta, err)
		}
	}
	if !slices.Equal(configs, []uint64{5, 5}) {
		t.Errorf("the configurations of two snapshots lie at %v, want 5", configs)
	}
	path := filepath.Join(dir, "snapshots", id, "meta.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{`"Index":7`, `"Index":5`}, {`"Term":3`, `"Term":2`}, {`"ConfigurationIndex":5`, `"ConfigurationIndex":4`}, {`"ID":"2"`, `"ID":"3"`}} {
		bad := strings.Replace(string(good), c[0], c[1], 1)
		if bad == string(good) {
			t.Fatalf("%s is not in %s", c[0], good)
		}
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := read(id); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%s for %s: %v", c[1], c[0], err)
		}
	}
	if len(configs) != 2 {
		t.Error("a configuration of a damaged snapshot was noted")
	}
}
