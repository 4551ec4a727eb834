package catalog

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
)

// texts returns what the events behind seq say.
func texts(s *State, seq uint64) (said []string) {
	for _, e := range s.Events() {
		if e.Seq > seq {
			said = append(said, e.Text())
		}
	}
	return said
}

// tells applies a command that is stamped, twice, and compares what is told: the second time tells nothing.
func (f *fixture) tells(c Command, want ...string) Result {
	f.t.Helper()
	last := f.s.LastEvent()
	r := f.ok(Stamped{c, testTime.Add(time.Duration(f.index) * time.Second)})
	if got := texts(f.s, last); !slices.Equal(got, want) {
		f.t.Errorf("%#v tells %q, want %q", c, got, want)
	}
	last = f.s.LastEvent()
	if _, changed := f.do(Stamped{c, testTime.Add(time.Hour)}); changed || f.s.LastEvent() != last {
		f.t.Errorf("%#v tells %q when it is applied again", c, texts(f.s, last))
	}
	return r
}

// eventful lets something of everything happen.
func eventful(t *testing.T) *fixture {
	f := newFixture(t)
	for n := byte(1); n <= 4; n++ {
		add := AddNode{Name: string(rune('`' + n)), Addrs: storage.Addrs{Peer: "h:1"}, Stores: []storage.Store{{ID: storeID(n), CapacityBytes: 1 << 40}}, At: testTime}
		f.tells(add, "node "+add.Name+" has joined the cluster")
	}
	f.tells(AddGroup{1, 1, storeID(1)}, "group 1 is made, with its first replica on node a")
	f.ok(SetGroupReady{1})
	grow := func(n byte, why string, more ...string) storage.ReplicaKey {
		name := string(rune('`' + n))
		key := f.tells(PlanReplica{1, storage.NodeID(n), storeID(n)}, "group 1 gets a replica on node "+name+why).Replica
		f.tells(SetReplica{Group: 1, Key: key, Role: storage.RoleLearner})
		f.tells(SetReplica{Group: 1, Key: key, Role: storage.RoleVoter}, append([]string{"group 1: the replica on node " + name + " votes"}, more...)...)
		return key
	}
	grow(2, ", because it has too few")
	third := grow(3, ", because it has too few", "group 1 has all its voters again")
	f.tells(SetNodeState{Node: 3, State: storage.NodeSuspect}, "node c is silent")
	f.tells(SetNodeState{Node: 3, State: storage.NodeDown}, "node c is down")
	fourth := grow(4, ", because node c does not answer", "group 1 has all its voters again")
	f.tells(SetReplica{Group: 1, Key: third, Role: storage.RoleLeaving}, "group 1: the replica on node c leaves, because node c does not answer")
	f.tells(RemoveReplica{1, third}, "group 1: the replica on node c is removed")
	f.tells(SetNodeState{Node: 3, State: storage.NodeUp}, "node c is back")
	f.tells(SetNodeIntent{Node: 4, Intent: storage.IntentDrain}, "node d begins to drain")
	again := grow(3, ", because node d drains")
	f.tells(SetReplica{Group: 1, Key: fourth, Role: storage.RoleLeaving}, "group 1: the replica on node d leaves, because node d drains")
	f.tells(RemoveReplica{1, fourth}, "group 1: the replica on node d is removed", "node d has drained: it holds nothing any more")
	f.tells(SetNodeIntent{Node: 4}, "node d takes its part again, and drains no more")
	f.tells(SetNodeIntent{Node: 4, Intent: storage.IntentMaintenance, Until: testTime.Add(time.Hour)}, "node d is in maintenance until 2026-01-02T04:04:05Z")
	f.tells(SetNodeIntent{Node: 4}, "the maintenance of node d has ended")
	better := f.tells(PlanReplica{1, 4, storeID(4)}, "group 1 gets a replica on node d, for a better balance").Replica
	f.tells(RemoveReplica{1, better}, "group 1: the replica on node d is given up before it was whole")
	f.tells(SetReplica{Group: 1, Key: again, Role: storage.RoleLeaving}, "group 1: the replica on node c leaves, for a better balance")
	f.tells(SetReplica{Group: 1, Key: again, Role: storage.RoleVoter, Stays: true}, "group 1: the replica on node c stays after all", "group 1 has all its voters again")
	f.tells(SetReplica{Group: 1, Key: again, Role: storage.RoleLeaving}, "group 1: the replica on node c leaves, for a better balance")
	f.tells(RemoveReplica{1, again}, "group 1: the replica on node c is removed")
	f.tells(SetNodeIntent{Node: 3, Intent: storage.IntentDrain}, "node c begins to drain", "node c has drained: it holds nothing any more")
	f.tells(SetNodeState{Node: 3, State: storage.NodeRemoved}, "node c was removed")
	f.tells(CreateVolume{Name: "v", SizeBytes: 4096, RequestID: "r", At: testTime}, "volume v is created with 4096 bytes")
	f.tells(ResizeVolume{Volume: storage.ByName("v"), SizeBytes: 8192}, "volume v has 8192 bytes now")
	f.tells(onHost("a", storage.AccessExclusive))
	v, _ := f.s.VolumeByName("v")
	take := onHost("b", storage.AccessExclusive)
	take.TakeOver, take.IfGeneration = true, v.Generation
	f.tells(take, "volume v was taken over by b")
	f.tells(Detach{Volume: storage.ByName("v"), Holder: "b", At: testTime}, "volume v was taken from a holder that had not closed it")
	f.tells(onHost("c", storage.AccessExclusive))
	f.tells(Detach{Volume: storage.ByName("v"), Holder: "c", Closed: true, At: testTime})
	f.tells(DeleteVolume{storage.ByID(v.ID)}, "volume v is deleted")
	return f
}

