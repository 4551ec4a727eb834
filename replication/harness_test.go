package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

// harness is a cluster of nodes in one synctest bubble: a simulated network, disks in memory that forget what was not
// synced, virtual time. It has no catalog: tests give the orders.
type harness struct {
	t     *testing.T
	net   *simnet.Network
	nodes map[storage.NodeID]*simNode

	// For nodes that start afterwards: what the log keeps beyond its checkpoints (0: default), and settings of Replicas.
	retainBytes int64
	holdBytes   int64 // the same for replicas that lag
	cacheBytes  int64 // of entries, in memory
	tableBytes  int64 // of table pages, in memory
	configure   func(*Config)
	store       func(*extent.Config)
	damage      atomic.Pointer[func(to storage.NodeID, b []byte)] // changes what a node reads from its peers; nil: nothing
}

// simNode is one node, running or not; disk outlives the process.
type simNode struct {
	h        *harness
	id       storage.NodeID
	disk     *vfs.MemFS
	stall    diskStall // holds back syncs of the log
	store    *extent.Store
	peers    *peer.Transport
	replicas *Replicas
	stop     context.CancelFunc
	ended    chan struct{}
}

func newHarness(t *testing.T, nodes int) *harness {
	h := &harness{t: t, net: simnet.New(simnet.Config{Seed: 1, Link: simnet.Link{Delay: 100 * time.Microsecond}}),
		nodes: map[storage.NodeID]*simNode{}}
	for i := range nodes {
		id := storage.NodeID(i + 1)
		disk := vfs.NewCrashableMem()
		if err := disk.MkdirAll("store", 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := disk.OpenDir("")
		if err == nil {
			err = root.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		h.nodes[id] = &simNode{h: h, id: id, disk: disk}
	}
	return h
}

// alone returns a node that leads group 1 by itself, and a client of it.
func alone(t *testing.T) (h *harness, n *simNode, c *client) {
	t.Helper()
	h = newHarness(t, 1)
	n = h.nodes[1]
	n.start()
	if err := n.replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
		t.Fatal(err)
	}
	return h, n, h.open(1, 7, 1)
}

// span is the heartbeat time-out.
const span = 500 * time.Millisecond

func nodeName(id storage.NodeID) string { return fmt.Sprintf("n%d", id) }
func storeID(id storage.NodeID) storage.StoreID {
	return storage.StoreID{0xaa, 15: byte(id)}
}

var simCluster = storage.ClusterID{0xcc, 15: 1}

func (n *simNode) start() {
	t := n.h.t
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("STORAGED_TEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.id)
	}
	fs := errorfs.Wrap(n.disk, &n.stall)
	var replicas atomic.Pointer[Replicas]
	var err error
	stores := extent.Config{FS: fs, Dir: "store", Cluster: simCluster, Store: storeID(n.id),
		SegmentBytes: 4 << 20, Segment: segment.Config{FreeSegments: 1, RetainBytes: n.h.retainBytes, HoldBytes: n.h.holdBytes, CacheBytes: n.h.cacheBytes}, ReserveBytes: 1 << 20, CapacityBytes: 1 << 30, CacheBytes: n.h.tableBytes,
		OnCheckpointDue: func(k segment.GroupKey) {
			if rs := replicas.Load(); rs != nil {
				rs.CheckpointDue(k)
			}
		}, Logger: logger}
	if n.h.store != nil {
		n.h.store(&stores)
	}
	if n.store, err = extent.Open(stores); err != nil {
		t.Fatalf("node %d: %v", n.id, err)
	}
	self := n.h.net.Machine(nodeName(n.id))
	l, err := self.Listen(nodeName(n.id) + ":1")
	if err != nil {
		t.Fatal(err)
	}
	n.peers, err = peer.New(peer.Config{Cluster: simCluster, Self: n.id, Listener: badPath{l, n},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return self.Dial(ctx, addr) },
		Resolve: func(id storage.NodeID) (string, bool) {
			return nodeName(id) + ":1", n.h.nodes[id] != nil
		}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	dispatcher := runner.NewDispatcher(n.peers, span, op.BlocksOf)
	config := Config{Node: n.id, Stores: []*extent.Store{n.store}, Peers: n.peers, Dispatcher: dispatcher, Logger: logger}
	if n.h.configure != nil {
		n.h.configure(&config)
	}
	n.replicas, err = NewReplicas(config)
	if err != nil {
		t.Fatal(err)
	}
	replicas.Store(n.replicas)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.ended = cancel, make(chan struct{})
	go func() {
		defer close(n.ended)
		_ = n.peers.Run(ctx)
	}()
	if err := n.replicas.Start(); err != nil {
		t.Fatalf("node %d: %v", n.id, err)
	}
}

// badPath is a node's listener whose connections may damage what comes in: a network card, say, or a switch.
type badPath struct {
	net.Listener
	n *simNode
}

func (p badPath) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	return &badConn{c, p.n}, err
}

type badConn struct {
	net.Conn
	n *simNode
}

func (c *badConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if f := c.n.h.damage.Load(); f != nil {
		(*f)(c.n.id, b[:n])
	}
	return n, err
}

// diskStall makes the syncs of a node's segments wait, as a slow or hanging disk does.
type diskStall struct {
	mu     sync.Mutex
	gate   chan struct{} // closed when syncs of the log pass; nil: they pass
	tables chan struct{} // the same for syncs of the tables
	reads  chan struct{} // and for reads of the log
	broken string        // writes and syncs of files under it fail; "": none
	full   string        // writes of files under it find no room; "": all do
	unread string        // the same for reads
	sector int64         // reads of the log that touch this byte of a segment fail; 0: none

	logReads int // of segments, so far; guarded by mu
}

// MaybeError implements errorfs.Injector.
func (d *diskStall) MaybeError(o errorfs.Op) error {
	switch o.Kind {
	case errorfs.OpFilePreallocate, errorfs.OpFileWrite, errorfs.OpFileWriteAt:
		d.mu.Lock()
		full := d.full
		d.mu.Unlock()
		if full != "" && strings.Contains(o.Path, full) {
			return syscall.ENOSPC
		}
	}
	switch o.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileWrite, errorfs.OpFileWriteAt:
		d.mu.Lock()
		broken := d.broken
		d.mu.Unlock()
		if broken != "" && strings.Contains(o.Path, broken) {
			return errorfs.ErrInjected
		}
	case errorfs.OpFileReadAt:
		d.mu.Lock()
		if strings.Contains(o.Path, "store/log/") {
			d.logReads++
		}
		unread, sector := d.unread, d.sector
		d.mu.Unlock()
		if unread != "" && strings.Contains(o.Path, unread) {
			return errorfs.ErrInjected
		}
		if sector > 0 && strings.Contains(o.Path, "store/log/") && o.Offset/storage.BlockSize == sector/storage.BlockSize {
			return errorfs.ErrInjected
		}
	}
	var gate chan struct{}
	d.mu.Lock()
	switch {
	case o.Kind == errorfs.OpFileSyncData && strings.Contains(o.Path, "store/log/"):
		gate = d.gate
	case isSync(o.Kind) && strings.Contains(o.Path, "store/meta/"):
		gate = d.tables
	case o.Kind == errorfs.OpFileReadAt && strings.Contains(o.Path, "store/log/"):
		gate = d.reads
	}
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return nil
}

