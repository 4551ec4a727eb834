package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/route"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

const heartbeatTimeout = 500 * time.Millisecond

var clusterID = storage.ClusterID{0xcc, 15: 1}

func nodeName(id storage.NodeID) string         { return fmt.Sprintf("n%d", id) }
func storeID(id storage.NodeID) storage.StoreID { return storage.StoreID{0xaa, 15: byte(id)} }

// node is a machine: its disk outlives its processes.
type node struct {
	r      *run
	id     storage.NodeID
	bytes  *vfs.MemFS // changes hands between processes; owned by whoever holds busy
	random *rand.Rand // of the machine; owned by whoever holds busy
	starts int        // owned by whoever holds busy

	// busy holds a token while the machine is being killed, cut or started.
	busy chan struct{}
	p    atomic.Pointer[process] // nil while none runs
}

// process is one run of storaged on a node.
type process struct {
	n        *node
	start    int         // the how manieth of its node
	dead     atomic.Bool // set before the kill has any effect: what it says from then on is not believed
	disk     *disk
	store    *extent.Store
	peers    *peer.Transport
	route    *runner.Dispatcher
	replicas *replication.Replicas
	stop     context.CancelFunc
	ended    chan struct{} // the peers have ended
	gone     chan struct{} // closed when everything has ended

	changing chan struct{} // holds a token while a replica is made or removed

	mu      sync.Mutex
	gateway *gateway // guarded by mu; nil while none serves
	opened  int      // gateways ever made
	closing sync.WaitGroup
}

// gateway is one instance of a gateway with its open volumes.
type gateway struct {
	p       *process
	gw      *volume.Gateway
	volumes []*volume.Volume
	ctx     context.Context // ends when the instance is given up
	cancel  context.CancelFunc
	over    atomic.Bool // set before cancel
}

func newNode(r *run, id storage.NodeID) (*node, error) {
	n := &node{r: r, id: id, bytes: vfs.NewCrashableMem(), random: r.plan.rand(fmt.Sprintf("node %d", id)), busy: make(chan struct{}, 1)}
	if err := n.bytes.MkdirAll("store", 0o755); err != nil {
		return nil, err
	}
	root, err := n.bytes.OpenDir("")
	if err != nil {
		return nil, err
	}
	return n, root.Sync()
}

// start runs a new process. busy is held.
func (n *node) start() error {
	n.starts++
	p := &process{n: n, start: n.starts, ended: make(chan struct{}), gone: make(chan struct{}), changing: make(chan struct{}, 1),
		disk: newDisk(n.bytes, n.r.plan.SyncDelay, rand.New(rand.NewPCG(n.random.Uint64(), 1)))}
	logger := n.r.logger.With("node", n.id, "start", n.starts)
	var replicas atomic.Pointer[replication.Replicas]
	var err error
	var goal int64
	if n.r.plan.Compact {
		goal = 700 << 20 // of 1 GiB: room counts as short, and is not
	}
	p.store, err = extent.Open(extent.Config{FS: p.disk, Dir: "store", Cluster: clusterID, Store: storeID(n.id),
		SegmentBytes: n.r.plan.SegmentBytes, ReserveBytes: 1 << 20, CapacityBytes: 1 << 30, Compact: n.r.plan.Compact, FreeGoalBytes: goal,
		CheckpointBytes: n.r.plan.CheckpointBytes, CacheBytes: n.r.plan.CacheBytes, MemTableBytes: 256 << 10,
		Segment: segment.Config{FreeSegments: 1, RetainBytes: n.r.plan.RetainBytes, HoldBytes: min(0, n.r.plan.RetainBytes), CacheBytes: n.r.plan.LogCacheBytes},
		OnCheckpointDue: func(k segment.GroupKey) {
			if rs := replicas.Load(); rs != nil {
				rs.CheckpointDue(k)
			}
		}, Logger: logger})
	if err != nil {
		return fmt.Errorf("node %d does not open its store: %w", n.id, err)
	}
	for _, d := range p.store.Log().Damaged() {
		// Disks of this simulation never lie, so whatever a kill or a power cut leaves is ordinary.
		n.r.fail("node %d: a replica is damaged after a crash that lost unsynced bytes only: %+v", n.id, d)
	}
	if err := p.serve(logger, &replicas); err != nil {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	n.p.Store(p)
	go p.openGateway()
	return nil
}

func (p *process) serve(logger *slog.Logger, replicas *atomic.Pointer[replication.Replicas]) error {
	n := p.n
	self := n.r.net.Machine(nodeName(n.id))
	l, err := self.Listen(nodeName(n.id) + ":1")
	if err != nil {
		return err
	}
	p.peers, err = peer.New(peer.Config{Cluster: clusterID, Self: n.id, Listener: l,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := self.Dial(ctx, addr)
			if err == nil && p.dead.Load() { // the network's end of the kill came before this connection
				_ = c.Close()
				return nil, net.ErrClosed
			}
			return c, err
		},
		Resolve: func(id storage.NodeID) (string, bool) {
			return nodeName(id) + ":1", int(id) <= len(n.r.nodes) && !p.dead.Load()
		},
		Logger: logger})
	if err != nil {
		return err
	}
	p.route = runner.NewDispatcher(p.peers, heartbeatTimeout, op.BlocksOf)
	p.replicas, err = replication.NewReplicas(replication.Config{Node: n.id, Stores: []*extent.Store{p.store}, Peers: p.peers,
		Dispatcher: p.route, HeartbeatTimeout: heartbeatTimeout, Logger: logger})
	if err != nil {
		return err
	}
	replicas.Store(p.replicas)
	if (n.starts+int(n.id))%2 == 0 { // one after the other, so that replicas of both formats pull from each other
		if err := p.replicas.RaiseFormat(storedir.NewestFormat); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() {
		defer close(p.ended)
		_ = p.peers.Run(ctx)
	}()
	return p.replicas.Start()
}

// wind stops what is left of the process. ctx ended: at once.
func (p *process) wind(ctx context.Context) {
	defer close(p.gone)
	p.closeGateway(true)
	_ = p.replicas.Close(ctx)
	p.stop()
	<-p.ended
	p.route.Close()
	if err := p.store.Close(); err != nil && !p.dead.Load() {
		p.n.r.fail("node %d: close store: %v", p.n.id, err)
	}
	p.closing.Wait()
}

// canceled is a context that has ended.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// down ends the process as a kill does. What was written stays, synced or not. With power, the machine loses what
// was not synced, but for some of it.
func (n *node) down(power bool, survivors int) {
	p := n.p.Load()
	if p == nil {
		return
	}
	p.dead.Store(true)
	n.p.Store(nil)
	if power {
		n.r.net.PowerOff(nodeName(n.id))
	} else {
		n.r.net.Crash(nodeName(n.id))
	}
	p.disk.kill()
	go p.wind(canceled())
	<-p.gone
	if power {
		n.bytes = n.bytes.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: survivors, RNG: rand.New(rand.NewPCG(n.random.Uint64(), 2))})
	}
}

