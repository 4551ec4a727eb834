package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
)

// group is one replica on this node: its extents, its log, and the Raft instance that runs over them.
type group struct {
	id      storage.GroupID
	self    raft.ServerID
	host    *Host
	disk    *disk
	extents *extent.Group
	ranges  *ranges
	admit   *admission
	logger  *slog.Logger

	inst   atomic.Pointer[instance] // nil while stopped
	pulled atomic.Int64             // bytes that a pull has brought so far; 0 when none runs
	// pullTotal is what a pull has to bring in all; 0 when none runs.
	pullTotal atomic.Int64
	// lastBeforeInstall is the log's last index when the newest manifest was installed.
	lastBeforeInstall atomic.Uint64

	mu      sync.Mutex // serialises start, stop and restart
	stopped bool       // guarded by mu
}

// instance is one run of the library over a group. An installed manifest below the log's end needs a new one.
type instance struct {
	raft      *raft.Raft
	transport *Transport
	log       *logStore
	cancel    context.CancelFunc
	ctx       context.Context // done when the instance stops
	futures   futures         // stopped is closed with cancel
	wg        sync.WaitGroup
	asking    askRound
	transfers transfers
}

// raftConfig is the library's configuration of every data group; design.md, section 5, "Settings".
func (h *Host) raftConfig(group storage.GroupID, self raft.ServerID, notify chan<- bool, logger *slog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = self
	c.HeartbeatTimeout = h.cfg.HeartbeatTimeout
	c.ElectionTimeout = h.cfg.HeartbeatTimeout
	c.LeaderLeaseTimeout = h.cfg.HeartbeatTimeout
	c.CommitTimeout = h.cfg.HeartbeatTimeout
	c.MaxAppendEntries = h.cfg.MaxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	// The log keeps what followers that lag need, within its byte budget: DeleteRange is advice to it. What the library
	// keeps by itself holds segments that nothing else needs (I6): of an idle group, one for each entry.
	c.TrailingLogs = 1
	c.SnapshotInterval = 24 * time.Hour
	c.SnapshotThreshold = math.MaxUint64
	c.NoSnapshotRestoreOnStart = true
	c.NoLegacyTelemetry = true
	c.NotifyCh = notify
	c.Logger = logging.HC(logger.With("group", group))
	return c
}

// start makes a Raft instance over the replica's log and state. mu is held.
func (g *group) startLocked() error {
	checkpoint := g.extents.Checkpointed()
	if checkpoint.Index > 0 && !validConfiguration(checkpoint.Config) {
		return storage.E("start", storage.KindCorrupt, "group "+g.id.String(),
			errors.New("the checkpoint's configuration cannot be read"))
	}
	in := &instance{futures: futures{stopped: make(chan struct{})}}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	var err error
	in.log, err = newLogStore(in.ctx, g.extents.Log(), g.disk.store.Log().Wait, g.unreadable(in), checkpoint)
	if err != nil {
		in.cancel()
		return err
	}
	in.transport = NewTransport(TransportConfig{
		Group: g.id, Self: g.self, Node: g.host.cfg.Node, Peers: g.host.cfg.Peers, Router: g.host.router,
		HeartbeatTimeout: g.host.cfg.HeartbeatTimeout, Logger: g.logger,
		Gate:       logGate{g.extents.Log(), g.disk.store.Log()},
		Silent:     g.disk.silent,
		FreeBytes:  g.disk.freeBytes,
		Room:       g.disk.awaitRoom,
		Checkpoint: func() uint64 { return g.extents.Checkpointed().Index },
		Pull:       g.pull,
		GiveUp:     func(name string) { g.disk.store.GiveUp(name, g.extents.Key()) },
		Verify:     op.VerifyEntry,
		OwnSums:    true,
		Installed:  g.installed,
	})
	notify := make(chan bool, 64)
	snaps := &snapshotStore{extents: g.extents, open: g.openManifest, installing: in.log.installed}
	in.raft, err = newRaft(g.host.raftConfig(g.id, g.self, notify, g.logger), &fsm{extents: g.extents, lastBeforeInstall: &g.lastBeforeInstall, damaged: g.setAside},
		in.log, g.stable(in), snaps, in.transport)
	if err != nil {
		in.cancel()
		_ = in.transport.Close() // what failed before is the one to report
		return storage.E("start", storage.KindInternal, "group "+g.id.String(), err)
	}
	in.log.raft.Store(in.raft)
	in.transport.SetInstance(Instance{Term: in.raft.CurrentTerm, Configuration: func() raft.Configuration { return g.configuration(in) },
		Follows: func() bool { return in.raft.State() == raft.Follower }, Leads: func() bool { return in.raft.State() == raft.Leader },
		Verify: in.raft.VerifyLeader, Damaged: g.setAside})
	g.inst.Store(in)
	in.wg.Add(1)
	go func() {
		defer in.wg.Done()
		g.watchLeadership(in, notify)
	}()
	return nil
}

