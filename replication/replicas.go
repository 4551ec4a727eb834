package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/ledger"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

// Config describes the Replicas of a node.
type Config struct {
	Node       storage.NodeID
	Stores     []*extent.Store    // opened; the Replicas do not close them
	Peers      *peer.Transport    // not running yet: the Replicas enter their methods
	Dispatcher *runner.Dispatcher // shared with the catalog's transport

	// HeartbeatTimeout is one value per cluster, from the catalog. Default 500 ms.
	HeartbeatTimeout time.Duration
	// ReadMode is lease (default) or quorum.
	ReadMode op.ReadMode
	// MaxAppendEntries bounds the entries of one request of the library, which allocates room for so many each time. Default 128.
	MaxAppendEntries int
	// GroupInFlightBytes and StoreInFlightBytes bound what is proposed and not applied. Defaults 32 MiB and 128 MiB.
	GroupInFlightBytes, StoreInFlightBytes int64
	// ReadBytes bounds the blocks that are being read and those of answers that were not written to their sockets yet, of
	// all groups and peers, a part of it for each store. Default 256 MiB; at least an extent.
	ReadBytes int64

	// A disk that does not give back UnreadableBlocks different blocks within UnreadableWindow is failed: until then each is
	// read from another replica. Defaults 16 and an hour. A disk that holds the only voter of a group is not failed by it.
	UnreadableBlocks int
	UnreadableWindow time.Duration

	// SilentAfter is for how long a voter that is not heard of still holds up writes by what it has said of its room: until the group
	// goes on for good without it. Default 5 minutes.
	SilentAfter time.Duration

	// OnLeadership, if set, is called after a replica of this node has begun to lead its group, or no longer does. It must not
	// block.
	OnLeadership func()

	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

func (c *Config) setDefaults() {
	c.UnreadableBlocks = cmp.Or(c.UnreadableBlocks, 16)
	c.UnreadableWindow = cmp.Or(c.UnreadableWindow, time.Hour)
	c.SilentAfter = cmp.Or(c.SilentAfter, 5*time.Minute)
	c.HeartbeatTimeout = cmp.Or(c.HeartbeatTimeout, 500*time.Millisecond)
	if c.ReadMode == op.ReadDefault {
		c.ReadMode = op.ReadLease
	}
	c.MaxAppendEntries = cmp.Or(c.MaxAppendEntries, 128)
	c.GroupInFlightBytes = cmp.Or(c.GroupInFlightBytes, 32<<20)
	c.StoreInFlightBytes = cmp.Or(c.StoreInFlightBytes, 128<<20)
	c.ReadBytes = cmp.Or(c.ReadBytes, 256<<20)
	if c.OnLeadership == nil {
		c.OnLeadership = func() {}
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// Validate returns every problem of the configuration at once.
func (c *Config) Validate() error {
	var p storage.Problems
	p.Check(c.Node != 0, "node is 0")
	p.Check(len(c.Stores) > 0, "no store")
	p.Check(c.Peers != nil && c.Dispatcher != nil, "no peers")
	p.Check(c.MaxAppendEntries >= 0 && c.MaxAppendEntries <= runner.MaxEntriesPerCall, "max append entries %d is not within 1 to %d", c.MaxAppendEntries, runner.MaxEntriesPerCall)
	p.Check(c.ReadBytes >= storage.ExtentSize, "read bytes %d are less than an extent's %d", c.ReadBytes, storage.ExtentSize)
	return p.Err("configure host", "")
}

// Replicas runs the replicas of one node. Its methods may be called by any number of goroutines.
type Replicas struct {
	cfg    Config
	disks  []*disk
	pulls  *pullServer
	ledger *ledger.Ledger // of what is on its way to stores from here
	stages *runner.Stages // nil without metrics

	mu     sync.RWMutex
	groups map[storage.GroupID]*group         // guarded by mu
	out    map[storage.GroupID]damagedReplica // replicas that stay out, none of them in groups; guarded by mu
	closed bool                               // guarded by mu
	format int                                // the highest that RaiseFormat was asked for; guarded by mu

	changing chan struct{} // holds a token during a creation, a removal or the end: one at a time. No lock: a pull takes minutes

	ctx    context.Context // done when the Replicas close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the Replicas' own goroutines; added to under mu while closed is not set
}

// NewReplicas makes a node's Replicas and enters their methods with the peers. Start starts the replicas.
func NewReplicas(cfg Config) (*Replicas, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	rs := &Replicas{cfg: cfg, groups: map[storage.GroupID]*group{}, out: map[storage.GroupID]damagedReplica{},
		changing: make(chan struct{}, 1)}
	rs.ledger = ledger.New(cfg.SilentAfter)
	rs.ctx, rs.cancel = context.WithCancel(context.Background())
	for _, s := range cfg.Stores {
		d := newDisk(s, &cfg)
		d.onFail = func() { rs.goRun(func() { rs.stopDisk(d) }) }
		d.look(time.Now())
		rs.disks = append(rs.disks, d)
		s.MendFrom(rs.mendFrom)
	}
	rs.pulls = newPullServer(rs)
	cfg.Peers.Handle(op.MethodPropose, peer.Terms{From: peer.Members | peer.Gateways, Order: peer.Concurrent, SumsInRequests: true, Layout: layoutPropose}, rs.servePropose)
	cfg.Peers.Handle(op.MethodRead, peer.Terms{From: peer.Members | peer.Gateways, Order: peer.Concurrent, SumsInAnswers: true}, rs.serveRead)
	cfg.Peers.Handle(methodReadCopy, peer.Terms{From: peer.Members, Order: peer.Concurrent, SumsInAnswers: true}, rs.serveReadCopy)
	cfg.Peers.Handle(op.MethodStatus, peer.Terms{From: peer.Members | peer.Gateways, Order: peer.Concurrent}, rs.serveStatus)
	cfg.Peers.Handle(op.MethodMappedExtents, peer.Terms{From: peer.Members | peer.Gateways, Order: peer.Concurrent}, rs.serveMapped)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(&collector{rs}); err != nil {
			return nil, storage.E("new host", storage.KindInternal, "metrics", err)
		}
		var err error
		if rs.stages, err = runner.NewStages(cfg.Metrics); err != nil {
			return nil, storage.E("new host", storage.KindInternal, "metrics", err)
		}
	}
	return rs, nil
}

// Start starts every replica that the stores hold. A damaged one stays stopped: it must not vote with less than it
// once acknowledged.
func (rs *Replicas) Start() error {
	for _, d := range rs.disks {
		damaged := map[segment.GroupKey]segment.Damage{}
		for _, dmg := range d.store.Log().Damaged() {
			damaged[dmg.Key] = dmg
		}
		for _, key := range d.store.Groups() {
			if dmg, bad := damaged[key]; bad { // I7
				rs.keepOut(d, key, fmt.Sprintf("its log is damaged at segment %d, byte %d: %s", dmg.At.Segment(), dmg.At.Offset(), dmg.Reason))
				continue
			}
			if _, err := rs.startGroup(d, key); storage.KindOf(err) == storage.KindCorrupt { // I7
				rs.keepOut(d, key, err.Error())
			} else if d.store.Failed() != nil {
				break // its replicas stay stopped, and the node's other disks serve
			} else if err != nil {
				return err
			}
		}
	}
	rs.goRun(rs.watchDisks)
	for _, d := range rs.disks {
		rs.goRun(func() { rs.runCheckpoints(d) })
	}
	return nil
}

// goRun starts a goroutine that Close waits for, unless the Replicas are closed.
func (rs *Replicas) goRun(f func()) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if !rs.closed {
		rs.wg.Go(f)
	}
}

// RaiseFormat lets all stores write what is new in format n (extent.Store.RaiseFormat), those of earlier calls included. A store
// that the Replicas get later is raised to the highest n that they were asked for. It goes through all stores whatever one of them
// answers, and may be called again.
func (rs *Replicas) RaiseFormat(n int) error {
	rs.mu.Lock()
	rs.format = max(rs.format, n)
	n = rs.format
	rs.mu.Unlock()
	var errs []error
	for _, d := range rs.disks {
		errs = append(errs, d.store.RaiseFormat(n))
	}
	return errors.Join(errs...)
}

// stopDisk stops the replicas of a disk that has failed, so that those who wait for them are released.
func (rs *Replicas) stopDisk(d *disk) {
	for _, g := range rs.all() {
		if g.disk == d {
			g.stop()
		}
	}
}

// ServerID is the name of a replica in its group's configuration: a store and an incarnation, never used twice.
func ServerID(store storage.StoreID, inc storage.Incarnation) raft.ServerID {
	return raft.ServerID(fmt.Sprintf("%s/%d", store, inc))
}

func (rs *Replicas) startGroup(d *disk, key segment.GroupKey) (*group, error) {
	if err := d.usable("start"); err != nil {
		return nil, err
	}
	extents := d.store.Group(key)
	if extents == nil {
		return nil, storage.E("start", storage.KindInternal, "group "+key.Group.String(), errors.New("the store does not hold it"))
	}
	g := &group{id: key.Group, self: ServerID(d.store.ID(), key.Incarnation), node: rs, disk: d, extents: extents,
		ranges: newRanges(), logger: rs.cfg.Logger.With("group", key.Group),
		admit: &admission{group: semaphore.NewWeighted(rs.cfg.GroupInFlightBytes), store: d.inflight,
			groupBytes: rs.cfg.GroupInFlightBytes, storeBytes: rs.cfg.StoreInFlightBytes}}
	rs.mu.Lock()
	if rs.closed || rs.groups[key.Group] != nil {
		rs.mu.Unlock()
		return nil, storage.E("start", storage.KindConflict, "group "+key.Group.String(), errors.New("this node has a replica of it already"))
	}
	rs.groups[key.Group] = g
	rs.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.startLocked(); err != nil {
		rs.mu.Lock()
		delete(rs.groups, key.Group)
		rs.mu.Unlock()
		return nil, err
	}
	return g, nil
}

func (rs *Replicas) group(id storage.GroupID) (*group, error) {
	rs.mu.RLock()
	g := rs.groups[id]
	rs.mu.RUnlock()
	if g == nil {
		return nil, op.NotLeader("find", "group "+id.String(), id, 0)
	}
	return g, nil
}

func (rs *Replicas) all() []*group {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return slices.SortedFunc(maps.Values(rs.groups), func(a, b *group) int { return cmp.Compare(a.id, b.id) })
}

func (rs *Replicas) watchDisks() {
	tick := clock.NewTimer(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-rs.ctx.Done():
			return
		case now := <-tick.C:
			tick.Again()
			for _, d := range rs.disks {
				d.look(now)
			}
		}
	}
}

