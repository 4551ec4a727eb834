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
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/segment"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/export"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/remote"
	"github.com/storaged/storaged/server/route"
	"github.com/storaged/storaged/server/volume"
)

// node is a running node. Its fields are in the order of start; stop goes the other way.
type node struct {
	config  Config
	logger  *slog.Logger
	metrics *prometheus.Registry

	listeners   listeners
	descriptors *doors.Descriptors // kept free of connections
	identity    control.Identity
	store       *extent.Store
	peers       *peer.Transport
	rafts       *replication.Router
	catalogRT   *replication.Transport // the catalog's Raft transport
	host        *replication.Host
	control     *control.Controller
	cluster     *cluster
	remote      *remote.Service // of gateways on hosts that are no nodes
	gateway     *volume.Gateway
	nbd         *nbd.Server
	api         *api.Server
	http        *http.Server

	starts   uint64                 // of this node, with this one
	instance uint64                 // random: this process, in greetings
	waits    atomic.Pointer[string] // what a node without a cluster waits for
	running  atomic.Bool            // every part has been made: what is asked of this node may look at them
	caughtUp readiness
	exports  atomic.Pointer[export.Backend] // nil until the gateway has started; reports are sent before
	serving  atomic.Bool                    // NBD and API accept
	mute     atomic.Bool                    // the catalog's disk has failed: its Raft group must not hear this node
	failures chan error                     // parts that ended by themselves; capacity of all parts

	// The scopes end in this order: those who serve hosts, the control loop, the peers.
	serveCtx, controlCtx, peersCtx          context.Context
	cancelServe, cancelControl, cancelPeers context.CancelFunc
	serveWG, controlWG, peersWG             sync.WaitGroup
}

// listeners are opened first, so that an address in use is told before anything is touched.
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
		instance: max(1, mathrand.Uint64())}
	n.serveCtx, n.cancelServe = context.WithCancel(context.Background())
	n.controlCtx, n.cancelControl = context.WithCancel(context.Background())
	n.peersCtx, n.cancelPeers = context.WithCancel(context.Background())
	return n
}

// start brings everything up, from the disk to the hosts. People are answered first, and until the rest is there with what it
// waits for.
func (n *node) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{n.openDirectory, n.listen, n.answerPeople, n.settleIdentity, n.openStore,
		n.startPeers, n.startControl, n.startGateway, n.serve} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) openDirectory(context.Context) error {
	if err := os.MkdirAll(n.config.DataDir, 0o750); err != nil {
		if target, linkErr := os.Readlink(n.config.DataDir); linkErr == nil && errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("it is a symbolic link to %s, which is not there: mount its disk, or make that directory", target)
		}
		return storage.E("make", storage.KindInvalid, "data directory "+n.config.DataDir, err)
	}
	if usage, err := vfs.Default.GetDiskUsage(n.config.DataDir); err == nil && uint64(n.config.ReserveBytes) >= usage.TotalBytes {
		return storage.E("configuration", storage.KindInvalid, "--reserve", fmt.Errorf(
			"%v is all of the file system of %s, which has %v: no write would ever be taken; use less, or a larger disk",
			n.config.ReserveBytes, n.config.DataDir, size.Bytes(usage.TotalBytes)))
	}
	version := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "storage_build_info",
		Help: "1, with what was built as labels."}, []string{"version", "revision"})
	version.WithLabelValues(versionOf()).Set(1)
	for _, c := range []prometheus.Collector{version, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := n.metrics.Register(c); err != nil {
			return storage.E("register", storage.KindInternal, "metrics", err)
		}
	}
	return nil
}

func versionOf() (string, string) { return version.Version, version.Revision() }

// storeDescriptors is how many file descriptors stay free of connections: for the segments of the log (256), the tables'
// files (256), the catalog, the other nodes, and what is opened for a moment.
const storeDescriptors = 640

