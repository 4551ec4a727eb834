package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
)

// group is one replica on this node: its extents, its log, and the Raft instance that runs over them.
type group struct {
	id      storage.GroupID
	self    raft.ServerID
	node    *Replicas
	disk    *disk
	extents *extent.Group
	ranges  *ranges
	admit   *admission
	logger  *slog.Logger

	inst   atomic.Pointer[instance] // nil while stopped
	pulled atomic.Int64             // bytes that a pull has brought so far; 0 when none runs
	// pullTotal is what a pull has to bring in all; 0 when none runs.
	pullTotal atomic.Int64
	pullSteps atomic.Uint64 // that pulls have made in all: it grows while one gets on
	behind    behind
	// lastBeforeInstall is the log's last index when the newest manifest was installed.
	lastBeforeInstall atomic.Uint64

	mu      sync.Mutex // serialises start, stop and restart
	stopped bool       // guarded by mu
}

// instance is one run of the library over a group. An installed manifest below the log's end needs a new one.
type instance struct {
	*runner.Instance
	transport *runner.Transport
	log       *logStore
	trace     *runner.Trace
	rounds    rounds // of the other members, while it leads
}

// raftConfig is the library's configuration of every data group; docs/design.md, section 5, "Settings".
func (rs *Replicas) raftConfig(self raft.ServerID, logger *slog.Logger) *raft.Config {
	c := runner.Settings(self, rs.cfg.HeartbeatTimeout, logger)
	c.MaxAppendEntries = rs.cfg.MaxAppendEntries
	c.BatchApplyCh = true
	// The log keeps what followers that lag need, within its byte budget: DeleteRange is advice to it. What the library
	// keeps by itself holds segments that nothing else needs (I6): of an idle group, one for each entry.
	c.TrailingLogs = 1
	c.SnapshotInterval = 24 * time.Hour
	c.SnapshotThreshold = math.MaxUint64
	c.NoSnapshotRestoreOnStart = true
	return c
}

// newInstance makes an instance that does not run yet, with its log.
func (g *group) newInstance(checkpoint table.Checkpoint) (*instance, error) {
	in := &instance{trace: g.node.stages.Trace()}
	in.Instance = runner.New(runner.Config{Subject: "group " + g.id.String(), Group: g.id, Logger: g.logger, OnLeadership: func() {
		if !in.Leads() {
			in.log.book.End() // at once: a group that is led here may write to the same stores
		}
		g.node.cfg.OnLeadership()
	}})
	in.log = &logStore{log: g.extents.Log(), ctx: in.Context(), wait: g.disk.store.Log().Wait, unreadable: g.unreadable(in),
		running: in.Running, book: g.node.ledger.Book(string(g.self)), trace: in.trace}
	return in, in.log.readConfigs(checkpoint)
}

// start makes a Raft instance over the replica's log and state. mu is held.
func (g *group) startLocked() error {
	checkpoint := g.extents.Checkpointed()
	if checkpoint.Index > 0 && !runner.ValidConfiguration(checkpoint.Config) {
		return storage.E("start", storage.KindCorrupt, "group "+g.id.String(),
			errors.New("the checkpoint's configuration cannot be read"))
	}
	in, err := g.newInstance(checkpoint)
	if err != nil {
		return err
	}
	in.transport = runner.NewTransport(runner.TransportConfig{
		Group: g.id, Self: g.self, Node: g.node.cfg.Node, Peers: g.node.cfg.Peers, Dispatcher: g.node.cfg.Dispatcher,
		HeartbeatTimeout: g.node.cfg.HeartbeatTimeout, Logger: g.logger,
		Gate:      g.gate,
		Silent:    g.disk.silent,
		FreeBytes: g.disk.grantBytes,
		Told:      func(server raft.ServerID, bytes int64) { in.log.book.Told(string(server), bytes) },
		Acked: func(server raft.ServerID, term, index uint64) {
			in.acked(server, term, index)
			if g.behind.due(time.Now()) {
				g.keepLog()
			}
		},
		Heard:      g.disk.room.hear,
		Room:       g.disk.awaitRoom,
		Checkpoint: func() uint64 { return g.extents.Checkpointed().Index },
		Pull:       g.pull,
		GiveUp:     func(name string) { g.disk.store.GiveUp(name, g.extents.Key()) },
		Verify:     op.VerifyEntry,
		OwnSums:    true,
		Damaged:    g.setAside,
		Trace:      in.trace,
		Installed:  g.installed,
	})
	snaps := &snapshotStore{extents: g.extents, open: g.openManifest, installing: in.log.installed}
	err = in.Start(g.node.raftConfig(g.self, g.logger), &fsm{extents: g.extents, lastBeforeInstall: &g.lastBeforeInstall, damaged: g.setAside, trace: in.trace},
		in.log, g.stable(in), snaps, in.transport)
	if err != nil {
		return storage.E("start", storage.KindInternal, "group "+g.id.String(), err)
	}
	in.log.inst.Store(in.Instance)
	g.inst.Store(in)
	return nil
}