// CheckpointDue asks for a checkpoint of a group soon; it never blocks. It is what a store's OnCheckpointDue calls.
func (rs *Replicas) CheckpointDue(key segment.GroupKey) {
	if g, err := rs.group(key.Group); err == nil {
		g.disk.checkpointDue()
	}
}

// checkpointTick is how often every group is asked whether a checkpoint is due: one that failed is repeated.
const checkpointTick = 5 * time.Second

// runCheckpoints writes the checkpoints of one disk, one after another. Each disk has its own turn: one that hangs must
// not keep the others' logs from being freed.
func (rs *Replicas) runCheckpoints(d *disk) {
	tick := clock.NewTimer(checkpointTick)
	defer tick.Stop()
	for {
		select {
		case <-rs.ctx.Done():
			return
		case <-d.due:
		case <-tick.C:
			tick.Again()
		}
		for _, g := range rs.all() {
			if g.disk != d {
				continue
			}
			g.keepLog()
			if d.silent() || !g.extents.CheckpointDue() {
				continue
			}
			if err := g.checkpoint(rs.ctx); err != nil && rs.ctx.Err() == nil {
				rs.cfg.Logger.Warn("checkpoint not written", "group", g.id, "error", err)
			}
		}
	}
}

// turn waits until no other replica is being made or removed on this node, and returns what ends the turn. A pull may take minutes.
func (rs *Replicas) turn(ctx context.Context, op string, id storage.GroupID) (end func(), err error) {
	select {
	case rs.changing <- struct{}{}:
		return func() { <-rs.changing }, nil
	case <-ctx.Done():
	case <-rs.ctx.Done():
	}
	return nil, storage.E(op, storage.KindUnavailable, "group "+id.String(),
		fmt.Errorf("another replica is being made or removed on this node: %w", cmp.Or(context.Cause(ctx), context.Cause(rs.ctx))))
}

