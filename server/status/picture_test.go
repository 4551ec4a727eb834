package status

import (
	"slices"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
	"github.com/storaged/storaged/server/placement"
)

// TestConnectionsOfAVolume: a volume's connections are those that fresh reports name for it, whichever node they are of.
func TestConnectionsOfAVolume(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	heard := func(age time.Duration, list ...placement.Connection) placement.Heard {
		return placement.Heard{Age: age, Report: placement.NodeReport{Connections: list}}
	}
	p := &picture{nodes: []storage.Node{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}, {ID: 3, Name: "c"}, {ID: 4, Name: "d"}},
		reports: map[storage.NodeID]placement.Heard{
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

// TestWhatIsNotKnownIsSaid: without a leader that answers, this node tells of those it is connected to, names the others, and
// knows nothing of their space; what a node's copy says was so once.
func TestWhatIsNotKnownIsSaid(t *testing.T) {
	p := whole()
	p.onlyHeard(0)
	p.reached[3] = false
	p.nodes[1].State = storage.NodeDown // once
	for i, want := range []struct {
		state storage.NodeState
		known bool
		seen  time.Time
	}{{storage.NodeUp, true, p.now}, {storage.NodeUp, false, p.now}, {storage.NodeUnknown, false, time.Time{}}} {
		if n := p.apiNodes()[i]; n.State != want.state || n.SpaceKnown() != want.known || !n.SeenAt.Equal(want.seen) {
			t.Errorf("node %s: %s, space known: %v, seen %v", n.Name, n.State, n.SpaceKnown(), n.SeenAt)
		}
	}
	p = whole()
	p.silent(3, storage.NodeDown) // as the leader says, which would know
	if n := p.apiNodes()[2]; n.State != storage.NodeDown {
		t.Errorf("node %s: %s", n.Name, n.State)
	}
}

// TestFullBeforeAWriteIsRefused: a store is full, and the cluster not well, as soon as the next write may be refused.
func TestFullBeforeAWriteIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		report placement.StoreReport
		want   api.StoreState
		free   int64
	}{
		"compaction makes room": {placement.StoreReport{StoreSpace: storage.StoreSpace{Compaction: storage.CompactionBehind, ReserveBytes: 9}}, api.StoreOK, 1 << 30},
		"it makes none":         {placement.StoreReport{StoreSpace: storage.StoreSpace{Compaction: storage.CompactionNothingToWin, ReserveBytes: 9}}, api.StoreFull, 0},
		"it cannot make any":    {placement.StoreReport{StoreSpace: storage.StoreSpace{Compaction: storage.CompactionNoRoom, ReserveBytes: 9}}, api.StoreFull, 0},
		"it need not make any": {placement.StoreReport{StoreSpace: storage.StoreSpace{Compaction: storage.CompactionNoRoom, ReserveBytes: 9, UnusedBytes: 1 << 30}},
			api.StoreOK, 1 << 30},
		"it has failed": {placement.StoreReport{Failed: "input/output error"}, api.StoreFailed, 0},
	} {
		c.report.FreeBytes = 1 << 30
		if got := apiStore(storage.Store{}, placement.NodeReport{Stores: []placement.StoreReport{c.report}}, true); got.State != c.want || got.FreeBytes != c.free {
			t.Errorf("%s: %s, %d bytes free; want %s, %d", name, got.State, got.FreeBytes, c.want, c.free)
		}
	}
	for free, want := range map[int64]api.StoreState{0: api.StoreFull, fullBytes - 1: api.StoreFull, fullBytes: api.StoreOK} {
		r := placement.NodeReport{Stores: []placement.StoreReport{{ID: storage.StoreID{1}, FreeBytes: free}}}
		if got := apiStore(storage.Store{ID: storage.StoreID{1}}, r, true); got.State != want {
			t.Errorf("%d bytes free: %s, want %s", free, got.State, want)
		}
	}
}

