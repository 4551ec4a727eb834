// Package testcluster runs a cluster of real storaged processes on this machine, for the end-to-end and chaos
// tests, the bench and the demo: it starts them on free loopback addresses or in network namespaces, waits until
// they are ready, kills, pauses and stops them, keeps their logs and reads what they use from /proc.
//
// It knows storaged by its command line only. It starts nothing that Stop does not end, unless Config.Detach says
// so. A Cluster and its nodes may be used concurrently.
package testcluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// Config says what to run. The zero value of a field is its default.
type Config struct {
	// Command starts storaged, without arguments: {"/path/to/storaged"}. Default: storaged from PATH.
	Command []string
	// Args are appended to the arguments of every node's `serve`.
	Args []string
	// NodeArgs are appended after Args to those of node i, from 0. Default: nothing.
	NodeArgs func(i int) []string
	// Dir keeps a data directory and a log per node. It must exist. Required.
	Dir string
	// Nodes is how many nodes New prepares. Default 3.
	Nodes int
	// Host is the address of node i, from 0. Default: 127.0.0.1 for every node.
	Host func(i int) string
	// Prefix is put before node i's command: {"ip", "netns", "exec", "st1"}. Default: nothing.
	Prefix func(i int) []string
	// Ports of a node, the same on every node; used with Host when every node has an address of its own.
	// Default: free ports.
	Ports *Ports
	// TLS is how the nodes' API is spoken to, when Args say that it is TLS.
	TLS *tls.Config
	// Detach lets the nodes outlive this process.
	Detach bool
	// ReadyTimeout bounds how long Start waits for one node. Default 30 s.
	ReadyTimeout time.Duration
}

// Ports are the listening ports of one node.
type Ports struct{ Peer, API, NBD, HTTP int }

// Cluster is a set of nodes. Methods of it start and stop all of them; see Node for one.
type Cluster struct {
	cfg   Config
	nodes []*Node

	mu    sync.Mutex // guards conns
	conns map[*Node]*grpc.ClientConn
}

// New prepares a cluster and picks its addresses. It starts nothing.
func New(cfg Config) (*Cluster, error) {
	cfg.Nodes, cfg.ReadyTimeout = cmp.Or(cfg.Nodes, 3), cmp.Or(cfg.ReadyTimeout, 30*time.Second)
	if len(cfg.Command) == 0 {
		cfg.Command = []string{"storaged"}
	}
	if cfg.Host == nil {
		cfg.Host = func(int) string { return "127.0.0.1" }
	}
	if st, err := os.Stat(cfg.Dir); err != nil {
		return nil, fmt.Errorf("testcluster: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("testcluster: %s is not a directory", cfg.Dir)
	}
	c := &Cluster{cfg: cfg, conns: map[*Node]*grpc.ClientConn{}}
	taken := map[int]bool{} // two nodes of this cluster are never given the same port
	for i := range cfg.Nodes {
		n, err := newNode(cfg, i, taken)
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, n)
	}
	return c, nil
}