// newRaft is raft.NewRaft, which panics when a store fails while it reads the log.
func newRaft(c *raft.Config, f raft.FSM, logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore,
	t raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("start: %v", p)
		}
	}()
	return raft.NewRaft(c, f, logs, stable, snaps, t)
}

func (g *group) stable(in *instance) *stableStore {
	return &stableStore{store: g.disk.store.Stable(g.extents.Key()), pending: &g.disk.stable, parked: g.park(in)}
}

// park returns what the library's stores do with an error that the library would panic on: the disk is failed, and the
// calling goroutine, which is one of the library's, waits until the instance stops and then ends. (To return even then
// would be a panic.) While the instance is being made the error is returned.
func (g *group) park(in *instance) func(error) error {
	return func(err error) error {
		g.disk.fail(err)
		return g.wait(in, err)
	}
}

// wait ends the goroutine that calls it, which is one of the library's, when the instance stops. While the instance is
// being made it returns the error.
func (g *group) wait(in *instance, err error) error {
	if in.transport == nil || in.transport.beat.Load() == nil {
		return err // NewRaft enters the handler of heartbeats when it has read everything
	}
	<-in.ctx.Done()
	runtime.Goexit()
	return err
}

// unreadable returns what the library is told of an entry that the log holds and cannot read. It never panics the library:
//
//   - What is applied already is needed by followers that lag only. "Not found" has the library send them a manifest,
//     which a checkpoint from behind the entry makes possible.
//   - Without an entry that is not applied yet this replica cannot go on: it is damaged, and made anew. The disk and its
//     other replicas go on.
func (g *group) unreadable(in *instance) func(index uint64, err error) error {
	return func(index uint64, err error) error {
		applied, _ := g.extents.Applied()
		if index <= applied {
			g.logger.Warn("an entry of the log cannot be read; followers that need it get a manifest", "group", g.id,
				"store", g.disk.store.ID(), "index", index, "error", err)
			if index > g.extents.Checkpointed().Index {
				g.extents.RequestCheckpoint()
			}
			return raft.ErrLogNotFound
		}
		err = storage.E("read log", storage.KindCorrupt, "group "+g.id.String(), fmt.Errorf("entry %d: %w", index, err))
		g.setAside(err)
		return g.wait(in, err)
	}
}

// stopPatience bounds the wait for an instance whose disk hangs.
const stopPatience = 10 * time.Second

// stopLocked ends the instance. The replica can be started again.
func (g *group) stopLocked() {
	in := g.inst.Swap(nil)
	if in == nil {
		return
	}
	future := in.raft.Shutdown()
	in.cancel()
	close(in.futures.stopped)
	_ = in.transport.Close() // it holds nothing that could be lost
	ended := make(chan error, 1)
	go func() { ended <- future.Error() }() // ends when the disk answers
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case err := <-ended:
		if err != nil {
			g.logger.Warn("raft did not shut down cleanly", "group", g.id, "error", err)
		}
		in.wg.Wait()
	case <-patience.C:
		g.logger.Error("raft does not stop: its disk hangs", "group", g.id, "store", g.disk.store.ID())
	}
}

