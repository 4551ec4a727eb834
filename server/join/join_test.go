package join

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/datadir"
)

// network is who answers at which address, and what members answer to a node that asks to be taken in. It implements Asker.
type network struct {
	t       *testing.T
	greets  func(addr string) (peer.Greeting, error)
	takesIn func(addr string, node catalog.AddNode) (control.JoinResponse, error)
	asked   []string // addresses of members, in order
	lists   []uint64 // of the speakers
	closed  int
	lobby   error // why others cannot be answered
}

func (n *network) Greet(_ context.Context, addr string) (peer.Greeting, error) { return n.greets(addr) }

func (n *network) Lobby(ctx context.Context, _ peer.LobbyListener) error {
	if n.lobby == nil {
		<-ctx.Done()
	}
	return n.lobby
}

func (n *network) Close() error { n.closed++; return nil }

func (n *network) CallAddr(_ context.Context, addr string, req *peer.Request) (*peer.Response, error) {
	n.asked = append(n.asked, addr)
	var said struct { // see control.Join
		Node  []byte
		Knows int
	}
	if err := json.Unmarshal(req.Payload[0], &said); err != nil || said.Knows != catalog.Version {
		n.t.Errorf("%q: %v", req.Payload[0], err)
	}
	cmd, err := catalog.Decode(said.Node)
	if err != nil || req.Method != peer.Method(control.MethodJoin) {
		n.t.Errorf("method %d with %v, %v", req.Method, cmd, err)
	}
	r, err := n.takesIn(addr, cmd.(catalog.AddNode))
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{"join": r})
	return &peer.Response{Payload: body}, err
}

// joining is a node with an empty directory that is started with --join a:1,b:1.
func joining(t *testing.T, bootstrap bool) (*network, Config, *[]string) {
	n, waits := &network{t: t}, &[]string{}
	return n, Config{Dir: datadir.Dir(t.TempDir()), Bootstrap: bootstrap, Addrs: []string{"a:1", "b:1"}, Name: "a", Speaker: NewSpeaker(1, "a:1"),
		Cluster:  catalog.Cluster{Replicas: 3, Groups: 4, HeartbeatTimeout: time.Second},
		Asker:    func(s peer.Speaker) (Asker, error) { n.lists = append(n.lists, s.List); return n, nil },
		Describe: func(s storage.StoreID, c int64) catalog.AddNode { return describe("a", s, c) }, CapacityBytes: 1 << 20,
		Waits: func(why string) { *waits = append(*waits, why) }, Failed: func(err error) { t.Error(err) }, Logger: slog.New(slog.DiscardHandler)}, waits
}

func describe(name string, store storage.StoreID, capacity int64) catalog.AddNode {
	return catalog.AddNode{Name: name, Addrs: storage.Addrs{Peer: name + ":1"}, At: time.Unix(1, 0).UTC(), Stores: []storage.Store{{ID: store, CapacityBytes: capacity}}}
}

func silence(addr string) error {
	return storage.E("greet", storage.KindUnavailable, addr, errors.New("refused"))
}

// TestFirstOfACluster: the first node of the list waits for the other one, makes the cluster once that has none either, and is the same
// node when it is started again.
func TestFirstOfACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, c, waits := joining(t, true)
		began := time.Now()
		n.greets = func(addr string) (peer.Greeting, error) {
			switch {
			case addr == "a:1":
				return peer.Greeting{Speaker: c.Speaker}, nil
			case time.Since(began) < 3*joinRetry:
				return peer.Greeting{}, silence(addr)
			}
			return peer.Greeting{Speaker: peer.Speaker{Instance: 2, List: peer.ListHash(c.Addrs)}}, nil
		}
		id, err := Settle(t.Context(), c)
		if err != nil || id.Node != 1 || id.Bootstrap == nil || id.Bootstrap.Replicas != 3 || id.Bootstrap.Groups != 4 || id.HeartbeatTimeout != time.Second ||
			id.Cluster.IsZero() || id.Bootstrap.CreatedAt.IsZero() {
			t.Errorf("it became %+v, %v", id, err)
		}
		if time.Since(began) != 3*joinRetry || len(*waits) != 3 || !strings.Contains((*waits)[0], "an answer of b:1") {
			t.Errorf("after %v; it waited for %q", time.Since(began), *waits)
		}
		if len(n.lists) != 1 || n.lists[0] != peer.ListHash(c.Addrs) || n.closed != 1 {
			t.Errorf("it greeted with lists %d; %d connections were closed", n.lists, n.closed)
		}
		if again, err := Settle(t.Context(), c); err != nil || again.Cluster != id.Cluster || again.Node != 1 || n.lists[1] != 0 {
			t.Errorf("started again it is %+v, %v, with lists %d", again, err, n.lists)
		}
	})
}

