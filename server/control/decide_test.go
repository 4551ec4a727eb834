package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		was     storage.NodeState
		silence time.Duration
		want    storage.NodeState
	}{
		{storage.NodeUp, 3 * time.Second, storage.NodeUp},
		{storage.NodeUp, 3001 * time.Millisecond, storage.NodeSuspect},
		{storage.NodeSuspect, 15 * time.Second, storage.NodeSuspect},
		{storage.NodeSuspect, 16 * time.Second, storage.NodeDown},
		{storage.NodeUp, time.Hour, storage.NodeDown},
		{storage.NodeDown, 10 * time.Second, storage.NodeDown}, // a new leader's term is young
		{storage.NodeDown, 0, storage.NodeUp},
		{storage.NodeRemoved, 0, storage.NodeRemoved},
	} {
		if got := judge(c.was, c.silence, 3*time.Second, 15*time.Second); got != c.want {
			t.Errorf("%s, silent for %v: %s, want %s", c.was, c.silence, got, c.want)
		}
	}
}

// members is a configuration of the catalog: "v1 v2 n3" are two voters and a non-voter.
func members(text string) (servers []raft.Server) {
	for _, w := range strings.Fields(text) {
		s := raft.Server{ID: raft.ServerID(w[1:]), Address: raft.ServerAddress(w[1:])}
		if w[0] == 'n' {
			s.Suffrage = raft.Nonvoter
		}
		servers = append(servers, s)
	}
	return servers
}