func (n *node) listen(context.Context) error {
	open := func(into *net.Listener, network, addr, flag string) error {
		if addr == "" {
			return nil
		}
		if network == "unix" {
			if err := clearSocket(addr); err != nil {
				return err
			}
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return storage.E("listen", storage.KindInvalid, "--"+flag+" "+addr, err)
		}
		*into = n.descriptors.Guard(l)
		return nil
	}
	c, l := &n.config, &n.listeners
	n.descriptors = doors.KeepDescriptors(storeDescriptors, n.logger)
	if want := uint64(c.NBDConnections) + storeDescriptors; n.descriptors.Limit() < want {
		n.logger.Warn("the limit of open files is below what this node is configured for: connections are refused when few are left; raise it (LimitNOFILE= in systemd, ulimit -n)",
			"limit", n.descriptors.Limit(), "for_connections", n.descriptors.Room(), "nbd_max_connections", c.NBDConnections, "wanted", want)
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
	n.api, err = api.NewServer(api.Config{Cluster: &view{n}, Version: api.BuildVersion(version.Version), TLS: apiTLS,
		Ready: n.answers, ClusterID: n.clusterID, Logger: n.logger, Metrics: n.metrics})
	if err != nil {
		return err
	}
	n.http = newHTTPServer(httpHandler(n.metrics, n.unhealthy, n.unready, n.warnings))
	n.goRun(&n.peersWG, "http", func() error { return ignoreClosed(n.http.Serve(limitHTTP(n.listeners.http))) })
	n.goRun(&n.serveWG, "api", func() error { return n.api.Serve(n.serveCtx, n.listeners.api) })
	return nil
}

// clusterID returns the cluster that this node belongs to, zero until it runs.
func (n *node) clusterID() storage.ClusterID {
	if !n.running.Load() {
		return storage.ClusterID{}
	}
	return n.identity.Cluster
}

// answers returns why the node cannot answer requests at all yet.
func (n *node) answers() error {
	if n.running.Load() {
		return nil
	}
	return storage.E("ask", storage.KindUnavailable, "node "+n.config.Name, errors.New(n.starting()))
}

// starting says what a node that does not run yet is doing.
func (n *node) starting() string {
	if why := n.waits.Load(); why != nil {
		return "it has no cluster yet and waits: " + *why
	}
	return "it is starting or stopping"
}

// self is what the node tells the cluster about itself.
func (n *node) self(store storage.StoreID, capacityBytes int64) catalog.AddNode {
	c, l := &n.config, &n.listeners
	return catalog.AddNode{Name: c.Name, Zone: c.Zone, At: time.Now().UTC(),
		Addrs: catalog.Addrs{Peer: c.advertised(l.peer.Addr()), API: c.advertised(l.api.Addr()),
			NBD: c.advertised(l.nbd.Addr()), HTTP: c.advertised(l.http.Addr())},
		Stores: []catalog.Store{{ID: store, CapacityBytes: capacityBytes}}}
}

func (n *node) openStore(context.Context) error {
	c := &n.config
	store, err := extent.Open(extent.Config{FS: vfs.Default, Dir: n.storeDir(), Cluster: n.identity.Cluster, Store: n.storeID(),
		SegmentBytes: int64(c.SegmentBytes), CapacityBytes: int64(c.CapacityBytes), ReserveBytes: int64(c.ReserveBytes),
		CacheBytes: int64(c.CacheBytes),
		Segment:    segment.Config{FreeSegments: c.FreeSegments, CacheBytes: int64(c.LogCacheBytes)},
		OnCheckpointDue: func(k segment.GroupKey) {
			if n.host != nil {
				n.host.CheckpointDue(k)
			}
		},
		OnFailure: func(err error) {
			n.logger.Error("the disk has failed: its replicas keep silent until the node is started on a good one", "dir", n.storeDir(), "error", err)
		},
		Logger: n.logger, Metrics: n.metrics})
	n.store = store
	return err
}

func (n *node) storeDir() string { return filepath.Join(n.config.DataDir, "store") }

func (n *node) startPeers(context.Context) error {
	if err := n.countStart(); err != nil {
		return err
	}
	tlsConfig, err := n.config.peerTLS()
	if err != nil {
		return err
	}
	n.peers, err = peer.New(peer.Config{Cluster: n.identity.Cluster, Self: n.identity.Node, Listener: n.listeners.peer,
		Resolve: func(id storage.NodeID) (string, bool) {
			if n.control == nil {
				return "", false
			}
			return n.control.Resolve(id)
		},
		TLS: tlsConfig, Speaker: n.speaker(), Logger: n.logger, Metrics: n.metrics})
	if err != nil {
		return err
	}
	n.rafts = replication.NewRouter(n.peers, n.identity.HeartbeatTimeout, n.logger)
	mode := op.ReadLease
	if n.config.ReadMode == "quorum" {
		mode = op.ReadQuorum
	}
	n.host, err = replication.NewHost(replication.Config{Node: n.identity.Node, Stores: []*extent.Store{n.store}, Peers: n.peers,
		Router: n.rafts, HeartbeatTimeout: n.identity.HeartbeatTimeout, ReadMode: mode,
		MaxAppendEntries: n.config.MaxAppendEntries, Logger: n.logger, Metrics: n.metrics})
	return err
}

// startControl opens the catalog and lets the peers in. The order matters: handlers are entered before the peers run,
// and the peers find addresses through the catalog's book.
func (n *node) startControl(context.Context) error {
	self := n.identity.Node
	n.catalogRT = replication.NewTransport(replication.TransportConfig{Group: storage.CatalogGroup, Self: control.ServerID(self),
		Node: self, Peers: n.peers, Router: n.rafts, HeartbeatTimeout: n.identity.HeartbeatTimeout, Logger: n.logger,
		Silent: n.mute.Load, Verify: catalog.VerifyEntry})
	r := route.New(route.Config{Self: self, Host: n.host, Peers: n.peers, Replicas: n.replicasOf,
		HeartbeatTimeout: n.identity.HeartbeatTimeout})
	acts := &actions{self: self, host: n.host, peers: n.peers, router: r, done: func() { n.control.ReportSoon() }}
	acts.register()
	registerUsage(n.peers, n.host)
	var err error
	n.control, err = control.Open(control.Config{Dir: n.catalogDir(), Transport: n.catalogRT, Peers: controlPeers{n.peers},
		Actions: acts, OnFailure: n.catalogFailed, Self: n.self(n.store.ID(), n.store.Space().CapacityBytes), Report: n.report,
		Logger: n.logger, Metrics: n.metrics})
	if err != nil {
		return err
	}
	n.catalogRT.SetInstance(replication.Instance{Term: n.control.Term, Configuration: n.control.Configuration,
		Follows: n.control.Follows, Leads: n.control.Leads, Verify: n.control.VerifyLeader, Damaged: n.control.Halt})
	registerControl(n.peers, n.control)
	n.peers.Handle(peer.MethodNodeInfo, peer.Concurrent, n.servePlaces)
	n.remote = remote.NewService(n.control)
	n.remote.Register(n.peers)
	n.cluster = newCluster(r, n.control, self, n.config.Name, rand.Text())
	n.goRun(&n.peersWG, "peers", func() error { return n.peers.Run(n.peersCtx) })
	if err := n.host.Start(); err != nil {
		return err
	}
	n.goRun(&n.controlWG, "seek", func() error { n.seek(n.controlCtx); return nil })
	n.goRun(&n.controlWG, "control", func() error { return n.control.Run(n.controlCtx) })
	return nil
}

// catalogFailed is told when the catalog's log cannot be written, or holds what cannot be applied: the control loop ends with the error, and the node with
// it. Until then other nodes lead.
func (n *node) catalogFailed(err error) {
	n.mute.Store(true)
	n.logger.Error("this node's copy of the catalog is out of service: the node stops", "dir", n.catalogDir(), "error", err)
}

func (n *node) catalogDir() string { return filepath.Join(n.config.DataDir, "catalog") }

// replicasOf returns the nodes that hold voters of a group.
func (n *node) replicasOf(id storage.GroupID) (nodes []storage.NodeID) {
	n.control.View(func(s *catalog.State) {
		g, _ := s.Group(id)
		for _, r := range g.Replicas {
			if r.Role == catalog.RoleVoter {
				nodes = append(nodes, r.Node)
			}
		}
	})
	return nodes
}

func (n *node) startGateway(context.Context) error {
	var err error
	n.gateway, err = volume.New(volume.Config{Cluster: n.cluster, Logger: n.logger, Metrics: n.metrics})
	if err != nil {
		return err
	}
	tlsConfig, err := n.config.nbdTLS()
	if err != nil {
		return err
	}
	exports := export.New(export.Config{Gateway: n.gateway})
	n.exports.Store(exports)
	n.nbd, err = nbd.NewServer(nbd.Config{Backend: exports, TLS: tlsConfig,
		RequireTLS: n.config.NBDTLSRequire || n.config.NBDClientCA != "", MaxConnections: n.config.NBDConnections, Logger: n.logger, Metrics: n.metrics})
	return err
}

// serve opens the doors to hosts and people.
func (n *node) serve(ctx context.Context) error {
	if n.listeners.pprof != nil {
		profiler := newProfileServer(pprofHandler())
		n.goRun(&n.peersWG, "pprof", func() error { return ignoreClosed(profiler.Serve(limitHTTP(n.listeners.pprof))) })
	}
	n.goRun(&n.serveWG, "nbd", func() error { return n.nbd.Serve(n.serveCtx, n.listeners.nbd) })
	if n.listeners.unix != nil {
		n.goRun(&n.serveWG, "nbd socket", func() error { return n.nbd.Serve(n.serveCtx, n.listeners.unix) })
	}
	n.goRun(&n.serveWG, "attachments", func() error { n.cluster.tidy(n.serveCtx); return nil })
	n.running.Store(true)
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
	if n.host != nil {
		n.host.HandOver(ctx)
	}
	n.cancelControl()
	n.controlWG.Wait()
	if n.control != nil {
		errs = append(errs, n.control.Close())
	}
	if n.catalogRT != nil {
		errs = append(errs, n.catalogRT.Close())
	}
	if n.host != nil {
		errs = append(errs, n.host.Close(ctx))
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

// unhealthy returns what is broken on this node for good.
func (n *node) unhealthy() (ps []problem) {
	if !n.running.Load() {
		return nil
	}
	if err := n.store.Failed(); err != nil {
		ps = append(ps, problem{"store " + n.storeDir(), "the disk has failed: " + err.Error()})
	}
	return ps
}

// warnings returns what is wrong on this node and mended by others: damaged replicas come back as new members.
func (n *node) warnings() (ps []problem) {
	if !n.running.Load() {
		return nil
	}
	for _, s := range n.host.Status() {
		if s.Role == "damaged" {
			ps = append(ps, problem{"group " + s.Group.String(), "this node's replica keeps out until the group has made it anew: " + s.Reason})
		}
	}
	return ps
}

// unready returns what keeps this node from serving now, and what of its own share of the groups is not there yet.
func (n *node) unready() []problem {
	if !n.running.Load() {
		return []problem{{"node", n.starting()}}
	}
	ps := n.unhealthy()
	if !n.serving.Load() {
		ps = append(ps, problem{"node", "it is starting or stopping"})
	}
	if second := n.peers.Second(); second != nil {
		ps = append(ps, problem{"node", second.Error() + "; this process keeps silent: stop one of the two"})
	}
	var v placement.View
	fresh := n.control.View(func(s *catalog.State) { v = placement.NewView(s, nil) })
	switch {
	case fresh.Leader == 0:
		ps = append(ps, problem{"catalog", "nobody leads it: a majority of its nodes must be up"})
	case fresh.Age == control.NeverHeard:
		ps = append(ps, problem{"catalog", "not heard from its leader yet"})
	case len(v.Groups) == 0:
		ps = append(ps, problem{"groups", "none yet"})
	}
	for _, g := range v.Groups {
		if g.State != catalog.GroupReady {
			ps = append(ps, problem{"group " + g.ID.String(), "being made"})
		}
	}
	replicas := n.host.Status()
	ps = append(ps, n.caughtUp.problems(time.Now(), n.identity.Node, v, replicas)...)
	for _, s := range replicas {
		if s.Leader == 0 && len(s.Replicas) > 0 {
			ps = append(ps, problem{"group " + s.Group.String(), "it has no leader"})
		}
	}
	return ps
}
