package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

const (
	firstPause = 20 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// ask brings a request to the catalog's leader and tries again until ctx is done: every request may be repeated.
// Errors of other kinds than KindNotLeader and KindUnavailable are final.
func (c *Controller) ask(ctx context.Context, m Method, body []byte) (reply, error) {
	var hint storage.NodeID
	var last error
	pause, patience := firstPause, c.firstPatience()
	for {
		if err := c.Failed(); err != nil {
			return reply{}, err
		}
		to := hint
		if to == 0 {
			to = c.Leader()
		}
		hint = 0
		if to != 0 {
			r, err := c.askNode(ctx, patience, to, m, body)
			kind := storage.KindOf(err)
			if err == nil || kind != storage.KindNotLeader && kind != storage.KindUnavailable && kind != storage.KindCanceled {
				return r, err
			}
			last = err
			var nl *op.NotLeaderError
			if errors.As(err, &nl) && nl.Leader != to {
				hint = nl.Leader
			}
		}
		if err := clock.Sleep(ctx, jitter(pause)); err != nil {
			if last == nil {
				last = errors.New("nobody leads the catalog; a majority of its nodes must be up")
			}
			return reply{}, storage.E("ask the catalog", storage.KindUnavailable, "", fmt.Errorf("%w: %w", err, last))
		}
		pause, patience = min(2*pause, maxPause), min(2*patience, c.cfg.RequestTimeout)
	}
}

// firstPatience is how long a first attempt waits: a leader that is frozen or cut off does not refuse but stays silent,
// and its successor leads after about two heartbeat timeouts. Later attempts wait longer, in case everything is only
// slow.
func (c *Controller) firstPatience() time.Duration {
	return min(2*c.id.HeartbeatTimeout, c.cfg.RequestTimeout)
}

// askNode is one attempt.
func (c *Controller) askNode(ctx context.Context, patience time.Duration, to storage.NodeID, m Method, body []byte) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if to == c.id.Node {
		r := c.serve(ctx, c.id.Node, m, body)
		return r, r.err()
	}
	ctx, stop := c.whileLeads(ctx, to)
	defer stop()
	b, err := c.cfg.Peers.Call(ctx, to, m, body)
	if err != nil {
		return reply{}, err
	}
	r, err := decodeReply(b)
	c.heed(err)
	return r, err
}

