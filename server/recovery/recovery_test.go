package recovery

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/datadir"
)

func survivor(self storage.NodeID, voters ...storage.NodeID) replication.Survivor {
	key := func(n storage.NodeID) storage.ReplicaKey {
		return storage.ReplicaKey{Store: storage.StoreID{byte(n)}, Incarnation: 1}
	}
	s := replication.Survivor{Group: 3, Key: key(self), Index: 9, Term: 2}
	for _, v := range voters {
		s.Voters = append(s.Voters, replication.SurvivingMember{Node: v, Key: key(v)})
	}
	return s
}

// TestJudge: a replica goes on alone only where it votes and no other voter is left, or where people say so and there is no majority.
func TestJudge(t *testing.T) {
	damaged := survivor(1, 1, 2, 3)
	damaged.Damaged = "its log is damaged"
	for name, c := range map[string]struct {
		s       replication.Survivor
		lost    []storage.NodeID
		promote bool
		want    Fate
	}{
		"all are left":                {survivor(1, 1, 2, 3), nil, false, GoesOn},
		"two of three are left":       {survivor(1, 1, 2, 3), []storage.NodeID{3}, false, GoesOn},
		"a majority, and promoted":    {survivor(1, 1, 2, 3), []storage.NodeID{3}, true, GoesOn},
		"one of three is left":        {survivor(1, 1, 2, 3), []storage.NodeID{2, 3}, false, Alone},
		"it is alone already":         {survivor(1, 1), []storage.NodeID{2, 3}, false, GoesOn},
		"two of five are left":        {survivor(1, 1, 2, 3, 4, 5), []storage.NodeID{3, 4, 5}, false, Undecided},
		"two of five, this is chosen": {survivor(1, 1, 2, 3, 4, 5), []storage.NodeID{3, 4, 5}, true, Alone},
		"half of two":                 {survivor(1, 1, 2), []storage.NodeID{2}, false, Alone},
		"a learner":                   {survivor(4, 1, 2, 3), []storage.NodeID{1, 2, 3}, false, Without},
		"a learner, promoted":         {survivor(4, 1, 2, 3), []storage.NodeID{1, 2, 3}, true, Without},
		"damaged":                     {damaged, []storage.NodeID{2, 3}, false, Without},
		"never brought up":            {survivor(1), nil, false, Without},
	} {
		if got := judge(c.s, c.lost, c.promote); got.Fate != c.want {
			t.Errorf("%s: %s (%s), want %s", name, got.Fate, got.Why, c.want)
		}
	}
}

// TestToken: what the first node says is what the others understand, and nothing else is.
func TestToken(t *testing.T) {
	r := Recovery{number: 0x1f, lost: []storage.NodeID{2, 3}}
	if got := r.Token(); got != "0000001f:2,3" {
		t.Errorf("it says %q", got)
	}
	for _, lost := range [][]storage.NodeID{{2, 3}, nil} {
		r.lost = lost
		n, ids, err := parseToken(r.Token())
		if err != nil || n != r.number || !slices.Equal(ids, lost) {
			t.Errorf("%q is understood as %08x, %v, %v", r.Token(), n, ids, err)
		}
	}
	for _, text := range []string{"", "1f:2", "00000000:2", "0000001f", "0000001f:x", "0000001f:0", "000000001f:2", "0000001g:2", "-000001f:2"} {
		if _, _, err := parseToken(text); storage.KindOf(err) != storage.KindInvalid {
			t.Errorf("%q is understood: %v", text, err)
		}
	}
}

// copyOf is what node 1 has of a catalog with nodes a, b and c, and group 1 on all, 2 on b alone, and a volume in each.
func copyOf(t *testing.T) *catalog.State {
	c := catalogtest.New(t)
	c.Cluster(1)
	at := time.Unix(1_900_000_000, 0).UTC()
	for i, name := range []string{"b", "3"} {
		c.Must(catalog.AddNode{Name: name, Addrs: storage.Addrs{Peer: name + ":7001"}, At: at, Stores: []storage.Store{{ID: storage.StoreID{byte(i + 2)}, CapacityBytes: 1 << 40}}})
		r := c.Must(catalog.PlanReplica{Group: 1, Node: storage.NodeID(i + 2), Store: storage.StoreID{byte(i + 2)}}).Replica
		c.Must(catalog.SetReplica{Group: 1, Key: r, Role: storage.RoleVoter})
	}
	c.Must(catalog.AddNode{Name: "d", Addrs: storage.Addrs{Peer: "d:7001"}, At: at, Stores: []storage.Store{{ID: storage.StoreID{9}, CapacityBytes: 1 << 40}}})
	c.Must(catalog.CreateVolume{Name: "everywhere", SizeBytes: 1 << 30, At: at})
	c.Must(catalog.AddGroup{Group: 2, Node: 2, Store: storage.StoreID{2}})
	c.Must(catalog.SetGroupReady{Group: 2})
	c.Must(catalog.CreateVolume{Name: "striped", SizeBytes: 1 << 30, Groups: 2, At: at})
	return c.Leader
}

