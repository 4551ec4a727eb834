package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/api/client"
)

// network is a set of servers by address; dialing another address is refused, dialing a silent one hangs.
type network struct {
	mu     sync.Mutex // guards what follows
	nodes  map[string]*bufconn.Listener
	silent map[string]bool
	dialed []string
	conns  []*cuttable
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	l, silent := n.nodes[address], n.silent[address]
	n.dialed = append(n.dialed, address)
	n.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if l == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	c := &cuttable{Conn: conn, closed: make(chan struct{})}
	c.close = sync.OnceFunc(func() { close(c.closed) })
	n.mu.Lock()
	n.conns = append(n.conns, c)
	n.mu.Unlock()
	return c, nil
}

// cut has the network lose everything on the connections that there are, in both directions. New ones are whole.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.cut.Store(true)
	}
}

// cuttable is a connection that can be cut: what is written then is lost, and nothing is read, until it is closed.
type cuttable struct {
	net.Conn
	cut    atomic.Bool
	closed chan struct{}
	close  func()
}

func (c *cuttable) Write(p []byte) (int, error) {
	if c.cut.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *cuttable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.cut.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *cuttable) Close() error {
	c.close()
	return c.Conn.Close()
}

// add serves a cluster at the address until the test ends.
func (n *network) add(t *testing.T, address string, cluster api.Cluster) {
	t.Helper()
	server, err := api.NewServer(api.Config{Cluster: cluster, Version: api.Version{Version: address}})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(64 << 10)
	n.mu.Lock()
	n.nodes[address] = l
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

func newNetwork() *network {
	return &network{nodes: map[string]*bufconn.Listener{}, silent: map[string]bool{}}
}

func (n *network) client(t *testing.T, endpoints ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Endpoints: endpoints, Dial: n.dial, Patience: 5 * time.Second, AttemptTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestConformance(t *testing.T) {
	apitest.Conformance(t, func(t *testing.T) api.Cluster {
		n := newNetwork()
		n.add(t, "a:7000", apitest.New(time.Now))
		return n.client(t, "a")
	})
}

// The next endpoint is asked when one is down or hangs, and the one that answered is asked first afterwards.
func TestNextEndpoint(t *testing.T) {
	n := newNetwork()
	n.silent["b:7000"] = true
	n.add(t, "c:7000", apitest.New(time.Now))
	c := n.client(t, "a", "b", "c")
	for range 3 {
		if v, err := c.Version(context.Background()); err != nil || v.Version != "c:7000" {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if c.Endpoint() != "c:7000" {
		t.Errorf("the endpoint is %s", c.Endpoint())
	}
}

func TestNobodyListens(t *testing.T) {
	c := newNetwork().client(t, "a", "b")
	began := time.Now()
	_, err := c.Nodes(context.Background())
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "a:7000: connection refused; b:7000: connection refused") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the bad news took %v", took)
	}
}

type leaderIs string

func (l leaderIs) Error() string          { return "another node leads" }
func (l leaderIs) LeaderEndpoint() string { return string(l) }

// A node that names the leader is believed, also when the leader is no endpoint that the client was given.
func TestFollowsLeader(t *testing.T) {
	n := newNetwork()
	follower, leader := apitest.New(time.Now), apitest.New(time.Now)
	follower.Fail(func(int) error { return storage.E("create", storage.KindNotLeader, "catalog", leaderIs("leader:7000")) })
	n.add(t, "a:7000", follower)
	n.add(t, "leader:7000", leader)
	c := n.client(t, "a")
	if _, err := c.CreateVolume(context.Background(), api.NewVolume{Name: "web", SizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
	if _, err := leader.Volume(context.Background(), "web"); err != nil {
		t.Errorf("the leader has no volume: %v", err)
	}
}

// An election under way is waited for; a refusal is final and not repeated.
func TestWhatIsRepeated(t *testing.T) {
	n := newNetwork()
	fake := apitest.New(time.Now)
	n.add(t, "a:7000", fake)
	c := n.client(t, "a")
	fake.Fail(func(call int) error {
		if call < 4 {
			return storage.E("create", storage.KindUnavailable, "catalog", errors.New("no leader"))
		}
		return nil
	})
	if _, err := c.CreateVolume(context.Background(), api.NewVolume{Name: "web", SizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range storage.Kinds() {
		if slices.Contains([]storage.Kind{storage.KindNotLeader, storage.KindUnavailable, storage.KindCanceled}, kind) {
			continue
		}
		calls := 0
		fake.Fail(func(call int) error { calls = call; return storage.E("show", kind, "volume web", nil) })
		if _, err := c.Volume(context.Background(), "web"); storage.KindOf(err) != kind || calls != 1 {
			t.Errorf("%v: %v after %d calls", kind, err, calls)
		}
	}
}

// lossy carries deletions and creations out and loses the first answer.
type lossy struct {
	*apitest.Cluster
	mu   sync.Mutex // guards lost
	lost bool
}

func (l *lossy) lose() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return nil
	}
	l.lost = true
	return storage.E("answer", storage.KindUnavailable, "catalog", errors.New("the outcome is not known"))
}

func (l *lossy) CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error) {
	made, err := l.Cluster.CreateVolume(ctx, v)
	return made, errors.Join(err, l.lose())
}

func (l *lossy) DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error {
	return errors.Join(l.Cluster.DeleteVolume(ctx, name, id), l.lose())
}

// An operation whose first answer was lost succeeds, and has happened once.
func TestLostAnswers(t *testing.T) {
	for name, do := range map[string]func(*client.Client) error{
		"create": func(c *client.Client) error {
			_, err := c.CreateVolume(context.Background(), api.NewVolume{Name: "new", SizeBytes: 4096})
			return err
		},
		"delete": func(c *client.Client) error { return c.DeleteVolume(context.Background(), "old", 0) },
	} {
		t.Run(name, func(t *testing.T) {
			n, fake := newNetwork(), apitest.New(time.Now)
			if _, err := fake.CreateVolume(context.Background(), api.NewVolume{Name: "old", SizeBytes: 4096}); err != nil {
				t.Fatal(err)
			}
			n.add(t, "a:7000", &lossy{Cluster: fake})
			if err := do(n.client(t, "a")); err != nil {
				t.Error(err)
			}
		})
	}
	fake, n := apitest.New(time.Now), newNetwork()
	n.add(t, "a:7000", fake)
	if err := n.client(t, "a").DeleteVolume(context.Background(), "never", 0); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("deleting what was never there: %v", err)
	}
}

func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]string{
		"host": "host:7000", "host:1": "host:1", " host ": "host:7000", "10.0.0.1": "10.0.0.1:7000", "::1": "[::1]:7000",
		"[::1]": "[::1]:7000", "[::1]:80": "[::1]:80", "a.b.c:65535": "a.b.c:65535", "fe80::1%eth0": "[fe80::1%eth0]:7000",
	} {
		if got, err := client.ParseEndpoint(text); err != nil || got != want {
			t.Errorf("%q is %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":7000", "host:", "host:0", "host:65536", "host:http", "http://host", "a:b:c", "a b",
		"[::1", "::1]", "[[::1]]", "[10.0.0.1]", "[host]", "[::1]x", "[::1]7000", "0.0.0.0", "ho(st"} {
		if _, err := client.ParseEndpoint(text); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%q: %v, want it refused", text, err)
		}
	}
	if _, err := client.New(client.Config{}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("a client without endpoints: %v", err)
	}
	if _, err := client.New(client.Config{Endpoints: make([]string, client.MaxEndpoints+1)}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("a client with too many endpoints: %v", err)
	}
}

// What ends a connection before the node has said anything is told: here a node that speaks TLS, or wants another certificate.
func TestHungUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1024))
			_ = c.Close()
		}
	}()
	c, err := client.New(client.Config{Endpoints: []string{l.Addr().String()}, Patience: time.Second, AttemptTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Nodes(t.Context())
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "does it speak TLS (--tls") || strings.Contains(err.Error(), "preface") {
		t.Errorf("got %v", err)
	}
}