func (g *group) stop() {
	if in := g.inst.Load(); in != nil {
		in.cancel() // whoever holds mu and waits for the instance is released
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	g.stopLocked()
}

// restart replaces the instance: the library keeps the last index it has seen, and a manifest has put the log below it.
func (g *group) restart() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return
	}
	g.stopLocked()
	if err := g.startLocked(); err != nil {
		g.logger.Error("replica does not start again", "group", g.id, "error", err)
	}
}

// replace runs change, which may stop the instance, and starts the replica if it does not run then.
func (g *group) replace(change func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return storage.E("start", storage.KindUnavailable, "group "+g.id.String(), errors.New("the replica is stopped"))
	}
	if err := change(); err != nil || g.inst.Load() != nil {
		return err
	}
	return g.startLocked()
}

// bootstrap makes the replica the only voter of its group. Running it again goes on, or does nothing.
func (g *group) bootstrap() error {
	c := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: g.self, Address: NodeAddress(g.host.cfg.Node)}}}
	return g.replace(func() error {
		if g.extents.Checkpointed().Index > 0 || g.extents.Log().LastIndex() > 0 {
			return nil
		}
		in := g.inst.Load()
		if in == nil {
			return storage.E("bootstrap", storage.KindUnavailable, "group "+g.id.String(), errors.New("the replica is stopped"))
		}
		err := g.within(in, in.raft.BootstrapCluster(c))
		if !errors.Is(err, raft.ErrCantBootstrap) {
			return g.fromRaft("bootstrap", err)
		}
		// The library stores the term first and the entry then; a crash between the two leaves a replica that it
		// neither bootstraps nor starts.
		g.stopLocked()
		half := &instance{}
		half.ctx, half.cancel = context.WithCancel(context.Background())
		defer half.cancel()
		logs, err := newLogStore(half.ctx, g.extents.Log(), g.disk.store.Log().Wait, g.unreadable(half), extent.Checkpoint{})
		if err == nil {
			err = logs.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)})
		}
		return err
	})
}

// within waits for a future while g.mu is held: until the instance is cancelled, and no longer than stopPatience. Raft's
// main loop may be parked at a disk that has failed.
func (g *group) within(in *instance, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- until(&in.futures, future).Error() }() // ends at the latest when the instance stops
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-in.ctx.Done():
		return raft.ErrRaftShutdown
	case <-patience.C:
		return fmt.Errorf("no answer for %v: its disk hangs or has failed", stopPatience)
	}
}

// watchLeadership opens the books of each term this replica leads: ready once a Barrier has completed, because
// the applied index runs ahead of the state machine.
func (g *group) watchLeadership(in *instance, notify <-chan bool) {
	for {
		select {
		case <-in.ctx.Done():
			return
		case leads := <-notify:
			if !leads {
				g.logger.Info("leadership lost", "group", g.id, "term", in.raft.CurrentTerm())
				continue
			}
			g.becomeReady(in)
		}
	}
}

func (g *group) becomeReady(in *instance) {
	term := in.raft.CurrentTerm()
	in.transport.lease.begin(term)
	for in.raft.State() == raft.Leader && in.raft.CurrentTerm() == term {
		err := until(&in.futures, in.raft.Barrier(0)).Error()
		if err == nil && in.raft.State() == raft.Leader && in.raft.CurrentTerm() == term {
			in.transport.lease.setReady(term)
			g.logger.Info("leads", "group", g.id, "term", term)
			return
		}
		select {
		case <-in.ctx.Done():
			return
		case <-time.After(10 * time.Millisecond): // a transfer in progress refuses the Barrier for a while
		}
	}
}

