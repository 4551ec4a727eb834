package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/gateway/export"
	"github.com/storaged/storaged/gateway/route"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/internal/unixsocket"
	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
	"github.com/storaged/storaged/server/admin"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/datadir"
	"github.com/storaged/storaged/server/join"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/session"
	"github.com/storaged/storaged/server/status"
	"github.com/storaged/storaged/server/verify"
)

// cluster is what this node's gateway sees: groups through the router, sessions and volumes at the desk.
type cluster struct {
	*route.Router
	*session.Local
}

var _ volume.Cluster = cluster{}

// node is a running node. Its fields are in the order of start; stop goes the other way.
type node struct {
	config  Config
	logger  *slog.Logger
	metrics *prometheus.Registry

	listeners   listeners
	descriptors descriptors     // as they are shared out
	refusals    *doors.Refusals // connections that ports have closed at once
	scrapers    doors.Door      // of metrics, health and the profiler
	speaker     peer.Speaker    // what greetings say of this process
	identity    control.Identity
	store       *extent.Store
	peers       *peer.Transport
	rafts       *runner.Dispatcher
	catalogRT   *runner.Transport // the catalog's Raft transport
	replicas    *replication.Replicas
	control     *control.Controller
	cluster     cluster
	desk        *session.Desk  // of gateways: this node's own, and those of hosts
	admin       *admin.Cluster // what the API serves; its parts are set before the control loop runs
	view        *status.View   // part of admin
	gateway     *volume.Gateway
	nbd         *nbd.Server
	api         *api.Server
	http        *http.Server

	exports  atomic.Pointer[export.Backend] // nil until the gateway has started; reports are sent before
	serving  atomic.Bool                    // NBD and API accept
	mute     atomic.Bool                    // the catalog's disk has failed: its Raft group must not hear this node
	failures chan error                     // parts that ended by themselves; capacity of all parts

	// The scopes end in this order: those who serve hosts, the control loop, the peers.
	serveCtx, controlCtx, peersCtx          context.Context
	cancelServe, cancelControl, cancelPeers context.CancelFunc
	serveWG, controlWG, peersWG             sync.WaitGroup
}

// listeners are opened first, so that nothing is touched if an address is in use.
type listeners struct {
	peer, api, nbd, http, unix, pprof net.Listener
}

// Run runs a node until ctx is done, and returns nil if it was stopped in order. Log lines go to logs.
func Run(ctx context.Context, config Config, logs io.Writer) error {
	if err := config.Validate(); err != nil {
		return err
	}
	if err := config.setDefaults(); err != nil {
		return err
	}
	logger, err := logging.New(config.LogLevel, config.LogFormat, logs)
	if err != nil {
		return err
	}
	n := newNode(config, logger)
	err = n.start(ctx)
	if err == nil {
		select {
		case <-ctx.Done():
			logger.Info("stopping", "node", n.identity.Node)
		case err = <-n.failures:
			logger.Error("stopping because a part failed", "error", err)
		}
	} else if ctx.Err() != nil {
		err = nil // stopped while it was starting
	}
	return errors.Join(err, n.stop())
}

// newNode makes a node that has not started, of a configuration whose defaults are filled in.
func newNode(config Config, logger *slog.Logger) *node {
	n := &node{config: config, logger: logger, metrics: prometheus.NewRegistry(), failures: make(chan error, 16),
		view: &status.View{}, refusals: doors.NewRefusals(logger)}
	n.admin = &admin.Cluster{View: n.view}
	n.serveCtx, n.cancelServe = context.WithCancel(context.Background())
	n.controlCtx, n.cancelControl = context.WithCancel(context.Background())
	n.peersCtx, n.cancelPeers = context.WithCancel(context.Background())
	return n
}

// start brings everything up, from the disk to the hosts. API and probes come first: until the rest is there they answer with what the
// node waits for.
func (n *node) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{n.openDirectory, n.listen, n.answerPeople, n.settleIdentity, n.openStore,
		n.startPeers, n.startControl, n.startGateway, n.serve} {
		if err := step(ctx); err != nil && !errors.Is(err, storage.ErrNoSpace) {
			return n.dir().WithoutRoom(err, "start the node again")
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (n *node) openDirectory(context.Context) error {
	if err := n.dir().Make(n.config.ReserveBytes); err != nil {
		return err
	}
	built := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "storage_build_info",
		Help: "1, with what was built as labels."}, []string{"version", "revision"})
	built.WithLabelValues(version.Version, version.Revision()).Set(1)
	n.metrics.MustRegister(built, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) // the first
	return nil
}

