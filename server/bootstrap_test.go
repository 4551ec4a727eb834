package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
)

// newcomerConfig is the configuration of a node on free ports, whose peer address is addr.
func newcomerConfig(t *testing.T, dir, name, addr string, edits ...func(*Config)) Config {
	t.Helper()
	const any = "127.0.0.1:0"
	c := Config{DataDir: dir, Name: name, ListenPeer: addr, ListenAPI: any, ListenNBD: any, ListenHTTP: any,
		SegmentBytes: 4 << 20, FreeSegments: 2, CacheBytes: 4 << 20, LogCacheBytes: 4 << 20, Replicas: 3, Groups: 1,
		HeartbeatTimeout: time.Second, ReadMode: "lease", MaxAppendEntries: 64, NBDConnections: 16,
		LogLevel: "error", LogFormat: "text", ShutdownTimeout: 10 * time.Second}
	for _, edit := range edits {
		edit(&c)
	}
	if err := errors.Join(c.Validate(), c.setDefaults()); err != nil {
		t.Fatal(err)
	}
	return c
}

// booting is a node that starts on a goroutine of its own.
type booting struct {
	*node
	ended chan error // capacity 1: what start returned
	end   context.CancelFunc
}

func boot(t *testing.T, c Config) *booting {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	b := &booting{node: newNode(c, slog.New(slog.DiscardHandler)), ended: make(chan error, 1), end: cancel}
	go func() { b.ended <- b.start(ctx) }()
	t.Cleanup(func() { b.halt(t) })
	return b
}

// halt stops the node, once.
func (b *booting) halt(t *testing.T) {
	t.Helper()
	if b.end == nil {
		return
	}
	b.end()
	b.end = nil
	if err := <-b.ended; err != nil && !errors.Is(err, storage.ErrCanceled) {
		t.Error(err)
	}
	if err := b.stop(); err != nil {
		t.Error(err)
	}
}

// until waits for a condition, three minutes at most: the machine may be busy.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(3 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal("timed out: " + what)
		}
	}
}

// given are the addresses that freePeers has returned, to whatever test: none is returned twice.
var given sync.Map

// freePeers returns addresses that were free a moment ago. They are of a loopback address that only this process uses, so that
// neither outgoing connections nor the same tests of another process take them meanwhile.
func freePeers(t *testing.T, count int) (addrs []string) {
	t.Helper()
	pid := os.Getpid()
	host := fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
	for len(addrs) < count {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // after the others were found
		if _, again := given.LoadOrStore(l.Addr().String(), true); !again {
			addrs = append(addrs, l.Addr().String())
		}
	}
	return addrs
}