// A process that is stopped takes connections, its kernel does, and says nothing on them.
func TestConnectedAndSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // its queue takes connections that nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := client.New(client.Config{Endpoints: []string{l.Addr().String()}, Patience: time.Second, AttemptTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Nodes(t.Context())
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "no answer") || strings.Contains(err.Error(), "preface") {
		t.Errorf("got %v", err)
	}
}

// After a cut the kernel may send again what it has lost only when as much time has passed as the cut has lasted. Whoever asks
// meanwhile is answered on another connection. The line is the one in leave that gives the node's place to another.
func TestAfterACut(t *testing.T) {
	n := newNetwork()
	cluster := apitest.New(time.Now)
	endpoints := []string{"a:7000", "b:7000"}
	for _, e := range endpoints {
		n.add(t, e, cluster)
	}
	c := n.client(t, endpoints...)
	if _, err := c.Nodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.cut()
	if _, err := c.Nodes(t.Context()); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}

// A client that was told of other nodes asks them when its first endpoints are gone. When there are too many, it forgets those that
// no answer names any more.
func TestLearn(t *testing.T) {
	n := newNetwork()
	c := n.client(t, "gone:7000")
	for i := range 100 { // nodes that come and go
		c.Learn([]string{fmt.Sprintf("old-%d", i), "no endpoint"})
	}
	n.add(t, "b:7000", apitest.New(time.Now))
	c.Learn([]string{"b", "b:7000", "gone"})
	if _, err := c.Nodes(t.Context()); err != nil {
		t.Error(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.Sort(n.dialed) // some are dialed more than once
	if asked := slices.Compact(n.dialed); len(asked) > 17 {
		t.Errorf("it asks %v", asked)
	}
}

// unfiltered is a node of a version that knows no filter of volumes.
type unfiltered struct{ *apitest.Cluster }

func (u unfiltered) Volumes(ctx context.Context, _ api.VolumeFilter, after string, limit int) ([]api.Volume, error) {
	return u.Cluster.Volumes(ctx, api.VolumeFilter{}, after, limit)
}

// TestFilterOfAnEarlierNode: what a list has that was asked for by labels has the labels, whoever answers.
func TestFilterOfAnEarlierNode(t *testing.T) {
	n := newNetwork()
	n.add(t, "a:1", unfiltered{apitest.New(time.Now)})
	c := n.client(t, "a:1")
	for name, labels := range map[string]map[string]string{"v0": nil, "v1": {"env": "test"}, "v2": nil, "v3": {"env": "test"}, "v4": {"env": "prod"}} {
		if _, err := c.CreateVolume(t.Context(), api.NewVolume{Name: name, SizeBytes: 4096, Labels: labels}); err != nil {
			t.Fatal(err)
		}
	}
	for limit, want := range map[int]int{0: 2, 1: 1, 2: 2} {
		list, err := c.Volumes(t.Context(), api.VolumeFilter{Labels: storage.LabelSelector{"env=test"}}, "", limit)
		if err != nil || len(list) != want || list[0].Name != "v1" {
			t.Errorf("of at most %d: %+v, %v", limit, list, err)
		}
	}
}