// shutdown ends the process in order.
func (n *node) shutdown() {
	p := n.p.Load()
	if p == nil {
		return
	}
	n.p.Store(nil)
	p.closeGateway(false)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	p.replicas.HandOver(ctx)
	p.wind(ctx)
}

// openGateway opens a gateway and all volumes, however long it takes.
func (p *process) openGateway() {
	p.mu.Lock()
	p.opened++
	instance := fmt.Sprintf("%d-%d-%d", p.n.id, p.start, p.opened)
	p.mu.Unlock()
	view := &gatewayView{p: p, catalog: p.n.r.catalog, instance: instance, Router: route.New(route.Config{HeartbeatTimeout: heartbeatTimeout, Self: p.n.id, Own: p.replicas,
		Peers: p.peers, Replicas: func(storage.GroupID) []storage.NodeID { return p.n.r.ids() }})}
	gw, err := volume.New(volume.Config{Cluster: view, Logger: p.n.r.logger.With("gateway", instance)})
	if err != nil {
		p.n.r.fail("gateway: %v", err)
		return
	}
	g := &gateway{p: p, gw: gw}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	if p.gateway != nil || p.dead.Load() || p.n.p.Load() != p {
		p.mu.Unlock()
		g.end(true)
		return
	}
	p.gateway = g
	p.mu.Unlock()
	var vs []*volume.Volume
	for i := range p.n.r.plan.Volumes {
		v, err := gw.Open(g.ctx, volumeName(i), volume.OpenOptions{Access: storage.AccessShared})
		for err != nil && storage.KindOf(err) == storage.KindFenced && p.n.r.fencings.Load() > 0 {
			// Taken over between attachment and session. A client that is told so connects again.
			if !p.n.r.sleep(g.ctx, 20*time.Millisecond) {
				break
			}
			v, err = gw.Open(g.ctx, volumeName(i), volume.OpenOptions{Access: storage.AccessShared})
		}
		if err != nil {
			if !g.over.Load() && storage.KindOf(err) != storage.KindCanceled { // closed meanwhile
				p.n.r.fail("node %d: open volume: %v", p.n.id, err)
			}
			return
		}
		vs = append(vs, v)
	}
	p.mu.Lock()
	g.volumes = vs
	p.mu.Unlock()
}

// serving returns the gateway if it serves.
func (p *process) serving() *gateway {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gateway == nil || p.gateway.volumes == nil {
		return nil
	}
	return p.gateway
}

// closeGateway ends the gateway; abandoned: without a word to the groups, as when its process is killed.
func (p *process) closeGateway(abandon bool) {
	p.mu.Lock()
	g := p.gateway
	p.gateway = nil
	if g != nil {
		p.closing.Add(1) // under mu, so that wind, which comes by here, waits for it
	}
	p.mu.Unlock()
	if g == nil {
		return
	}
	defer p.closing.Done()
	g.end(abandon)
}

func (g *gateway) end(abandon bool) {
	if !abandon {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = g.gw.Close(ctx)
		g.over.Store(true)
		g.cancel()
		return
	}
	g.over.Store(true)
	g.cancel()
	_ = g.gw.Close(canceled())
}