// Bootstrap makes a group with one voter: a replica on this node. Running it again is no error. KindUnavailable if other changes
// went on until ctx ended.
func (rs *Replicas) Bootstrap(ctx context.Context, id storage.GroupID, store storage.StoreID, inc storage.Incarnation) error {
	end, err := rs.turn(ctx, "create group", id)
	if err != nil {
		return err
	}
	defer end()
	g, err := rs.openReplica(id, store, inc)
	if err != nil {
		return err
	}
	return g.bootstrap()
}

// openReplica returns this node's replica of a group, made new if there is none. changing is held.
func (rs *Replicas) openReplica(id storage.GroupID, store storage.StoreID, inc storage.Incarnation) (*group, error) {
	self := ServerID(store, inc)
	rs.mu.RLock()
	g, damaged := rs.groups[id], rs.out[id]
	rs.mu.RUnlock()
	if damaged.reason != "" {
		return nil, storage.E("create replica", storage.KindConflict, "group "+id.String(),
			fmt.Errorf("this node holds the damaged replica %s, which must be dropped first: %s", damaged.self(), damaged.reason))
	}
	if g != nil {
		if g.self != self {
			return nil, storage.E("create replica", storage.KindConflict, "group "+id.String(),
				fmt.Errorf("this node holds its replica %s; %s was asked for", g.self, self))
		}
		return g, nil
	}
	for _, d := range rs.disks {
		if d.store.ID() != store {
			continue
		}
		if err := d.usable("create replica"); err != nil {
			return nil, err
		}
		key := segment.GroupKey{Group: id, Incarnation: inc}
		if _, err := d.store.CreateGroup(key); err != nil && !errors.Is(err, storage.ErrExists) {
			return nil, err
		}
		return rs.startGroup(d, key)
	}
	return nil, storage.E("create replica", storage.KindNotFound, "store "+store.String(), errors.New("this node does not serve it"))
}