// TestLeaderOfTwoReports: reports are up to a second apart. A group whose newest term is led by a node that is heard has a
// leader, whoever has not said so yet; one whose newest term has none has lost it.
func TestLeaderOfTwoReports(t *testing.T) {
	for _, c := range []struct {
		name string
		says func(p *picture)
		want storage.NodeID
	}{
		{"all agree", func(p *picture) {
			p.says(1, 1, placement.ReplicaLeader, 2, 1)
			p.says(2, 1, placement.ReplicaFollower, 2, 1)
		}, 1},
		{"the old leader follows the new one, which has not reported since", func(p *picture) {
			p.says(1, 1, placement.ReplicaFollower, 3, 2)
			p.says(2, 1, placement.ReplicaFollower, 2, 1)
		}, 2},
		{"the new one has, the old one has not", func(p *picture) {
			p.says(1, 1, placement.ReplicaLeader, 2, 1)
			p.says(2, 1, placement.ReplicaLeader, 3, 2)
		}, 2},
		{"an election is under way", func(p *picture) {
			p.says(1, 1, placement.ReplicaFollower, 2, 3)
			p.says(2, 1, placement.ReplicaCandidate, 3, 0)
			p.says(3, 1, placement.ReplicaFollower, 1, 1)
		}, 0},
		{"the one that is named is not heard", func(p *picture) {
			p.says(1, 1, placement.ReplicaFollower, 3, 3)
			p.says(2, 1, placement.ReplicaFollower, 3, 3)
			h := p.reports[3]
			h.Age = staleReport
			p.reports[3] = h
		}, 0},
		{"the one that is named says itself, in that term, that it does not lead", func(p *picture) {
			p.says(1, 1, placement.ReplicaFollower, 3, 3)
			p.says(3, 1, placement.ReplicaFollower, 3, 0)
		}, 0},
		{"an old report names one of a higher term", func(p *picture) {
			p.says(1, 1, placement.ReplicaFollower, 9, 2)
			h := p.reports[1]
			h.Age = staleReport
			p.reports[1] = h
		}, 0},
	} {
		p := firstStart()
		p.add(storage.GroupReady, 1, 2, 3)
		c.says(p)
		if _, got := p.leader(p.groups[0]); got != c.want {
			t.Errorf("%s: node %d, want %d", c.name, got, c.want)
		}
	}
}

// TestEachGroupCountsForOneLeader: a node that hangs has reported that it leads what others lead by now.
func TestEachGroupCountsForOneLeader(t *testing.T) {
	p := firstStart()
	p.add(storage.GroupReady, 1, 2, 3)
	p.says(1, 1, placement.ReplicaLeader, 2, 1)
	p.says(2, 1, placement.ReplicaLeader, 3, 2)
	p.says(3, 1, placement.ReplicaFollower, 3, 2)
	for i, want := range []int{0, 1, 0} {
		if n := p.apiNodes()[i]; n.Leaders != want || n.Replicas != 1 {
			t.Errorf("node %s has %d replicas and leads %d, want 1 and %d", n.Name, n.Replicas, n.Leaders, want)
		}
	}
}

// TestWhereAVolumeIsOpen: a list of volumes says of each which hosts' gateways and which nodes serve it, and to whom.
func TestWhereAVolumeIsOpen(t *testing.T) {
	c := catalogtest.New(t)
	c.Cluster(1)
	at, node := time.Now().UTC(), storage.NodeID(1)
	for _, name := range []string{"shared", "idle"} {
		c.Must(catalog.CreateVolume{Name: name, SizeBytes: 1 << 20, At: at})
	}
	shared := storage.ByName("shared")
	for g, holder := range map[catalog.Gateway]storage.Holder{
		{Host: "host-a"}: {ID: "host-a", Kind: storage.HolderHost, Host: "host-a"},
		{Host: "host-b"}: {ID: "host-b", Kind: storage.HolderHost, Host: "host-b"},
		{Node: node}:     storage.NBDHolder(node, "a", false), // the node's NBD clients have a part in it
	} {
		a := c.Must(catalog.Attach{Volume: shared, Holder: holder, Access: storage.AccessShared, At: at}).Attachment
		c.Must(catalog.OpenSession{Volume: shared, Gateway: g, Attachment: a.ID, Instance: "i", At: at})
	}
	p := &picture{nodes: c.Leader.Nodes(), names: map[storage.NodeID]string{1: "a"}, usedBy: map[storage.VolumeID][]catalog.Session{},
		volumes: c.Leader.VolumesByName(), reports: map[storage.NodeID]placement.Heard{1: {Report: placement.NodeReport{
			Connections: []placement.Connection{{Volume: "shared", Client: "10.0.0.7:41000"}}}}}}
	for _, v := range p.volumes {
		p.usedBy[v.ID] = c.Leader.SessionsOf(v.ID)
	}
	got := map[string][]string{}
	for _, v := range p.list(api.VolumeFilter{}, "", 10) {
		for _, s := range v.Sessions {
			got[v.Name] = append(got[v.Name], s.Node.String()+" "+s.NodeName)
		}
		for _, c := range v.Connections {
			got[v.Name] = append(got[v.Name], c.NodeName+" serves "+c.Client)
		}
		slices.Sort(got[v.Name])
	}
	want := []string{"0 host-a", "0 host-b", "1 a", "a serves 10.0.0.7:41000"}
	if !slices.Equal(got["shared"], want) || got["idle"] != nil || len(p.volumes) != 2 {
		t.Errorf("open on %q, want %q for shared and nothing for idle", got, want)
	}
}
