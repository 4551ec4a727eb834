package control

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// told returns what a node's copy keeps of the events of a kind.
func told(c *Controller, kind storage.EventKind) (events []storage.Event) {
	c.View(func(s *catalog.State) {
		events = slices.DeleteFunc(slices.Clone(s.Events()), func(e storage.Event) bool { return e.Kind != kind })
	})
	return events
}

// TestEventsOfACluster: the leader says when a command was proposed, whoever has asked for it, and every copy keeps the same events. The
// lines are the calls of stamp.
func TestEventsOfACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := four(t)
		follower := k.any(k.leader())
		before := time.Now()
		k.propose(follower, catalog.CreateVolume{Name: "v", SizeBytes: 4096})
		events := told(follower, storage.EventVolumeCreated)
		if len(events) != 1 || events[0].VolumeName != "v" || events[0].At.Before(before) || events[0].At.After(time.Now()) {
			t.Errorf("told are %+v", events)
		}
		if joined := told(follower, storage.EventNodeJoined); len(joined) != 4 {
			t.Errorf("%+v have joined", joined)
		}
		_, err := follower.Propose(t.Context(), catalog.Stamped{Command: catalog.DeleteVolume{Volume: storage.ByName("v")}, At: time.Unix(1, 0)})
		if storage.KindOf(err) != storage.KindInvalid {
			t.Errorf("a time that another node says: %v", err)
		}
		victim := k.leader()%3 + 1
		k.stopNode(victim)
		for id, c := range k.running() {
			k.until("the copy has it", func() bool { return len(told(c, storage.EventNodeDown)) == 1 })
			if e := told(c, storage.EventNodeDown)[0]; e.Node != victim {
				t.Errorf("the copy of node %v keeps %+v", id, e)
			}
		}
	})
}

// TestNoEventsBeforeTheUpgrade: while a version is in force that does not know events, all goes on without.
func TestNoEventsBeforeTheUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.version = catalog.EventsVersion - 1
		k.three()
		c := k.running()[k.leader()]
		k.propose(c, catalog.CreateVolume{Name: "v", SizeBytes: 4096})
		c.View(func(s *catalog.State) {
			if n := s.LastEvent(); n != 0 {
				t.Errorf("%d events", n)
			}
		})
		k.propose(c, catalog.RaiseVersion{To: catalog.EventsVersion})
		k.propose(c, catalog.CreateVolume{Name: "w", SizeBytes: 4096})
		if events := told(c, storage.EventVolumeCreated); len(events) != 1 || events[0].VolumeName != "w" {
			t.Errorf("told are %+v", events)
		}
	})
}