// leader returns the node that leads as far as this replica knows; 0 for none.
func (g *group) leader() storage.NodeID {
	in := g.inst.Load()
	if in == nil {
		return 0
	}
	addr, _ := in.raft.LeaderWithID()
	if addr == "" {
		return 0
	}
	n, err := ParseNodeAddress(addr)
	if err != nil {
		return 0
	}
	return n
}

// leading returns the instance and the term in which this replica leads and is ready; it waits for the Barrier.
func (g *group) leading(ctx context.Context, opName string) (*instance, uint64, error) {
	in := g.inst.Load()
	if in == nil {
		return nil, 0, storage.E(opName, storage.KindUnavailable, "group "+g.id.String(), errors.New("the replica is stopped"))
	}
	if in.raft.State() != raft.Leader {
		return nil, 0, notLeader(opName, g.id, g.leader())
	}
	term := in.raft.CurrentTerm()
	if g.disk.silent() {
		return nil, 0, notLeader(opName, g.id, 0) // others lead soon
	}
	if in.transport.lease.isReady(term) {
		return in, term, nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.host.cfg.HeartbeatTimeout)
	defer cancel()
	if in.transport.lease.awaitReady(ctx, term) && in.raft.State() == raft.Leader {
		return in, term, nil
	}
	return nil, 0, notLeader(opName, g.id, 0)
}

// propose runs one operation through the group's log and returns what applying it came to. parts are the operation's
// header and payload; they are joined into one buffer, which the log keeps.
func (g *group) propose(ctx context.Context, data []byte) (op.Result, error) {
	const name = "propose"
	in, term, err := g.leading(ctx, name)
	if err != nil {
		return op.Result{}, err
	}
	o, payload, err := verifiedRequest(data)
	if err != nil {
		return op.Result{}, err
	}
	if o.ReadTerm != 0 {
		return op.Result{}, storage.E(name, storage.KindInvalid, "group "+g.id.String(), errors.New("a request may not name a read term"))
	}
	if o.Kind == op.Write {
		if err := g.checkSpace(in, len(payload)); err != nil {
			return op.Result{}, err
		}
	}
	if o.Kind == op.Write || o.Kind == op.Clear {
		if err := g.awaitRoom(ctx); err != nil {
			return op.Result{}, err
		}
	}
	release, err := g.admit.acquire(ctx, int64(len(data)))
	if err != nil {
		return op.Result{}, storage.E(name, storage.KindUnavailable, "group "+g.id.String(), err)
	}
	defer release()
	if o.Kind == op.Write || o.Kind == op.Clear {
		first, n := o.Blocks()
		hold, err := g.ranges.acquire(ctx, o.Volume, o.Extent, first, n)
		if err != nil {
			return op.Result{}, storage.E(name, storage.KindUnavailable, "group "+g.id.String(), err)
		}
		defer g.ranges.release(hold)
		if !o.Aligned() {
			// I3: take the range lock out, or the term, and a partial write undoes a full one beside it.
			if data, err = g.merge(ctx, &o, payload, term); err != nil {
				return op.Result{}, err
			}
		}
	}
	future := until(&in.futures, in.raft.Apply(data, 0))
	if err := future.Error(); err != nil {
		return op.Result{}, g.fromRaft(name, err)
	}
	return g.resultOf(future.Response())
}

// errDamagedRequest says that a request does not have the checksums that it carries.
var errDamagedRequest = errors.New("the request was damaged on its way")

// verifiedRequest decodes a request and verifies its payload: nothing is proposed that a replica would refuse.
func verifiedRequest(data []byte) (op.Op, []byte, error) {
	o, payload, err := op.Decode(data)
	if err == nil && o.Kind == op.Write {
		err = o.Verify(payload)
	}
	if errors.Is(err, storage.ErrCorrupt) {
		err = storage.E("propose", storage.KindCorrupt, "request", fmt.Errorf("%w: %w", errDamagedRequest, err))
	}
	return o, payload, err
}