func TestCatalogChanges(t *testing.T) {
	for _, c := range []struct {
		servers string
		nodes   int
		lagging []storage.NodeID // heard of, far behind
		silent  []storage.NodeID
		removed []storage.NodeID
		want    string
		away    []storage.NodeID // and down
		drains  []storage.NodeID
	}{
		{servers: "v1", nodes: 1, want: "[]"},
		{servers: "v1", nodes: 2, want: "[{add_nonvoter 2}]"},
		{servers: "v1 n2", nodes: 2, want: "[]"}, // two voters survive nothing
		{servers: "v1 n2 n3", nodes: 3, want: "[{add_voter 2} {add_voter 3}]"},
		{servers: "v1 n2 n3", nodes: 3, lagging: []storage.NodeID{2}, want: "[]"},
		{servers: "v1 n2 n3", nodes: 3, silent: []storage.NodeID{3}, want: "[]"},
		{servers: "v1 v2 n3", nodes: 3, want: "[{add_voter 3}]"}, // interrupted between the two
		{servers: "v1 v2 v3 n4", nodes: 4, want: "[]"},
		{servers: "v1 v2 v3 n4 n5 n6", nodes: 6, want: "[{add_voter 4} {add_voter 5}]"},
		{servers: "v1 v2 v3 n4 n5 n6", nodes: 6, lagging: []storage.NodeID{4}, want: "[{add_voter 5} {add_voter 6}]"},
		{servers: "v1 v2 v3 v4 v5 n6 n7", nodes: 7, want: "[]"},
		{servers: "v1 v2 v3", nodes: 3, removed: []storage.NodeID{3}, want: "[{remove 3}]"},
		{servers: "v1", nodes: 1, removed: []storage.NodeID{1}, want: "[]"}, // the last voter stays
		{servers: "v1 v2 v3 n4", nodes: 4, away: []storage.NodeID{2}, want: "[{remove 2} {add_voter 4}]"},
		{servers: "v1 v2 v3 v4", nodes: 4, away: []storage.NodeID{2}, want: "[{remove 2}]"},    // more than are wanted
		{servers: "v1 v3 n4 n2", nodes: 4, away: []storage.NodeID{2}, want: "[{add_voter 4}]"}, // interrupted between the two
		{servers: "v1 v2 v3 n4 n5", nodes: 5, away: []storage.NodeID{2, 5}, want: "[{remove 2} {add_voter 4}]"},
		{servers: "v1 v3 v4", nodes: 4, away: []storage.NodeID{2}, want: "[{add_nonvoter 2}]"},
		{servers: "v1 n2 v3 v4", nodes: 4, away: []storage.NodeID{2}, want: "[]"},
		{servers: "v1 v2 v3 n4", nodes: 4, away: []storage.NodeID{2}, lagging: []storage.NodeID{4}, want: "[]"},
		{servers: "v1 v2 v3 n4", nodes: 4, away: []storage.NodeID{4}, want: "[]"},
		{servers: "v1 v2 v3", nodes: 3, away: []storage.NodeID{2}, want: "[]"}, // nobody could take its place
		{servers: "v1 v2 v3 n4 n5 n6", nodes: 6, away: []storage.NodeID{2}, want: "[{add_voter 4} {add_voter 5}]"},
		{servers: "v1 v2 v3 v4 v5 n6", nodes: 6, away: []storage.NodeID{2, 3}, want: "[{remove 2} {add_voter 6}]"},
		{servers: "v1 v2 v3 n4", nodes: 4, drains: []storage.NodeID{2}, want: "[{add_voter 4} {remove 2}]"},
		{servers: "v1 v2 v3 v4", nodes: 4, drains: []storage.NodeID{2}, want: "[{remove 2}]"},                    // interrupted between the two
		{servers: "v1 v2 v3 n4", nodes: 4, drains: []storage.NodeID{3}, silent: []storage.NodeID{2}, want: "[]"}, // the others would be no majority
		{servers: "v1 v2 v3 n4", nodes: 4, drains: []storage.NodeID{2}, away: []storage.NodeID{3}, want: "[{remove 3} {add_voter 4}]"},
		{servers: "v1 v2 v3 v4 v5", nodes: 5, drains: []storage.NodeID{5}, silent: []storage.NodeID{3, 4}, want: "[]"},
		{servers: "v1 v2 v3", nodes: 3, drains: []storage.NodeID{3}, want: "[]"}, // two bear no failure; it votes until it is removed
		{servers: "v1 v2 v3", nodes: 3, removed: []storage.NodeID{3}, silent: []storage.NodeID{2}, want: "[]"},
		{servers: "v1 v2 v3 n4", nodes: 4, away: []storage.NodeID{2}, silent: []storage.NodeID{3}, want: "[]"},
		{servers: "v1 v3 v4 n2", nodes: 4, drains: []storage.NodeID{2}, want: "[]"},
		{servers: "v1 v2 v3 n4", nodes: 4, drains: []storage.NodeID{1}, want: "[]"},    // it leads, and hands over first
		{servers: "v1 v2 v3 v4 v5", nodes: 5, drains: []storage.NodeID{5}, want: "[]"}, // four bear no more failures than three
	} {
		v := placement.View{Reports: map[storage.NodeID]placement.NodeReport{}, Away: map[storage.NodeID]bool{}}
		for id := storage.NodeID(1); id <= storage.NodeID(c.nodes); id++ {
			n := storage.Node{ID: id, State: storage.NodeUp}
			if slices.Contains(c.away, id) {
				n.State, v.Away[id] = storage.NodeDown, true
			}
			if slices.Contains(c.removed, id) {
				n.State = storage.NodeRemoved
			}
			if slices.Contains(c.drains, id) {
				n.Intent = storage.IntentDrain
			}
			v.Nodes = append(v.Nodes, n)
			report := placement.NodeReport{Node: id, CatalogIndex: 1000 - placement.PromotionLag}
			if slices.Contains(c.lagging, id) {
				report.CatalogIndex--
			}
			if !slices.Contains(c.silent, id) && !v.Away[id] {
				v.Reports[id] = report
			}
		}
		if got := fmt.Sprint(catalogChanges(members(c.servers), v, 1, 900, 1000)); got != c.want {
			t.Errorf("%s of %d nodes (lagging %v, silent %v, removed %v, away %v): %s, want %s", c.servers, c.nodes, c.lagging,
				c.silent, c.removed, c.away, got, c.want)
		}
	}
}

