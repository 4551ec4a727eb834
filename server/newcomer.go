package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/control"
)

const (
	joinRetry    = 500 * time.Millisecond
	joinPatience = 5 * time.Second
	joinLogging  = 10 * time.Second // at least so often a node says what it waits for
)

// newcomer is a node without a cluster, while it looks for one. Its decisions are in nextStep.
type newcomer struct {
	n     *node
	asker *peer.Transport
	list  founders
}

// founders is what a node without a cluster was told of those that make one together.
type founders struct {
	bootstrap bool
	self      string   // the peer address of this node, as others see it
	instance  uint64   // of this process
	addrs     []string // of --join
}

// answer is what came of greeting an address.
type answer struct {
	addr string
	who  peer.Greeting
	err  error // it did not answer, or not in our protocol
}

// step is what a node without a cluster does next: one of the four.
type step struct {
	ask  []string // ask these, which belong to a cluster, to be taken in
	make bool     // make a new cluster
	wait string   // look again later; why
	err  error    // give up
}

// nextStep decides. It is pure. A cluster is made only by the first node of the list, and only when each other node of it has
// said that it has none: one that does not answer may be all that is left of a cluster, and a cluster of its own behind the same
// addresses is what clients must never meet.
func nextStep(f founders, answers []answer) step {
	var members, none, silent, itself []answer
	for _, a := range answers {
		switch {
		case a.addr == f.self || a.err == nil && a.who.Instance == f.instance:
			itself = append(itself, a)
		case a.err != nil:
			silent = append(silent, a)
		case a.who.Cluster.IsZero():
			none = append(none, a)
		default:
			members = append(members, a)
		}
	}
	for _, m := range members {
		if m.who.Cluster != members[0].who.Cluster {
			return step{err: storage.E("join", storage.KindConflict, "--join", fmt.Errorf(
				"its nodes belong to different clusters: %s to %v, %s to %v; name nodes of one cluster only", members[0].addr,
				members[0].who.Cluster, m.addr, m.who.Cluster))}
		}
	}
	switch {
	case len(members) > 0:
		return step{ask: addrsOf(members)}
	case len(itself) == len(answers) && !f.bootstrap:
		return step{err: storage.E("join", storage.KindInvalid, "--join", fmt.Errorf(
			"%s is this node itself; name a node of the cluster to join, or use --bootstrap to make a new one", itself[0].addr))}
	case len(silent) > 0:
		return step{wait: fmt.Sprintf("no cluster answers; to go on it needs an answer of %s (%v)",
			strings.Join(addrsOf(silent), ", "), errors.Unwrap(silent[0].err))}
	case !f.bootstrap:
		return step{wait: fmt.Sprintf("%s answers, and has no cluster yet: start one node of the new cluster with --bootstrap",
			strings.Join(addrsOf(none), ", "))}
	case len(itself) > 1:
		return step{wait: fmt.Sprintf("%s all lead to this node: one of them is to be another", strings.Join(addrsOf(itself), ", "))}
	case len(itself) == 0:
		return step{wait: fmt.Sprintf("this node's own address, %s, is not in --join: it waits for those that are in it to make "+
			"the cluster (--advertise sets the address)", f.self)}
	}
	for _, a := range none {
		if a.who.List != 0 && a.who.List != peer.ListHash(f.addrs) {
			return step{wait: fmt.Sprintf("%s was started with another --join than this node: together with --bootstrap all nodes "+
				"need the same addresses in the same order", a.addr)}
		}
	}
	if itself[0].addr != f.addrs[0] {
		return step{wait: fmt.Sprintf("the first node of --join, %s, makes the cluster; it has not yet", f.addrs[0])}
	}
	return step{make: true}
}

func addrsOf(list []answer) (addrs []string) {
	for _, a := range list {
		addrs = append(addrs, a.addr)
	}
	return addrs
}

// greetAll greets addresses at the same time and returns the answers in their order.
func greetAll(ctx context.Context, asker *peer.Transport, addrs []string) []answer {
	answers := make([]answer, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			who, err := asker.Greet(ctx, addr)
			answers[i] = answer{addr, who, err}
		})
	}
	wg.Wait()
	return answers
}