func (n *node) listen(context.Context) error {
	open := func(into *net.Listener, network, addr, flag string) error {
		if addr == "" {
			return nil
		}
		var err error
		if network == "unix" {
			err = unixsocket.Clear(addr)
		}
		if err == nil {
			*into, err = net.Listen(network, addr)
		}
		if err != nil {
			return storage.E("listen", storage.KindInvalid, "--"+flag+" "+addr, err)
		}
		return nil
	}
	c, l := &n.config, &n.listeners
	if err := n.shareDescriptors(); err != nil {
		return err
	}
	return errors.Join(open(&l.peer, "tcp", c.ListenPeer, "listen-peer"), open(&l.api, "tcp", c.ListenAPI, "listen-api"),
		open(&l.nbd, "tcp", c.ListenNBD, "listen-nbd"), open(&l.http, "tcp", c.ListenHTTP, "listen-http"),
		open(&l.unix, "unix", c.NBDSocket, "nbd-socket"), open(&l.pprof, "tcp", c.Pprof, "listen-pprof"))
}

// answerPeople serves health, metrics and the API. The API refuses every request until the node runs.
func (n *node) answerPeople(context.Context) error {
	apiTLS, err := n.config.apiTLS()
	if err != nil {
		return err
	}
	n.api, err = api.NewServer(api.Config{Cluster: n.admin, Version: api.BuildVersion(), TLS: apiTLS,
		Ready: n.answers, ClusterID: n.clusterID, Logger: n.logger, Metrics: n.metrics,
		Limits: api.Limits{Connections: n.descriptors.api}, Refused: n.refusals.Port("API", n.descriptors.api)})
	if err != nil {
		return err
	}
	if n.scrapers, err = newHTTPDoor(n.descriptors.http, n.refusals, n.metrics); err != nil {
		return err
	}
	n.http = newHTTPServer(httpHandler(n.metrics, n.view))
	n.goRun(&n.peersWG, "http", func() error { return ignoreClosed(n.http.Serve(n.scrapers.Limit(n.listeners.http))) })
	n.goRun(&n.serveWG, "api", func() error { return n.api.Serve(n.serveCtx, n.listeners.api) })
	return nil
}

// clusterID returns the cluster that this node belongs to, zero until it runs.
func (n *node) clusterID() storage.ClusterID {
	if !n.view.Running() {
		return storage.ClusterID{}
	}
	return n.identity.Cluster
}

// answers returns why the node cannot answer requests at all yet.
func (n *node) answers() error {
	if n.view.Running() {
		return nil
	}
	return storage.E("ask", storage.KindUnavailable, "node "+n.config.Name, errors.New(n.view.NotRunning()))
}

// self is what the node tells the cluster about itself.
func (n *node) self(store storage.StoreID, capacityBytes int64) catalog.AddNode {
	c, l := &n.config, &n.listeners
	return catalog.AddNode{Name: c.Name, Zone: c.Zone, At: time.Now().UTC(),
		Addrs: storage.Addrs{Peer: c.advertised(l.peer.Addr()), API: c.advertised(l.api.Addr()),
			NBD: c.advertised(l.nbd.Addr()), HTTP: c.advertised(l.http.Addr())},
		Stores: []storage.Store{{ID: store, CapacityBytes: capacityBytes}}}
}

// settleIdentity finds out who this node is; it waits until there is a cluster to belong to.
func (n *node) settleIdentity(ctx context.Context) (err error) {
	n.speaker = join.NewSpeaker(max(1, mathrand.Uint64()), n.config.advertised(n.listeners.peer.Addr()))
	defer n.view.WaitFor("")
	n.identity, err = join.Settle(ctx, join.Config{Dir: n.dir(), Bootstrap: n.config.Bootstrap, Addrs: n.joins(), Name: n.config.Name, Speaker: n.speaker,
		Cluster: catalog.Cluster{HeartbeatTimeout: n.config.HeartbeatTimeout, Replicas: n.config.Replicas, Groups: n.config.Groups},
		Asker: func(s peer.Speaker) (join.Asker, error) {
			tlsConfig, err := n.config.peerTLS()
			if err != nil {
				return nil, err
			}
			return peer.New(peer.Config{TLS: tlsConfig, Speaker: s, Logger: n.logger})
		},
		Lobby: n.listeners.peer.(peer.LobbyListener), Describe: n.self, CapacityBytes: int64(n.config.CapacityBytes),
		Waits:  n.view.WaitFor,
		Failed: func(err error) { n.failures <- fmt.Errorf("peers: %w", err) }, Logger: n.logger})
	return err
}

