package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

func host(id string, takeOver bool) catalog.Attach {
	return catalog.Attach{Volume: storage.ByName("v"), Holder: storage.Holder{ID: id, Kind: storage.HolderHost}, Access: storage.AccessExclusive,
		TakeOver: takeOver, At: time.Now().UTC()}
}

// setFail makes every group answer with err.
func (k *cluster) setFail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

// fenced reports whether every group of the volume was told of its generation.
func (k *cluster) fenced(v storage.Volume) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, g := range v.Groups {
		if !k.done[fmt.Sprintf("set generation %s of volume %s in group %s", v.Generation, v.ID, g)] {
			return false
		}
	}
	return true
}

func (k *cluster) volume(c *Controller) (v storage.Volume) {
	k.t.Helper()
	if err := c.Read(k.t.Context(), func(s *catalog.State) { v, _ = s.VolumeByName("v") }); err != nil {
		k.t.Fatal(err)
	}
	return v
}

func attach(t *testing.T, c *Controller, cmd catalog.Attach) storage.Attachment {
	t.Helper()
	a, err := c.Attach(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var errNoLeader = storage.E("propose", storage.KindNotLeader, "group", nil)

// TestTakeoverIsFencedBeforeItReturns guards I2: no takeover is acknowledged, and no session given out, before every group
// of the volume refuses the former generation. An interrupted takeover is finished by the same call, on another node and
// under another leader of the catalog.
//
// Lines: the call of fence in Controller.Attach (attach.go), and the comparison of Fenced in mayUse
// (server/catalog/apply_attach.go). Tried: without either this test fails.
func TestTakeoverIsFencedBeforeItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		c := k.running()[1]
		k.propose(c, catalog.CreateVolume{Name: "v", SizeBytes: 4096, At: time.Now()})
		if a := attach(t, c, host("one", false)); a.Generation != 1 || k.volume(c).Fenced != 1 {
			t.Fatalf("the first attachment is %+v", a)
		}
		k.setFail(errNoLeader)
		short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := c.Attach(short, host("two", true)); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("a takeover that no group knows of is answered %v", err)
		}
		v := k.volume(c)
		if v.Generation != 2 || v.Fenced != 1 {
			t.Fatalf("the volume is %+v", v)
		}
		open := catalog.OpenSession{Volume: storage.ByName("v"), Gateway: catalog.Gateway{Host: "two"}, Instance: "i", At: time.Now()}
		_ = c.Read(t.Context(), func(s *catalog.State) { open.Attachment = s.AttachmentsOf(v.ID)[0].ID })
		if _, err := c.Propose(t.Context(), open); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a session before the former holder is fenced: %v", err)
		}

		k.stopNode(k.leader())
		c = k.running()[k.leader()]
		k.setFail(nil)
		if a := attach(t, c, host("two", true)); a.ID != open.Attachment || a.Generation != 2 {
			t.Errorf("the takeover once more: %+v", a)
		}
		if v := k.volume(c); !k.fenced(v) || v.Fenced != 2 {
			t.Errorf("it returned before every group of %+v was told", v)
		}
		if _, err := c.Propose(t.Context(), open); err != nil {
			t.Errorf("a session after it: %v", err)
		}
	})
}

// TestTakeoverIsFinishedByTheLeader: whoever took over died half-way; the volume is in order again without anybody's call.
func TestTakeoverIsFinishedByTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		c := k.running()[1]
		k.propose(c, catalog.CreateVolume{Name: "v", SizeBytes: 4096, At: time.Now()})
		attach(t, c, host("one", false))
		k.propose(c, host("two", true)) // and no more
		if k.fenced(k.volume(c)) {
			t.Fatal("the groups were told already")
		}
		k.until("the leader has fenced the former holder", func() bool {
			v := k.volume(k.running()[2])
			return k.fenced(v) && v.Fenced == v.Generation
		})
	})
}

