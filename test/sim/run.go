package sim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/history"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/check"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/server/catalog"
)

// run is one schedule in its bubble.
type run struct {
	plan    *Plan
	logger  *slog.Logger
	trace   func(string) // may be nil
	began   time.Time
	net     *simnet.Network
	nodes   []*node
	catalog *clusterCatalog
	members []*membership
	history *history.History

	hush     atomic.Int64 // clients begin nothing while it is above 0
	fencings atomic.Int64 // takeovers begun
	answered atomic.Int64
	digest   atomic.Uint64  // sum over the operations of what they were, when they ended and how
	later    sync.WaitGroup // what goes on in the background: starts of nodes and gateways

	mu       sync.Mutex
	failures []string // guarded by mu
}

// Outcome is what came of a schedule.
type Outcome struct {
	Plan     *Plan
	History  *history.History // to be checked outside of the bubble: its time-outs are of real time
	Answered int64            // operations
	Digest   uint64           // equal for two runs in which every operation ended at the same time in the same way
	Elapsed  time.Duration    // of virtual time
	Failures []string
}

// Verdict is what a schedule shows of the product. Only a history speaks of data; the others may have causes beside it.
type Verdict string

// The verdicts.
const (
	Sound           Verdict = "sound"
	NotLinearizable Verdict = "not linearizable" // the history; whatever else was found
	Finding         Verdict = "finding"          // an error that nothing explains, a cluster that is not whole again, replicas that differ
	Undecided       Verdict = "undecided"        // the history's checker did not come to an end
	Stuck           Verdict = "stuck"            // the schedule did not come to an end; its process has
	Panic           Verdict = "panic"            // the product ended its process
)

// Err returns what was found, the history's verdict before all else.
func (o *Outcome) Err() (Verdict, error) {
	report := o.History.Check(30 * time.Second)
	switch {
	case len(report.Illegal) > 0:
		return NotLinearizable, fmt.Errorf("seed %d: %w", o.Plan.Seed, report.Err())
	case len(o.Failures) > 0:
		return Finding, fmt.Errorf("seed %d: %s (%d findings)", o.Plan.Seed, o.Failures[0], len(o.Failures))
	case len(report.Undecided) > 0:
		return Undecided, fmt.Errorf("seed %d: %w", o.Plan.Seed, report.Err())
	}
	return Sound, nil
}

const maxFailures = 20

// fail notes a finding.
func (r *run) fail(format string, args ...any) {
	text := fmt.Sprintf("%8.3f s: ", time.Since(r.began).Seconds()) + fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failures) < maxFailures {
		r.failures = append(r.failures, text)
	}
	if r.trace != nil {
		r.trace("FOUND " + text)
	}
}

func (r *run) note(format string, args ...any) {
	if r.trace != nil {
		r.trace(fmt.Sprintf("%8.3f s: ", time.Since(r.began).Seconds()) + fmt.Sprintf(format, args...))
	}
}

func (r *run) ids() (ids []storage.NodeID) {
	for _, n := range r.nodes {
		ids = append(ids, n.id)
	}
	return ids
}

// Run runs a schedule. It is called in a synctest bubble, and has stopped everything when it returns.
func Run(plan *Plan, logger *slog.Logger, trace func(string)) *Outcome {
	r := &run{plan: plan, logger: logger, trace: trace, began: time.Now(), history: history.New()}
	r.net = simnet.New(simnet.Config{Seed: plan.Seed, Link: r.link()})
	r.catalog = newCatalog(plan.rand("catalog"))
	if err := r.setUp(); err != nil {
		r.fail("set up: %v", err)
	} else {
		r.load()
		r.finish()
	}
	for _, n := range r.nodes {
		n.shutdown()
	}
	r.later.Wait()
	r.offline()
	return &Outcome{Plan: plan, History: r.history, Answered: r.answered.Load(), Digest: r.digest.Load(), Elapsed: time.Since(r.began), Failures: r.failures}
}

// setUp starts the nodes, the groups and the volumes.
func (r *run) setUp() error {
	commands := []catalog.Command{catalog.InitCluster{Cluster: catalog.Cluster{ID: clusterID, HeartbeatTimeout: heartbeatTimeout,
		Replicas: 3, Groups: r.plan.Groups, CreatedAt: r.began}}}
	for id := storage.NodeID(1); id <= 3; id++ {
		n, err := newNode(r, id)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, n)
		commands = append(commands, catalog.AddNode{Name: nodeName(id), Addrs: storage.Addrs{Peer: nodeName(id) + ":1"},
			Stores: []storage.Store{{ID: storeID(id), CapacityBytes: 1 << 30}}, At: r.began})
	}
	for g := range r.plan.Groups {
		at := first(g)
		id := storage.GroupID(g + 1)
		commands = append(commands, catalog.AddGroup{Group: id, Node: at, Store: storeID(at)}, catalog.SetGroupReady{Group: id})
		r.members = append(r.members, newMembership(id))
	}
	for v := range r.plan.Volumes {
		commands = append(commands, catalog.CreateVolume{Name: volumeName(v), SizeBytes: volumeBytes, At: r.began})
	}
	for _, c := range commands {
		if _, err := r.catalog.apply(c); err != nil {
			return fmt.Errorf("%T: %w", c, err)
		}
	}
	for _, n := range r.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	for _, m := range r.members {
		if err := r.bootstrap(m); err != nil {
			return err
		}
	}
	return nil
}