// TestTakenIn: a node asks member after member until one takes it in, always with the same store; where each cannot just now it asks
// again.
func TestTakenIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, c, waits := joining(t, false)
		c.Addrs = []string{"b:1", "c:1"}
		cluster := storage.ClusterID{7}
		n.greets = func(string) (peer.Greeting, error) {
			return peer.Greeting{Cluster: cluster, Node: 9, Speaker: peer.Speaker{Instance: 9}}, nil
		}
		stores := map[storage.StoreID]bool{}
		n.takesIn = func(addr string, node catalog.AddNode) (control.JoinResponse, error) {
			stores[node.Stores[0].ID] = true
			if node.Stores[0].CapacityBytes != c.CapacityBytes {
				t.Errorf("it has %d bytes, it says", node.Stores[0].CapacityBytes)
			}
			if len(n.asked) < 4 {
				return control.JoinResponse{}, silence(addr)
			}
			return control.JoinResponse{Cluster: cluster.String(), Node: 4, HeartbeatTimeout: time.Second}, nil
		}
		id, err := Settle(t.Context(), c)
		if err != nil || id.Node != 4 || id.Cluster != cluster || id.Bootstrap != nil {
			t.Errorf("it became %+v, %v", id, err)
		}
		if got := strings.Join(n.asked, " "); got != "b:1 c:1 b:1 c:1" || len(stores) != 1 || n.lists[0] != 0 {
			t.Errorf("it asked %s with %d stores and list %d", got, len(stores), n.lists[0])
		}
		if len(*waits) != 3 || (*waits)[0] != "it asks b:1, c:1 to be taken in" || !strings.Contains((*waits)[1], "does not take it in yet") {
			t.Errorf("it said %q", *waits)
		}
		if saved, err := control.LoadIdentity(vfs.Default, c.Dir.Catalog()); err != nil || saved.Node != 4 {
			t.Errorf("written down is %+v, %v", saved, err)
		}
	})
}

// TestNotTakenIn: what does not change is told at once; a node that is always started with the same list waits for the person who
// removes the lost node of its name.
func TestNotTakenIn(t *testing.T) {
	for _, c := range []struct {
		name      string
		bootstrap bool
		refusal   error
		waits     string // empty: it gives up with the refusal
	}{
		{"the name is taken", false, storage.E("add", storage.KindExists, "node a", nil), ""},
		{"the name is taken, and it may be this node's", true, storage.E("add", storage.KindExists, "node a", nil), "storagectl node remove a"},
		{"the greeting is refused", true, storage.E("greet", storage.KindUnavailable, "", storage.E("greet", storage.KindPermission, "", nil)), ""},
		{"a store that is not allowed", true, storage.E("add", storage.KindInvalid, "node a", nil), ""},
		{"nobody leads", false, storage.E("add", storage.KindNotLeader, "", nil), "does not take it in yet"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n, config, waits := joining(t, c.bootstrap)
			n.greets = func(string) (peer.Greeting, error) { return peer.Greeting{Cluster: storage.ClusterID{7}, Node: 9}, nil }
			n.takesIn = func(string, catalog.AddNode) (control.JoinResponse, error) { return control.JoinResponse{}, c.refusal }
			began, patience := time.Now(), time.Minute+joinRetry/3
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := Settle(ctx, config)
			if c.waits == "" {
				if storage.KindOf(err) != storage.KindOf(c.refusal) || ctx.Err() != nil || len(n.asked) != 1 {
					t.Errorf("%s: %v, of %s", c.name, err, n.asked)
				}
				return
			}
			if !errors.Is(err, storage.ErrCanceled) || time.Since(began) != patience || !strings.Contains((*waits)[len(*waits)-1], c.waits) {
				t.Errorf("%s: %v; it waited for %q", c.name, err, (*waits)[len(*waits)-1])
			}
		})
	}
}

