package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// Controller is a node's part of the catalog.
type Controller struct {
	cfg     Config
	id      Identity
	fsm     *fsm
	inst    *runner.Instance
	disk    *disk
	files   io.Closer // the bolt store; nil if the stores were given
	book    *book
	metrics *metrics

	soon chan struct{} // capacity 1: report now
	wake chan struct{} // capacity 1: reconcile now

	removed chan error // capacity 1: this node was removed from the cluster

	mu   sync.Mutex  // guards lead
	lead *leadership // while this node leads, and the state was caught up

	closeOnce sync.Once
	closeErr  error
}

// ServerID is a node's name in the catalog's Raft configuration.
func ServerID(node storage.NodeID) raft.ServerID { return raft.ServerID(node.String()) }

// Open opens the catalog of the node whose identity is in cfg.Dir, and joins its Raft group. KindNotFound: there is
// no identity; bootstrap or join first (SaveIdentity, Join).
func Open(cfg Config) (*Controller, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	id, err := LoadIdentity(cfg.FS, cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := id.Usable(cfg.Dir); err != nil {
		return nil, err
	}
	addresses, err := openBook(cfg.FS, cfg.Dir)
	if err != nil {
		return nil, err
	}
	c := &Controller{cfg: cfg, id: id, fsm: newFSM(), book: addresses, soon: make(chan struct{}, 1),
		wake: make(chan struct{}, 1), removed: make(chan error, 1),
		inst: runner.New(runner.Config{Subject: "catalog", Group: storage.CatalogGroup})}
	if err := c.start(); err != nil {
		if c.files != nil {
			err = errors.Join(err, c.files.Close())
		}
		return nil, err
	}
	if c.metrics, err = newMetrics(cfg.Metrics, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// start opens the stores and the Raft instance.
func (c *Controller) start() error {
	stores, err := c.openStores()
	if err != nil {
		return err
	}
	c.disk = newDisk(stores, c.inst, c.cfg.OnFailure, c.cfg.Logger)
	snapshots := sealedSnapshots{SnapshotStore: stores.Snapshots, noteConfig: c.fsm.noteConfig}
	if c.files != nil {
		snapshots.dir = c.cfg.path(snapshotDir)
	}
	c.fsm.onHalt = c.disk.fail
	conf := c.raftConfig()
	if c.id.Bootstrap != nil {
		// The library syncs what it bootstraps, and refuses a second time.
		err := raft.BootstrapCluster(conf, c.disk, c.disk, snapshots, c.cfg.Transport,
			raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: conf.LocalID, Address: runner.NodeAddress(c.id.Node)}}})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return storage.E("bootstrap catalog", storage.KindIO, c.cfg.Dir, err)
		}
	}
	if err := c.inst.Start(conf, c.fsm, c.disk, c.disk, snapshots, c.cfg.Transport); err != nil {
		return storage.E("open catalog", storage.KindIO, c.cfg.Dir, err)
	}
	return nil
}

func (c *Controller) openStores() (*RaftStores, error) {
	if c.cfg.Stores != nil {
		return c.cfg.Stores, nil
	}
	bolt, snaps, err := openFiles(c.cfg.Dir, logging.HC(c.cfg.Logger))
	if err != nil {
		return nil, storage.E("open catalog", storage.KindIO, c.cfg.Dir, err)
	}
	c.files = bolt
	return &RaftStores{Log: bolt, Stable: bolt, Snapshots: snaps}, nil
}

const (
	retainedSnapshots = 2
	trailingLogs      = 1024
	snapshotInterval  = time.Minute
)

func (c *Controller) raftConfig() *raft.Config {
	conf := runner.Settings(ServerID(c.id.Node), c.id.HeartbeatTimeout, c.cfg.Logger)
	conf.Logger = conf.Logger.Named("catalog")
	conf.CommitTimeout = c.cfg.CommitTimeout
	conf.SnapshotInterval = snapshotInterval
	conf.SnapshotThreshold = c.cfg.SnapshotThreshold
	conf.TrailingLogs = trailingLogs
	return conf
}

