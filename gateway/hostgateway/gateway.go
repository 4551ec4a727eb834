package hostgateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/gateway/remote"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/tlsfiles"
	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/nbd/attach"
	"github.com/storaged/storaged/replication/peer"
)

// Gateway holds the devices of a host. It is made by newGateway and ends with close. It implements host.Gateway.
type Gateway struct {
	config  Config
	env     environment
	state   *state
	hostID  string
	host    string // its name, for people
	machine storage.Machine
	api     *client.Client
	keeper  *attach.KeeperProcess
	drivers map[host.Via]attach.Driver

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// resuming ends before ctx: nothing is made again while the gateway stops.
	resuming context.Context
	unresume context.CancelFunc
	resumed  sync.WaitGroup

	mu       sync.Mutex
	cluster  *connection              // nil: the cluster was not reached yet; guarded by mu
	holdings map[string]*holding      // by volume; guarded by mu
	turns    map[string]chan struct{} // a volume's operations come one after another; guarded by mu
	closing  bool
	down     bool          // the host goes down
	reached  chan struct{} // closed when cluster is set
}

var _ host.Gateway = (*Gateway)(nil)

// connection is the way to a cluster.
type connection struct {
	id     storage.ClusterID
	peers  *peer.Transport
	remote *remote.Cluster
	volume *volume.Gateway
}

func newGateway(ctx context.Context, c Config, env environment) (g *Gateway, err error) {
	st, err := openState(ctx, c.StateDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = st.close()
		}
	}()
	id, err := st.hostID(c.HostID)
	if err != nil {
		return nil, err
	}
	machine, err := st.machine()
	if err != nil {
		return nil, err
	}
	name, _ := os.Hostname() // for people only
	apiTLS, err := c.API.Config()
	if err != nil {
		return nil, err
	}
	meant, _ := storage.ParseClusterID(c.Cluster) // checked by Validate; zero if it is not set
	apiClient, err := client.New(client.Config{Endpoints: c.endpoints(), Cluster: meant, TLS: apiTLS})
	if err != nil {
		return nil, err
	}
	keeper := attach.NewKeeperProcess(st.dir+"/keeper.sock", env.helper)
	if c.KeeperOnHost {
		keeper.OnHost()
	}
	drivers, err := newDrivers(c, env, st, keeper)
	if err != nil {
		return nil, err
	}
	g = &Gateway{config: c, env: env, state: st, hostID: id, host: name, machine: machine, api: apiClient, keeper: keeper, drivers: drivers,
		holdings: map[string]*holding{}, turns: map[string]chan struct{}{}, reached: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.resuming, g.unresume = context.WithCancel(g.ctx)
	return g, nil
}

// newDrivers returns the drivers that this host has, which may be none.
func newDrivers(c Config, env environment, st *state, keeper attach.Keeper) (map[host.Via]attach.Driver, error) {
	ac := attach.Config{Dir: st.mountDir(), Helper: env.helper, Keeper: keeper, ResendAfter: c.NBDResend, DeadTimeout: c.NBDDead, BufferBytes: int64(c.Buffers),
		Logger: env.logger}
	fuse, err := attach.NewFUSE(ac)
	if err != nil {
		return nil, err
	}
	kernel, err := attach.NewNBD(ac)
	if err != nil {
		return nil, err
	}
	return map[host.Via]attach.Driver{host.ViaNBD: kernel, host.ViaFUSE: fuse}, nil
}

// start resumes what is written down, in the background.
func (g *Gateway) start() error {
	records, err := g.state.records()
	if err != nil {
		return err
	}
	for _, r := range records {
		h := &holding{gateway: g, record: r, state: host.StateConnecting, reason: "the gateway has started and finds its devices again"}
		g.holdings[r.Volume] = h
	}
	g.resumed.Go(func() {
		if g.connect() != nil {
			return // closed
		}
		var wg sync.WaitGroup
		for _, r := range records {
			wg.Go(func() { g.resume(r.Volume) })
		}
		wg.Wait()
	})
	return nil
}

