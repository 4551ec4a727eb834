package server

import (
	"fmt"
	"os"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// trio is a cluster of three nodes in this process.
type trio struct {
	t     *testing.T
	dirs  []string
	addrs []string // peer addresses, where they are or were
	nodes []*booting
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	c := &trio{t: t, dirs: []string{t.TempDir(), t.TempDir(), t.TempDir()}, addrs: freePeers(t, 3), nodes: make([]*booting, 3)}
	list := strings.Join(c.addrs, ",")
	for i := range c.nodes {
		c.start(i, func(n *Config) { n.Bootstrap, n.Join = true, list })
	}
	c.whole("at first")
	return c
}

// start starts node i where it is said to be; edits say how else.
func (c *trio) start(i int, edits ...func(*Config)) {
	c.t.Helper()
	c.nodes[i] = boot(c.t, newcomerConfig(c.t, c.dirs[i], string(rune('a'+i)), c.addrs[i], edits...))
}

// whole waits until all nodes run, vote, know a leader, and are recorded at the addresses where they are.
func (c *trio) whole(when string) {
	c.t.Helper()
	for _, n := range c.nodes {
		c.until(when+": node "+n.config.Name+" is ready", func() string {
			if ps := n.view.Unready(); len(ps) > 0 {
				return fmt.Sprint(ps)
			}
			if v := n.control.Voters(); v != 3 {
				return fmt.Sprintf("%d voters", v)
			}
			return ""
		})
	}
	for _, n := range c.nodes {
		c.until(when+": all are up in the eyes of node "+n.config.Name, func() string {
			list, err := n.node.admin.Nodes(c.t.Context())
			if err != nil || len(list) != 3 {
				return fmt.Sprintf("%d nodes, %v", len(list), err)
			}
			for _, x := range list {
				if at := c.nodes[c.byName(x.Name)].config.ListenPeer; x.State != storage.NodeUp || x.Addrs.Peer != at {
					return fmt.Sprintf("node %s is %s at %s, and was started at %s", x.Name, x.State, x.Addrs.Peer, at)
				}
			}
			return ""
		})
	}
}

// until waits until lacks names nothing any more; what it named last is the reason when the time is over.
func (c *trio) until(what string, lacks func() string) {
	c.t.Helper()
	last := ""
	defer func() {
		if last != "" {
			c.t.Logf("%s: last seen: %s", what, last)
		}
	}()
	until(c.t, what, func() bool { last = lacks(); return last == "" })
}

func (c *trio) byName(name string) int { return int(name[0] - 'a') }

// move stops nodes and starts them at other addresses.
func (c *trio) move(which []int, join func(i int) string) {
	c.t.Helper()
	for _, i := range which {
		c.nodes[i].halt(c.t)
	}
	for _, i := range which {
		c.addrs[i] = freePeers(c.t, 7)[i+4] // beside those in use
	}
	for _, i := range which {
		c.start(i, func(n *Config) { n.Join = join(i) })
	}
}

// TestMovedNodes: nodes that come back under other addresses are found by the others, and find them, without anybody's help but
// --join where all have moved.
func TestMovedNodes(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	nobody := func(int) string { return "" }
	c.move([]int{1}, nobody)
	c.whole("one moved")
	c.move([]int{0, 2}, nobody)
	c.whole("two moved")
	c.move([]int{0, 1, 2}, func(i int) string { return c.addrs[(i+1)%3] })
	c.whole("all moved, each joins the next")
	c.move([]int{0, 1, 2}, func(i int) string { return c.addrs[0] })
	c.whole("all moved, all join the first")
}

// TestWrongAdvertise: a node that says it is where it is not is named with the reason, and not advised to be removed; corrected, it
// comes back.
func TestWrongAdvertise(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.nodes[2].halt(t)
	port := freePeers(t, 7)[6]
	c.addrs[2] = port
	c.start(2, func(n *Config) { n.Advertise = "127.0.0.9" }) // it listens on 127.0.0.1 only
	until(t, "status names the address", func() bool {
		s, err := c.nodes[0].node.admin.Status(t.Context())
		if err != nil {
			return false
		}
		for _, r := range s.Reasons {
			if r.Subject == "node c" && strings.Contains(r.Text, "is not reached at 127.0.0.9:") {
				if !strings.Contains(r.NextStep, "--advertise") || strings.Contains(r.NextStep, "node remove") {
					t.Errorf("the next step is %q", r.NextStep)
				}
				return true
			}
		}
		return false
	})
	c.nodes[2].halt(t)
	c.start(2)
	c.whole("corrected")
}

// TestCopiedDirectory: of two processes with one identity one is the node; the other is refused, says so, and the cluster names both.
// Which one it is, and that it stays the one that was heard first, TestSecondProcess of package peer shows in virtual time: here a
// machine that stalls may change it.
func TestCopiedDirectory(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.nodes[2].halt(t)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(c.dirs[2])); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	c.whole("before the copy")
	first := c.nodes[2]
	second := boot(t, newcomerConfig(t, copied, "c", freePeers(t, 9)[8]))
	until(t, "the second process runs", second.view.Running)
	names := func(b, other *booting) bool {
		for _, p := range b.view.Unready() {
			if strings.Contains(p.Text, "another process is node "+first.identity.Node.String()) && strings.Contains(p.Text, other.config.ListenPeer) {
				return true
			}
		}
		return false
	}
	until(t, "one of the two says that there is another", func() bool { return names(second, first) || names(first, second) })
	until(t, "the cluster says it", func() bool {
		for _, n := range c.nodes[:2] {
			s, err := n.node.admin.Status(t.Context())
			if err != nil {
				continue
			}
			for _, r := range s.Reasons {
				if r.Subject == "node c" && strings.Contains(r.Text, second.config.ListenPeer) && strings.Contains(r.Text, first.config.ListenPeer) {
					return true
				}
			}
		}
		return false
	})
	first.halt(t)
	until(t, "the copy is the node when it is alone", func() bool { return second.control.Leader() != 0 && len(second.view.Unready()) == 0 })
}