// TestYoungCatalog: a short log is no proof that a node follows it.
func TestYoungCatalog(t *testing.T) {
	v := placement.View{Reports: map[storage.NodeID]placement.NodeReport{2: {CatalogIndex: 9}, 3: {CatalogIndex: 8}}}
	for id := storage.NodeID(1); id <= 3; id++ {
		v.Nodes = append(v.Nodes, storage.Node{ID: id, State: storage.NodeUp})
	}
	if got := catalogChanges(members("v1 n2 n3"), v, 1, 9, 10); len(got) != 0 {
		t.Errorf("node 3 does not hold the configuration yet: %v", got)
	}
	if got := catalogChanges(members("v1 n2 n3"), v, 1, 8, 10); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

// TestYoungTerm: a new leader calls nobody silent before it has listened for as long as that takes.
func TestYoungTerm(t *testing.T) {
	cfg := Config{}
	cfg.setDefaults()
	begin := time.Unix(1000, 0)
	c := &Controller{cfg: cfg}
	l := newLeadership(t.Context(), c, 1, begin)
	v := placement.View{Nodes: []storage.Node{{ID: 1, State: storage.NodeUp}, {ID: 2, State: storage.NodeUp}, {ID: 3, State: storage.NodeDown}}}
	l.reports[1] = heardReport{at: begin.Add(time.Second)}
	for _, x := range []struct {
		after time.Duration
		want  string
	}{
		{0, ""}, {3 * time.Second, ""}, {3500 * time.Millisecond, "node 2"}, {5 * time.Second, "node 1 node 2"},
	} {
		var keys []string
		for _, task := range l.nodesLocked(v, begin.Add(x.after)) {
			keys = append(keys, task.key)
		}
		if got := strings.Join(keys, " "); got != x.want {
			t.Errorf("after %v: %q is judged anew, want %q", x.after, got, x.want)
		}
	}
}

// TestFrozenLeader: a leader that takes requests and answers none holds a command up for about one election.
func TestFrozenLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		old := k.leader()
		k.mu.Lock()
		k.frozen[old] = true
		k.mu.Unlock()
		k.isolate(old, true)
		begin := time.Now()
		k.propose(k.running()[old%3+1], catalog.CreateVolume{Name: "v", SizeBytes: 4096, At: time.Now()})
		if stall := time.Since(begin); stall > 2500*time.Millisecond {
			t.Errorf("the command took %v", stall)
		}
		k.mu.Lock()
		k.frozen[old] = false
		k.mu.Unlock()
		k.isolate(old, false)
	})
}

// TestNoStaleRead: a leader that was cut off a moment ago, and does not know it, answers no linearizable read.
func TestNoStaleRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		c := k.running()[k.leader()]
		k.isolate(c.Identity().Node, true)
		if !c.inst.Leads() {
			t.Fatal("it knows already")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		if err := c.Read(ctx, func(*catalog.State) { t.Error("it answered") }); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		k.isolate(c.Identity().Node, false)
	})
}

// TestMembersChangeByOne guards that a change of the catalog's members is made on the configuration that it was decided on
// (tried: with the index that GetConfiguration gives, which is always 0, the second change is accepted).
func TestMembersChangeByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		leader := k.leader()
		c := k.running()[leader]
		var newest uint64
		for i := uint64(1); i <= c.inst.LastIndex(); i++ {
			var l raft.Log
			if err := k.nodes[leader].stores.Log.GetLog(i, &l); err != nil {
				t.Fatal(err)
			}
			if l.Type == raft.LogConfiguration {
				newest = i
			}
		}
		if index := c.fsm.config.Load(); index != newest || newest == 0 {
			t.Fatalf("the newest configuration is said to lie at %d; it is at %d", index, newest)
		}
		v := placement.View{}
		for id := storage.NodeID(1); id <= 4; id++ {
			v.Nodes = append(v.Nodes, storage.Node{ID: id, State: storage.NodeUp})
		}
		stale := c.leading().votersLocked(v, time.Now()) // that a fourth node follows
		if len(stale) != 1 {
			t.Fatalf("decided: %v", stale)
		}
		if err := c.leading().changeCatalog(t.Context(), serverChange{runner.RemoveServer, leader%3 + 1}, newest); err != nil || c.Voters() != 2 {
			t.Fatalf("the first change: %v; %d voters", err, c.Voters())
		}
		if err := stale[0].run(t.Context()); err == nil || len(c.inst.Configuration().Servers) != 2 {
			t.Errorf("a change that was decided on an older configuration: %v; members %v", err, c.inst.Configuration().Servers)
		}
	})
}