// acked is told that a follower holds the log of a term durably up to index.
func (in *instance) acked(server raft.ServerID, term, index uint64) {
	in.log.book.Acked(string(server), term, index)
	if runs := in.log.inst.Load(); runs != nil {
		in.rounds.acked(server, term, index, runs.LastIndex(), time.Now())
	}
}

// gate is the group's runner.Gate.
func (g *group) gate(index, term uint64, done func(error)) bool {
	end, ok := g.extents.Log().EndOf(index, term)
	if ok {
		g.disk.store.Log().Notify(end, done)
	}
	return ok
}

func (g *group) stable(in *instance) *stableStore {
	return &stableStore{store: g.disk.store.Stable(g.extents.Key()), pending: &g.disk.stable, parked: g.park(in)}
}

// park returns what the library's stores do with an error: the disk is failed, and the caller parked.
func (g *group) park(in *instance) func(error) error {
	return func(err error) error {
		g.disk.fail(err)
		return in.Park(err)
	}
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
			g.logger.Warn("an entry of the log cannot be read; followers that need it get a manifest",
				"store", g.disk.store.ID(), "index", index, "error", err)
			if index > g.extents.Checkpointed().Index {
				g.extents.RequestCheckpoint()
			}
			return raft.ErrLogNotFound
		}
		err = storage.E("read log", storage.KindCorrupt, "group "+g.id.String(), fmt.Errorf("entry %d: %w", index, err))
		g.setAside(err)
		return in.Park(err)
	}
}

// stopLocked ends the instance. The replica can be started again.
func (g *group) stopLocked() {
	in := g.inst.Swap(nil)
	if in == nil {
		return
	}
	if err := in.Stop(); err != nil {
		g.logger.Error("raft did not shut down cleanly", "store", g.disk.store.ID(), "error", err)
	}
	in.log.book.End()
}

func (g *group) stop() {
	if in := g.inst.Load(); in != nil {
		in.Cancel() // whoever holds mu and waits for the instance is released
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
		g.logger.Error("replica does not start again", "error", err)
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
	c := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: g.self, Address: runner.NodeAddress(g.node.cfg.Node)}}}
	return g.replace(func() error {
		if g.extents.Checkpointed().Index > 0 || g.extents.Log().LastIndex() > 0 {
			return nil
		}
		in := g.inst.Load()
		if in == nil {
			return storage.E("bootstrap", storage.KindUnavailable, "group "+g.id.String(), errors.New("the replica is stopped"))
		}
		ctx, cancel := context.WithTimeout(in.Context(), bootstrapPatience) // Raft's main loop may be parked at a disk that has failed
		defer cancel()
		_, err := runner.Do(ctx, in.Instance, "bootstrap", func(r *raft.Raft) raft.Future { return r.BootstrapCluster(c) })
		if !errors.Is(err, raft.ErrCantBootstrap) {
			return err
		}
		// The library stores the term first and the entry then; a crash between the two leaves a replica that it
		// neither bootstraps nor starts.
		g.stopLocked()
		half, err := g.newInstance(table.Checkpoint{})
		defer half.Cancel()
		if err == nil {
			err = half.log.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)})
		}
		return err
	})
}

// bootstrapPatience bounds the wait for the first entry, in which g.mu is held.
const bootstrapPatience = 10 * time.Second

// leader returns the node that leads as far as this replica knows; 0 for none.
func (g *group) leader() storage.NodeID {
	if in := g.inst.Load(); in != nil {
		return in.Leader()
	}
	return 0
}

// leading returns the instance and the term in which this replica leads and is ready; it waits for the Barrier.
func (g *group) leading(ctx context.Context, opName string) (*instance, uint64, error) {
	in := g.inst.Load()
	if in == nil {
		return nil, 0, storage.E(opName, storage.KindUnavailable, "group "+g.id.String(), errors.New("the replica is stopped"))
	}
	term, err := in.Leading(ctx, opName)
	return in, term, err
}

