//go:build chaos

package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/workload"
	"github.com/storaged/storaged/nbd/nbdclient"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

var careFlag = flag.Int("care", 2, "how often each of the faults of TestCare strikes")

// TestCare takes nodes out of a cluster of five under clients, whose histories are checked: a node is drained, is lost for good, or gets an empty disk.
// While its replicas are made anew, another node is killed and started again. It reports how long each took until the cluster was whole.
func TestCare(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 5, Keep: *keepFlag, Args: []string{"--repair-after", "15s"}})
	if err := c.CreateVolume(t.Context(), volumeName, volumeBytes); err != nil {
		t.Fatal(err)
	}
	w := workload.New(workload.Config{Seed: seed, Clients: *clientsFlag, Gateways: len(c.Nodes()), SizeBytes: volumeBytes, PerSecond: 150,
		WindowEvery: 2 * time.Second, Patience: 20 * time.Second,
		Dial: func(ctx context.Context, gateway int) (workload.Device, error) {
			return nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: c.Node(gateway).NBD, Export: volumeName + "?access=shared"})
		}})
	work, stopWork := context.WithCancel(t.Context())
	defer stopWork()
	worked := make(chan struct{})
	go func() { defer close(worked); w.Run(work) }()

	care := &carer{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 0xca4e))}
	faults := []struct {
		name   string
		strike func(victim, other int)
	}{{"drained, and given back", care.drain}, {"lost for good, and back after all", care.lose}, {"an empty disk", care.swap}}
	took := map[string][]time.Duration{}
	for range *careFlag {
		for _, f := range faults {
			victim := care.rng.IntN(len(c.Nodes()))
			other := (victim + 1 + care.rng.IntN(len(c.Nodes())-1)) % len(c.Nodes())
			began := time.Now()
			f.strike(victim, other)
			care.whole()
			took[f.name] = append(took[f.name], time.Since(began))
			t.Logf("%s: %s; %s was killed meanwhile: whole after %v", c.Node(victim).Name, f.name, c.Node(other).Name, time.Since(began).Round(time.Millisecond))
		}
	}
	awaitProgress(t, w)
	stopWork()
	<-worked
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
	for _, f := range faults {
		t.Logf("%s, %d times: whole after %s", f.name, len(took[f.name]), spread(took[f.name]))
	}
	t.Logf("%d requests answered, %d operations on %d cells checked, %d writes with unknown outcome", total, report.Operations, report.Cells, report.Unknown)
	if err != nil {
		t.Error(err)
	}
}

// carer does to nodes what their owners do.
type carer struct {
	t   *testing.T
	c   *testcluster.Cluster
	rng *rand.Rand
}

// patience is how long a step of a carer may take.
const patience = 3 * time.Minute

func (c *carer) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *carer) until(what string, is func(context.Context) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if testcluster.Poll(ctx, 200*time.Millisecond, func() bool { return is(ctx) }) != nil {
		c.t.Fatalf("after %v still not: %s", patience, what)
	}
}

// says returns whether status gives a reason about a node with these words.
func (c *carer) says(ctx context.Context, node int, words string) bool {
	s, err := c.c.Status(ctx)
	return err == nil && slices.ContainsFunc(append(s.GetReasons(), s.GetWarnings()...), func(r *storagev1.Reason) bool {
		return strings.Contains(r.GetSubject(), c.c.Node(node).Name) && strings.Contains(r.GetText(), words)
	})
}

// nodes returns the service Nodes of one that is not the victim.
func (c *carer) nodes(victim int) storagev1.NodesClient {
	c.t.Helper()
	conn, err := c.c.Conn(c.c.Node((victim + 1) % len(c.c.Nodes())))
	c.must(err)
	return storagev1.NewNodesClient(conn)
}

func (c *carer) id(victim int) uint32 {
	c.t.Helper()
	var id uint32
	c.until("the node is known", func(ctx context.Context) bool {
		n, err := c.nodes(victim).Get(ctx, &storagev1.GetNodeRequest{Node: c.c.Node(victim).Name})
		id = n.GetNode().GetId()
		return err == nil
	})
	return id
}

// blip kills a node and starts it again.
func (c *carer) blip(node int) {
	c.t.Helper()
	pause(c.t.Context(), between(c.rng, 200*time.Millisecond, 3*time.Second))
	c.must(c.c.Node(node).Kill())
	pause(c.t.Context(), between(c.rng, 200*time.Millisecond, 2*time.Second))
	c.must(c.c.StartNode(c.t.Context(), node))
}

func (c *carer) drain(victim, other int) {
	want := func(intent storagev1.NodeIntent) {
		id := c.id(victim)
		var last error
		c.until(fmt.Sprintf("the node takes intent %v", intent), func(ctx context.Context) bool {
			_, last = c.nodes(victim).SetIntent(ctx, &storagev1.SetNodeIntentRequest{Id: id, Intent: intent})
			return last == nil
		})
	}
	want(storagev1.NodeIntent_NODE_INTENT_DRAIN)
	c.blip(other)
	c.until("the node has drained", func(ctx context.Context) bool { return c.says(ctx, victim, "it has drained") })
	want(storagev1.NodeIntent_NODE_INTENT_SERVE)
}

func (c *carer) lose(victim, other int) {
	c.must(c.c.Node(victim).Kill())
	const over = "it holds no replica that the cluster counts on any more"
	c.until("it is about to be replaced", func(ctx context.Context) bool {
		return c.says(ctx, victim, "its replicas are made anew") || c.says(ctx, victim, over) // it held nothing yet
	})
	c.blip(other)
	c.until("the lost node is replaced", func(ctx context.Context) bool { return c.says(ctx, victim, over) })
	c.must(c.c.StartNode(c.t.Context(), victim))
}

func (c *carer) swap(victim, other int) {
	id := c.id(victim)
	c.must(c.c.Node(victim).Kill())
	c.must(os.RemoveAll(c.c.Node(victim).DataDir))
	var last error
	c.until("the node is removed", func(ctx context.Context) bool { // which it can be once it is down
		_, last = c.nodes(victim).Remove(ctx, &storagev1.RemoveNodeRequest{Id: id})
		return last == nil
	})
	c.blip(other)
	c.must(c.c.StartNodeBy(c.t.Context(), victim, c.c.Node(victim).CommandLine(c.c.Node(other).Peer)))
}

// whole waits until all nodes are up, and every group has all its copies.
func (c *carer) whole() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	c.must(c.c.WaitFull(ctx))
}