// TestCatalogChangesConverge: from any configuration, with nodes that come and go, the catalog ends with an odd number
// of voters, at most five, and never asks for an even number while nobody fails.
func TestCatalogChangesConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(t, "nodes")
		servers := members("v1")
		v := placement.View{Reports: map[storage.NodeID]placement.NodeReport{}}
		for id := storage.NodeID(1); id <= storage.NodeID(n); id++ {
			v.Nodes = append(v.Nodes, storage.Node{ID: id, State: storage.NodeUp})
		}
		voters := func() (n int) {
			for _, s := range servers {
				if s.Suffrage == raft.Voter {
					n++
				}
			}
			return n
		}
		step := func() bool {
			changes := catalogChanges(servers, v, 1, 50, 100)
			for _, ch := range changes {
				at := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == ServerID(ch.Node) })
				switch {
				case ch.Change == runner.AddNonvoter && at < 0:
					servers = append(servers, raft.Server{ID: ServerID(ch.Node), Address: runner.NodeAddress(ch.Node), Suffrage: raft.Nonvoter})
				case ch.Change == runner.AddVoter && at >= 0:
					servers[at].Suffrage = raft.Voter
				default:
					t.Fatalf("%v of %v", ch, servers)
				}
			}
			if voters()%2 == 0 || voters() > maxCatalogVoters {
				t.Fatalf("%v leaves %d voters", changes, voters())
			}
			return len(changes) > 0
		}
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			id := storage.NodeID(rapid.IntRange(1, n).Draw(t, "node"))
			v.Reports[id] = placement.NodeReport{Node: id, CatalogIndex: rapid.Uint64Range(0, 100).Draw(t, "index")}
			if rapid.Bool().Draw(t, "silent") {
				delete(v.Reports, id)
			}
			step()
		}
		for _, x := range v.Nodes {
			v.Reports[x.ID] = placement.NodeReport{Node: x.ID, CatalogIndex: 100}
		}
		for range 20 {
			if !step() {
				break
			}
		}
		if want := min(n-(n+1)%2, maxCatalogVoters); voters() != want || len(servers) != n {
			t.Fatalf("%d nodes end as %v", n, servers)
		}
	})
}

func TestTasksRunOnePerKeyAndRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ts := newTasks(ctx, 3, slog.New(slog.DiscardHandler), func(task, error) {})
		block := make(chan struct{})
		hold := func(key, kind string) bool {
			return ts.start(task{key: key, kind: kind, run: func(ctx context.Context) error {
				select {
				case <-block:
				case <-ctx.Done():
				}
				return nil
			}}, time.Now())
		}
		if !hold("a", slowKind) || hold("a", "x") {
			t.Error("a key takes one task")
		}
		if hold("b", slowKind) {
			t.Error("slow tasks take all places")
		}
		if !hold("b", "x") || !hold("c", "x") || hold("d", "x") {
			t.Error("three places are three places")
		}
		close(block)
		synctest.Wait()
		var runs []time.Duration
		begin := time.Now()
		fails := func() bool {
			return ts.start(task{key: "a", run: func(context.Context) error {
				runs = append(runs, time.Since(begin))
				return errors.New("no")
			}}, time.Now())
		}
		for time.Since(begin) < 5*time.Minute {
			fails()
			synctest.Wait()
			<-time.After(10 * time.Millisecond)
		}
		if n := len(runs); n < 8 || n > 30 {
			t.Errorf("a task that fails ran %d times in five minutes: %v", n, runs)
		}
		if last := runs[len(runs)-1] - runs[len(runs)-2]; last < maxRetry/2 || last > 2*maxRetry {
			t.Errorf("it rests for %v in the end", last)
		}
		cancel()
		if hold("z", "x") {
			t.Error("a task began after the end")
		}
		ts.wg.Wait()
	})
}

