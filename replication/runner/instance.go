package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/replication/op"
)

// Config describes one run of the library.
type Config struct {
	// Subject names the replica's group in errors.
	Subject string
	Group   storage.GroupID
	// OnLeadership, if set, is called after the replica has begun to lead and is ready, or leads no longer. It must not block.
	// The carrier is a Transport then. Nil: nobody asks Leading and MayRead.
	OnLeadership func()
	Logger       *slog.Logger
}

// Instance is one run of the library over a replica.
type Instance struct {
	Observed // once started

	cfg       Config
	self      raft.ServerID
	raft      *raft.Raft
	carrier   Carrier
	perAppend uint64          // entries that the library puts into one request, at most
	transport *Transport      // the carrier, if it is one; otherwise nil
	running   atomic.Bool     // NewRaft has read all that it reads: from here on an error of a store would be a panic
	ctx       context.Context // done when the instance is to stop
	cancel    context.CancelFunc
	futures   futures       // stopped is closed by Cancel
	waiting   chan struct{} // one place for each request that somebody waits for with a context
	transfers transfers
	asking    asking
	watch     sync.WaitGroup // watchLeadership
}

// Observed is what may be asked of the library without a wait.
type Observed interface {
	State() raft.RaftState
	CurrentTerm() uint64
	LastIndex() uint64
	CommitIndex() uint64
	AppliedIndex() uint64
	LastContact() time.Time
	LeaderCh() <-chan bool
}

// Carrier is a transport of the library.
type Carrier interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// maxWaiting bounds the requests that are on their way with a context: each is a goroutine until the library answers.
const maxWaiting = 256

// New makes an instance that does not run yet.
func New(cfg Config) *Instance {
	i := &Instance{cfg: cfg, waiting: make(chan struct{}, maxWaiting), futures: futures{stopped: make(chan struct{})}}
	ctx, cancel := context.WithCancel(context.Background())
	i.ctx, i.cancel = ctx, sync.OnceFunc(func() {
		cancel() // first: Do takes nothing any more when the futures end
		close(i.futures.stopped)
	})
	return i
}

// Settings returns what the library is told for every group. HeartbeatTimeout is one value per cluster.
func Settings(self raft.ServerID, heartbeatTimeout time.Duration, logger *slog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = self
	c.HeartbeatTimeout = heartbeatTimeout
	c.ElectionTimeout = heartbeatTimeout
	c.LeaderLeaseTimeout = heartbeatTimeout
	c.CommitTimeout = heartbeatTimeout
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = logging.HC(logger)
	return c
}

// Start gives the instance to the library, which panics when a store fails while it reads the log. If it does not start, the
// carrier is closed.
func (i *Instance) Start(c *raft.Config, f raft.FSM, logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore,
	t Carrier) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("start: %v", p)
		}
		if err != nil {
			i.cancel()
			_ = t.Close() // what failed before is the one to report
		}
	}()
	notify := make(chan bool, 64)
	if i.cfg.OnLeadership != nil {
		c.NotifyCh = notify
	}
	i.self, i.carrier, i.perAppend = c.LocalID, t, uint64(c.MaxAppendEntries)
	if i.raft, err = raft.NewRaft(c, f, logs, stable, snaps, starting{t, &i.running}); err != nil {
		return err
	}
	i.Observed = i.raft
	if i.transport, _ = t.(*Transport); i.transport != nil {
		i.transport.attach(i)
	}
	if i.cfg.OnLeadership != nil {
		i.watch.Go(func() { i.watchLeadership(notify) })
	}
	return nil
}

// starting is a transport that notes when the library has read all that it reads before it runs: it enters its handler of
// heartbeats then.
type starting struct {
	Carrier
	running *atomic.Bool
}

// SetHeartbeatHandler implements raft.Transport.
func (s starting) SetHeartbeatHandler(fn func(raft.RPC)) {
	s.running.Store(true)
	s.Carrier.SetHeartbeatHandler(fn)
}

// Context is done when the instance is to stop.
func (i *Instance) Context() context.Context { return i.ctx }

// Running reports whether the library runs, or is about to: its goroutines call the stores, and not those that start it.
func (i *Instance) Running() bool { return i.running.Load() }

// Park is what a store does with an error that the library would panic on, after it has seen to it that the disk or the
// replica is out of service: it ends the goroutine that calls it, which is one of the library's, when the instance stops.
// To return even then would be a panic. While the library starts, Park returns the error.
func (i *Instance) Park(err error) error {
	if !i.running.Load() {
		return err
	}
	<-i.ctx.Done()
	runtime.Goexit() // its deferred calls say that it has ended
	return err
}

