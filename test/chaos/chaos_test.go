//go:build chaos

package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/workload"
	"github.com/storaged/storaged/nbd/nbdclient"
)

var (
	storagedFlag = flag.String("storaged", "", "the storaged `binary`")
	forFlag      = flag.Duration("for", 30*time.Second, "how long faults strike")
	seedFlag     = flag.Uint64("seed", 0, "of clients and faults; 0 takes a new one")
	clientsFlag  = flag.Int("clients", 8, "concurrent clients")
	keepFlag     = flag.Bool("keep", false, "leave data and logs behind also when all is well")
)

const (
	volumeName  = "chaos"
	volumeBytes = 1 << 30
)

// TestChaos runs clients and faults against three real processes, in network namespaces where they can be had.
func TestChaos(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (again with: make chaos-short CHAOS_ARGS='-seed %d')", seed, seed)
	c, network := startCluster(t)
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	calm := &calm{began: time.Now()}
	w := workload.New(workload.Config{Seed: seed, Clients: *clientsFlag, Gateways: len(c.Nodes()), SizeBytes: volumeBytes, PerSecond: 150,
		WindowEvery: 2 * time.Second, Patience: 20 * time.Second, Slow: calm.waited,
		Dial: func(ctx context.Context, gateway int) (workload.Device, error) {
			return nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: c.Node(gateway).NBD, Export: volumeName + "?access=shared"})
		}})
	work, stopWork := context.WithCancel(t.Context())
	defer stopWork()
	worked := make(chan struct{})
	go func() { defer close(worked); w.Run(work) }()

	faulty, stopFaults := context.WithTimeout(t.Context(), *forFlag)
	defer stopFaults()
	if err := torment(faulty, &processes{cluster: c, network: network, logf: t.Logf}, seed, calm.note, t.Logf); err != nil {
		t.Error(err)
	}
	awaitProgress(t, w)
	t.Logf("longest wait of a request while nothing was broken: %s", calm)
	stopWork()
	<-worked
	if t.Failed() {
		return
	}
	for gateway := range c.Nodes() {
		if err := w.ReadAll(t.Context(), gateway); err != nil {
			t.Error(err)
		}
	}
	total := int64(0)
	for _, n := range w.Answered() {
		total += n
	}
	report, err := w.Check()
	t.Logf("%d requests answered, %d operations on %d cells checked, %d writes with unknown outcome", total, report.Operations,
		report.Cells, report.Unknown)
	if err != nil {
		t.Error(err)
	}
}

// awaitProgress wants every client to be answered again once everything is mended.
func awaitProgress(t *testing.T, w *workload.Workload) {
	t.Helper()
	before := w.Answered()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stuck int
	var since int64
	err := testcluster.Poll(ctx, 50*time.Millisecond, func() bool {
		for c, n := range w.Answered() {
			if since = n - before[c]; since < 20 {
				stuck = c
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Errorf("a minute after everything was mended, client %d was answered %d times only", stuck, since)
	}
}

// startCluster starts three nodes that end with the test. The network is nil where there are no namespaces.
func startCluster(t *testing.T) (*testcluster.Cluster, *testcluster.Network) {
	t.Helper()
	network, err := testcluster.NewNetwork(3)
	switch {
	case errors.Is(err, testcluster.ErrNoNamespaces):
		t.Logf("on loopback, without partitions: %v", err)
	case err != nil:
		t.Fatal(err)
	default:
		t.Cleanup(func() {
			if err := network.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Network: network, Keep: *keepFlag}), network
}

// processes is the target of the faults.
type processes struct {
	cluster *testcluster.Cluster
	network *testcluster.Network // nil: no partitions
	logf    func(string, ...any)
}

func (p *processes) nodes() int            { return len(p.cluster.Nodes()) }
func (p *processes) kill(node int) error   { return p.cluster.Node(node).Kill() }
func (p *processes) pause(node int) error  { return p.cluster.Node(node).Pause() }
func (p *processes) resume(node int) error { return p.cluster.Node(node).Resume() }
func (p *processes) partitions() bool      { return p.network != nil }

func (p *processes) restart(ctx context.Context, node int) error {
	return p.cluster.StartNode(ctx, node)
}

func (p *processes) cut(a, b int) error        { return p.network.Cut(a, b) }
func (p *processes) oneWay(from, to int) error { return p.network.OneWay(from, to) }
func (p *processes) isolate(node int) error    { return p.network.Isolate(node) }
func (p *processes) heal() error               { return p.network.Heal() }

// leader returns the node that leads most groups; the first when nobody can tell.
func (p *processes) leader(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	leads, err := p.cluster.Leaders(ctx)
	if err != nil {
		p.logf("who leads is not known: %v", fmt.Errorf("list groups: %w", err))
	}
	best := 0
	for i, n := range p.cluster.Nodes() {
		if leads[n.Name] > leads[p.cluster.Node(best).Name] {
			best = i
		}
	}
	return best
}
