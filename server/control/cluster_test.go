package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/placement/placementtest"
)

// cluster is several Controllers in one process: Raft over the library's in-memory transport, requests by calls,
// the groups a placementtest.World.
type cluster struct {
	t     *testing.T
	dir   string // on disk, with bolt; empty: in memory
	world *placementtest.World
	tune  func(*Config)
	// version is what the cluster is made at; 0: the newest.
	version int

	mu    sync.Mutex // guards the fields below
	nodes map[storage.NodeID]*member
	cut   map[storage.NodeID]bool
	// frozen nodes take requests and never answer.
	frozen map[storage.NodeID]bool
	// stubborn: nobody takes the catalog over from another.
	stubborn bool
	busy     map[storage.GroupID]int
	acts     []string
	live     map[storage.NodeID][]storage.SessionID // what gateways report
	fail     error                                  // what CloseSession and DeleteVolume answer
	done     map[string]bool                        // what they were asked for
	asked    []string                               // the same in order; guarded by mu
}

type member struct {
	c      *Controller
	cfg    Config
	stop   func()
	ended  chan error  // gets what Run returned
	stores *RaftStores // survive a restart
}

func newCluster(t *testing.T, dir string) *cluster {
	k := &cluster{t: t, dir: dir, world: placementtest.New(), nodes: map[storage.NodeID]*member{},
		cut: map[storage.NodeID]bool{}, frozen: map[storage.NodeID]bool{}, busy: map[storage.GroupID]int{}, live: map[storage.NodeID][]storage.SessionID{},
		done: map[string]bool{}, tune: func(*Config) {}}
	t.Cleanup(func() {
		for id := range k.running() {
			k.stopNode(id)
		}
		for _, v := range k.world.Violations() {
			t.Error(v)
		}
	})
	return k
}

// wire is a node's transport for the catalog's Raft.
type wire struct {
	*raft.InmemTransport
	k *cluster
}

func (w *wire) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	w.k.mu.Lock()
	stubborn := w.k.stubborn
	w.k.mu.Unlock()
	if stubborn {
		return errors.New("it does not take over")
	}
	return w.InmemTransport.TimeoutNow(id, target, args, resp)
}

// Connect is that of the memory's transport, which knows only its own kind.
func (w *wire) Connect(peer raft.ServerAddress, t raft.Transport) {
	w.InmemTransport.Connect(peer, t.(*wire).InmemTransport)
}

func storeOf(id storage.NodeID) storage.StoreID { return storage.StoreID{0: 0xd1, 15: byte(id)} }

func (k *cluster) selfOf(id storage.NodeID) catalog.AddNode {
	return catalog.AddNode{Name: "n" + id.String(), Addrs: storage.Addrs{Peer: fmt.Sprintf("n%s:7001", id)},
		Stores: []storage.Store{{ID: storeOf(id), CapacityBytes: 1 << 40}}}
}

// addNode bootstraps the first node and joins the others through node 1.
func (k *cluster) addNode(id storage.NodeID) *Controller {
	k.t.Helper()
	m := &member{}
	m.cfg = Config{Dir: "/catalog", FS: vfs.NewMem(), Self: k.selfOf(id), Peers: peersOf{k, id}, Actions: k}
	if k.dir != "" {
		m.cfg.Dir, m.cfg.FS = filepath.Join(k.dir, id.String()), vfs.Default
	} else {
		mem := raft.NewInmemStore()
		m.stores = &RaftStores{Log: mem, Stable: mem, Snapshots: raft.NewInmemSnapshotStore()}
	}
	if id == 1 {
		ident, err := NewCluster(catalog.Cluster{ID: storage.ClusterID{9}, Version: k.version, CreatedAt: time.Now().UTC()})
		if err == nil {
			err = SaveIdentity(m.cfg.FS, m.cfg.Dir, ident)
		}
		if err != nil {
			k.t.Fatal(err)
		}
	} else {
		k.join(id, m)
	}
	k.world.AddNode(id, storeOf(id))
	k.mu.Lock()
	k.nodes[id] = m
	k.mu.Unlock()
	return k.startNode(id)
}