// Leads reports whether this replica leads its group.
func (i *Instance) Leads() bool { return i.State() == raft.Leader }

// Follows reports whether this replica follows a leader, or waits for one.
func (i *Instance) Follows() bool { return i.State() == raft.Follower }

// LeadsTerm reports whether this replica leads its group in the given term.
func (i *Instance) LeadsTerm(term uint64) bool { return i.Leads() && i.CurrentTerm() == term }

// Leader returns the node that leads as far as this replica knows; 0 for none.
func (i *Instance) Leader() storage.NodeID {
	address, _ := i.raft.LeaderWithID()
	n, _ := ParseNodeAddress(address) // "" names none
	return n
}

// Configuration returns the newest configuration, from an atomic copy. It may not be committed yet. The library does not say
// where it lies in the log: the index of GetConfiguration is always 0.
func (i *Instance) Configuration() raft.Configuration {
	return i.raft.GetConfiguration().Configuration()
}

// CountVoters returns how many servers of a configuration vote.
func CountVoters(c raft.Configuration) (n int) {
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// Do hands a request to the library and waits for it: until it is answered, the instance stops, or ctx is done. Without
// an answer the outcome is not known, and the error is of KindUnavailable. What submit returns then goes on.
func Do[F raft.Future](ctx context.Context, i *Instance, op string, submit func(*raft.Raft) F) (f F, err error) {
	if ctx.Done() == nil {
		if i.ctx.Err() != nil {
			return f, i.translate(op, raft.ErrRaftShutdown)
		}
		f = until(&i.futures, submit(i.raft))
		return f, i.translate(op, f.Error())
	}
	select {
	case i.waiting <- struct{}{}:
	case <-i.ctx.Done():
		return f, i.translate(op, raft.ErrRaftShutdown)
	case <-ctx.Done():
		return f, i.translate(op, errors.New("too many requests wait for the log"))
	}
	type answer struct {
		f   F
		err error
	}
	done := make(chan answer, 1)
	go func() { // ends at the latest when the instance stops
		f, err := Do(context.Background(), i, op, submit)
		<-i.waiting
		done <- answer{f, err}
	}()
	select {
	case a := <-done:
		return a.f, a.err
	case <-ctx.Done():
		return f, i.translate(op, fmt.Errorf("no answer in time: %w", context.Cause(ctx)))
	}
}

// translate makes an error of the library one of ours. Outcomes that are not known are KindUnavailable: leadership lost,
// shut down, queue full. It may have been committed, or will be.
func (i *Instance) translate(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return i.notLeader(what, i.Leader())
	default:
		return storage.E(what, storage.KindUnavailable, i.cfg.Subject, err)
	}
}

// notLeader is the error of a request that only the leader takes; leader is 0 if it is not known.
func (i *Instance) notLeader(what string, leader storage.NodeID) error {
	return op.NotLeader(what, i.cfg.Subject, i.cfg.Group, leader)
}

// Cancel has the instance stop: whoever waits for it, or is parked, is released. Stop follows.
func (i *Instance) Cancel() { i.cancel() }

// stopPatience bounds the wait for an instance whose disk hangs.
const stopPatience = 10 * time.Second

// ErrHangs says that the library did not stop in time.
var ErrHangs = fmt.Errorf("raft has not stopped after %v: its disk hangs", stopPatience)

// Stop ends an instance that was started, and waits for the library's goroutines; ErrHangs if they do not end.
func (i *Instance) Stop() error {
	future := i.raft.Shutdown()
	i.cancel()
	closed := i.carrier.Close() // releases those of the library's goroutines that wait for other nodes
	ended := make(chan error, 1)
	go func() { ended <- future.Error() }() // ends when the disk answers
	select {
	case err := <-ended:
		i.watch.Wait()
		return errors.Join(closed, err)
	case <-time.After(stopPatience):
		return ErrHangs
	}
}

// NodeAddress is the raft.ServerAddress of a node, which the transport resolves.
func NodeAddress(n storage.NodeID) raft.ServerAddress { return raft.ServerAddress(n.String()) }

// ParseNodeAddress is the inverse of NodeAddress.
func ParseNodeAddress(a raft.ServerAddress) (storage.NodeID, error) {
	n, err := strconv.ParseUint(string(a), 10, 32)
	if err != nil {
		return 0, storage.E("parse node address", storage.KindInvalid, strconv.Quote(string(a)), err)
	}
	return storage.NodeID(n), nil
}
