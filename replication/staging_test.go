package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

// A manifest was pulled for a leader that was deposed meanwhile, so that Raft refuses to install it. What was pulled is
// given up: its segments are free again. Guards I6.
func TestPullThatIsNotInstalledIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _, gone := lagging(t, 300)
		defer h.close()
		source := h.awaitLeader(1)
		h.net.CutBoth(nodeName(source), nodeName(gone)) // the leader does not send its own
		third := 6 - source - gone
		h.nodes[gone].start()
		g := h.nodes[gone].host.mustGroup(1)
		tr := g.inst.Load().transport
		var name string
		pull := tr.cfg.Pull
		tr.cfg.Pull = func(ctx context.Context, from storage.NodeID, manifest string, req *raft.InstallSnapshotRequest) (string, error) {
			var err error
			name, err = pull(ctx, from, manifest, nil)
			_, _ = tr.deliver(ctx, raft.RPC{Command: &raft.AppendEntriesRequest{RPCHeader: headerOf(third), Term: req.Term + 5}})
			return name, err
		}
		o, err := h.nodes[third].host.pulls.add(h.nodes[third].host.mustGroup(1))
		if err != nil {
			t.Fatal(err)
		}
		req := &raft.InstallSnapshotRequest{RPCHeader: headerOf(source), SnapshotVersion: 1, Term: h.instance(source).raft.CurrentTerm(),
			LastLogIndex: o.m.Index, LastLogTerm: o.m.Term, Configuration: o.m.Config, ConfigurationIndex: o.m.ConfigIndex}
		before := h.nodes[gone].store.Space().FreeBytes
		_, installed, err := tr.install(&peer.Inbound{From: third}, req, installPart{manifest: o.name, last: true})
		if err != nil || installed || name == "" {
			t.Fatalf("installed %v of %q, %v: the test shows nothing", installed, name, err)
		}
		if err := g.extents.Install(name); err == nil {
			t.Error("what was pulled is still there to be installed")
		}
		time.Sleep(time.Minute)
		if after := h.nodes[gone].store.Space().FreeBytes; after < before-(8<<20) {
			t.Errorf("%d bytes are kept", before-after)
		}
	})
}