// whileLeads returns a context that ends when this node learns that another node leads now: the one that was asked
// will not answer. stop ends the watch and waits for it.
func (c *Controller) whileLeads(ctx context.Context, asked storage.NodeID) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	before, done := c.Leader(), make(chan struct{})
	go func() {
		defer close(done)
		for clock.Sleep(ctx, c.id.HeartbeatTimeout/10) == nil {
			if now := c.Leader(); now != 0 && now != asked && now != before {
				cancel(notLeader(now))
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// Serve answers a request of another node's Controller; from is 0 for one that is not a node yet. The answer carries
// errors, too. Requests may be served concurrently; body is not used after Serve has returned.
func (c *Controller) Serve(ctx context.Context, from storage.NodeID, m Method, body []byte) []byte {
	return encodeReply(c.serve(ctx, from, m, body))
}

func (c *Controller) serve(ctx context.Context, from storage.NodeID, m Method, body []byte) reply {
	if err := c.removal(from); err != nil {
		return failed(err)
	}
	switch m {
	case MethodPropose:
		return c.servePropose(ctx, body)
	case MethodRead:
		return c.serveRead(ctx, body)
	case MethodReport:
		return c.serveReport(from, body)
	case MethodJoin:
		return c.serveJoin(ctx, from, body)
	}
	return failed(storage.E("ask the catalog", storage.KindUnsupported, "", fmt.Errorf("there is no method %d", m)))
}

// servePropose proposes a command. It checks the command first, so that an invalid one does not reach the log, nor one that some
// node may not know: such a node would stop.
func (c *Controller) servePropose(ctx context.Context, body []byte) reply {
	cmd, err := catalog.Decode(body)
	if err != nil {
		return failed(err)
	}
	if !c.inst.Leads() {
		return failed(notLeader(c.Leader()))
	}
	if err := c.permits(cmd); err != nil {
		return failed(err)
	}
	if body, err = c.stamp(cmd, body); err != nil {
		return failed(err)
	}
	result, err := c.apply(ctx, body)
	if err != nil {
		return failed(err)
	}
	return reply{Result: &result}
}

// stamp returns the command's encoding with the time of this node, which leads, if the command may tell an event. Times that others
// have stamped are not taken.
func (c *Controller) stamp(cmd catalog.Command, body []byte) ([]byte, error) {
	if _, stamped := cmd.(catalog.Stamped); stamped {
		return nil, storage.E("propose", storage.KindInvalid, "", errors.New("only the leader of the catalog says when a command was proposed"))
	}
	var inForce int
	c.fsm.view(func(s *catalog.State) { inForce = s.InForce() })
	if inForce < catalog.EventsVersion || !catalog.Tells(cmd) {
		return body, nil
	}
	return catalog.Encode(catalog.Stamped{Command: cmd, At: time.Now()})
}

// permits returns why a command must not reach the log: not every node knows it.
func (c *Controller) permits(cmd catalog.Command) (err error) {
	raise, ok := cmd.(catalog.RaiseVersion)
	if !ok {
		c.fsm.view(func(s *catalog.State) { err = s.Permits(cmd) })
		if set, ok := cmd.(catalog.SetNodeState); err == nil && ok && set.State == storage.NodeRemoved {
			err = c.catalogSpares(set.Node)
		}
		return err
	}
	l := c.leading()
	if l == nil {
		return storage.E("upgrade", storage.KindUnavailable, "cluster", errors.New("the leader was just elected"))
	}
	return l.allKnow(raise.To, time.Now())
}

// catalogSpares returns why a node that is up must not be removed: its process ends when it hears of it, and its vote goes with it.
func (c *Controller) catalogSpares(id storage.NodeID) error {
	var n storage.Node
	var known bool
	c.fsm.view(func(s *catalog.State) { n, known = s.Node(id) })
	if !known || n.State == storage.NodeDown || n.State == storage.NodeRemoved {
		return nil // the catalog's state says what else there is to say; its vote is lost already
	}
	refuse := func(kind storage.Kind, why string) error {
		return storage.E("set node state", kind, "node "+n.Name, errors.New(why))
	}
	l, now := c.leading(), time.Now()
	if l == nil {
		return refuse(storage.KindUnavailable, "the leader of the catalog was just elected; try again")
	}
	l.mu.Lock()
	fresh := l.freshLocked(now)
	l.mu.Unlock()
	var v placement.View
	c.fsm.view(func(s *catalog.State) { v = placement.NewView(s, fresh, now) })
	servers := c.inst.Configuration().Servers
	switch {
	case id == c.id.Node && len(servers) > 1:
		return refuse(storage.KindConflict, "it leads the catalog, and hands over within seconds if it drains; try again then")
	case !catalogWithout(servers, v, c.id.Node, id, c.inst.LastIndex()):
		return refuse(storage.KindConflict, "it votes in the catalog, and of the other nodes that do no majority is up and has caught up; start those that are down first")
	}
	return nil
}

// allKnow returns which nodes are not known to know a version of the cluster.
func (l *leadership) allKnow(version int, now time.Time) error {
	l.mu.Lock()
	fresh := l.freshLocked(now)
	l.mu.Unlock()
	var lines []string
	l.c.fsm.view(func(s *catalog.State) {
		for _, x := range placement.IgnorantOf(version, catalog.BaseVersion, s.Nodes(), fresh) {
			if x.Knows == 0 {
				lines = append(lines, fmt.Sprintf("node %s was not heard: start it, or remove it if it is lost", x.Node.Name))
			} else {
				lines = append(lines, fmt.Sprintf("node %s knows version %d: start it with the new release", x.Node.Name, x.Knows))
			}
		}
	})
	if len(lines) == 0 {
		return nil
	}
	return storage.E("upgrade", storage.KindConflict, "cluster", fmt.Errorf("not every node knows version %d: %s", version, strings.Join(lines, "; ")))
}

// apply proposes an encoded command on this node, which must lead.
func (c *Controller) apply(ctx context.Context, body []byte) (catalog.Result, error) {
	if !c.inst.Leads() {
		return catalog.Result{}, notLeader(c.Leader())
	}
	body = append([]byte(nil), body...) // the log keeps it
	future, err := runner.Do(ctx, c.inst, "propose", func(r *raft.Raft) raft.ApplyFuture { return r.Apply(body, c.cfg.RequestTimeout) })
	if err != nil {
		return catalog.Result{}, err
	}
	result, ok := future.Response().(catalog.Result)
	if err, halted := future.Response().(error); halted {
		return catalog.Result{}, storage.E("propose", storage.KindUnavailable, "", err) // it is committed, and others apply it
	}
	if !ok {
		return catalog.Result{}, storage.E("propose", storage.KindInternal, "", fmt.Errorf("answer %T", future.Response()))
	}
	return result, nil
}

// barrier returns when everything that was committed before is applied here; this node must lead.
func (c *Controller) barrier(ctx context.Context) error {
	_, err := runner.Do(ctx, c.inst, "propose", func(r *raft.Raft) raft.Future { return r.Barrier(c.cfg.RequestTimeout) })
	return err
}

// serveRead answers with an index that everything committed before is at or below, or with the reports. The barrier
// is an entry of the log: no clock is trusted, and the library sends concurrent ones in one batch.
func (c *Controller) serveRead(ctx context.Context, body []byte) reply {
	var req readRequest
	if err := decodeRequest(body, maxRequestBytes, &req); err != nil {
		return failed(err)
	}
	if req.Standing {
		return reply{}
	}
	if !c.inst.Leads() {
		return failed(notLeader(c.Leader()))
	}
	if req.Reports {
		l := c.leading()
		if l == nil {
			return failed(storage.E("read reports", storage.KindUnavailable, "", errors.New("the leader was just elected")))
		}
		return reply{Reports: l.heard(time.Now())}
	}
	if err := c.barrier(ctx); err != nil {
		return failed(err)
	}
	index, _ := c.fsm.next()
	return reply{Index: index}
}

// serveReport takes a node's report.
func (c *Controller) serveReport(from storage.NodeID, body []byte) reply {
	var report placement.NodeReport
	if err := decodeRequest(body, maxReportBytes, &report); err != nil {
		return failed(err)
	}
	if from == 0 || report.Node != from {
		return failed(storage.E("report", storage.KindPermission, "", fmt.Errorf("node %s reports as node %s", from, report.Node)))
	}
	l := c.leading()
	if l == nil {
		return failed(notLeader(c.Leader()))
	}
	known := false
	c.fsm.view(func(s *catalog.State) {
		n, ok := s.Node(from)
		known = ok && n.State != storage.NodeRemoved
	})
	if !known {
		return failed(storage.E("report", storage.KindPermission, "", fmt.Errorf("node %s is not part of the cluster", from)))
	}
	l.take(report, time.Now())
	return reply{}
}

// serveJoin takes a node in. A node that does not lead passes the request of a stranger on to the leader; a node of the
// cluster is told to ask the leader itself.
func (c *Controller) serveJoin(ctx context.Context, from storage.NodeID, body []byte) reply {
	add, knows, err := decodeJoin(body)
	if err != nil {
		return failed(err)
	}
	if !c.inst.Leads() {
		if from != 0 {
			return failed(notLeader(c.Leader()))
		}
		r, err := c.ask(ctx, MethodJoin, body)
		if err != nil {
			return failed(err)
		}
		return r
	}
	// The number of the node that made the cluster is in its identity, and it is the first that is taken in: a node
	// taken in before it would get its number. While there is no node, nobody else leads, so a look at this copy is
	// enough.
	var nodes, inForce int
	c.fsm.view(func(s *catalog.State) { nodes, inForce = len(s.Nodes()), s.InForce() })
	switch {
	case nodes == 0:
		return failed(storage.E("join", storage.KindUnavailable, "node "+add.Name, errors.New("the cluster is being made; ask again")))
	case knows < inForce:
		return failed(storage.E("join", storage.KindUnsupported, "node "+add.Name, fmt.Errorf(
			"its build knows the cluster's versions up to %d, and version %d is in force: start it with the release that the other nodes run", knows, inForce)))
	}
	add.At = time.Now().UTC()
	if body, err = catalog.Encode(add); err != nil {
		return failed(err)
	}
	if body, err = c.stamp(add, body); err != nil {
		return failed(err)
	}
	result, err := c.apply(ctx, body)
	if err != nil {
		return failed(err)
	}
	if result.Err != nil {
		return failed(result.Err)
	}
	join := JoinResponse{Node: result.Node, Addrs: map[storage.NodeID]string{}, Recovery: c.id.Recovery}
	c.fsm.view(func(s *catalog.State) {
		join.Cluster, join.HeartbeatTimeout = s.Cluster().ID.String(), s.Cluster().HeartbeatTimeout
		for _, n := range s.Nodes() {
			if n.State != storage.NodeRemoved {
				join.Addrs[n.ID] = n.Addrs.Peer
			}
		}
	})
	c.Reconcile()
	return reply{Join: &join}
}