// TestDirectoryWithoutAName: a directory becomes a new cluster's only when it is empty and that was asked for; one whose node cannot be read
// becomes nobody's.
func TestDirectoryWithoutAName(t *testing.T) {
	for name, c := range map[string]struct {
		bootstrap bool
		file      string // that is there, in place of what belongs there
		want      error
	}{
		"empty, with --bootstrap":    {bootstrap: true},
		"empty, without":             {want: storage.ErrInvalid},
		"a store without its node":   {bootstrap: true, file: "store/x", want: storage.ErrCorrupt},
		"a node that cannot be read": {bootstrap: true, file: "catalog/node.json", want: storage.ErrCorrupt},
	} {
		_, config, _ := joining(t, c.bootstrap)
		config.Addrs = nil
		if c.file != "" {
			path := filepath.Join(string(config.Dir), c.file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte("7"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		id, err := Settle(t.Context(), config)
		if !errors.Is(err, c.want) || (err == nil) != (id.Bootstrap != nil) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

// TestTwoClusters: a node whose --join names nodes of two clusters gives up, and joins neither. That others cannot be answered
// meanwhile is told.
func TestTwoClusters(t *testing.T) {
	n, c, _ := joining(t, false)
	n.greets = func(addr string) (peer.Greeting, error) {
		return peer.Greeting{Cluster: storage.ClusterID{addr[0]}, Node: 9}, nil
	}
	c.Addrs, n.lobby = []string{"b:1", "c:1"}, errors.New("the listener is closed")
	told := make(chan error, 1)
	c.Failed = func(err error) { told <- err }
	if _, err := Settle(t.Context(), c); !errors.Is(err, storage.ErrConflict) || n.asked != nil {
		t.Errorf("%v; it asked %s", err, n.asked)
	}
	if err := <-told; !errors.Is(err, n.lobby) {
		t.Errorf("told: %v", err)
	}
}

// TestNothingToAskWith: a node that cannot ask, or cannot keep its promise of a store, does not wait for ever.
func TestNothingToAskWith(t *testing.T) {
	n, c, _ := joining(t, false)
	n.greets = func(addr string) (peer.Greeting, error) { return peer.Greeting{}, silence(addr) }
	broken := errors.New("no certificate")
	c.Asker = func(peer.Speaker) (Asker, error) { return nil, broken }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := Settle(ctx, c); !errors.Is(err, broken) {
		t.Errorf("without a transport: %v", err)
	}
	if err := os.WriteFile(filepath.Join(string(c.Dir), "store-id.json"), []byte("7"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Settle(ctx, c); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("with a promise that cannot be read: %v", err)
	}
}

// TestResume: a node that has a cluster resumes even when nodes of --join do not answer, but not when they are of another cluster.
func TestResume(t *testing.T) {
	n, c, _ := joining(t, false)
	own := control.Identity{Cluster: storage.ClusterID{1}, Node: 3, HeartbeatTimeout: time.Second}
	if err := control.SaveIdentity(vfs.Default, c.Dir.Catalog(), own); err != nil {
		t.Fatal(err)
	}
	for name, answers := range map[string]struct {
		who  peer.Greeting
		err  error
		want error
	}{
		"its own cluster":     {who: peer.Greeting{Cluster: own.Cluster}},
		"no cluster":          {who: peer.Greeting{}},
		"nobody answers":      {err: silence("a:1")},
		"another cluster":     {who: peer.Greeting{Cluster: storage.ClusterID{2}}, want: storage.ErrConflict},
		"the other one's err": {who: peer.Greeting{Cluster: storage.ClusterID{2}}, err: silence("a:1")},
	} {
		n.greets = func(string) (peer.Greeting, error) { return answers.who, answers.err }
		if id, err := Settle(t.Context(), c); !errors.Is(err, answers.want) || id.Node != 3 {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

// places are the connections of a Seeker in a test.
type places struct {
	known map[storage.NodeID]peer.Place
	told  atomic.Pointer[map[storage.NodeID]peer.Place]
}

func (p *places) Places() map[storage.NodeID]peer.Place   { return p.known }
func (p *places) Told(told map[storage.NodeID]peer.Place) { p.told.Store(&told) }
func (p *places) CallAddr(_ context.Context, addr string, req *peer.Request) (*peer.Response, error) {
	if addr == "down:1" {
		return nil, silence(addr)
	}
	return &peer.Response{Payload: req.Payload[0]}, nil // it knows the same
}

// book is what the catalog says of nodes.
type book struct {
	leader atomic.Uint32
	addrs  map[storage.NodeID]string
}

func (b *book) Leader() storage.NodeID          { return storage.NodeID(b.leader.Load()) }
func (b *book) Book() map[storage.NodeID]string { return b.addrs }

// TestSeek: a node that knows no leader exchanges places with each address that it knows, once, and with none of its own; whoever knows
// a leader asks nobody.
func TestSeek(t *testing.T) {
	p := &places{known: map[storage.NodeID]peer.Place{1: {Address: "self:1"}, 2: {Address: "b:2", Starts: 7}, 3: {Address: "join:1"}}}
	b := &book{addrs: map[storage.NodeID]string{2: "b:1", 3: "down:1", 4: ""}}
	s := &Seeker{Peers: p, Book: b, Addrs: []string{"join:1", "self:1"}, Self: "self:1", Logger: slog.New(slog.DiscardHandler)}
	if got := strings.Join(s.addrs(), " "); got != "join:1 b:2 b:1 down:1" {
		t.Errorf("it looks at %s", got)
	}
	for n := storage.NodeID(10); n < 10+2*maxSeeking; n++ {
		b.addrs[n] = "n" + n.String() + ":1"
	}
	if n := len(s.addrs()); n != maxSeeking {
		t.Errorf("it looks at %d addresses", n)
	}
	b.addrs = map[storage.NodeID]string{3: "down:1"}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		synctest.Wait()
		if told := p.told.Load(); told == nil || (*told)[2].Starts != 7 {
			t.Errorf("it was told %v", told)
		}
		b.leader.Store(2)
		p.told.Store(nil)
		time.Sleep(3 * seekInterval)
		synctest.Wait()
		if p.told.Load() != nil {
			t.Error("it asks although it knows a leader")
		}
		b.leader.Store(0)
		time.Sleep(seekInterval)
		synctest.Wait()
		if p.told.Load() == nil {
			t.Error("it does not ask although it has lost the leader")
		}
		cancel()
		<-done
	})
	p.told.Store(nil)
	for _, bad := range [][]byte{nil, []byte("{"), make([]byte, maxPlacesBytes+1)} {
		if s.takePlaces(bad); p.told.Load() != nil {
			t.Errorf("%d bytes are taken for places", len(bad))
		}
	}
}

// TestPlacesAreTheClusters: only nodes of the cluster learn where nodes are, and are believed.
func TestPlacesAreTheClusters(t *testing.T) {
	p := &places{known: map[storage.NodeID]peer.Place{1: {Address: "self:1"}}}
	s := &Seeker{Peers: p}
	told := []byte(`{"2":{"address":"b:2","starts":7}}`)
	if body, err := s.answer(0, told); body != nil || err != nil || p.told.Load() != nil {
		t.Errorf("a stranger hears %s, %v, and has told %v", body, err, p.told.Load())
	}
	body, err := s.answer(2, told)
	if err != nil || string(body) != `{"1":{"address":"self:1","starts":0}}` || (*p.told.Load())[2].Address != "b:2" {
		t.Errorf("a node hears %s, %v, and has told %v", body, err, p.told.Load())
	}
	p.told.Store(nil)
	many := map[storage.NodeID]peer.Place{}
	for n := storage.NodeID(1); n <= catalog.MaxNodes+1; n++ {
		many[n] = peer.Place{}
	}
	if b, err := json.Marshal(many); err != nil || len(b) > maxPlacesBytes {
		t.Fatal(len(b), err)
	} else if s.takePlaces(b); p.told.Load() != nil {
		t.Errorf("%d places are taken in", len(many))
	}
}
