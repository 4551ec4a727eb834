package server

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/export"
	"github.com/storaged/storaged/server/placement"
)

// TestConnectionsOfAVolume: a volume's connections are those that fresh reports name for it, whichever node they are of.
func TestConnectionsOfAVolume(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	heard := func(age time.Duration, list ...placement.Connection) control.Heard {
		return control.Heard{Age: age, Report: placement.NodeReport{Connections: list}}
	}
	p := &picture{nodes: []catalog.Node{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}, {ID: 3, Name: "c"}, {ID: 4, Name: "d"}},
		reports: map[storage.NodeID]control.Heard{
			1: heard(0, placement.Connection{Volume: "v", Client: "x:1", Since: since}, placement.Connection{Volume: "w", Client: "x:2"}),
			2: heard(time.Second, placement.Connection{Volume: "v", Client: "y:1", ReadOnly: true, Since: since}),
			3: heard(staleReport, placement.Connection{Volume: "v", Client: "z:1"}),
		}}
	want := []api.Connection{{Node: 1, NodeName: "a", Client: "x:1", OpenedAt: since},
		{Node: 2, NodeName: "b", Client: "y:1", ReadOnly: true, OpenedAt: since}}
	if got := p.connections("v"); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	p.reports = nil
	if got := p.connections("v"); got != nil {
		t.Errorf("without reports: %+v", got)
	}
}

// TestAdviceForAFailedDisk: nobody is told to throw away the only copy of anything, or one that a majority needs.
func TestAdviceForAFailedDisk(t *testing.T) {
	store := func(n byte) storage.StoreID { return storage.StoreID{n} }
	member := func(n byte) catalog.Replica {
		return catalog.Replica{Node: storage.NodeID(n), Key: catalog.ReplicaKey{Store: store(n), Incarnation: 1}, Role: catalog.RoleVoter}
	}
	pictureOf := func(up []byte, members ...byte) *picture {
		p := &picture{reports: map[storage.NodeID]control.Heard{}}
		g := catalog.Group{ID: 7}
		for _, m := range members {
			g.Replicas = append(g.Replicas, member(m))
		}
		for _, n := range up {
			p.reports[storage.NodeID(n)] = control.Heard{Report: placement.NodeReport{Replicas: []placement.ReplicaReport{
				{Group: 7, Key: member(n).Key, State: placement.ReplicaFollower}}}}
		}
		p.groups = []catalog.Group{g}
		return p
	}
	for _, tc := range []struct {
		name string
		p    *picture
		want bool
	}{
		{"the only copy", pictureOf(nil, 1), true},
		{"two others", pictureOf([]byte{2, 3}, 1, 2, 3), false},
		{"one other of three", pictureOf([]byte{2}, 1, 2, 3), true},
		{"one other of two", pictureOf([]byte{2}, 1, 2), true},
		{"nothing there", pictureOf([]byte{2, 3, 4}, 2, 3, 4), false},
	} {
		needed := tc.p.needed(store(1))
		step := failedStep("a", needed)
		if (needed != 0) != tc.want || strings.Contains(step, "node remove") == tc.want || strings.Contains(step, "keep the data") != tc.want {
			t.Errorf("%s: needed by %d: %s", tc.name, needed, step)
		}
	}
}

// TestReportsNameSoManyConnections (I9): a node with thousands of clients does not send them all every second.
func TestReportsNameSoManyConnections(t *testing.T) {
	list := slices.Repeat([]export.Connection{{Volume: "v", Client: "x:1"}}, placement.MaxConnections+1)
	if n := len(connectionReports(list)); n != placement.MaxConnections {
		t.Errorf("%d connections are reported", n)
	}
	if got := connectionReports(list[:1]); len(got) != 1 || got[0].Volume != "v" || got[0].Client != "x:1" {
		t.Errorf("%+v", got)
	}
}

