package join

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

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
)

const (
	joinRetry    = 500 * time.Millisecond
	joinPatience = 5 * time.Second
	joinLogging  = 10 * time.Second // a node says at least this often what it waits for
)

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

// nextStep decides what a node without a cluster does. It is pure. Only the first node of the list makes a cluster, and only when
// every other node of the list has answered that it has none. A node that does not answer may be the last one of a cluster, and
// clients must never find a second cluster behind the same addresses.
func nextStep(c Config, answers []answer) step {
	var members, none, silent, itself []answer
	for _, a := range answers {
		switch {
		case a.addr == c.Speaker.Address || a.err == nil && a.who.Instance == c.Speaker.Instance:
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
	case len(itself) == len(answers) && !c.Bootstrap:
		return step{err: storage.E("join", storage.KindInvalid, "--join", fmt.Errorf(
			"%s is this node itself; name a node of the cluster to join, or use --bootstrap to make a new one", itself[0].addr))}
	case len(silent) > 0:
		return step{wait: fmt.Sprintf("no cluster answers; to go on it needs an answer of %s (%v)",
			strings.Join(addrsOf(silent), ", "), errors.Unwrap(silent[0].err))}
	case !c.Bootstrap:
		return step{wait: fmt.Sprintf("%s answers, and has no cluster yet: start one node of the new cluster with --bootstrap",
			strings.Join(addrsOf(none), ", "))}
	case len(itself) > 1:
		return step{wait: fmt.Sprintf("%s all lead to this node: one of them is to be another", strings.Join(addrsOf(itself), ", "))}
	case len(itself) == 0:
		return step{wait: fmt.Sprintf("this node's own address, %s, is not in --join: it waits for those that are in it to make "+
			"the cluster (--advertise sets the address)", c.Speaker.Address)}
	}
	for _, a := range none {
		if a.who.List != 0 && a.who.List != peer.ListHash(c.Addrs) {
			return step{wait: fmt.Sprintf("%s was started with another --join than this node: together with --bootstrap all nodes "+
				"need the same addresses in the same order", a.addr)}
		}
	}
	if itself[0].addr != c.Addrs[0] {
		return step{wait: fmt.Sprintf("the first node of --join, %s, makes the cluster; it has not yet", c.Addrs[0])}
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
func greetAll(ctx context.Context, asker Asker, addrs []string) []answer {
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
// it has none.
func (c Config) findCluster(ctx context.Context) (id control.Identity, err error) {
	if _, err := c.Dir.PromiseStore(); err != nil {
		return id, err
	}
	speaker := c.Speaker
	if c.Bootstrap {
		speaker.List = peer.ListHash(c.Addrs)
	}
	asker, err := c.Asker(speaker)
	if err != nil {
		return id, err
	}
	defer asker.Close()
	lobby, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := asker.Lobby(lobby, c.Lobby); err != nil {
			c.Failed(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	return c.look(ctx, asker)
}

func (c Config) look(ctx context.Context, asker Asker) (id control.Identity, err error) {
	var said string
	var at time.Time
	for {
		s := nextStep(c, greetAll(ctx, asker, c.Addrs))
		switch {
		case ctx.Err() != nil:
			return id, storage.E("join", storage.KindCanceled, "--join "+strings.Join(c.Addrs, ","), ctx.Err())
		case s.err != nil:
			return id, s.err
		case s.make:
			return c.makeCluster()
		case len(s.ask) > 0:
			c.Waits("it asks " + strings.Join(s.ask, ", ") + " to be taken in")
			id, err := c.join(ctx, asker, s.ask)
			if err == nil {
				return id, nil
			}
			if s.wait = c.refused(s.ask, err); s.wait == "" {
				return id, err
			}
		}
		c.Waits(s.wait)
		if s.wait != said || time.Since(at) > joinLogging {
			said, at = s.wait, time.Now()
			c.Logger.Info("waiting for a cluster", "why", s.wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(joinRetry):
		}
	}
}

// refused returns what the node waits for when a cluster has not taken it in; empty: waiting would not help. A node that has lost its
// disk finds its name taken: by itself, before the loss. With --bootstrap it is always started with the same flags, so it waits until
// somebody removes the lost node. Without, it gives up: it may be started under another name.
func (c Config) refused(members []string, err error) string {
	switch {
	case c.Bootstrap && storage.KindOf(err) == storage.KindExists:
		return fmt.Sprintf("%v: if that node is this one before it lost its disk, remove it: storagectl node remove %s", err, c.Name)
	case transient(err):
		return fmt.Sprintf("the cluster of %s does not take it in yet (%v)", strings.Join(members, ", "), err)
	}
	return ""
}

// transient reports whether asking again later may help.
func transient(err error) bool {
	k := storage.KindOf(err)
	if errors.Is(err, storage.ErrPermission) { // the greeting was refused
		return false
	}
	return k == storage.KindUnavailable || k == storage.KindNotLeader || k == storage.KindCanceled
}

// join asks members of a cluster, one after the other, to take this node in.
func (c Config) join(ctx context.Context, asker Asker, members []string) (id control.Identity, err error) {
	self, err := c.describe()
	if err != nil {
		return id, err
	}
	for _, addr := range members {
		response, joinErr := control.Join(ctx, self, func(ctx context.Context, body []byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, joinPatience) // a member waits for a leader, which may never come
			defer cancel()
			resp, err := asker.CallAddr(ctx, addr, &peer.Request{Method: peer.Method(control.MethodJoin), Payload: [][]byte{body}})
			if err != nil {
				return nil, err
			}
			defer resp.Release()
			return slices.Clone(resp.Payload), nil
		})
		if joinErr != nil {
			err = storage.E("join", storage.KindOf(joinErr), addr, joinErr)
			if !transient(joinErr) {
				return id, err
			}
			continue
		}
		if id, err = control.SaveJoin(control.Config{Dir: c.Dir.Catalog()}, response); err != nil {
			return id, err
		}
		c.Logger.Info("joined", "cluster", id.Cluster, "node", id.Node)
		return id, nil
	}
	return id, err
}

// describe returns what the node tells a cluster that shall take it in.
func (c Config) describe() (catalog.AddNode, error) {
	store, err := c.Dir.PromiseStore()
	if err != nil {
		return catalog.AddNode{}, err
	}
	capacity, err := c.Dir.TotalBytes()
	if err != nil {
		return catalog.AddNode{}, storage.E("join", storage.KindIO, string(c.Dir), err)
	}
	if c.CapacityBytes > 0 {
		capacity = min(capacity, c.CapacityBytes)
	}
	return c.Describe(store, capacity), nil
}

// NewSpeaker is what a process says of itself in greetings, apart from what it learns later.
func NewSpeaker(instance uint64, address string) peer.Speaker {
	return peer.Speaker{Instance: instance, Address: address, Process: processName()}
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