func (k *cluster) join(id storage.NodeID, m *member) {
	k.t.Helper()
	via := slices.Max(slices.Collect(maps.Keys(k.running()))) // seldom the leader
	r, err := Join(k.t.Context(), k.selfOf(id), func(ctx context.Context, body []byte) ([]byte, error) {
		return k.running()[via].Serve(ctx, 0, MethodJoin, body), nil
	})
	if err == nil && r.Node != id {
		err = fmt.Errorf("joined as node %s, want %s", r.Node, id)
	}
	if err == nil {
		_, err = SaveJoin(m.cfg, r)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *cluster) startNode(id storage.NodeID) *Controller {
	k.t.Helper()
	k.mu.Lock()
	m := k.nodes[id]
	k.mu.Unlock()
	_, inMemory := raft.NewInmemTransportWithTimeout(runner.NodeAddress(id), 500*time.Millisecond)
	transport := &wire{inMemory, k}
	for other, c := range k.running() {
		trans := c.cfg.Transport.(*wire)
		trans.Connect(runner.NodeAddress(id), transport)
		transport.Connect(runner.NodeAddress(other), trans)
	}
	cfg := m.cfg
	cfg.Transport, cfg.Stores = transport, m.stores
	cfg.Report = func() placement.NodeReport {
		r, _ := k.world.Report(id)
		k.mu.Lock()
		defer k.mu.Unlock()
		r.Sessions = slices.Clone(k.live[id])
		return r
	}
	k.tune(&cfg)
	c, err := Open(cfg)
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		defer close(ended)
		result <- c.Run(ctx)
	}()
	k.world.SetUp(id, true)
	k.mu.Lock()
	defer k.mu.Unlock()
	m.c, m.ended = c, result
	m.stop = func() { cancel(); <-ended }
	return c
}

// stopNode stops a node in good order; the rest of the cluster sees it fall silent.
func (k *cluster) stopNode(id storage.NodeID) {
	k.t.Helper()
	k.mu.Lock()
	m := k.nodes[id]
	c := m.c
	m.c = nil
	k.mu.Unlock()
	k.world.SetUp(id, false)
	m.stop()
	if err := c.Close(); err != nil {
		k.t.Error(err)
	}
	for _, other := range k.running() {
		other.cfg.Transport.(*wire).Disconnect(runner.NodeAddress(id))
	}
}

// running returns the Controllers that run.
func (k *cluster) running() map[storage.NodeID]*Controller {
	k.mu.Lock()
	defer k.mu.Unlock()
	up := map[storage.NodeID]*Controller{}
	for id, m := range k.nodes {
		if m.c != nil {
			up[id] = m.c
		}
	}
	return up
}

// leader waits for a leader that reigns.
func (k *cluster) leader() (id storage.NodeID) {
	k.t.Helper()
	k.until("somebody leads the catalog", func() bool {
		for n, c := range k.running() {
			if c.leading() != nil {
				id = n
				return true
			}
		}
		return false
	})
	return id
}

// until waits for a condition.
func (k *cluster) until(what string, cond func() bool) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), 3*time.Minute) // far beyond every time-out; virtual in a bubble
	defer cancel()
	for !cond() {
		if clock.Sleep(ctx, 20*time.Millisecond) != nil {
			k.t.Fatalf("it never came true that %s; orders: %v", what, k.orders())
		}
	}
}

// grown reports whether every group has n voters, also as the catalog records it.
func (k *cluster) grown(n int) bool {
	var groups []storage.Group
	for _, c := range k.running() { // the leader's copy: a node that is back may know little yet
		c.View(func(s *catalog.State) { groups = s.Groups() })
		if c.leading() != nil {
			break
		}
	}
	for _, g := range groups {
		voters, leader := k.world.Voters(g.ID)
		if len(voters) != n || leader == 0 || g.Count(storage.RoleVoter) != n || g.State != storage.GroupReady {
			return false
		}
	}
	return len(groups) == catalog.DefaultGroups
}

func (k *cluster) propose(c *Controller, cmd catalog.Command) catalog.Result {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	r, err := c.Propose(ctx, cmd)
	if err != nil {
		k.t.Fatalf("%#v: %v", cmd, err)
	}
	return r
}