// joins are the addresses of --join, which Validate has checked.
func (n *node) joins() []string {
	addrs, _ := n.config.joins()
	return addrs
}

func (n *node) openStore(ctx context.Context) error {
	id, err := n.dir().PromisedStore()
	if has, _ := n.dir().HasStore(); err != nil && !has { // a store that is there knows its id
		return err
	}
	return n.waiting().begin(ctx, func() error {
		n.store, err = n.openStoreAs(id)
		return err
	})
}

func (n *node) openStoreAs(id storage.StoreID) (*extent.Store, error) {
	c := &n.config
	return extent.Open(extent.Config{FS: vfs.Default, Dir: n.dir().Store(), Cluster: n.identity.Cluster, Store: id,
		SegmentBytes: int64(c.SegmentBytes), CapacityBytes: int64(c.CapacityBytes), ReserveBytes: int64(c.ReserveBytes),
		CacheBytes: int64(c.CacheBytes), Compact: c.Compact, ScrubInterval: c.ScrubInterval,
		Segment:    segment.Config{FreeSegments: c.FreeSegments, CacheBytes: int64(c.LogCacheBytes), MaxOpenFiles: n.descriptors.segments},
		TableFiles: n.descriptors.tables,
		OnCheckpointDue: func(k segment.GroupKey) {
			if n.replicas != nil {
				n.replicas.CheckpointDue(k)
			}
		},
		OnFailure: func(err error) {
			n.logger.Error("the disk has failed: its replicas keep silent until the node is started on a good one", "dir", n.dir().Store(), "error", err)
		},
		Logger: n.logger, Metrics: n.metrics})
}

func (n *node) dir() datadir.Dir { return datadir.Dir(n.config.DataDir) }

func (n *node) startPeers(ctx context.Context) error {
	err := n.waiting().begin(ctx, func() (err error) {
		n.speaker.Starts, err = n.dir().CountStart()
		return err
	})
	if err != nil {
		return err
	}
	tlsConfig, err := n.config.peerTLS()
	if err != nil {
		return err
	}
	n.peers, err = peer.New(peer.Config{Cluster: n.identity.Cluster, Self: n.identity.Node, Recovery: n.identity.Recovery, Listener: n.listeners.peer,
		Resolve: func(id storage.NodeID) (string, bool) {
			if n.control == nil {
				return "", false
			}
			return n.control.Resolve(id)
		},
		TLS: tlsConfig, Speaker: n.speaker, Logger: n.logger, Metrics: n.metrics,
		MaxConnections: n.descriptors.peers, MaxClientConnections: max(1, n.descriptors.peers*3/4),
		Refused: n.refusals.Port("peers'", n.descriptors.peers)})
	if err != nil {
		return err
	}
	n.rafts = runner.NewDispatcher(n.peers, n.identity.HeartbeatTimeout, op.BlocksOf)
	mode := op.ReadLease
	if n.config.ReadMode == "quorum" {
		mode = op.ReadQuorum
	}
	n.replicas, err = replication.NewReplicas(replication.Config{Node: n.identity.Node, Stores: []*extent.Store{n.store}, Peers: n.peers,
		Dispatcher: n.rafts, HeartbeatTimeout: n.identity.HeartbeatTimeout, ReadMode: mode,
		MaxAppendEntries: n.config.MaxAppendEntries, Logger: n.logger, Metrics: n.metrics,
		OnLeadership: func() { n.control.ReportSoon() }}) // replicas start after the control has been made
	return err
}