// CreateReplica makes a replica of a group here and brings it up by pulling a manifest from another node, so that it
// can join the group as a non-voter. Running it again goes on, or does nothing.
func (rs *Replicas) CreateReplica(ctx context.Context, id storage.GroupID, store storage.StoreID, inc storage.Incarnation,
	source storage.NodeID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(rs.ctx, cancel)() // the node stops
	end, err := rs.turn(ctx, "create replica", id)
	if err != nil {
		return err
	}
	defer end()
	g, err := rs.openReplica(id, store, inc)
	if err != nil {
		return err
	}
	if index, _ := g.extents.Applied(); index > 0 || g.extents.Log().LastIndex() > 0 {
		return g.replace(func() error { return nil }) // it has been brought up before
	}
	name, err := g.pull(ctx, source, "", nil)
	if err != nil {
		return err
	}
	return g.replace(func() error {
		g.stopLocked()
		defer g.disk.store.GiveUp(name, g.extents.Key()) // there is nothing after an install
		return g.extents.Install(name)
	})
}

// RemoveReplica stops and forgets this node's replica of a group. Its space is freed.
// KindUnavailable if other changes went on until ctx ended.
func (rs *Replicas) RemoveReplica(ctx context.Context, id storage.GroupID, store storage.StoreID, inc storage.Incarnation) error {
	end, err := rs.turn(ctx, "remove replica", id)
	if err != nil {
		return err
	}
	defer end()
	rs.mu.Lock()
	if d, ok := rs.out[id]; ok && d.self() == ServerID(store, inc) {
		rs.mu.Unlock()
		return rs.removeDamaged(d)
	}
	if g := rs.groups[id]; g != nil && g.self == ServerID(store, inc) {
		delete(rs.groups, id)
		rs.mu.Unlock()
		g.stop()
	} else {
		rs.mu.Unlock()
	}
	key := segment.GroupKey{Group: id, Incarnation: inc}
	for _, d := range rs.disks { // also what an earlier attempt has stopped and not removed
		if d.store.ID() == store && d.store.Group(key) != nil {
			return d.store.RemoveGroup(key)
		}
	}
	return nil
}

// HandOver gives every leadership of this node to another voter, as far as there is one, before the node stops.
func (rs *Replicas) HandOver(ctx context.Context) {
	var wg sync.WaitGroup
	for _, g := range rs.all() {
		wg.Go(func() {
			if in := g.inst.Load(); in != nil {
				if err := in.HandOver(ctx); err != nil {
					g.logger.Info("leadership not handed over", "error", err)
				}
			}
		})
	}
	wg.Wait()
}

// Close writes checkpoints and stops every replica. What is not checkpointed when ctx is done, or finds no room, is read from
// the log at the next start.
func (rs *Replicas) Close(ctx context.Context) error {
	rs.mu.Lock()
	if rs.closed {
		rs.mu.Unlock()
		return nil
	}
	rs.closed = true
	rs.mu.Unlock()
	rs.cancel()
	for _, d := range rs.disks { // what waits for room may wait for ever, and others wait for it: orders of peers, Raft
		d.store.StopWaiting()
	}
	select {
	case rs.changing <- struct{}{}: // a creation that runs has been told to end
		defer func() { <-rs.changing }()
	case <-ctx.Done(): // it hangs at its disk; it starts nothing any more, because closed is set
	}
	var wg sync.WaitGroup
	for _, g := range rs.all() {
		wg.Go(func() {
			if ctx.Err() == nil {
				if err := g.checkpoint(ctx); err != nil {
					rs.cfg.Logger.Info("no checkpoint at the end; the log is read at the next start", "group", g.id, "error", err)
				}
			}
			g.stop()
		})
	}
	rs.mu.RLock()
	for _, d := range rs.out {
		if d.ran != nil {
			wg.Go(d.ran.stop)
		}
	}
	rs.mu.RUnlock()
	wg.Wait()
	rs.wg.Wait()
	rs.pulls.close()
	return nil
}