// findCluster looks at the nodes of --join until this node has a cluster or ctx is done. Meanwhile it answers to others that
// it has none. The store's id is written down first: a lost answer, or a crash before it was saved, must not make a second node.
func (n *node) findCluster(ctx context.Context, addrs []string) (err error) {
	c := &newcomer{n: n, list: founders{bootstrap: n.config.Bootstrap, self: n.config.advertised(n.listeners.peer.Addr()),
		instance: n.instance, addrs: addrs}}
	if _, err := n.pendingStore(); err != nil {
		return err
	}
	if c.asker, err = n.stranger(); err != nil {
		return err
	}
	defer c.asker.Close()
	lobby, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.asker.Lobby(lobby, n.listeners.peer.(peer.LobbyListener)); err != nil {
			n.failures <- fmt.Errorf("peers: %w", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	return c.run(ctx)
}

func (c *newcomer) run(ctx context.Context) error {
	var said string
	var at time.Time
	for {
		s := nextStep(c.list, greetAll(ctx, c.asker, c.list.addrs))
		switch {
		case ctx.Err() != nil:
			return storage.E("join", storage.KindCanceled, "--join "+c.n.config.Join, ctx.Err())
		case s.err != nil:
			return s.err
		case s.make:
			return c.n.makeCluster()
		case len(s.ask) > 0:
			asks := "it asks " + strings.Join(s.ask, ", ") + " to be taken in"
			c.n.waits.Store(&asks)
			joined, err := c.join(ctx, s.ask)
			if joined || err != nil && !transient(err) {
				return err
			}
			s.wait = fmt.Sprintf("the cluster of %s does not take it in yet (%v)", strings.Join(s.ask, ", "), err)
		}
		c.n.waits.Store(&s.wait)
		if s.wait != said || time.Since(at) > joinLogging {
			said, at = s.wait, time.Now()
			c.n.logger.Info("waiting for a cluster", "why", s.wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(joinRetry):
		}
	}
}

// transient reports whether an error of joining passes by itself.
func transient(err error) bool {
	k := storage.KindOf(err)
	if errors.Is(err, storage.ErrPermission) { // the greeting was refused
		return false
	}
	return k == storage.KindUnavailable || k == storage.KindNotLeader || k == storage.KindCanceled
}

// join asks members of a cluster, one after the other, to take this node in.
func (c *newcomer) join(ctx context.Context, members []string) (joined bool, err error) {
	n := c.n
	store, err := n.pendingStore()
	if err != nil {
		return false, err
	}
	usage, err := vfs.Default.GetDiskUsage(n.config.DataDir)
	if err != nil {
		return false, storage.E("join", storage.KindIO, n.config.DataDir, err)
	}
	capacity := int64(usage.TotalBytes)
	if n.config.CapacityBytes > 0 {
		capacity = min(capacity, int64(n.config.CapacityBytes))
	}
	for _, addr := range members {
		response, joinErr := control.Join(ctx, n.self(store, capacity), func(ctx context.Context, body []byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, joinPatience) // a member waits for a leader, which may never come
			defer cancel()
			resp, err := c.asker.CallAddr(ctx, addr, &peer.Request{Method: peer.MethodJoin, Payload: [][]byte{body}})
			if err != nil {
				return nil, err
			}
			defer resp.Release()
			return slices.Clone(resp.Payload), nil
		})
		if joinErr != nil {
			err = storage.E("join", storage.KindOf(joinErr), addr, joinErr)
			if !transient(joinErr) {
				return false, err
			}
			continue
		}
		if n.identity, err = control.SaveJoin(control.Config{Dir: n.catalogDir()}, response); err != nil {
			return false, err
		}
		n.logger.Info("joined", "cluster", n.identity.Cluster, "node", n.identity.Node)
		return true, nil
	}
	return false, err
}

// speaker is what this process tells of itself in greetings.
func (n *node) speaker() peer.Speaker {
	s := peer.Speaker{Instance: n.instance, Starts: n.starts, Address: n.config.advertised(n.listeners.peer.Addr()), Process: processName()}
	if joins, err := n.config.joins(); err == nil && n.config.Bootstrap && n.identity.Node == 0 {
		s.List = peer.ListHash(joins)
	}
	return s
}

// processName is this process for people: host and process id. A greeting carries plain text only.
func processName() string {
	host, _ := os.Hostname() // "" is told as it is
	host = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, host)
	id := "/" + strconv.Itoa(os.Getpid())
	return host[:min(len(host), peer.MaxProcessBytes-len(id))] + id
}