// Run does the node's part until ctx is done: it reports, keeps the node's record up to date, and reconciles while
// this node leads. It ends with KindIO when the disk of the catalog's log fails, with KindCorrupt or KindUnsupported when the
// log holds what this node cannot apply, and with KindPermission and a
// *RemovedError when this node was removed from the cluster. It runs once; Close follows it.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c.disk.failed:
			cancel(c.disk.failure())
		case err := <-c.removed:
			cancel(err)
		case <-ctx.Done():
		}
	})
	for _, loop := range []func(context.Context){c.runReports, c.runBook, c.runSelf, c.runLeader} {
		wg.Go(func() { loop(ctx) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Close hands leadership over if it can, stops Raft and closes its files. It is idempotent.
func (c *Controller) Close() error {
	c.closeOnce.Do(func() {
		c.disk.stopWaiting()
		well := c.disk.failure() == nil // otherwise nothing that waits can end before Raft does
		if well {
			ctx, cancel := context.WithTimeout(context.Background(), c.cfg.RequestTimeout)
			defer cancel()
			if err := c.inst.HandOver(ctx); err != nil {
				c.cfg.Logger.Info("leadership of the catalog was not handed over; another node is elected", "reason", err)
			}
		}
		c.closeErr = c.inst.Stop()
		if well { // nothing is applied any more; nodes that have moved a moment ago are found after the next start
			c.writeBook()
		}
		if c.files != nil && !errors.Is(c.closeErr, runner.ErrHangs) { // what hangs has them open
			c.closeErr = errors.Join(c.closeErr, c.files.Close())
		}
		if c.closeErr != nil {
			c.closeErr = storage.E("close catalog", storage.KindIO, c.cfg.Dir, c.closeErr)
		}
		if c.metrics != nil {
			c.metrics.unregister()
		}
	})
	return c.closeErr
}

// Voters returns how many nodes vote in the newest configuration of the catalog that this node knows.
func (c *Controller) Voters() int { return runner.CountVoters(c.inst.Configuration()) }

// Failed returns why the disk of the catalog's log is out of service (KindIO), or this copy ends (KindCorrupt,
// KindUnsupported); nil while all is well. The node must stop then.
func (c *Controller) Failed() error { return c.disk.failure() }

// Identity returns who the node is.
func (c *Controller) Identity() Identity { return c.id }

// Leader returns the node that leads the catalog as far as this node knows; 0 if it knows of none.
func (c *Controller) Leader() storage.NodeID { return c.inst.Leader() }

// NeverLed reports that this node has made the cluster and nobody has led its catalog yet: the log holds nothing but how it was
// made.
func (c *Controller) NeverLed() bool { return c.id.Bootstrap != nil && c.inst.LastIndex() <= 1 }

// Untold reports that this node has joined the cluster and was sent nothing of its catalog yet.
func (c *Controller) Untold() bool { return c.id.Bootstrap == nil && c.inst.LastIndex() == 0 }

// WithoutRoom reports that the file system under this node's log of the catalog is full: it neither leads nor follows until there is room.
func (c *Controller) WithoutRoom() bool { return c.disk.withoutRoom() }

// Known returns the nodes that this one has an address of.
func (c *Controller) Known() []storage.NodeID { return c.book.nodes() }

// Term returns the catalog's Raft term as this node knows it.
func (c *Controller) Term() uint64 { return c.inst.CurrentTerm() }

// Resolve returns the peer address of a node: from the catalog, or from the address book of an earlier run while this
// node's copy is older than that.
func (c *Controller) Resolve(id storage.NodeID) (addr string, ok bool) {
	c.book.mu.Lock()
	index := c.book.index
	c.book.mu.Unlock()
	var n storage.Node
	c.fsm.view(func(s *catalog.State) {
		if s.Applied() >= index {
			n, ok = s.Node(id)
		}
	})
	if ok && n.State != storage.NodeRemoved {
		return n.Addrs.Peer, true
	}
	return c.book.lookup(id)
}

// Book returns the peer address of every node that this one knows of, as Resolve does.
func (c *Controller) Book() map[storage.NodeID]string {
	ids := c.book.nodes()
	c.fsm.view(func(s *catalog.State) {
		for _, n := range s.Nodes() {
			ids = append(ids, n.ID)
		}
	})
	addrs := make(map[storage.NodeID]string, len(ids))
	for _, id := range ids {
		if addr, ok := c.Resolve(id); ok && id != c.id.Node {
			addrs[id] = addr
		}
	}
	return addrs
}

// View calls fn with this node's copy of the catalog, which fn must neither keep nor change. It takes no network.
func (c *Controller) View(fn func(*catalog.State)) catalog.Freshness {
	f := c.Freshness()
	c.fsm.view(func(s *catalog.State) {
		f.Index = s.Applied()
		fn(s)
	})
	return f
}

// Freshness says how good this node's copy is.
func (c *Controller) Freshness() catalog.Freshness {
	f := catalog.Freshness{Leader: c.Leader(), Age: catalog.NeverHeard}
	f.Index, _ = c.fsm.next()
	if last := c.inst.LastContact(); c.inst.Leads() {
		f.Age = 0
	} else if !last.IsZero() {
		f.Age = max(0, time.Since(last))
	}
	return f
}

// Read calls fn with a copy that holds everything that was committed before Read was called.
func (c *Controller) Read(ctx context.Context, fn func(*catalog.State)) error {
	r, err := c.ask(ctx, MethodRead, []byte("{}"))
	if err != nil {
		return err
	}
	if err := c.fsm.wait(ctx, r.Index); err != nil {
		return err
	}
	c.fsm.view(fn)
	return nil
}

// Changed returns the index of the last command this node has applied, and a channel that is closed when it applies
// the next one.
func (c *Controller) Changed() (index uint64, next <-chan struct{}) { return c.fsm.next() }

// Propose applies a command, on whatever node this is, and returns its result; a refusal is the error. It tries
// again, which commands permit, until ctx is done. KindUnavailable: whether it was applied is not known.
//
// It returns once this node's own copy shows the effect, unless the copy lags too far behind.
func (c *Controller) Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error) {
	body, err := catalog.Encode(cmd)
	if err != nil {
		return catalog.Result{}, err
	}
	r, err := c.ask(ctx, MethodPropose, body)
	if err != nil {
		return catalog.Result{}, err
	}
	if r.Result == nil {
		return catalog.Result{}, storage.E("propose", storage.KindInternal, "", errors.New("the leader answered without a result"))
	}
	if r.Result.Err != nil {
		return *r.Result, r.Result.Err
	}
	wait, cancel := context.WithTimeout(ctx, 10*c.cfg.CommitTimeout)
	defer cancel()
	_ = c.fsm.wait(wait, r.Result.Index) // it is committed either way
	return *r.Result, nil
}

// Reports returns what the nodes last told the catalog's leader, from whatever node it is asked on.
func (c *Controller) Reports(ctx context.Context) (map[storage.NodeID]placement.Heard, error) {
	r, err := c.ask(ctx, MethodRead, []byte(`{"reports":true}`))
	return r.Reports, err
}

// ReportSoon has the node report now instead of at its next interval: after something changed that the reconcilers
// wait for.
func (c *Controller) ReportSoon() { kick(c.soon) }

// Reconcile has the leader's reconcilers look now.
func (c *Controller) Reconcile() { kick(c.wake) }

func kick(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Join asks a node of a cluster, through call, to take this node in; call carries MethodJoin to any node. SaveJoin
// then writes the answer down.
func Join(ctx context.Context, self catalog.AddNode, call func(ctx context.Context, body []byte) ([]byte, error)) (JoinResponse, error) {
	add, err := catalog.Encode(self)
	if err != nil {
		return JoinResponse{}, err
	}
	body, err := json.Marshal(joinRequest{Node: add, Knows: catalog.Version})
	if err != nil {
		return JoinResponse{}, storage.E("join", storage.KindInternal, "", err)
	}
	r, err := joinBy(ctx, body, call)
	if errors.Is(err, storage.ErrCorrupt) { // a build before version 6 takes the command alone
		r, err = joinBy(ctx, add, call)
	}
	if err != nil {
		return JoinResponse{}, err
	}
	if r.Join == nil {
		return JoinResponse{}, storage.E("join", storage.KindInternal, "", errors.New("the answer names no node"))
	}
	return *r.Join, nil
}

func joinBy(ctx context.Context, body []byte, call func(ctx context.Context, body []byte) ([]byte, error)) (reply, error) {
	b, err := call(ctx, body)
	if err != nil {
		return reply{}, err
	}
	return decodeReply(b)
}

// SaveJoin makes dir the directory of the node that the cluster has taken in. The same answer again changes nothing.
func SaveJoin(cfg Config, r JoinResponse) (Identity, error) {
	cfg.setDefaults()
	cluster, err := storage.ParseClusterID(r.Cluster)
	if err != nil {
		return Identity{}, storage.E("join", storage.KindInvalid, "", err)
	}
	if len(r.Addrs) > catalog.MaxNodes {
		return Identity{}, storage.E("join", storage.KindInvalid, "", fmt.Errorf("%d nodes", len(r.Addrs)))
	}
	id := Identity{Cluster: cluster, Node: r.Node, HeartbeatTimeout: r.HeartbeatTimeout, Recovery: r.Recovery}
	if err := SaveIdentity(cfg.FS, cfg.Dir, id); err != nil {
		return Identity{}, err
	}
	b, err := openBook(cfg.FS, cfg.Dir)
	if err != nil {
		return Identity{}, err
	}
	if b.index > 0 { // the book of a node that has run already is better than the answer
		return id, nil
	}
	addrs := maps.Clone(r.Addrs)
	return id, writeJSON(cfg.FS, cfg.Dir, bookFile, bookJSON{Version: fileVersion, Addrs: addrs})
}

// Halt ends this node's copy of the catalog: an entry of its own log is damaged, so that no follower takes it. It does not
// block. The node must stop then.
func (c *Controller) Halt(err error) { c.disk.fail(unreadable(c.inst.LastIndex(), err)) }