// propose runs one operation through the group's log and returns what applying it came to. data is the operation's header
// and payload, which the log keeps.
func (g *group) propose(ctx context.Context, data []byte) (op.Result, error) {
	const name = "propose"
	proposed := time.Now()
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
	reserved, err := g.awaitSpace(ctx, in, &o, logBytes(proposedBytes(&o, len(data))))
	if err != nil {
		return op.Result{}, err
	}
	result, appended, err := g.proposeReserved(ctx, in, term, &o, data, payload, proposed)
	if !appended {
		in.log.book.Release(reserved)
	}
	return result, err
}

// proposeReserved is propose for an operation that there is space for. appended is false if nothing of it came into the log.
func (g *group) proposeReserved(ctx context.Context, in *instance, term uint64, o *op.Op, data, payload []byte, proposed time.Time) (r op.Result, appended bool, err error) {
	const name = "propose"
	if o.Kind == op.Write || o.Kind == op.Clear {
		if err := g.awaitRoom(ctx); err != nil {
			return op.Result{}, false, err
		}
	}
	release, err := g.admit.acquire(ctx, int64(len(data)))
	if err != nil {
		return op.Result{}, false, storage.E(name, storage.KindUnavailable, "group "+g.id.String(), err)
	}
	defer release()
	if o.Kind == op.Write || o.Kind == op.Clear {
		first, n := o.Blocks()
		hold, err := g.ranges.acquire(ctx, o.Volume, o.Extent, first, n)
		if err != nil {
			return op.Result{}, false, storage.E(name, storage.KindUnavailable, "group "+g.id.String(), err)
		}
		defer g.ranges.release(hold)
		if !o.Aligned() {
			// I3: take the range lock out, or the term, and a partial write undoes a full one beside it.
			if data, err = g.merge(ctx, o, payload, term); err != nil {
				return op.Result{}, false, err
			}
		}
	}
	// The blocks stay reserved until it is answered, or the instance stops: no context.
	handed := time.Now()
	future, err := runner.Do(context.Background(), in.Instance, name, func(r *raft.Raft) raft.ApplyFuture { return r.Apply(data, 0) })
	if err != nil {
		// While the instance stops, nobody may look at the future, and the book is closed.
		return op.Result{}, in.Context().Err() != nil || future.Index() > 0, err
	}
	in.trace.Answered(future.Index(), proposed, handed)
	r, err = g.resultOf(future.Response())
	return r, true, err
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
		return g.extents.Read(op.ReadRequest{Volume: o.Volume, Extent: o.Extent, Offset: uint32((first + i) * storage.BlockSize),
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
	merged := op.Op{Kind: o.Kind, Flags: o.Flags, Volume: o.Volume, Extent: o.Extent, Offset: uint32(first * storage.BlockSize),
		Length: uint32(len(whole)), Session: o.Session, Seq: o.Seq, Epoch: o.Epoch, Generation: o.Generation, ReadTerm: term}
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

// confirmRead returns when this replica may answer a read from its own table: it leads, its Barrier is done, and
// either its lease stands or a majority has confirmed it since the read arrived.
func (g *group) confirmRead(ctx context.Context, mode op.ReadMode) error {
	const name = "read"
	in, term, err := g.leading(ctx, name)
	if err != nil {
		return err
	}
	if mode == op.ReadDefault {
		mode = g.node.cfg.ReadMode
	}
	if !in.MayRead(ctx, term, mode == op.ReadQuorum) {
		return op.NotLeader(name, "group "+g.id.String(), g.id, 0)
	}
	return nil
}

// read answers a read of whole blocks.
func (g *group) read(ctx context.Context, req op.ReadRequest, dst []byte, resp *op.ReadResponse) error {
	if err := g.confirmRead(ctx, req.Mode); err != nil {
		return err
	}
	if err := g.extents.CheckRead(req); err != nil {
		return err
	}
	return g.extents.Read(req, dst, resp.Sums, resp.Holes, g.elsewhere(ctx))
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
	_, err := runner.Do(ctx, in.Instance, "write checkpoint", (*raft.Raft).Snapshot)
	if errors.Is(err, raft.ErrNothingNewToSnapshot) || errors.Is(err, raft.ErrRaftShutdown) {
		return nil
	}
	return err
}

// installed follows the installation of a manifest. The library keeps the last index it has seen; when the manifest
// lies below that, only a new instance reads the log as it is.
func (g *group) installed(req *raft.InstallSnapshotRequest) {
	g.logger.Info("manifest installed", "index", req.LastLogIndex)
	if g.lastBeforeInstall.Load() > req.LastLogIndex {
		g.restart()
	}
}