// peersOf carries requests between Controllers by calls.
type peersOf struct {
	k    *cluster
	from storage.NodeID
}

func (p peersOf) Call(ctx context.Context, to storage.NodeID, m Method, body []byte) ([]byte, error) {
	c := p.k.running()[to]
	p.k.mu.Lock()
	cut := p.k.cut[to] || p.k.cut[p.from]
	p.k.mu.Unlock()
	p.k.mu.Lock()
	frozen := p.k.frozen[to]
	p.k.mu.Unlock()
	if frozen { // takes the request and does not answer
		<-ctx.Done()
		return nil, storage.E("call", storage.KindUnavailable, "node "+to.String(), ctx.Err())
	}
	if c == nil || cut {
		return nil, storage.E("call", storage.KindUnavailable, "node "+to.String(), errors.New("it does not answer"))
	}
	return c.Serve(ctx, p.from, m, body), nil
}

// The cluster is the Actions of all its Controllers. Orders take a while, so that two for one group would meet.

func (k *cluster) order(ctx context.Context, group storage.GroupID, text string, fn func() error) error {
	k.mu.Lock()
	k.busy[group]++
	if k.busy[group] > 1 {
		k.t.Errorf("group %s: %q was ordered before the order in hand was done", group, text)
	}
	k.acts = append(k.acts, text)
	k.mu.Unlock()
	err := clock.Sleep(ctx, 5*time.Millisecond)
	if err == nil {
		err = fn()
	}
	k.mu.Lock()
	k.busy[group]--
	k.mu.Unlock()
	for _, c := range k.running() {
		c.ReportSoon()
	}
	return err
}

func (k *cluster) CreateReplica(ctx context.Context, o CreateOrder) error {
	return k.order(ctx, o.Group, fmt.Sprintf("create %v", o), func() error {
		if o.Bootstrap {
			return k.world.Bootstrap(o.Group, o.Node, o.Key)
		}
		return k.world.Create(o.Group, o.Node, o.Key, o.Source)
	})
}

func (k *cluster) DropReplica(ctx context.Context, o ReplicaOrder) error {
	return k.order(ctx, o.Group, fmt.Sprintf("drop %v", o), func() error { return k.world.Drop(o.Group, o.Node, o.Key) })
}

func (k *cluster) ChangeMembership(ctx context.Context, o MembershipOrder) error {
	return k.order(ctx, o.Group, fmt.Sprintf("change %v", o), func() error {
		switch o.Change {
		case runner.AddNonvoter:
			return k.world.AddLearner(o.Group, o.Leader, o.Node, o.Key)
		case runner.AddVoter:
			return k.world.AddVoter(o.Group, o.Leader, o.Key)
		default:
			return k.world.Remove(o.Group, o.Leader, o.Key)
		}
	})
}

func (k *cluster) TransferLeader(ctx context.Context, o TransferOrder) error {
	return k.order(ctx, o.Group, fmt.Sprintf("transfer %v", o), func() error {
		return k.world.Transfer(o.Group, o.Leader, o.Node)
	})
}

func (k *cluster) CloseSession(_ context.Context, g storage.GroupID, v storage.VolumeID, s storage.SessionID) error {
	return k.groupOp(fmt.Sprintf("close session %s of volume %s in group %s", s, v, g))
}

func (k *cluster) SetGeneration(_ context.Context, g storage.GroupID, v storage.VolumeID, n storage.Generation, _ uint64) error {
	return k.groupOp(fmt.Sprintf("set generation %s of volume %s in group %s", n, v, g))
}

func (k *cluster) DeleteVolume(_ context.Context, g storage.GroupID, v storage.VolumeID, at uint64) error {
	if at == 0 {
		return errors.New("made from no index of the catalog")
	}
	return k.groupOp(fmt.Sprintf("delete volume %s in group %s", v, g))
}

func (k *cluster) ForgetDeleted(_ context.Context, g storage.GroupID, s storage.SessionID, at uint64) error {
	return k.groupOp(fmt.Sprintf("forget in group %s up to session %s", g, s))
}

func (k *cluster) groupOp(what string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail == nil {
		k.done[what] = true
		k.asked = append(k.asked, what)
	}
	return k.fail
}