// connect finds the cluster, as often as it takes.
func (g *Gateway) connect() error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := g.connectOnce()
		if err == nil {
			return nil
		}
		g.env.logger.Warn("the cluster is not reached", "endpoints", g.config.Endpoints, "error", err)
		if err := clock.Sleep(g.resuming, pause); err != nil {
			return err
		}
	}
}

func (g *Gateway) connectOnce() error {
	known, err := g.findCluster()
	if err != nil {
		return err
	}
	id, err := storage.ParseClusterID(known.Cluster)
	if err != nil {
		return storage.E("read", storage.KindCorrupt, "cluster.json", err)
	}
	if err := g.api.Pin(id); err != nil {
		return err
	}
	nodes := g.newNodes(known)
	book := remote.NewBook(known.Nodes, nodes.set)
	tlsConfig, err := tlsfiles.Peer(g.config.PeerCert, g.config.PeerKey, g.config.PeerCA)
	if err != nil {
		return err
	}
	c := &connection{id: id}
	c.peers, err = peer.New(peer.Config{Cluster: id, Client: true, Resolve: book.Resolve, TLS: tlsConfig, MaxInFlightBytes: 32 << 20,
		Logger: g.env.logger, Metrics: g.env.metrics})
	if err != nil {
		return err
	}
	c.remote = remote.NewCluster(remote.Config{Peers: c.peers, API: g.api, Book: book, Host: g.hostID, Instance: rand.Text(),
		Machine: g.machine, Name: g.host[:min(len(g.host), 64)],
		Logger: g.env.logger})
	latencyOf, err := volume.ParsePatterns(g.config.VolumeLatency)
	if err != nil {
		return errors.Join(err, c.peers.Close())
	}
	c.volume, err = volume.New(volume.Config{Cluster: c.remote, LatencyOf: latencyOf, Logger: g.env.logger, Metrics: g.env.metrics})
	if err != nil {
		return errors.Join(err, c.peers.Close())
	}
	g.wg.Go(func() { c.remote.Run(g.ctx) })
	g.wg.Go(func() { nodes.run(g.ctx) })
	g.mu.Lock()
	g.cluster = c
	close(g.reached)
	g.mu.Unlock()
	g.env.logger.Info("serving", "host", g.hostID, "cluster", id, "nodes", book.String())
	return nil
}

// findCluster returns the cluster as the API tells it, or as it was written down. A host does not change its cluster while
// it has devices of one. While it has none, what was written down is not gone by: another cluster may have been installed in the place
// of that one, and nobody waits for a device.
func (g *Gateway) findCluster() (clusterFile, error) {
	known, ok, err := g.state.readCluster()
	if err != nil {
		return known, err
	}
	g.mu.Lock()
	inUse := len(g.holdings) > 0
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(g.resuming, 10*time.Second)
	defer cancel()
	if ok && inUse { // no other cluster is asked for anything
		if id, err := storage.ParseClusterID(known.Cluster); err == nil {
			if err := g.api.Pin(id); err != nil {
				return known, err
			}
		}
	}
	status, err := g.api.Status(ctx)
	if err == nil {
		var nodes []api.Node
		if nodes, err = g.api.Nodes(ctx); err == nil {
			found := clusterFile{Cluster: status.ClusterID.String(), Nodes: remote.AddressesOf(nodes), APIs: apisOf(nodes)}
			if ok && found.Cluster != known.Cluster {
				g.env.logger.Warn("this host had attachments of another cluster before, and has none now", "cluster", found.Cluster,
					"before", known.Cluster)
			}
			return found, g.state.writeCluster(found)
		}
	}
	switch {
	case errors.Is(err, storage.ErrConflict) && inUse:
		return known, storage.E("connect to", storage.KindConflict, "cluster "+known.Cluster, fmt.Errorf(
			"this host has devices of it; give endpoints of that one, or detach them: %w", err))
	case errors.Is(err, storage.ErrConflict):
		return known, err
	case ok && inUse && len(known.Nodes) > 0:
		return known, nil
	}
	return known, err
}