// awaitRoom waits, no longer than admissionPatience, while the disk cannot take entries that change tables (I9).
func (g *group) awaitRoom(ctx context.Context) error {
	if !g.disk.store.Crowded() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, admissionPatience)
	defer cancel()
	if err := g.disk.awaitRoom(ctx); err != nil {
		return storage.E("propose", storage.KindUnavailable, "group "+g.id.String(), err)
	}
	return nil
}

// merge fills a partial write up to whole blocks with what the table holds, in the term that the leader reads it in.
func (g *group) merge(ctx context.Context, o *op.Op, payload []byte, term uint64) ([]byte, error) {
	first, n := o.Blocks()
	whole := make([]byte, n*storage.BlockSize)
	head := int(o.Offset) - first*storage.BlockSize
	readBlock := func(i int) error {
		var sum [1]uint32
		var hole [1]bool
		return g.extents.ReadWith(op.ReadRequest{Volume: o.Volume, Extent: o.Extent, Offset: uint32((first + i) * storage.BlockSize),
			Length: storage.BlockSize, Epoch: op.HeadEpoch}, whole[i*storage.BlockSize:(i+1)*storage.BlockSize], sum[:], hole[:], g.elsewhere(ctx))
	}
	if head != 0 {
		if err := readBlock(0); err != nil {
			return nil, g.unmerged(err)
		}
	}
	if end := head + len(payload); end%storage.BlockSize != 0 && (n > 1 || head == 0) {
		if err := readBlock(n - 1); err != nil {
			return nil, g.unmerged(err)
		}
	}
	copy(whole[head:], payload)
	m := *o
	merged := op.Op{Kind: m.Kind, Flags: m.Flags, Volume: m.Volume, Extent: m.Extent, Offset: uint32(first * storage.BlockSize),
		Length: uint32(len(whole)), Session: m.Session, Seq: m.Seq, Epoch: m.Epoch, Generation: m.Generation, ReadTerm: term}
	merged.Sums = op.AppendSums(nil, merged.Offset, whole)
	data := make([]byte, 0, merged.HeaderLen()+len(whole))
	return append(merged.AppendHeader(data), whole...), nil
}

// unmerged is the answer to a partial write of a block that no replica can read. It is KindIO whatever the reason, which
// says that nothing was proposed.
func (g *group) unmerged(err error) error {
	if storage.KindOf(err) == storage.KindCorrupt {
		return storage.E("propose", storage.KindIO, "group "+g.id.String(), err)
	}
	return err
}

// checkSpace refuses an allocating write before it is proposed when a voter is below its reserve.
func (g *group) checkSpace(in *instance, n int) error {
	servers := g.configuration(in).Servers
	free := in.transport.MinFreeBytes(g.disk.freeBytes(), servers)
	if reserve := g.disk.reserveBytes(); free-int64(n) < reserve {
		return storage.E("write", storage.KindNoSpace, "group "+g.id.String(),
			fmt.Errorf("the fullest replica has %d bytes left and keeps %d in reserve; delete volumes, discard blocks or add stores", free, reserve))
	}
	return nil
}

func (g *group) configuration(in *instance) raft.Configuration {
	return in.raft.GetConfiguration().Configuration() // the newest, from an atomic copy
}