// TestEventsTold: each change that people want to know of is told once, with its cause, and what changes nothing tells nothing.
// Removed once each: the cause that a node is down, the drained node in goneEvents, what Stamped checks.
func TestEventsTold(t *testing.T) {
	f := eventful(t)
	for i, e := range f.s.Events() {
		if e.Seq != uint64(i+1) || e.At.Before(testTime) || e.Severity() == "" {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	refused := f.s.LastEvent()
	f.refused(Stamped{SetNodeState{Node: 99, State: storage.NodeDown}, testTime}, storage.KindNotFound)
	f.refused(Stamped{SetFenced{1, 1}, testTime}, storage.KindInvalid)
	if f.s.LastEvent() != refused {
		t.Errorf("a refused command tells %q", texts(f.s, refused))
	}
}

// TestEventsGolden: events lie in snapshots of version 9 as they are in the file, and come back.
func TestEventsGolden(t *testing.T) {
	f := eventful(t)
	f.ok(CreateVolume{Name: "web-data", SizeBytes: 1 << 20, At: testTime, Groups: 1})
	g := f.tells(AddGroup{2, 1, storeID(1)}, "group 2 is made, with its first replica on node a").Group
	f.ok(SetGroupReady{g})
	f.ok(DeleteVolume{storage.ByName("web-data")})
	f.ok(CreateVolume{Name: "web-data", SizeBytes: 1 << 20, At: testTime, Groups: 2})
	back := golden(t, f.s, "testdata/snapshot_v9_events.golden")
	if got, want := texts(back, 0), texts(f.s, 0); !slices.Equal(got, want) || len(got) < 40 {
		t.Errorf("the golden snapshot tells %q, want %q", got, want)
	}
}

// TestEventsBounded: the newest events are kept, and their numbers go on. What one copy keeps from then on is not seen in another one that
// was cloned from it. The lines are those of addEvent, and slices.Clip in Clone.
func TestEventsBounded(t *testing.T) {
	f := newFixture(t)
	f.node(1)
	one := f.s.Clone()
	for i := range MaxEvents + 10 {
		state := []storage.NodeState{storage.NodeDown, storage.NodeUp}[i%2]
		f.ok(Stamped{SetNodeState{Node: 1, State: state}, testTime})
		if i == MaxEvents/2 {
			one = f.s.Clone()
			other := one.Clone()
			one.addEvent(testTime, storage.Event{Kind: storage.EventNodeJoined, Node: 1})
			other.addEvent(testTime, storage.Event{Kind: storage.EventNodeRemoved, Node: 1})
		}
	}
	events := f.s.Events()
	if len(events) != MaxEvents || events[0].Seq != 11 || f.s.LastEvent() != MaxEvents+10 {
		t.Errorf("%d events from %d, the last %d", len(events), events[0].Seq, f.s.LastEvent())
	}
	if last := one.Events()[len(one.Events())-1]; last.Kind != storage.EventNodeJoined {
		t.Errorf("the end of a clone is %+v", last)
	}
	if e := events[MaxEvents/2-9]; e.Seq != MaxEvents/2+2 || e.Kind != storage.EventNodeBack {
		t.Errorf("a clone has written %+v into the events of the first", e)
	}
}

// TestEventsOfOneKindLeaveRoom: volumes that come and go do not push out what happened to nodes and groups, and the list that a clone has is as it was.
func TestEventsOfOneKindLeaveRoom(t *testing.T) {
	f := eventful(t)
	before := texts(f.s, 0)
	clone := f.s.Clone()
	var full *State
	for i := range 2 * MaxEvents {
		f.s.addEvent(testTime, storage.Event{Kind: storage.EventVolumeDeleted, Volume: storage.VolumeID(i + 1), VolumeName: "v"})
		if i == MaxEvents {
			full = f.s.Clone()
		}
	}
	left := slices.DeleteFunc(slices.Clone(f.s.Events()), func(e storage.Event) bool { return e.Class() == storage.ClassVolume })
	first := slices.DeleteFunc(slices.Clone(clone.Events()), func(e storage.Event) bool { return e.Class() == storage.ClassVolume })
	if len(f.s.Events()) != MaxEvents || len(first) == 0 || !slices.Equal(left, first) {
		t.Errorf("%d events, of nodes and groups there are %d, and were %d", len(f.s.Events()), len(left), len(first))
	}
	if !slices.Equal(texts(clone, 0), before) {
		t.Error("the list of a clone has changed")
	}
	for i, e := range full.Events()[len(first):] {
		if want := full.LastEvent() - uint64(MaxEvents-len(first)-1-i); e.Seq != want {
			t.Fatalf("event %d of a clone has number %d, want %d", i, e.Seq, want)
		}
	}
	if err := f.s.Check(); err != nil {
		t.Error(err)
	}
}

// TestEventsGated: no command is stamped before version 9 is in force, and one that reaches the log all the same changes nothing.
func TestEventsGated(t *testing.T) {
	f := newFixtureOf(t, EventsVersion-1)
	f.node(1)
	c := Stamped{SetNodeState{Node: 1, State: storage.NodeDown}, testTime}
	if err := f.s.Permits(c); storage.KindOf(err) != storage.KindConflict || !strings.Contains(err.Error(), "came with version 9") {
		t.Errorf("a stamped command is permitted: %v", err)
	}
	f.refused(c, storage.KindConflict, "version 9")
	f.ok(c.Command)
	b, err := Encode(c.Command)
	if err != nil {
		t.Fatal(err)
	}
	old := sealCommand(bytes.Replace(b[commandSealBytes:], []byte(`"body"`), []byte(`"at":"2026-01-02T03:04:05Z","body"`), 1))
	if _, err := Decode(old); storage.KindOf(err) != storage.KindInvalid {
		t.Errorf("a time under an older version is taken: %v", err)
	}
	snapshot, err := f.s.Snapshot()
	if err != nil || snapshot[8] != EventsVersion-1 {
		t.Errorf("the snapshot is of version %d, %v", snapshot[8], err)
	}
}

// TestRecoveredEvents: a recovery is told, and the numbers of events go on beyond those that the copy does not know of.
func TestRecoveredEvents(t *testing.T) {
	f := eventful(t)
	known := f.s.Clone()
	known.lastEvent += 1 << 40
	r, err := f.s.Recovered(f.index+1000, []storage.NodeID{4}, known, testTime)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"node d was lost, and the cluster recovered without it", "the cluster was recovered from the catalog of one node; nodes lost: 1"}
	if r.LastEvent() >= 1<<53 {
		t.Errorf("event %d: programs that keep numbers as floating point know no such", r.LastEvent())
	}
	if got := texts(r, known.lastEvent); !slices.Equal(got, want) {
		t.Errorf("told is %q, want %q", got, want)
	}
}

// TestEventsOfAnyCommand: whatever is stamped, two copies keep the same events, and a command that is applied again tells nothing.
func TestEventsOfAnyCommand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(), New()
		var index uint64
		apply := func(c Command) Result {
			raw, err := Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			index++
			r := a.Apply(index, raw)
			b.Apply(index, raw)
			return r
		}
		apply(InitCluster{Cluster{ID: storage.ClusterID{1}, Version: Version}})
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			c := randomCommand(t, a)
			if c.check() != nil || a.Permits(c) != nil || !Tells(c) {
				continue
			}
			c = Stamped{c, testTime}
			if r := apply(c); r.Err != nil {
				continue
			}
			last := a.LastEvent()
			if apply(c); a.LastEvent() != last {
				t.Fatalf("%+v tells %q when it is applied again", c, texts(a, last))
			}
			for _, e := range a.Events() {
				if e.Text() == "" {
					t.Fatalf("%+v tells %+v, which has no words", c, e)
				}
			}
			if err := a.Check(); err != nil {
				t.Fatal(err)
			}
			if rapid.IntRange(0, 9).Draw(t, "restore") == 0 {
				b = restored(t, b)
			}
		}
		if x, y := fmt.Sprint(a.Events()), fmt.Sprint(b.Events()); x != y {
			t.Fatalf("copies keep\n%s\n%s", x, y)
		}
	})
}