func TestIdentity(t *testing.T) {
	mem := vfs.NewMem()
	if _, err := LoadIdentity(mem, "/d"); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	id, err := NewCluster(catalog.Cluster{ID: storage.ClusterID{1}, Replicas: 5})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := SaveIdentity(mem, "/d", id); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadIdentity(mem, "/d")
	if err != nil || got.Cluster != id.Cluster || got.Node != 1 || got.HeartbeatTimeout != 500*time.Millisecond || got.Bootstrap.Replicas != 5 {
		t.Fatalf("got %+v, %v", got, err)
	}
	other := id
	other.Cluster = storage.ClusterID{2}
	if err := SaveIdentity(mem, "/d", other); !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), "empty data directory") {
		t.Errorf("got %v", err)
	}
	if _, err := NewCluster(catalog.Cluster{}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("a cluster without an id: %v", err)
	}
	if _, err := SaveJoin(Config{Dir: "/d", FS: mem}, JoinResponse{Cluster: other.Cluster.String(), Node: 4, HeartbeatTimeout: 1}); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("joining another cluster: %v", err)
	}
	for _, text := range []string{"", "{", "null", `{"version":1}`, `{"version":1,"cluster":"x","node":1,"heartbeat_timeout_ns":1}`} {
		write(t, mem, "/e", identityFile, text)
		if _, err := LoadIdentity(mem, "/e"); err == nil || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%q is an identity: %v", text, err)
		}
	}
	const whole = `"cluster":"01000000-0000-0000-0000-000000000000","node":1,"heartbeat_timeout_ns":1`
	for text, want := range map[string]Identity{`{"version":1,` + whole + `}`: {}, `{"version":2,` + whole + `,"recovery":7}`: {Recovery: 7},
		`{"version":2,` + whole + `,"recovery":7,"unfinished":true}`: {Recovery: 7, Unfinished: true}} {
		write(t, mem, "/e", identityFile, text)
		if got, err := LoadIdentity(mem, "/e"); err != nil || got.Recovery != want.Recovery || got.Unfinished != want.Unfinished {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	// A build that knows no recoveries reads version 1, and must not run where there was one.
	for _, text := range []string{`{"version":2,` + whole + `}`, `{"version":1,` + whole + `,"recovery":7}`} {
		write(t, mem, "/e", identityFile, text)
		if _, err := LoadIdentity(mem, "/e"); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%s: %v", text, err)
		}
	}
	write(t, mem, "/e", identityFile, `{"version":3}`)
	if _, err := LoadIdentity(mem, "/e"); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("a later version: %v", err)
	}
}

func write(t *testing.T, fsys vfs.FS, dir, name, text string) {
	t.Helper()
	if err := fsys.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := fsys.Create(fsys.PathJoin(dir, name), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write([]byte(text))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestIdentitySurvivesPowerCuts: whatever call fails, and if the power goes then, the identity is there whole or not
// at all; once saved it stays.
func TestIdentitySurvivesPowerCuts(t *testing.T) {
	id, err := NewCluster(catalog.Cluster{ID: storage.ClusterID{1}})
	if err != nil {
		t.Fatal(err)
	}
	for failing := int32(0); ; failing++ {
		mem := vfs.NewCrashableMem()
		index, reached := errorfs.OnIndex(failing), false
		injector := errorfs.InjectorFunc(func(op errorfs.Op) error {
			err := index.MaybeError(op)
			reached = reached || err != nil
			return err
		})
		err := SaveIdentity(errorfs.Wrap(mem, injector), "/d", id)
		after := mem.CrashClone(vfs.CrashCloneCfg{})
		got, lerr := LoadIdentity(after, "/d")
		switch {
		case err == nil && (lerr != nil || got.Cluster != id.Cluster):
			t.Fatalf("call %d: saved, and then %v", failing, lerr)
		case lerr != nil && !errors.Is(lerr, storage.ErrNotFound):
			t.Fatalf("call %d: half an identity: %v", failing, lerr)
		}
		if !reached { // all calls have failed once
			if failing < 5 {
				t.Fatalf("only %d calls", failing)
			}
			return
		}
	}
}

// TestBookIsWrittenInTheEnd: addresses that could not be written down are when there is room again, though they do not change any more.
func TestBookIsWrittenInTheEnd(t *testing.T) {
	mem := vfs.NewMem()
	var full atomic.Bool
	b := &book{dir: "/", addrs: map[storage.NodeID]string{}, fs: errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}))}
	nodes := []storage.Node{{ID: 1, Addrs: storage.Addrs{Peer: "a:1"}}}
	full.Store(true)
	if err := b.update(7, nodes); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("without room: %v", err)
	}
	full.Store(false)
	if err := b.update(8, nodes); err != nil {
		t.Fatal(err)
	}
	again, err := openBook(mem, "/")
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := again.lookup(1); a != "a:1" {
		t.Errorf("the file says that node 1 is at %q", a)
	}
}