// Start starts every node, the first alone and the others joining it, and returns when all are ready.
func (c *Cluster) Start(ctx context.Context) error {
	for i := range c.nodes {
		if err := c.StartNode(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// StartNode starts node i and returns when it is ready. On its first start, node 0 makes the cluster and the others join it.
func (c *Cluster) StartNode(ctx context.Context, i int) error {
	return c.StartNodeBy(ctx, i, c.firstLine(i))
}

// firstLine is the command line of StartNode.
func (c *Cluster) firstLine(i int) []string {
	n := c.nodes[i]
	line := n.CommandLine("")
	switch {
	case n.joined():
	case i == 0:
		line = append(line, "--bootstrap")
	default:
		line = n.CommandLine(c.nodes[0].Peer)
	}
	return line
}

// LaunchNode starts node i as StartNode does and returns at once: what it lacks may keep it from ever being ready.
func (c *Cluster) LaunchNode(i int) error { return c.nodes[i].start(c.firstLine(i)) }

// StartNodeBy starts node i by a command line, of which most comes from CommandLine, and returns when it is ready.
func (c *Cluster) StartNodeBy(ctx context.Context, i int, line []string) error {
	if err := c.nodes[i].start(line); err != nil {
		return err
	}
	return c.nodes[i].WaitReady(ctx)
}

// Nodes returns all nodes, running or not, in order.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns node i, from 0.
func (c *Cluster) Node(i int) *Node { return c.nodes[i] }

// Stop ends every node by SIGTERM, all at once, and those that are still there when ctx is done by SIGKILL. It
// returns the first node's error. A paused node is resumed first.
func (c *Cluster) Stop(ctx context.Context) error {
	stopped := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { stopped[i] = n.Stop(ctx) })
	}
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	err := errors.Join(stopped...)
	for n, conn := range c.conns {
		err = errors.Join(err, conn.Close())
		delete(c.conns, n)
	}
	return err
}

// Usage sums what the running nodes have used since each was started.
func (c *Cluster) Usage() (sum Usage, err error) {
	for _, n := range c.nodes {
		if pid := n.PID(); pid != 0 {
			u, err := ReadUsage(pid)
			if err != nil {
				return sum, err
			}
			sum = sum.Add(u)
		}
	}
	return sum, nil
}

// Conn returns a connection to the API of a node, made at the first call and closed by Stop.
func (c *Cluster) Conn(n *Node) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[n]; conn != nil {
		return conn, nil
	}
	creds := insecure.NewCredentials()
	if c.cfg.TLS != nil {
		creds = credentials.NewTLS(c.cfg.TLS)
	}
	conn, err := grpc.NewClient("passthrough:///"+n.API, grpc.WithTransportCredentials(creds))
	if err == nil {
		c.conns[n] = conn
	}
	return conn, err
}

// Status asks the running nodes in turn how the cluster is, and returns the first answer.
func (c *Cluster) Status(ctx context.Context) (*storagev1.ClusterStatus, error) {
	return ask(ctx, c, func(ctx context.Context, conn *grpc.ClientConn) (*storagev1.ClusterStatus, error) {
		r, err := storagev1.NewClusterClient(conn).Status(ctx, &storagev1.GetStatusRequest{})
		return r.GetStatus(), err
	})
}

// Groups asks the running nodes in turn for the groups, and returns the first answer.
func (c *Cluster) Groups(ctx context.Context) ([]*storagev1.Group, error) {
	return ask(ctx, c, func(ctx context.Context, conn *grpc.ClientConn) ([]*storagev1.Group, error) {
		r, err := storagev1.NewGroupsClient(conn).List(ctx, &storagev1.ListGroupsRequest{})
		return r.GetGroups(), err
	})
}

// CreateVolume creates a volume through the first running node that answers. However small, it is striped over the largest
// power of two of the groups that are led, so that every node's death concerns it.
func (c *Cluster) CreateVolume(ctx context.Context, name string, sizeBytes int64) error {
	groups, err := c.Groups(ctx)
	if err != nil {
		return err
	}
	led := 0
	for _, g := range groups {
		if g.GetLeader() != 0 {
			led++
		}
	}
	if led == 0 {
		return fmt.Errorf("testcluster: none of the %d groups is led", len(groups))
	}
	return c.CreateVolumeOver(ctx, name, sizeBytes, 1<<(bits.Len(uint(led))-1))
}

// CreateVolumeOver is like CreateVolume; the volume is striped over so many groups, and 0 leaves that to the cluster.
func (c *Cluster) CreateVolumeOver(ctx context.Context, name string, sizeBytes int64, groups int) error {
	req := &storagev1.CreateVolumeRequest{Name: name, SizeBytes: sizeBytes, GroupCount: uint32(groups),
		Overcommit: true, // how much room this machine has is no matter of these tests
		RequestId:  fmt.Sprintf("testcluster-%s-%d", name, time.Now().UnixNano())}
	_, err := ask(ctx, c, func(ctx context.Context, conn *grpc.ClientConn) (*storagev1.Volume, error) {
		r, err := storagev1.NewVolumesClient(conn).Create(ctx, req)
		return r.GetVolume(), err
	})
	return err
}