// TestLostNodesByName: a node is named by its name or id; what is both, or neither, is refused.
func TestLostNodesByName(t *testing.T) {
	r := &Recovery{copy: &control.Copy{Identity: control.Identity{Node: 1}}, from: copyOf(t)}
	for text, want := range map[string][]storage.NodeID{"b": {2}, "2": {2}, "b 2 d": {2, 4}, "name:3": {3}, "id:4": {4}, "d b": {2, 4}} {
		if got, err := r.nodes(strings.Fields(text)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, word := range []string{"x", "7", "id:b", "name:2", ""} {
		if got, err := r.nodes([]string{word}); storage.KindOf(err) != storage.KindInvalid {
			t.Errorf("%q: %v, %v", word, got, err)
		}
	}
}

// TestRemovedNodesAreLost: nodes that were removed before count as lost, for groups here and for those that follow, and may be named again: a recovery that
// was interrupted is repeated with the same flags, and finds the lost nodes removed.
func TestRemovedNodesAreLost(t *testing.T) {
	c := catalogtest.New(t)
	c.Cluster(1)
	at := time.Unix(1_900_000_000, 0).UTC()
	for i, name := range []string{"b", "c"} {
		c.Must(catalog.AddNode{Name: name, Addrs: storage.Addrs{Peer: name + ":7001"}, At: at, Stores: []storage.Store{{ID: storage.StoreID{byte(i + 2)}, CapacityBytes: 1 << 40}}})
	}
	state, err := c.Leader.Recovered(1<<40, []storage.NodeID{3}, nil, at)
	if err != nil {
		t.Fatal(err)
	}
	r := &Recovery{number: 1, copy: &control.Copy{Identity: control.Identity{Node: 1}}, from: state}
	lost, err := r.nodes([]string{"b", "c"})
	if r.lost = r.andRemoved(lost); err != nil || !slices.Equal(r.lost, []storage.NodeID{2, 3}) {
		t.Errorf("lost are %v, %v", r.lost, err)
	}
	r.copy.Identity.Recovery = 0x1f
	if before := r.TokenBefore(); before != "0000001f:3" {
		t.Errorf("the recovery before was %q", before)
	}
	if _, ids, err := parseToken(r.Token()); err != nil || !slices.Equal(ids, r.lost) {
		t.Errorf("others are told %v, %v", ids, err)
	}
}

// TestReplacedReplica: a replica that the catalog has given up does not go on alone, although by its own log no other voter is left. One that is newer
// than the copy of the catalog may be the one that counts.
func TestReplacedReplica(t *testing.T) {
	state := copyOf(t)
	g, _ := state.Group(1)
	r := &Recovery{from: state}
	s := survivor(1, 1, 2, 3)
	s.Group = 1
	for key, want := range map[storage.ReplicaKey]bool{g.Replicas[0].Key: false, {Store: storage.StoreID{7}, Incarnation: g.LastIncarnation}: true,
		{Store: storage.StoreID{7}, Incarnation: g.LastIncarnation + 1}: false} {
		if s.Key = key; r.replaced(s) != want {
			t.Errorf("replica %s of those named %v: replaced is %v", key, g.Replicas, !want)
		}
	}
}

// TestStoreThatIsNotThere: a directory without the store that the catalog says is there is not recovered: its file system may not be mounted.
func TestStoreThatIsNotThere(t *testing.T) {
	r := &Recovery{copy: &control.Copy{Identity: control.Identity{Node: 1}}, from: copyOf(t)}
	if err := r.missing(false); !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("it goes on: %v", err)
	}
	if err := r.missing(true); err != nil {
		t.Errorf("with a store: %v", err)
	}
	r.cfg.Force = true
	if err := r.missing(false); err != nil {
		t.Errorf("with --force: %v", err)
	}
	r.cfg.Force, r.copy.Identity.Node = false, 4 // which holds nothing
	if err := r.missing(false); err != nil {
		t.Errorf("a node that holds nothing: %v", err)
	}
}

// TestFollowTwice: a node that follows is told to again. What it has got of the new catalog since stays, also on the first node.
//
// Guards I7: Do's test whether it follows already. Without it the catalog with its votes is set aside, and on the first node it is the only one.
func TestFollowTwice(t *testing.T) {
	dir := datadir.Dir(t.TempDir())
	id, err := control.NewCluster(catalog.Cluster{ID: storage.ClusterID{9}, CreatedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := control.SaveIdentity(vfs.Default, dir.Catalog(), id); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir.Catalog(), "raft.db")
	for _, content := range []string{"before", "after"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := control.LoadIdentity(vfs.Default, dir.Catalog())
		if err != nil {
			t.Fatal(err)
		}
		r := &Recovery{cfg: Config{Dir: dir, Follow: "0000001f:2"}, number: 0x1f, copy: &control.Copy{Identity: id}}
		kept, err := r.Do(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(kept, "raft.db")); err != nil || string(b) != "before" {
			t.Errorf("kept is %q, %v", b, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "after" {
		t.Errorf("what the node has got since is %q, %v", b, err)
	}
}

// TestWhatIsGone: groups without any voter that is left are told, with the volumes in them; with a majority of everything nothing is to be
// recovered.
func TestWhatIsGone(t *testing.T) {
	for _, c := range []struct {
		lost    []storage.NodeID
		needed  bool
		groups  []storage.GroupID
		volumes []string
	}{
		{[]storage.NodeID{4}, false, nil, nil},
		{[]storage.NodeID{3}, false, nil, nil},
		{[]storage.NodeID{2}, true, []storage.GroupID{2}, []string{"striped"}},
		{[]storage.NodeID{3, 4}, true, nil, nil}, // the catalog's votes
		{[]storage.NodeID{1, 2, 3}, true, []storage.GroupID{1, 2}, []string{"everywhere", "striped"}},
	} {
		state := copyOf(t)
		r := &Recovery{copy: &control.Copy{Identity: control.Identity{Node: 1}, State: state, Voters: []storage.NodeID{1, 3, 4}}, from: state, lost: c.lost}
		groups, volumes := r.gone()
		if got := r.needed(); got != c.needed || !slices.Equal(groups, c.groups) || !slices.Equal(volumes, c.volumes) {
			t.Errorf("without %v: needed %v, gone %v %v; want %v, %v %v", c.lost, got, groups, volumes, c.needed, c.groups, c.volumes)
		}
		var text strings.Builder
		r.Describe(&text)
		if said := strings.Contains(text.String(), "what they held is lost"); said != (len(c.groups) > 0) {
			t.Errorf("without %v it says:\n%s", c.lost, text.String())
		}
	}
}

// TestNodesThatRun: a first node goes on only when no other takes connections, unless it is told to.
func TestNodesThatRun(t *testing.T) {
	state := copyOf(t)
	r := &Recovery{copy: &control.Copy{Identity: control.Identity{Node: 1}, State: state, Voters: []storage.NodeID{1, 2, 3}}, from: state, lost: []storage.NodeID{2, 3}}
	up := map[string]bool{"b:7001": true, "d:7001": true}
	r.cfg.Dial = func(_ context.Context, addr string) (net.Conn, error) {
		if !up[addr] {
			return nil, errors.New("connection refused")
		}
		ours, theirs := net.Pipe()
		return ours, theirs.Close()
	}
	if err := r.Allowed(t.Context()); storage.KindOf(err) != storage.KindConflict || !strings.Contains(err.Error(), "other nodes run: b, d") {
		t.Errorf("while two others run: %v", err)
	}
	r.cfg.Force = true
	if err := r.Allowed(t.Context()); err != nil {
		t.Errorf("with --force: %v", err)
	}
	r.cfg.Force, up = false, nil
	if err := r.Allowed(t.Context()); err != nil {
		t.Errorf("while no other runs: %v", err)
	}
}