// TestBootstrapTogether: nodes that are all started with the same --bootstrap --join make one cluster, once all of them are there.
// A node that has lost its disk makes no second one, whoever of the others is up.
func TestBootstrapTogether(t *testing.T) {
	t.Parallel()
	addrs := freePeers(t, 3)
	list := strings.Join(addrs, ",")
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	start := func(i int) *booting {
		return boot(t, newcomerConfig(t, dirs[i], string(rune('a'+i)), addrs[i], func(c *Config) { c.Bootstrap, c.Join = true, list }))
	}
	waits := func(b *booting, for_ string) {
		t.Helper()
		until(t, b.config.Name+" waits for "+for_, func() bool {
			ps := b.view.Unready()
			return len(ps) == 1 && strings.Contains(ps[0].Text, "it has no cluster yet") && strings.Contains(ps[0].Text, for_)
		})
	}
	a, b := start(0), start(1)
	waits(a, addrs[2])
	waits(b, addrs[2])
	cl, err := client.New(client.Config{Endpoints: []string{a.listeners.api.Addr().String()}, Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	until(t, "a waiting node's API says what it waits for", func() bool {
		_, err := cl.Status(t.Context()) // without an answer in time on a busy machine
		return errors.Is(err, storage.ErrUnavailable) && strings.Contains(err.Error(), addrs[2])
	})
	nodes := []*booting{a, b, start(2)}
	for _, n := range nodes {
		until(t, "node "+n.config.Name+" runs", n.view.Running)
		if n.identity.Cluster != a.identity.Cluster {
			t.Errorf("node %s belongs to cluster %v, node a to %v", n.config.Name, n.identity.Cluster, a.identity.Cluster)
		}
	}
	cluster := a.identity.Cluster
	if a.identity.Node != 1 {
		t.Errorf("the first of the list is node %v", a.identity.Node)
	}
	until(t, "all three vote", func() bool { return a.control.Voters() == 3 && b.control.Voters() == 3 })
	until(t, "the third knows it", func() bool { return nodes[2].control.Voters() == 3 })
	until(t, "each has all copies", func() bool {
		return !slices.ContainsFunc(nodes, func(n *booting) bool { return len(n.view.Unready()) > 0 })
	})
	for _, n := range nodes {
		n.halt(t)
	}

	if err := os.RemoveAll(dirs[0]); err != nil {
		t.Fatal(err)
	}
	a = start(0)
	waits(a, addrs[1])
	b = start(1) // it needs the third to lead, and says so at once that it is of a cluster
	until(t, "the second node runs", b.view.Running)
	until(t, "the first asks the second", func() bool {
		return strings.Contains(a.view.Unready()[0].Text, "asks "+addrs[1]+" to be taken in")
	})
	c := start(2)
	until(t, "the third node runs", c.view.Running)
	// Its name is still the lost node's. It does not give up: it is started so for ever, and a person removes the lost one.
	waits(a, "storagectl node remove a")
	if a.view.Running() || b.identity.Cluster != cluster {
		t.Errorf("the lost node became %v", a.identity)
	}
	operator, err := client.New(client.Config{Endpoints: []string{b.listeners.api.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close()
	until(t, "the lost node is removed", func() bool { return operator.RemoveNode(t.Context(), 1) == nil }) // it must be down first
	until(t, "the node with the empty disk runs", a.view.Running)
	if a.identity.Cluster != cluster || a.identity.Node != 4 {
		t.Errorf("it became %v", a.identity)
	}
}

// TestEmptyDirectory: what an empty directory, or half of one, becomes is said, and never guessed.
func TestEmptyDirectory(t *testing.T) {
	half, dangling := t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/nowhere/at/all", dangling); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(half, "store"), 0o750); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		dir  string
		edit func(*Config)
		kind storage.Kind
		want []string
	}{
		{"neither flag", t.TempDir(), func(*Config) {}, storage.KindInvalid, []string{"--bootstrap", "--join HOST", "mount it", "is empty"}},
		{"a store without its node", half, func(c *Config) { c.Bootstrap = true }, storage.KindCorrupt, []string{"node.json", half}},
		{"a link to nowhere", dangling, func(*Config) {}, storage.KindInvalid, []string{dangling, "symbolic link to /nowhere/at/all", "mount"}},
		{"a reserve beyond the disk", t.TempDir(), func(c *Config) { c.ReserveBytes = 900 << 40 }, storage.KindInvalid, []string{"--reserve", "900TiB"}},
		{"joins itself", t.TempDir(), func(c *Config) { c.Join = c.ListenPeer }, storage.KindInvalid, []string{"this node itself"}},
	} {
		err := boot(t, newcomerConfig(t, c.dir, "a", freePeers(t, 1)[0], c.edit)).failed(t)
		if storage.KindOf(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, want := range c.want {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: it does not say %q: %v", c.name, want, err)
			}
		}
	}
}

// failed waits for the node's start to fail.
func (b *booting) failed(t *testing.T) error {
	t.Helper()
	until(t, "node "+b.config.Name+" gives up", func() bool { return len(b.ended) > 0 })
	err := <-b.ended
	b.ended <- nil
	return err
}

// TestJoinAndAdvertiseFlags: addresses that are none are refused with the form that is right.
func TestJoinAndAdvertiseFlags(t *testing.T) {
	for _, c := range []struct{ join, advertise, want string }{
		{"", "127.0.0.1:31301", "--advertise: \"127.0.0.1:31301\" has a port; write 127.0.0.1 without :31301"},
		{"", "http://x", "--advertise: \"http://x\" begins with a scheme; write x, without http://"},
		{"", " ", "--advertise: it is blank"},
		{"", "0.0.0.0", "--advertise: 0.0.0.0 is no address"},
		{"http://a:7001", "", "--join: \"http://a:7001\" begins with a scheme"},
		{"a,,b", "", "--join: it is blank"},
		{"a,a:7001", "", "--join: a:7001 is in it twice"},
		{"a,b c", "", "--join: \"b c\" has blanks"},
	} {
		config := Config{Join: c.join, Advertise: c.advertise}
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("--join %q --advertise %q: %v", c.join, c.advertise, err)
		}
	}
	small := Config{CapacityBytes: 10 << 20, ReserveBytes: 1 << 30, SegmentBytes: 64 << 20}
	if err := small.Validate(); err == nil || !strings.Contains(err.Error(), "--capacity: 10MiB is less than the reserve (1GiB") {
		t.Errorf("a capacity below the reserve: %v", err)
	}
	config := Config{Join: "a, [::1],b:17001", Advertise: "[::1]"}
	if addrs, err := config.joins(); err != nil || strings.Join(addrs, " ") != "a:7001 [::1]:7001 b:17001" {
		t.Errorf("%v, %v", addrs, err)
	}
	if got := config.advertised(&net.TCPAddr{Port: 7001}); got != "[::1]:7001" {
		t.Errorf("an IPv6 address in brackets is advertised as %s", got)
	}
}