func isSync(k errorfs.OpKind) bool {
	return k == errorfs.OpFileSync || k == errorfs.OpFileSyncData || k == errorfs.OpFileSyncTo
}

// stallTables makes syncs of the tables wait until the returned function is called, stallReads reads of the log.
func (d *diskStall) stallTables() (goOn func()) { return d.stallAt(&d.tables) }
func (d *diskStall) stallReads() (goOn func())  { return d.stallAt(&d.reads) }

func (d *diskStall) stallAt(at *chan struct{}) (goOn func()) {
	gate := make(chan struct{})
	set := func(c chan struct{}) {
		d.mu.Lock()
		defer d.mu.Unlock()
		*at = c
	}
	set(gate)
	return func() { set(nil); close(gate) }
}

// breaks makes every write and sync of files under path fail from now on.
func (d *diskStall) breaks(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = path
}

// fills makes every write of files under path find no room from now on.
func (d *diskStall) fills(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = path
}

// unreadable makes every read of files under path fail from now on.
func (d *diskStall) unreadable(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unread = path
}

// readsOfLog returns how many reads of segments there were.
func (d *diskStall) readsOfLog() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.logReads
}

// badSector makes reads that begin in the same 4 KiB of a segment as the byte fail; 0: none.
func (d *diskStall) badSector(at int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sector = at
}