// TestBookAtTheEnd: where nodes are is written down however soon after it was learnt this node stops: after its start it may be
// that none finds another without it. The line is writeBook's in Close; the loop looks only every minReportGap.
func TestBookAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		c := k.addNode(1)
		k.until("it leads", func() bool { return k.leader() == 1 })
		for _, peer := range []string{"one:7001", "two:7001", "three:7001"} {
			k.propose(c, catalog.UpdateNode{Node: 1, Name: "n1", Addrs: storage.Addrs{Peer: peer}, Stores: k.selfOf(1).Stores})
		}
		k.stopNode(1)
		b, err := openBook(c.cfg.FS, c.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if a, _ := b.lookup(1); a != "three:7001" {
			t.Errorf("the book says %q", a)
		}
	})
}

func TestBook(t *testing.T) {
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/d", 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := openBook(mem, "/d")
	if err != nil {
		t.Fatal(err)
	}
	nodes := []storage.Node{{ID: 1, Addrs: storage.Addrs{Peer: "a:1"}}, {ID: 2, Addrs: storage.Addrs{Peer: "b:1"}, State: storage.NodeRemoved}}
	if err := b.update(7, nodes); err != nil {
		t.Fatal(err)
	}
	nodes[0].Addrs.Peer = "old:1"
	if err := b.update(6, nodes); err != nil { // a copy that was restored from an older state
		t.Fatal(err)
	}
	if b, err = openBook(mem, "/d"); err != nil {
		t.Fatal(err)
	}
	if a, ok := b.lookup(1); !ok || a != "a:1" {
		t.Errorf("node 1 is at %q", a)
	}
	if a, ok := b.lookup(2); ok {
		t.Errorf("a removed node is at %q", a)
	}
	write(t, mem, "/d", bookFile, "{")
	if _, err := openBook(mem, "/d"); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestConfigSaysAllThatIsWrong(t *testing.T) {
	_, err := Open(Config{Self: catalog.AddNode{Addrs: storage.Addrs{Peer: "nowhere"}}, SuspectAfter: time.Second})
	for _, want := range []string{"Dir", "Transport", "Peers", "Actions", "Report", "host:port", "SuspectAfter"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestErrorsTravel(t *testing.T) {
	for _, kind := range storage.Kinds() {
		if kind == storage.KindNotLeader {
			continue
		}
		for _, cause := range []error{nil, errors.New("why")} {
			want := storage.E("op", kind, "volume v", cause)
			_, err := decodeReply(encodeReply(failed(fmt.Errorf("wrapped: %w", want))))
			var got *storage.Error
			if !errors.As(err, &got) || got.Kind != kind || got.Error() != want.Error() {
				t.Errorf("%v came back as %v", want, err)
			}
		}
	}
	_, err := decodeReply(encodeReply(failed(notLeader(7))))
	var nl *op.NotLeaderError
	if !errors.As(err, &nl) || nl.Leader != 7 || !errors.Is(err, storage.ErrNotLeader) {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{`{"err":{"kind":0}}`, `{"err":{"kind":200}}`, `{"err":{"kind":200,"text":"of a later version"}}`} {
		if _, err := decodeReply([]byte(text)); !errors.Is(err, storage.ErrInternal) {
			t.Errorf("%s is %v", text, err)
		}
	}
	if _, err := decodeReply([]byte("nonsense")); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-3] ^= 1
	return b
}

// TestServeRefuses: what a node must not accept from another.
func TestServeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		c := k.addNode(1)
		k.until("the groups are ready", func() bool { return k.grown(1) })
		report := func(as storage.NodeID) []byte {
			b, err := json.Marshal(placement.NodeReport{Node: as})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		session, err := catalog.Encode(catalog.CloseSession{Session: 1})
		if err != nil {
			t.Fatal(err)
		}
		before := c.Freshness().Index
		for _, x := range []struct {
			what string
			from storage.NodeID
			m    Method
			body []byte
			want storage.Kind
		}{
			{"no method", 1, 99, nil, storage.KindUnsupported},
			{"no command", 1, MethodPropose, []byte("{"), storage.KindCorrupt},
			{"a huge command", 1, MethodPropose, make([]byte, catalog.MaxCommandBytes+1), storage.KindInvalid},
			{"a command without its checksum", 1, MethodPropose, []byte(`{"v":1,"cmd":"close_session","body":{"session":1}}`), storage.KindCorrupt},
			{"a damaged command", 1, MethodPropose, flipped(session), storage.KindCorrupt},
			{"another node's report", 1, MethodReport, report(2), storage.KindPermission},
			{"a stranger's report", 0, MethodReport, report(0), storage.KindPermission},
			{"an unknown node's report", 9, MethodReport, report(9), storage.KindPermission},
			{"a huge report", 1, MethodReport, make([]byte, maxReportBytes+1), storage.KindInvalid},
			{"no read", 1, MethodRead, []byte("["), storage.KindInvalid},
			{"a join that is none", 0, MethodJoin, session, storage.KindInvalid},
		} {
			if _, err := decodeReply(c.Serve(t.Context(), x.from, x.m, x.body)); storage.KindOf(err) != x.want {
				t.Errorf("%s: got %v, want %v", x.what, err, x.want)
			}
		}
		if after := c.Freshness().Index; after != before {
			t.Errorf("the log grew from %d to %d", before, after)
		}
	})
}

// TestReportsOfALostTerm: a leader that is cut off stops reigning; its successor does.
func TestReportsOfALostTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		k.three()
		old := k.leader()
		k.isolate(old, true)
		k.until("the old leader reigns no longer", func() bool { return k.running()[old].leading() == nil })
		k.until("there is a new one", func() bool { return k.leader() != old })
		orders := len(k.orders())
		<-time.After(5 * time.Minute)
		for id, c := range k.running() {
			if id == old && c.Freshness().Age < 5*time.Minute {
				t.Errorf("a node that is cut off says its copy is %v old", c.Freshness().Age)
			}
		}
		if !k.grown(3) {
			t.Errorf("groups changed while a node was away: %v", k.orders()[orders:])
		}
		k.isolate(old, false)
		k.until("all are up", func() bool { return k.nodeState(old) == storage.NodeUp })
	})
}