// TestWhatIsNotKnownIsSaid: without a leader that answers, this node tells of those it is connected to, names the others, and
// knows nothing of their space; what a node's copy says was so once.
func TestWhatIsNotKnownIsSaid(t *testing.T) {
	store := func(id byte) []catalog.Store {
		return []catalog.Store{{ID: storage.StoreID{id}, CapacityBytes: 100 << 30}}
	}
	p := &picture{alone: true, self: 1, names: map[storage.NodeID]string{1: "a", 2: "b", 3: "c"},
		nodes: []catalog.Node{{ID: 1, Name: "a", State: catalog.NodeUp, Stores: store(1)},
			{ID: 2, Name: "b", State: catalog.NodeUp, Stores: store(2)}, {ID: 3, Name: "c", State: catalog.NodeUp, Stores: store(3)}},
		reached: map[storage.NodeID]bool{2: true},
		reports: map[storage.NodeID]control.Heard{1: {Report: placement.NodeReport{Node: 1,
			Stores: []placement.StoreReport{{ID: catalog.StoreText(storage.StoreID{1}), CapacityBytes: 100 << 30, FreeBytes: 60 << 30}}}}}}
	p.fresh.Age = 31 * time.Second
	var s api.Status
	p.judgeCatalog(&s)
	p.judgeNodes(&s)
	if s.NodesUp != 2 || s.NodesTotal != 3 {
		t.Errorf("%d of %d up, want 2 of 3", s.NodesUp, s.NodesTotal)
	}
	if text := s.Reasons[0].Text; !strings.Contains(text, "31s ago") {
		t.Errorf("the age of the copy is not told: %q", text)
	}
	if !slices.ContainsFunc(s.Reasons, func(r api.Reason) bool { return r.Subject == "node c" && strings.Contains(r.Text, "not heard") }) {
		t.Errorf("node c is not named: %+v", s.Reasons)
	}
	for i, want := range []struct {
		state api.NodeState
		known bool
	}{{api.NodeUp, true}, {api.NodeUp, false}, {api.NodeUnknown, false}} {
		if n := p.apiNodes()[i]; n.State != want.state || n.SpaceKnown() != want.known {
			t.Errorf("node %s: %s, space known: %v", n.Name, n.State, n.SpaceKnown())
		}
	}
	p.fresh.Age, p.nodes = control.NeverHeard, nil
	if text := p.copyAge(); !strings.Contains(text, "are not known") {
		t.Errorf("a catalog that was not read: %q", text)
	}
}

// TestFullBeforeAWriteIsRefused: a store is full, and the cluster not well, as soon as the next write may be refused.
func TestFullBeforeAWriteIsRefused(t *testing.T) {
	for free, want := range map[int64]api.StoreState{0: api.StoreFull, fullBytes - 1: api.StoreFull, fullBytes: api.StoreOK} {
		r := placement.NodeReport{Stores: []placement.StoreReport{{ID: catalog.StoreText(storage.StoreID{1}), FreeBytes: free}}}
		if got := apiStore(catalog.Store{ID: storage.StoreID{1}}, r, true); got.State != want {
			t.Errorf("%d bytes free: %s, want %s", free, got.State, want)
		}
	}
}

// TestDeadNodesDoNotSpeak: what is said of a node's addresses is of one that is connected, or was moved; a node that was
// killed a moment ago is only down.
func TestDeadNodesDoNotSpeak(t *testing.T) {
	at := peer.Speaker{Instance: 7, Address: "b:7001"}
	refused := errors.New("connection refused")
	for _, c := range []struct {
		name string
		w    peer.Whereabouts
		want string
	}{
		{"killed", peer.Whereabouts{Speaker: at, Err: refused, Since: 3 * time.Second}, ""},
		{"speaks, and is not reached", peer.Whereabouts{Speaker: at, Connected: true, Err: refused}, "it speaks to this node, and is not reached at b:7001"},
		{"moved", peer.Whereabouts{Speaker: at, Connected: true, Reached: true}, "it has moved from a:7001 to b:7001"},
	} {
		text, _, ok := judgeWhere("b", false, "a:7001", c.w)
		if ok != (c.want != "") || !strings.HasPrefix(text, c.want) {
			t.Errorf("%s: %q, want %q", c.name, text, c.want)
		}
	}
}