// ask tries the running nodes in turn, a few seconds each.
func ask[T any](ctx context.Context, c *Cluster, f func(context.Context, *grpc.ClientConn) (T, error)) (answer T, err error) {
	err = errors.New("testcluster: no node runs")
	for _, n := range c.nodes {
		if n.PID() == 0 || n.Paused() {
			continue
		}
		conn, connErr := c.Conn(n)
		if connErr != nil {
			err = connErr
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		answer, err = f(attempt, conn)
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return answer, err
}

// WaitFull returns when all nodes are up and every group has a leader and all the replicas that these nodes can hold:
// one per node up to the wanted number, voting and up.
func (c *Cluster) WaitFull(ctx context.Context) error {
	var last string
	err := Poll(ctx, 100*time.Millisecond, func() bool {
		s, err := c.Status(ctx)
		if err != nil {
			last = err.Error()
			return false
		}
		groups, err := c.Groups(ctx)
		if err != nil {
			last = err.Error()
			return false
		}
		want := min(int(s.ReplicasWanted), len(c.nodes))
		full := 0
		for _, g := range groups {
			if g.LeaderName != "" && votersUp(g) >= want {
				full++
			}
		}
		last = fmt.Sprintf("%d of %d nodes up, %d of %d groups with a leader and %d replicas",
			s.NodesUp, len(c.nodes), full, len(groups), want)
		return int(s.NodesUp) >= len(c.nodes) && full > 0 && full == len(groups)
	})
	if err != nil {
		return fmt.Errorf("testcluster: groups are not full: %s: %w", last, err)
	}
	return nil
}

// WaitHealthy returns when the cluster says that nothing is the matter with it: nodes that were away have caught up, too.
func (c *Cluster) WaitHealthy(ctx context.Context) error {
	var last []string
	err := Poll(ctx, 100*time.Millisecond, func() bool {
		s, err := c.Status(ctx)
		if err != nil {
			last = append(last[:0], err.Error())
			return false
		}
		last = last[:0]
		for _, r := range s.Reasons {
			last = append(last, r.Subject+": "+r.Text)
		}
		return s.Health == storagev1.Health_HEALTH_OK
	})
	if err != nil {
		return fmt.Errorf("testcluster: the cluster does not become well: %s: %w", strings.Join(last, "; "), err)
	}
	return nil
}

func votersUp(g *storagev1.Group) (n int) {
	for _, r := range g.Replicas {
		if r.Role == storagev1.ReplicaRole_REPLICA_ROLE_VOTER && r.Online {
			n++
		}
	}
	return n
}

// Leaders returns how many groups each node leads, by node name.
func (c *Cluster) Leaders(ctx context.Context) (map[string]int, error) {
	return c.leaders(ctx, func(uint32) bool { return true })
}

// leaders is Leaders for the groups of which counts says so.
func (c *Cluster) leaders(ctx context.Context, counts func(id uint32) bool) (map[string]int, error) {
	groups, err := c.Groups(ctx)
	if err != nil {
		return nil, err
	}
	leads := map[string]int{}
	for _, g := range groups {
		if g.LeaderName != "" && counts(g.Id) {
			leads[g.LeaderName]++
		}
	}
	return leads, nil
}

// LeadersOf returns how many of the volume's groups each node leads, by name.
func (c *Cluster) LeadersOf(ctx context.Context, volume string) (map[string]int, error) {
	v, err := ask(ctx, c, func(ctx context.Context, conn *grpc.ClientConn) (*storagev1.Volume, error) {
		r, err := storagev1.NewVolumesClient(conn).Get(ctx, &storagev1.GetVolumeRequest{Name: volume})
		return r.GetVolume(), err
	})
	if err != nil {
		return nil, err
	}
	return c.leaders(ctx, func(id uint32) bool { return slices.Contains(v.GetGroups(), id) })
}

// TempDir makes a directory for a cluster below base (the system's temporary directory when empty).
func TempDir(base string) (string, error) {
	dir, err := os.MkdirTemp(base, "storaged-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// Poll calls done every interval until it returns true, or ctx is done.
func Poll(ctx context.Context, interval time.Duration, done func() bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