// String implements errorfs.Injector.
func (d *diskStall) String() string { return "stall" }

func (d *diskStall) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate == nil {
		d.gate = make(chan struct{})
	}
}

func (d *diskStall) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

// bootstrapVoters makes a group whose voters are the given nodes from the start.
func (h *harness) bootstrapVoters(id storage.GroupID, nodes ...storage.NodeID) {
	h.t.Helper()
	var c raft.Configuration
	for _, n := range nodes {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: ServerID(storeID(n), storage.Incarnation(n)), Address: runner.NodeAddress(n)})
	}
	for _, n := range nodes {
		g, err := h.nodes[n].replicas.openReplica(id, storeID(n), storage.Incarnation(n))
		if err == nil {
			_, err = runner.Do(context.Background(), g.inst.Load().Instance, "bootstrap", func(r *raft.Raft) raft.Future { return r.BootstrapCluster(c) })
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// shutdown stops the node in order.
func (n *simNode) shutdown() {
	if n.replicas == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	n.replicas.HandOver(ctx)
	if err := n.replicas.Close(ctx); err != nil {
		n.h.t.Errorf("node %d: %v", n.id, err)
	}
	n.stop()
	<-n.ended
	if err := n.store.Close(); err != nil && n.stall.broken == "" {
		n.h.t.Errorf("node %d: close store: %v", n.id, err)
	}
	n.replicas = nil
}

// crash loses what was not synced: the process is gone, the disk is what a power cut leaves. What the old process
// still does goes to the old disk, and its words nowhere.
func (n *simNode) crash() {
	left := n.disk.CrashClone(vfs.CrashCloneCfg{})
	n.h.net.PowerOff(nodeName(n.id))
	n.stall.end()
	n.shutdown()
	n.disk = left
}

func (h *harness) close() {
	h.net.HealAll()
	for _, n := range h.nodes {
		n.stall.end()
		n.shutdown()
	}
}

// eventually waits for a condition, on virtual time.
func (h *harness) eventually(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			for _, n := range h.nodes {
				if n.replicas != nil {
					h.t.Logf("node %d: %+v", n.id, n.replicas.Status())
				}
			}
			h.t.Fatalf("not within a minute: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// leaderOf returns the node that leads a group and is ready; 0 for none.
func (h *harness) leaderOf(id storage.GroupID) storage.NodeID {
	for _, n := range h.nodes {
		if n.replicas == nil {
			continue
		}
		for _, s := range n.replicas.Status() {
			if s.Group == id && s.Ready && n.replicas.mustGroup(id).leaseValid() {
				return n.id
			}
		}
	}
	return 0
}

func (rs *Replicas) mustGroup(id storage.GroupID) *group {
	g, err := rs.group(id)
	if err != nil {
		panic(err)
	}
	return g
}

func (g *group) leaseValid() bool {
	in := g.inst.Load()
	return in != nil && in.HoldsLease(in.CurrentTerm())
}

// grow brings a group that node 1 has bootstrapped to the given nodes.
func (h *harness) grow(id storage.GroupID, to ...storage.NodeID) {
	h.t.Helper()
	h.addLearners(id, to...)
	for _, n := range to {
		h.change(id, runner.AddVoter, n, storage.Incarnation(n))
	}
}

func (h *harness) addLearners(id storage.GroupID, to ...storage.NodeID) {
	h.t.Helper()
	for _, n := range to {
		leader := h.awaitLeader(id)
		inc := storage.Incarnation(n)
		if err := h.nodes[n].replicas.CreateReplica(context.Background(), id, storeID(n), inc, leader); err != nil {
			h.t.Fatalf("create replica on node %d: %v", n, err)
		}
		h.change(id, runner.AddNonvoter, n, inc)
	}
}

// learners bootstraps a group on node 1, has others follow it as learners, and returns the leader once they have caught up.
func (h *harness) learners(id storage.GroupID, others ...storage.NodeID) (leader storage.NodeID) {
	h.t.Helper()
	if err := h.nodes[1].replicas.Bootstrap(context.Background(), id, storeID(1), 1); err != nil {
		h.t.Fatal(err)
	}
	h.addLearners(id, others...)
	leader = h.awaitLeader(id)
	h.eventually("the learners have caught up", func() bool {
		s := h.nodes[leader].replicas.Status()[0]
		for _, m := range s.Replicas {
			if m.AckedIndex < s.LastIndex {
				return false
			}
		}
		return true
	})
	return leader
}

func (h *harness) change(id storage.GroupID, c runner.Change, n storage.NodeID, inc storage.Incarnation) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("change %s of node %d", c, n), func() bool {
		leader := h.leaderOf(id)
		if leader == 0 {
			return false
		}
		err := h.nodes[leader].replicas.ChangeMembership(context.Background(), id, c, string(ServerID(storeID(n), inc)), n, 0)
		if err != nil && !errors.Is(err, storage.ErrConflict) && !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrNotLeader) {
			h.t.Fatalf("change %s of node %d: %v", c, n, err)
		}
		return err == nil
	})
}

func (h *harness) awaitLeader(id storage.GroupID) storage.NodeID {
	h.t.Helper()
	var n storage.NodeID
	h.eventually("a leader", func() bool { n = h.leaderOf(id); return n != 0 })
	return n
}

// client is a session of a test, as a gateway would have it.
type client struct {
	h       *harness
	group   storage.GroupID
	volume  storage.VolumeID
	session storage.SessionID
	seq     uint64
}

// do sends an operation to the leader until it is answered.
func (c *client) do(o op.Op, payload []byte) op.Result {
	c.h.t.Helper()
	var result op.Result
	c.h.eventually(o.Kind.String(), func() bool {
		leader := c.h.leaderOf(c.group)
		if leader == 0 {
			return false
		}
		var err error
		result, err = c.h.nodes[leader].replicas.Propose(context.Background(), c.group, [][]byte{o.AppendHeader(nil), payload})
		if k := storage.KindOf(err); err != nil && k != storage.KindUnavailable && k != storage.KindNotLeader {
			c.h.t.Fatalf("%v: %v", o.Kind, err)
		}
		return err == nil
	})
	return result
}

func (h *harness) open(group storage.GroupID, volume storage.VolumeID, session storage.SessionID) *client {
	h.t.Helper()
	c := &client{h: h, group: group, volume: volume, session: session}
	if r := c.do(op.Op{Kind: op.OpenSession, Volume: volume, Session: session}, nil); r.Kind != storage.KindNone {
		h.t.Fatalf("open session: %+v", r)
	}
	return c
}

func (c *client) writeOp(offset uint32, data []byte) op.Op {
	c.seq++
	return op.Op{Kind: op.Write, Volume: c.volume, Offset: offset, Length: uint32(len(data)), Session: c.session, Seq: c.seq,
		Sums: op.AppendSums(nil, offset, data)}
}

func (c *client) write(offset uint32, data []byte) {
	c.h.t.Helper()
	if r := c.do(c.writeOp(offset, data), data); r.Kind != storage.KindNone {
		c.h.t.Fatalf("write at %d: %+v", offset, r)
	}
}

func (c *client) read(offset, length uint32) []byte {
	c.h.t.Helper()
	var out []byte
	c.h.eventually("read", func() bool {
		leader := c.h.leaderOf(c.group)
		if leader == 0 {
			return false
		}
		d, err := c.h.nodes[leader].replicas.Read(context.Background(), c.group, op.ReadRequest{Volume: c.volume, Offset: offset,
			Length: length, Epoch: op.HeadEpoch})
		if err != nil {
			if k := storage.KindOf(err); k != storage.KindUnavailable && k != storage.KindNotLeader {
				c.h.t.Fatalf("read: %v", err)
			}
			return false
		}
		defer d.Release()
		if err := d.Header.Verify(d.Payload); err != nil {
			c.h.t.Fatal(err)
		}
		out = make([]byte, length)
		if !d.Header.AllHoles() {
			first := offset / storage.BlockSize * storage.BlockSize
			copy(out, d.Payload[offset-first:])
		}
		return true
	})
	return out
}