// startControl opens the catalog and lets the peers in. The order matters: handlers are entered before the peers run,
// and the peers find addresses through the catalog's book.
func (n *node) startControl(ctx context.Context) error {
	self := n.identity.Node
	n.catalogRT = runner.NewTransport(runner.TransportConfig{Group: storage.CatalogGroup, Self: control.ServerID(self),
		Node: self, Peers: n.peers, Dispatcher: n.rafts, HeartbeatTimeout: n.identity.HeartbeatTimeout, Logger: n.logger,
		Silent: n.mute.Load, Verify: catalog.VerifyEntry, Damaged: func(err error) { n.control.Halt(err) }})
	r := route.New(route.Config{Self: self, Own: n.replicas, Peers: n.peers, Replicas: n.replicasOf,
		HeartbeatTimeout: n.identity.HeartbeatTimeout})
	acts := &actions{self: self, replicas: n.replicas, peers: n.peers, router: r, done: func() { n.control.ReportSoon() }}
	acts.register()
	status.RegisterUsage(n.peers, n.replicas)
	askReplica := verify.Register(n.peers, n.replicas)
	err := n.waiting().begin(ctx, func() (err error) {
		n.control, err = control.Open(control.Config{Dir: n.dir().Catalog(), Transport: n.catalogRT, Peers: controlPeers{n.peers},
			Actions: acts, OnFailure: n.catalogFailed, Self: n.self(n.store.ID(), n.store.Space().CapacityBytes), Report: n.view.Report,
			RepairAfter: n.config.RepairAfter, Rebalance: n.config.Rebalance, Logger: n.logger, Metrics: n.metrics})
		return err
	})
	if err != nil {
		return err
	}
	registerControl(n.peers, n.control)
	seeker := &join.Seeker{Peers: n.peers, Book: n.control, Addrs: n.joins(), Self: n.speaker.Address, Logger: n.logger}
	seeker.Register(n.peers)
	n.desk = session.NewDesk(n.control)
	n.desk.Serve(n.peers)
	n.cluster = cluster{r, session.NewLocal(n.desk, self, n.config.Name, rand.Text())}
	n.view.Config, n.view.RepairAfter = n.sources(), n.config.RepairAfter
	n.admin.Verifier = &verify.Verifier{Catalog: n.control, Ask: askReplica, Propose: acts.propose}
	n.admin.Commands, n.admin.Desk, n.admin.ProvisionLimit = n.control, n.desk, n.config.ProvisionLimit
	n.goRun(&n.peersWG, "peers", func() error { return n.peers.Run(n.peersCtx) })
	if err := n.replicas.Start(); err != nil {
		return err
	}
	n.goRun(&n.controlWG, "seek", func() error { seeker.Run(n.controlCtx); return nil })
	n.goRun(&n.controlWG, "version", func() error { followVersion(n.controlCtx, n.control, n.replicas.RaiseFormat, n.logger); return nil })
	n.goRun(&n.controlWG, "control", func() error { return n.control.Run(n.controlCtx) })
	return nil
}

// catalogFailed is told when the catalog's log cannot be written, or holds what cannot be applied. The control loop ends with the error,
// and the node with it; the catalog is led by other nodes until then.
func (n *node) catalogFailed(err error) {
	n.mute.Store(true)
	n.logger.Error("this node's copy of the catalog is out of service: the node stops", "dir", n.dir().Catalog(), "error", err)
}

// replicasOf returns the nodes that hold voters of a group.
func (n *node) replicasOf(id storage.GroupID) (nodes []storage.NodeID) {
	n.control.View(func(s *catalog.State) {
		g, _ := s.Group(id)
		for _, r := range g.Replicas {
			if r.Role == storage.RoleVoter || r.Role == storage.RoleLeaving { // which votes, and may lead, until it has left
				nodes = append(nodes, r.Node)
			}
		}
	})
	return nodes
}

func (n *node) startGateway(context.Context) error {
	latencyOf, err := volume.ParsePatterns(n.config.VolumeLatency)
	if err != nil {
		return err
	}
	n.gateway, err = volume.New(volume.Config{Cluster: n.cluster, LatencyOf: latencyOf, Logger: n.logger, Metrics: n.metrics})
	if err != nil {
		return err
	}
	tlsConfig, err := n.config.nbdTLS()
	if err != nil {
		return err
	}
	exports := export.New(n.gateway)
	n.exports.Store(exports)
	n.nbd, err = nbd.NewServer(nbd.Config{Backend: exports, TLS: tlsConfig,
		RequireTLS: n.config.NBDTLSRequire || n.config.NBDClientCA != "", MaxConnections: n.descriptors.nbd,
		Refused: n.refusals.Port("NBD", n.descriptors.nbd), Logger: n.logger, Metrics: n.metrics})
	return err
}

