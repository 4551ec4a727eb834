package replication

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/runner"
)

// A manifest was pulled for a leader that was deposed meanwhile, so that Raft refuses to install it. What was pulled is kept for the next
// pull, and free when the replica has caught up. Guards I6.
func TestPullThatIsNotInstalledIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, gone := lagging(t, 300)
		defer h.close()
		source := h.awaitLeader(1)
		h.net.CutBoth(nodeName(source), nodeName(gone)) // the leader does not send its own
		third := 6 - source - gone
		h.nodes[gone].start()
		g := h.nodes[gone].replicas.mustGroup(1)
		o, err := h.nodes[third].replicas.pulls.add(h.nodes[third].replicas.mustGroup(1), 0)
		if err != nil {
			t.Fatal(err)
		}
		from := h.instance(third)
		req := &raft.InstallSnapshotRequest{RPCHeader: headerOf(third), SnapshotVersion: 1, Term: h.instance(source).CurrentTerm(),
			LastLogIndex: o.m.Index, LastLogTerm: o.m.Term, Configuration: o.m.Config, ConfigurationIndex: o.m.ConfigIndex}
		before := h.nodes[gone].store.Space().FreeBytes
		<-time.After(2 * time.Second)                                                             // the nodes have their connections
		h.net.SetLink(nodeName(third), nodeName(gone), simnet.Link{Delay: 40 * time.Millisecond}) // the pull takes its time
		answer := make(chan error, 1)
		var resp raft.InstallSnapshotResponse
		go func() {
			answer <- from.transport.InstallSnapshot(serverID(gone), runner.NodeAddress(gone), req, &resp, strings.NewReader(o.name))
		}()
		h.eventually("the pull to begin", func() bool { return g.pullTotal.Load() > 0 })
		term := req.Term + 5
		h.beat(third, gone, term)
		if g.pullTotal.Load() == 0 {
			t.Fatal("the pull is over: the test shows nothing")
		}
		if err := <-answer; err != nil || resp.Success || resp.Term < term {
			t.Fatalf("installed %v, %v: the test shows nothing", resp.Success, err)
		}
		if n := h.nodes[gone].store.Pulls(); n != 0 {
			t.Errorf("%d stagings are kept", n)
		}
		if h.nodes[gone].store.Staged() < 200*storage.BlockSize {
			t.Errorf("%d bytes are kept for the next pull", h.nodes[gone].store.Staged())
		}
		h.net.HealAll()
		h.has(c, gone, 300)
		<-time.After(time.Minute)
		if n := h.nodes[gone].store.Staged(); n != 0 {
			t.Errorf("%d bytes are kept for a replica that has caught up", n)
		}
		if after := h.nodes[gone].store.Space().FreeBytes; after < before-(8<<20) {
			t.Errorf("%d bytes are kept", before-after)
		}
	})
}

// A pull that breaks is gone on with, from another node too, and by another process: in all as many bytes are moved as there are, and of
// what was kept nothing is left afterwards. Guards I8; the line is the Keep in group.pull (tried: Abort).
func TestBrokenPullGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, gone := lagging(t, 800)
		defer h.close()
		source := h.awaitLeader(1)
		third := 6 - source - gone
		h.net.CutBoth(nodeName(source), nodeName(gone)) // the leader does not send its own
		<-time.After(2 * time.Second)                   // the nodes have their connections
		h.net.SetLink(nodeName(third), nodeName(gone), simnet.Link{Delay: 100 * time.Microsecond, BytesPerSecond: 2 << 20})
		h.nodes[gone].start()
		n := h.nodes[gone]
		g := n.replicas.mustGroup(1)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := g.pull(ctx, third, "", nil)
			ended <- err
		}()
		h.eventually("the middle of the pull", func() bool { return g.pulled.Load() > 1<<20 })
		if n.store.Pulls() != 1 {
			t.Errorf("%d pulls are under way", n.store.Pulls())
		}
		cancel()
		if err := <-ended; err == nil {
			t.Fatal("it had all come: the test shows nothing")
		}
		first := g.pulled.Load()
		if n.store.Pulls() != 0 || n.store.Staged() == 0 {
			t.Errorf("%d pulls are under way, %d bytes are kept", n.store.Pulls(), n.store.Staged())
		}
		n.crash()
		n.start()
		h.net.HealAll()
		h.has(c, gone, 800)
		all := 800 * int64(storage.BlockSize)
		if moved := first + n.replicas.mustGroup(1).pulled.Load(); moved > all*11/10 {
			t.Errorf("%d bytes were moved, and then %d, of %d", first, moved-first, all)
		}
		if n.store.Staged() != 0 {
			t.Errorf("%d bytes are kept after the install", n.store.Staged())
		}
	})
}