// confirmRead returns when this replica may answer a read from its own table: it leads, its Barrier is done, and
// either its lease stands or a majority has confirmed it since the read arrived.
func (g *group) confirmRead(ctx context.Context, mode op.ReadMode) error {
	const name = "read"
	arrived := time.Now()
	in, term, err := g.leading(ctx, name)
	if err != nil {
		return err
	}
	if mode == op.ReadDefault {
		mode = g.host.cfg.ReadMode
	}
	// I1: take the lease check out, and a deposed leader that was frozen answers with what was true then.
	if mode != op.ReadQuorum && in.transport.lease.valid(term, g.self, g.configuration(in), time.Now()) &&
		in.raft.State() == raft.Leader && in.raft.CurrentTerm() == term && !g.disk.silent() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*g.host.cfg.HeartbeatTimeout)
	defer cancel()
	g.ask(in, term) // raft.VerifyLeader counts answers to older requests, and waits for the next heartbeat
	if in.transport.lease.confirm(ctx, term, g.self, func() raft.Configuration { return g.configuration(in) }, arrived) &&
		in.raft.State() == raft.Leader && in.raft.CurrentTerm() == term && !g.disk.silent() {
		return nil
	}
	return notLeader(name, g.id, 0)
}

// askRound sends heartbeats for those who wait for a majority: one round at a time, and another if someone came
// meanwhile.
type askRound struct {
	mu      sync.Mutex
	running bool // guarded by mu, like again
	again   bool
}

// ask sends a heartbeat to every other voter now, or as soon as the round before has its first answer.
func (g *group) ask(in *instance, term uint64) {
	a := &in.asking
	a.mu.Lock()
	if a.running {
		a.again = true
		a.mu.Unlock()
		return
	}
	a.running = true
	a.mu.Unlock()
	ended := sync.OnceFunc(func() {
		a.mu.Lock()
		again := a.again && in.ctx.Err() == nil
		a.running, a.again = false, false
		a.mu.Unlock()
		if again {
			g.ask(in, term)
		}
	})
	asked := false
	for _, s := range g.configuration(in).Servers {
		node, err := ParseNodeAddress(s.Address)
		if err != nil || s.ID == g.self || s.Suffrage != raft.Voter {
			continue
		}
		asked = true
		req := &raft.AppendEntriesRequest{Term: term, RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax,
			ID: []byte(g.self), Addr: []byte(in.transport.LocalAddr())}}
		g.host.router.heartbeat(in.transport, node, s.ID, req, &raft.AppendEntriesResponse{}, func(error) { ended() })
	}
	if !asked {
		ended()
		return
	}
	g.host.router.FlushHeartbeats()
}

// read answers a read of whole blocks.
func (g *group) read(ctx context.Context, req op.ReadRequest, dst []byte, resp *op.ReadResponse) error {
	if err := g.confirmRead(ctx, req.Mode); err != nil {
		return err
	}
	if err := g.extents.CheckRead(req); err != nil {
		return err
	}
	return g.extents.ReadWith(req, dst, resp.Sums, resp.Holes, g.elsewhere(ctx))
}

// status answers which blocks are mapped.
func (g *group) status(ctx context.Context, req op.StatusRequest) ([]op.Run, error) {
	if err := g.confirmRead(ctx, req.Mode); err != nil {
		return nil, err
	}
	if err := g.extents.CheckRead(op.ReadRequest{Volume: req.Volume, Session: req.Session, Generation: req.Generation}); err != nil {
		return nil, err
	}
	return g.extents.Status(req)
}

// checkpoint asks the library for a snapshot, which persists the tables, and waits for it until ctx is done. Nothing
// new to write is no error.
func (g *group) checkpoint(ctx context.Context) error {
	in := g.inst.Load()
	if in == nil || g.disk.silent() {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- in.raft.Snapshot().Error() }() // ends when the disk answers or fails
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrNothingNewToSnapshot) || errors.Is(err, raft.ErrRaftShutdown) {
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// installed follows the installation of a manifest. The library keeps the last index it has seen; when the manifest
// lies below that, only a new instance reads the log as it is.
func (g *group) installed(req *raft.InstallSnapshotRequest) {
	g.logger.Info("manifest installed", "group", g.id, "index", req.LastLogIndex)
	if g.lastBeforeInstall.Load() > req.LastLogIndex {
		g.restart()
	}
}