// TestTwoTakeovers: of two that begin at the same generation one wins, and the other is told who did.
func TestTwoTakeovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		c := k.running()[1]
		k.propose(c, catalog.CreateVolume{Name: "v", SizeBytes: 4096, At: time.Now()})
		attach(t, c, host("one", false))
		var wg sync.WaitGroup
		errs := map[string]error{}
		var mu sync.Mutex
		for node, id := range map[storage.NodeID]string{2: "two", 3: "three"} {
			c := k.running()[node]
			wg.Go(func() {
				cmd := host(id, true)
				cmd.IfGeneration = 1
				_, err := c.Attach(t.Context(), cmd)
				mu.Lock()
				defer mu.Unlock()
				errs[id] = err
			})
		}
		wg.Wait()
		won := 0
		for id, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, storage.ErrConflict):
				t.Errorf("holder %s is told %v", id, err)
			default:
				t.Logf("holder %s is told: %v", id, err)
			}
		}
		if v := k.volume(c); won != 1 || v.Generation != 2 {
			t.Errorf("%d won, generation %s", won, v.Generation)
		}
		// Without a generation both succeed, one after the other, unless one learns that it has lost already.
		attach(t, c, host("four", true))
		attach(t, c, host("five", true))
		if v := k.volume(c); v.Generation != 4 || v.Fenced != 4 {
			t.Errorf("after two more: %+v", v)
		}
	})
}

// TestDetach: the end of an exclusive attachment raises the generation in every group before it returns, and that of a
// shared one closes its sessions there. Both may be repeated, also when the first call was interrupted.
//
// Guards I2. Line: closeEverywhere in Controller.Detach (attach.go).
func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		c := k.running()[1]
		id := k.propose(c, catalog.CreateVolume{Name: "v", SizeBytes: 4096, At: time.Now()}).Volume.ID
		detach := func(holder string) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return c.Detach(ctx, catalog.Detach{Volume: storage.ByID(id), Holder: holder, At: time.Now().UTC()})
		}
		attach(t, c, host("one", false))
		for range 2 {
			if err := detach("one"); err != nil {
				t.Fatal(err)
			}
		}
		if v := k.volume(c); v.Generation != 2 || !k.fenced(v) {
			t.Fatalf("after the end of an exclusive attachment: %+v", v)
		}

		shared := host("two", false)
		shared.Access = storage.AccessShared
		at := attach(t, c, shared)
		shared.Holder.ID = "three"
		attach(t, c, shared)
		session := k.propose(c, catalog.OpenSession{Volume: storage.ByID(id), Gateway: catalog.Gateway{Host: "two"}, Attachment: at.ID,
			Instance: "i", At: time.Now()}).Session.ID
		k.setFail(errNoLeader)
		if err := detach("two"); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("sessions that no group has closed: %v", err)
		}
		k.setFail(nil)
		if err := detach("two"); err != nil {
			t.Fatal(err)
		}
		v := k.volume(c)
		k.mu.Lock()
		for _, g := range v.Groups {
			if what := fmt.Sprintf("close session %s of volume %s in group %s", session, id, g); !k.done[what] {
				t.Errorf("it returned before somebody asked to %s", what)
			}
		}
		k.mu.Unlock()
		if v.Generation != 2 {
			t.Errorf("the other holder lost the volume, too: %+v", v)
		}
		if err := detach("nobody"); err != nil {
			t.Errorf("what is not attached: %v", err)
		}
	})
}

// TestRemovedNodeIsDetached: what a node that was removed held for its clients does not stay for ever.
func TestRemovedNodeIsDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		k.propose(k.running()[1], catalog.CreateVolume{Name: "v", SizeBytes: 4096, At: time.Now()})
		cmd := host("", false)
		cmd.Holder = storage.NBDHolder(3, "n3", false)
		attach(t, k.running()[3], cmd)
		k.stopNode(3)
		c := k.running()[1]
		state := func() (n storage.Node, attachments int) {
			_ = c.Read(t.Context(), func(s *catalog.State) {
				n, _ = s.Node(3)
				attachments = len(s.Attachments())
			})
			return n, attachments
		}
		k.until("node 3 is down", func() bool { n, _ := state(); return n.State == storage.NodeDown })
		if _, n := state(); n != 1 {
			t.Errorf("%d attachments of a node that is down and may come back", n)
		}
		k.propose(c, catalog.SetNodeState{Node: 3, State: storage.NodeRemoved})
		k.until("its attachment is gone", func() bool { _, n := state(); return n == 0 })
	})
}