// connected returns the way to the cluster, when there is one.
func (g *Gateway) connected(ctx context.Context) (*connection, error) {
	select {
	case <-g.reached:
	case <-ctx.Done():
		return nil, storage.E("reach", storage.KindUnavailable, "cluster", fmt.Errorf("no node answers at %s", g.config.Endpoints))
	case <-g.ctx.Done():
		return nil, errClosed
	}
	return g.way(), nil
}

// way returns the way to the cluster; nil while there is none.
func (g *Gateway) way() *connection {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cluster
}

var errClosed = storage.E("attach", storage.KindUnavailable, "", errors.New("the gateway stops"))

// close stops serving and leaves every device to the next gateway.
func (g *Gateway) close(ctx context.Context) error {
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.unresume()
	g.resumed.Wait()
	var wg sync.WaitGroup
	for _, h := range g.all() {
		wg.Go(func() { h.stop(ctx) })
	}
	wg.Wait()
	c := g.way()
	if c != nil {
		if err := c.volume.Close(ctx); err != nil {
			g.env.logger.Info("sessions are left for the next gateway to close", "error", err)
		}
	}
	g.cancel()
	g.wg.Wait()
	var err error
	if c != nil {
		err = c.peers.Close()
	}
	return errors.Join(err, g.keeper.Close(), g.api.Close(), g.state.close())
}

// turn waits until nothing else is done to a volume; done ends the turn.
func (g *Gateway) turn(ctx context.Context, volume string) (done func(), err error) {
	g.mu.Lock()
	t := g.turns[volume]
	if t == nil {
		t = make(chan struct{}, 1)
		g.turns[volume] = t
	}
	g.mu.Unlock()
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, storage.E("wait for", storage.KindUnavailable, "volume "+volume, errors.New("another operation on it is under way; try again"))
	}
}

func (g *Gateway) holding(volume string) *holding {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.holdings[volume]
}

// driver returns the driver to use, and what it is called.
func (g *Gateway) driver(via host.Via) (attach.Driver, host.Via, error) {
	tried := []host.Via{via}
	if via == host.ViaAuto {
		tried = viasInOrder
	}
	var problems []string
	for _, v := range tried {
		d := g.drivers[v]
		if d == nil {
			problems = append(problems, string(v)+": not in this version")
			continue
		}
		err := d.Available()
		if err == nil {
			return d, v, nil
		}
		problems = append(problems, err.Error())
	}
	return nil, via, storage.E("attach", storage.KindUnsupported, "", errors.New(strings.Join(problems, "; ")))
}

// viasInOrder are the ways to make devices, the preferred one first.
var viasInOrder = []host.Via{host.ViaNBD, host.ViaFUSE}

// Attachments implements host.Gateway.
func (g *Gateway) Attachments(context.Context) ([]host.Attachment, error) {
	list := []host.Attachment{}
	for _, h := range g.all() {
		list = append(list, h.verified())
	}
	slices.SortFunc(list, func(a, b host.Attachment) int { return strings.Compare(a.Volume, b.Volume) })
	return list, nil
}

// Info implements host.Gateway.
func (g *Gateway) Info(context.Context) (host.Info, error) {
	i := host.Info{HostID: g.hostID, Zone: g.config.Zone, Version: version.Version, Endpoints: g.config.endpoints()}
	for _, v := range viasInOrder {
		if d := g.drivers[v]; d != nil && d.Available() == nil {
			i.Vias = append(i.Vias, v)
		}
	}
	if c := g.way(); c != nil {
		i.Cluster = c.id
	}
	return i, nil
}

// boot returns the id of the host's present boot, as far as the gateway knows it.
func (g *Gateway) boot() string {
	_, now, _ := strings.Cut(string(g.machine), ".")
	return now
}

// logOf returns the logger of a volume's events.
func (g *Gateway) logOf(volume string) *slog.Logger { return g.env.logger.With("volume", volume) }