// isolate cuts a node's catalog traffic; its groups go on, as seen by the world.
func (k *cluster) isolate(id storage.NodeID, cut bool) {
	k.mu.Lock()
	k.cut[id] = cut
	k.mu.Unlock()
	own := k.running()[id].cfg.Transport.(*wire)
	for other, c := range k.running() {
		if other == id {
			continue
		}
		trans := c.cfg.Transport.(*wire)
		if cut {
			own.Disconnect(runner.NodeAddress(other))
			trans.Disconnect(runner.NodeAddress(id))
		} else {
			own.Connect(runner.NodeAddress(other), trans)
			trans.Connect(runner.NodeAddress(id), own)
		}
	}
}

func (k *cluster) orders() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.acts)
}

// TestNobodyJoinsBeforeTheFirst: the number of the node that made the cluster is its own, also when others ask to be taken in
// before the catalog knows it. Without the look in serveJoin the first to ask becomes node 1 too.
func TestNobodyJoinsBeforeTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCluster(t, "")
		c := k.addNode(1)
		k.until("it leads", func() bool { return k.leader() == 1 })
		c.fsm.mu.Lock() // back to the moment after the first command
		at := c.fsm.state.Applied()
		c.fsm.state = catalog.New()
		result := c.fsm.state.ApplyCommand(at, catalog.InitCluster{Cluster: *c.id.Bootstrap})
		c.fsm.mu.Unlock()
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		join := func() (JoinResponse, error) {
			return Join(t.Context(), k.selfOf(2), func(ctx context.Context, body []byte) ([]byte, error) {
				return c.Serve(ctx, 0, MethodJoin, body), nil
			})
		}
		if r, err := join(); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a node is taken in before the first: as %v, %v; want that it asks again", r.Node, err)
		}
	})
}