// load lets clients, changes of membership and faults go on beside each other.
func (r *run) load() {
	ctx, cancel := context.WithCancel(context.Background())
	var members, load sync.WaitGroup
	for i, m := range r.members {
		members.Go(func() { r.change(ctx, m, r.plan.Members[i]) })
	}
	if r.plan.GrowFirst {
		time.Sleep(4 * time.Second)
	}
	for c := range r.plan.Clients {
		load.Go(func() { r.client(ctx, c) })
	}
	members.Go(func() { r.takeOver(ctx) })
	for _, t := range r.plan.Tracks {
		members.Go(func() { r.strike(ctx, t) })
	}
	time.Sleep(r.plan.Load)
	r.note("the load ends; %d operations answered", r.answered.Load())
	cancel()
	members.Wait()
	r.later.Wait()
	r.net.HealAll()
	load.Wait()
}

// finish waits until the cluster is whole, reads everything through every gateway and compares the replicas.
func (r *run) finish() {
	r.note("whole again?")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var grow sync.WaitGroup
	for _, m := range r.members {
		grow.Go(func() { r.complete(ctx, m) })
	}
	grow.Wait()
	for i, n := range r.nodes {
		r.finalRead(ctx, n, firstFinal+i)
	}
	if ctx.Err() != nil {
		r.fail("the cluster is not whole two minutes after the last fault: %s", r.describe())
		return
	}
	for _, m := range r.members {
		r.converge(ctx, m.group)
	}
}

func (r *run) describe() (s string) {
	for _, n := range r.nodes {
		p := n.p.Load()
		if p == nil {
			s += fmt.Sprintf("\n  node %d is down", n.id)
			continue
		}
		s += fmt.Sprintf("\n  node %d, gateway serves %v:", n.id, p.serving() != nil)
		for _, g := range p.replicas.Status() {
			s += fmt.Sprintf("\n    %+v", g)
		}
	}
	return s
}

func (r *run) finalRead(ctx context.Context, n *node, id int) {
	p := n.p.Load()
	var g *gateway
	for p != nil && g == nil {
		if g = p.serving(); g == nil && !r.sleep(ctx, 20*time.Millisecond) {
			return
		}
	}
	if g == nil {
		r.fail("node %d is down at the end", n.id)
		return
	}
	for vol, v := range g.volumes {
		for _, h := range hot {
			if err := r.readSpan(ctx, g, v, id, vol, span{h * cellsInBlock, cellsInBlock}); err != nil {
				r.fail("node %d: final read of block %d: %v", n.id, h, err)
			}
		}
	}
}

// converge waits until all replicas have applied the same, and compares what they hold, each from its own disk.
func (r *run) converge(ctx context.Context, g storage.GroupID) {
	for {
		index, same := r.appliedIndex(g)
		if same {
			time.Sleep(100 * time.Millisecond)
			before := r.contents(g)
			if again, still := r.appliedIndex(g); still && again == index {
				if !slices.Equal(before[0], before[1]) || !slices.Equal(before[0], before[2]) {
					r.fail("group %d: the replicas differ at index %d:\n  %q\n  %q\n  %q", g, index, before[0], before[1], before[2])
				}
				return
			}
		}
		if !r.sleep(ctx, 100*time.Millisecond) {
			r.fail("group %d: the replicas do not come together: %s", g, r.describe())
			return
		}
	}
}

// appliedIndex returns the index that all replicas of a group have applied, if it is the same. The state machines are
// a moment behind, and are not told of every entry.
func (r *run) appliedIndex(g storage.GroupID) (index uint64, same bool) {
	for i, n := range r.nodes {
		s, ok := n.status(g)
		if !ok || i > 0 && s.AppliedIndex != index {
			return 0, false
		}
		index = s.AppliedIndex
	}
	return index, true
}

// extents returns the node's replica of a group.
func (n *node) extents(g storage.GroupID) *extent.Group {
	p := n.p.Load()
	if p == nil {
		return nil
	}
	for _, key := range p.store.Groups() {
		if key.Group == g {
			return p.store.Group(key)
		}
	}
	return nil
}

// contents describes what every replica of a group holds: sessions, and the sums of the hot blocks, each read and checked.
func (r *run) contents(g storage.GroupID) (all [3][]string) {
	for i, n := range r.nodes {
		x := n.extents(g)
		for v := range r.plan.Volumes {
			id := storage.VolumeID(v + 1)
			state, _ := x.Volume(id)
			all[i] = append(all[i], fmt.Sprintf("volume %d: %+v", id, state))
			for _, b := range hot {
				var sum [1]uint32
				var hole [1]bool
				var buf [storage.BlockSize]byte
				req := op.ReadRequest{Volume: id, Extent: storage.ExtentIndex(b / storage.BlocksPerExtent),
					Offset: uint32(b%storage.BlocksPerExtent) * storage.BlockSize, Length: storage.BlockSize, Epoch: op.HeadEpoch}
				if err := x.Read(req, buf[:], sum[:], hole[:], nil); err != nil {
					r.fail("node %d: block %d of volume %d: %v", n.id, b, id, err)
				}
				all[i] = append(all[i], fmt.Sprintf("%d: %08x %v", b, sum[0], hole[0]))
			}
		}
	}
	return all
}

// offline checks the stopped stores record by record and block by block.
func (r *run) offline() {
	for _, n := range r.nodes {
		_, err := check.Run(context.Background(), check.Config{FS: n.bytes, Dir: "store",
			Finding: func(text string) { r.fail("node %d: check: %s", n.id, text) }})
		if err != nil {
			r.fail("node %d: check: %v", n.id, err)
		}
	}
}
