package replication

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/check"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/segment"
)

// raised says whether a disk's store was raised.
func raised(t *testing.T, fs vfs.FS, dir string) bool {
	t.Helper()
	f, err := fs.Open(fs.PathJoin(dir, "store.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(data), `"format": 2`)
}

// A replica that lags pulls from a node whose format was raised before its own, and the other way round; both keep all.
func TestFormatIsRaisedNodeByNode(t *testing.T) {
	for _, first := range []string{"source", "puller"} {
		t.Run(first+" first", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 40
				h, c, gone := lagging(t, n)
				defer h.close()
				raise := func(ids ...storage.NodeID) {
					t.Helper()
					for _, id := range ids {
						for range 2 {
							if err := h.nodes[id].replicas.RaiseFormat(storedir.PagesByEpoch); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				a, b := others(gone)
				if first == "source" {
					raise(a, b)
					c.write(n*storage.BlockSize, block(9))
					h.compact(gone)
				}
				h.nodes[gone].start()
				if first == "puller" {
					raise(gone)
				}
				h.has(c, gone, n)
				raise(a, b, gone)
				c.write(0, block(7))
				h.compact(0)
				for id, node := range h.nodes {
					if !raised(t, node.disk, "store") {
						t.Errorf("node %d was not raised", id)
					}
					node.shutdown()
					_, err := check.Run(context.Background(), check.Config{FS: node.disk, Dir: "store",
						Finding: func(text string) { t.Errorf("node %d: %s", id, text) }})
					if err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// noIdentity fails what is written of an identity file.
type noIdentity struct{ on atomic.Bool }

func (f *noIdentity) String() string { return "identity" }

func (f *noIdentity) MaybeError(o errorfs.Op) error {
	if f.on.Load() && strings.Contains(o.Path, "store.json") && o.Kind.ReadOrWrite() == errorfs.OpIsWrite {
		return errorfs.ErrInjected
	}
	return nil
}

// A disk that fails keeps no other from being raised, and is told of.
func TestFormatIsRaisedBesideAFailedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 1)
		defer h.close()
		fault, disk := &noIdentity{}, vfs.NewMem()
		second, err := extent.Open(extent.Config{FS: errorfs.Wrap(disk, fault), Dir: "second", Cluster: simCluster, CapacityBytes: 1 << 30,
			SegmentBytes: 2 << 20, Segment: segment.Config{FreeSegments: 1}}) // the default is hundreds of MiB of zeroes, in memory
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		h.configure = func(c *Config) { c.Stores = append([]*extent.Store{second}, c.Stores...) }
		n := h.nodes[1]
		n.start()
		fault.on.Store(true)
		if err := n.replicas.RaiseFormat(storedir.PagesByEpoch); !errors.Is(err, storage.ErrIO) {
			t.Errorf("with a disk that fails: %v", err)
		}
		if second.Failed() == nil || raised(t, disk, "second") || !raised(t, n.disk, "store") {
			t.Errorf("the disk has failed: %v; raised are %v and %v", second.Failed(), raised(t, disk, "second"), raised(t, n.disk, "store"))
		}
		if err := n.replicas.RaiseFormat(storedir.NewestFormat + 1); !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("an unknown format: %v", err)
		}
	})
}
