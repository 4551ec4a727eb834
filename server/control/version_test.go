package control

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// TestVersions guards that no node is sent what it does not know. A version is put in force once every node has said that it knows it,
// and not before; nothing that came with it reaches the log until then. Removed once each (the two checks of permits, and that of
// serveJoin): this test failed.
func TestVersions(t *testing.T) {
	k := newCluster(t, "")
	k.version = 4
	var third atomic.Int64 // what node 3 says it knows
	third.Store(4)
	k.tune = func(c *Config) {
		if report := c.Report; c.Self.Name == "n3" {
			c.Report = func() placement.NodeReport {
				r := report()
				r.Knows = int(third.Load())
				return r
			}
		}
	}
	for id := storage.NodeID(1); id <= 3; id++ {
		k.addNode(id)
	}
	k.until("three nodes and their groups", func() bool { return k.grown(3) })
	two := k.running()[2]
	k.propose(two, catalog.CreateVolume{Name: "v", SizeBytes: 1 << 30})
	refused := func(cmd catalog.Command, words ...string) {
		t.Helper()
		r, err := two.Propose(t.Context(), cmd)
		if r.Index != 0 {
			t.Errorf("%#v is in the log, at %d", cmd, r.Index)
		}
		for _, w := range words {
			if !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), w) {
				t.Errorf("%#v: %v; it should say %q", cmd, err, w)
			}
		}
	}
	label := catalog.SetVolumeLabels{Volume: storage.ByName("v"), LabelChange: storage.LabelChange{Set: map[string]string{"k": "v"}}}
	refused(label, "it came with version 5", "version 4 is in force")
	refused(catalog.RaiseVersion{To: 6}, "node n3 knows version 4: start it with the new release")
	k.stopNode(3)
	k.until("nothing is heard of node 3", func() bool {
		_, err := two.Propose(t.Context(), catalog.RaiseVersion{To: 6})
		return err != nil && strings.Contains(err.Error(), "node n3 was not heard")
	})
	two.View(func(s *catalog.State) {
		if v := s.Cluster().Version; v != 4 {
			t.Errorf("version %d is in force", v)
		}
	})
	third.Store(0) // the new release
	k.startNode(3)
	k.until("every node knows it", func() bool {
		_, err := two.Propose(t.Context(), catalog.RaiseVersion{To: 6})
		return err == nil
	})
	if r := k.propose(two, label); r.Volume.Labels["k"] != "v" {
		t.Errorf("with version 6 in force: %+v", r)
	}
	k.takesInNewReleasesOnly(two)
}

// takesInNewReleasesOnly: a node of an old release is not taken in when version 6 is in force. A new one is taken in by an old release.
func (k *cluster) takesInNewReleasesOnly(c *Controller) {
	k.t.Helper()
	serve := func(_ context.Context, body []byte) ([]byte, error) {
		return c.Serve(k.t.Context(), 0, MethodJoin, body), nil
	}
	old, err := catalog.Encode(k.selfOf(4))
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := joinBy(k.t.Context(), old, serve); !errors.Is(err, storage.ErrUnsupported) || !strings.Contains(err.Error(), "version 6 is in force") {
		k.t.Errorf("a node that knows version 4: %v", err)
	}
	if r, err := Join(k.t.Context(), k.selfOf(4), serve); err != nil || r.Node != 4 {
		k.t.Errorf("a node of this release: node %v, %v", r.Node, err)
	}
	before := func(ctx context.Context, body []byte) ([]byte, error) { // as a release before version 6 answers
		if _, err := catalog.Decode(body); err != nil {
			return encodeReply(failed(err)), nil
		}
		return encodeReply(reply{Join: &JoinResponse{Node: 7}}), nil
	}
	if r, err := Join(k.t.Context(), k.selfOf(5), before); err != nil || r.Node != 7 {
		k.t.Errorf("asking a node of an old release: node %v, %v", r.Node, err)
	}
}
