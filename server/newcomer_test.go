package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/replication/peer"
)

// TestNextStep: a cluster is made by the first of the list alone, and only when all others have said that they have none.
func TestNextStep(t *testing.T) {
	x, y := storage.ClusterID{1}, storage.ClusterID{2}
	list := []string{"a:1", "b:1", "c:1"}
	hash := peer.ListHash(list)
	silent := func(addr string) answer {
		return answer{addr: addr, err: storage.E("greet", storage.KindUnavailable, addr, io.EOF)}
	}
	none := func(addr string, instance uint64) answer {
		return answer{addr: addr, who: peer.Greeting{Speaker: peer.Speaker{Instance: instance, List: hash}}}
	}
	member := func(addr string, c storage.ClusterID) answer {
		return answer{addr: addr, who: peer.Greeting{Cluster: c, Node: 7, Speaker: peer.Speaker{Instance: 99}}}
	}
	joiner := func(addr string) answer {
		return answer{addr: addr, who: peer.Greeting{Speaker: peer.Speaker{Instance: 98}}}
	}
	stranger := none("c:1", 3)
	stranger.who.List++
	for _, c := range []struct {
		name      string
		bootstrap bool
		self      string
		answers   []answer
		want      string // "make", "ask ADDRS", or a part of why it waits or gives up
	}{
		{"the first, all others have none", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), none("c:1", 3)}, "make"},
		{"known by its instance, not its address", true, "z:1", []answer{none("a:1", 1), none("b:1", 2), none("c:1", 3)}, "make"},
		{"its own address does not answer", true, "a:1", []answer{silent("a:1"), none("b:1", 2), none("c:1", 3)}, "make"},
		{"others only join", true, "a:1", []answer{none("a:1", 1), joiner("b:1"), none("c:1", 3)}, "make"},
		{"the second", true, "b:1", []answer{none("a:1", 5), none("b:1", 1), none("c:1", 3)}, "first node of --join, a:1"},
		{"one is silent", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), silent("c:1")}, "an answer of c:1 (EOF)"},
		{"one has a cluster", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), member("c:1", x)}, "ask [c:1]"},
		{"one has a cluster, one is silent", true, "a:1", []answer{none("a:1", 1), silent("b:1"), member("c:1", x)}, "ask [c:1]"},
		{"two clusters", true, "a:1", []answer{none("a:1", 1), member("b:1", x), member("c:1", y)}, "different clusters"},
		{"another list", true, "a:1", []answer{none("a:1", 1), none("b:1", 2), stranger}, "c:1 was started with another --join"},
		{"not in the list", true, "z:1", []answer{none("a:1", 5), none("b:1", 2), none("c:1", 3)}, "z:1, is not in --join"},
		{"two lead to this node", true, "a:1", []answer{none("a:1", 1), none("b:1", 1), none("c:1", 3)}, "a:1, b:1 all lead to this node"},
		{"alone in the list", true, "a:1", []answer{none("a:1", 1)}, "make"},
		{"no bootstrap, all others have none", false, "a:1", []answer{none("a:1", 1), none("b:1", 2), none("c:1", 3)}, "--bootstrap"},
		{"no bootstrap, one has a cluster", false, "z:1", []answer{none("a:1", 4), member("b:1", x)}, "ask [b:1]"},
		{"no bootstrap, itself", false, "a:1", []answer{none("a:1", 1)}, "is this node itself"},
	} {
		var addrs []string
		for _, a := range c.answers {
			addrs = append(addrs, a.addr)
		}
		f := founders{bootstrap: c.bootstrap, self: c.self, instance: 1, addrs: addrs}
		if len(addrs) != len(list) {
			f.addrs = addrs
		}
		var got string
		switch s := nextStep(f, c.answers); {
		case s.make:
			got = "make"
		case s.ask != nil:
			got = fmt.Sprintf("ask %v", s.ask)
		case s.err != nil:
			got = s.err.Error()
		default:
			got = s.wait
		}
		if c.want == "make" && got != "make" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

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

// freePeers returns addresses that were free a moment ago: of a loopback address that is this process's own, so that neither
// outgoing connections nor the same tests of another process take them meanwhile.
func freePeers(t *testing.T, count int) (addrs []string) {
	t.Helper()
	pid := os.Getpid()
	host := fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
	for len(addrs) < count {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, l.Addr().String())
		defer l.Close() // after the others were found, which are so not the same
	}
	return addrs
}

// TestBootstrapTogether: nodes that are all started with the same --bootstrap --join make one cluster, once all of them are there.
// A node that has lost its disk makes no second one, whoever of the others is up.
func TestBootstrapTogether(t *testing.T) {
	addrs := freePeers(t, 3)
	list := strings.Join(addrs, ",")
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	start := func(i int) *booting {
		return boot(t, newcomerConfig(t, dirs[i], string(rune('a'+i)), addrs[i], func(c *Config) { c.Bootstrap, c.Join = true, list }))
	}
	waits := func(b *booting, for_ string) {
		t.Helper()
		until(t, b.config.Name+" waits for "+for_, func() bool {
			ps := b.unready()
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
	if _, err := cl.Status(t.Context()); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), addrs[2]) {
		t.Errorf("a waiting node's API answers: %v", err)
	}
	nodes := []*booting{a, b, start(2)}
	for _, n := range nodes {
		until(t, "node "+n.config.Name+" runs", n.running.Load)
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
	for _, n := range nodes {
		n.halt(t)
	}

	if err := os.RemoveAll(dirs[0]); err != nil {
		t.Fatal(err)
	}
	a = start(0)
	waits(a, addrs[1])
	b = start(1) // it needs the third to lead, and says so at once that it is of a cluster
	until(t, "the second node runs", b.running.Load)
	until(t, "the first asks the second", func() bool {
		return strings.Contains(a.unready()[0].Text, "asks "+addrs[1]+" to be taken in")
	})
	c := start(2)
	until(t, "the third node runs", c.running.Load)
	err = a.failed(t)
	if !errors.Is(err, storage.ErrExists) && !errors.Is(err, storage.ErrConflict) || !strings.Contains(err.Error(), "has this name already") {
		t.Errorf("a node under the name of one that was there: %v", err)
	}
	if a.identity.Node != 0 || b.identity.Cluster != cluster {
		t.Errorf("the lost node became %v", a.identity)
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
	if err := small.Validate(); err == nil || !strings.Contains(err.Error(), "--capacity: 10MiB is less than the reserve (--reserve 1GiB)") {
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