// serve opens the doors to hosts and people.
func (n *node) serve(ctx context.Context) error {
	if n.listeners.pprof != nil {
		profiler := newProfileServer(pprofHandler())
		n.goRun(&n.peersWG, "pprof", func() error { return ignoreClosed(profiler.Serve(n.scrapers.Limit(n.listeners.pprof))) })
	}
	n.goRun(&n.serveWG, "nbd", func() error { return n.nbd.Serve(n.serveCtx, n.listeners.nbd) })
	if n.listeners.unix != nil {
		n.goRun(&n.serveWG, "nbd socket", func() error { return n.nbd.Serve(n.serveCtx, n.listeners.unix) })
	}
	n.goRun(&n.serveWG, "attachments", func() error { n.cluster.Tidy(n.serveCtx); return nil })
	n.view.Run()
	n.serving.Store(true)
	n.api.SetServing(true)
	n.logger.Info("serving", "node", n.identity.Node, "name", n.config.Name, "cluster", n.identity.Cluster,
		"nbd", n.listeners.nbd.Addr(), "api", n.listeners.api.Addr(), "peers", n.listeners.peer.Addr(), "http", n.listeners.http.Addr())
	return ctx.Err()
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// goRun runs a part until it ends; an error ends the node.
func (n *node) goRun(wg *sync.WaitGroup, what string, run func() error) {
	wg.Go(func() {
		if err := run(); err != nil {
			n.failures <- fmt.Errorf("%s: %w", what, err)
		}
	})
}

// stop brings everything down, from the hosts to the disk: refuse new requests, drain, leave leadership, stop Raft,
// close the disks. It works after a start that failed half-way, and returns the first real error.
func (n *node) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.config.ShutdownTimeout)
	defer cancel()
	n.serving.Store(false)
	var errs []error
	if n.api != nil {
		n.api.SetServing(false)
	}
	n.cancelServe() // NBD drains within its own limit, the API within its own
	if n.api != nil {
		n.api.Close()
	}
	n.serveWG.Wait()
	if n.gateway != nil {
		if err := n.gateway.Close(ctx); err != nil {
			n.logger.Info("sessions are left for others to close", "error", err)
		}
	}
	if n.replicas != nil {
		n.replicas.HandOver(ctx)
	}
	n.cancelControl()
	n.controlWG.Wait()
	if n.control != nil {
		errs = append(errs, n.control.Close())
	}
	if n.catalogRT != nil {
		errs = append(errs, n.catalogRT.Close())
	}
	if n.replicas != nil {
		errs = append(errs, n.replicas.Close(ctx))
	}
	if n.rafts != nil {
		n.rafts.Close() // heartbeats that wait for their tick have nobody to go to
	}
	if n.http != nil {
		errs = append(errs, n.http.Close())
	}
	n.cancelPeers()
	for _, l := range []net.Listener{n.listeners.peer, n.listeners.api, n.listeners.nbd, n.listeners.http, n.listeners.unix, n.listeners.pprof} {
		if l != nil {
			_ = l.Close() // most are closed already
		}
	}
	n.peersWG.Wait()
	if n.peers != nil {
		errs = append(errs, n.peers.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	n.logger.Info("stopped")
	return nil
}

// sources are what this node shows of itself and of the cluster.
func (n *node) sources() status.Config {
	return status.Config{Self: n.identity.Node, Cluster: n.identity.Cluster, Catalog: n.control, Peers: n.peers,
		Replicas: n.replicaReports, Blocks: n.replicas, Store: n.storeReport, StoreDir: n.dir().Store(),
		Sessions:    n.desk.Sessions,
		Connections: n.connections, Refusals: n.refusals.Lately, Serving: n.serving.Load}
}

func (n *node) storeReport() placement.StoreReport {
	space := n.store.Space()
	r := placement.StoreReport{ID: n.store.ID(), CapacityBytes: space.CapacityBytes,
		UsedBytes: max(0, space.CapacityBytes-space.FreeBytes), FreeBytes: space.WritableBytes(), Displaced: space.Displaced, StoreSpace: space.Usage(),
		Scrub: n.store.Scrub()}
	if err := n.store.Failed(); err != nil {
		r.Failed = err.Error()
	}
	return r
}

// connections are those of NBD clients; none before the gateway has started.
func (n *node) connections() (out []placement.Connection) {
	exports := n.exports.Load()
	if exports == nil {
		return nil
	}
	for _, c := range exports.Connections() {
		out = append(out, placement.Connection{Volume: c.Volume, Client: c.Client, ReadOnly: c.ReadOnly, Since: c.Since.UTC()})
	}
	return out
}
