package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/server/catalog"
)

// minReportGap is the shortest time between two reports, however often ReportSoon is called.
const minReportGap = 100 * time.Millisecond

// runReports tells the catalog's leader how this node is. A report that does not arrive is not sent again: the next
// one is newer.
func (c *Controller) runReports(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for attempt := 0; ; attempt++ {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.soon:
			if clock.Sleep(ctx, minReportGap) != nil {
				return
			}
		}
		c.heed(c.removal(c.id.Node))
		if c.Leader() == 0 {
			c.askStanding(ctx, attempt)
		} else {
			c.report(ctx)
		}
		timer.Reset(clock.UntilNext(time.Now(), c.cfg.ReportInterval))
	}
}

func (c *Controller) report(ctx context.Context) {
	leader := c.Leader()
	if leader == 0 {
		return
	}
	report := c.cfg.Report()
	report.Node, report.CatalogIndex, report.Knows = c.id.Node, c.inst.LastIndex(), cmp.Or(report.Knows, catalog.Version)
	if leader == c.id.Node {
		if l := c.leading(); l != nil {
			l.take(report, time.Now())
		}
		return
	}
	body, err := json.Marshal(report)
	if err == nil {
		_, err = c.askNode(ctx, c.firstPatience(), leader, MethodReport, body)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrNotLeader) {
		c.cfg.Logger.Debug("the catalog's leader did not take the report", "leader", leader, "error", err)
	}
}

// runBook keeps the address book in step with the catalog. What comes last before the end, Close writes.
func (c *Controller) runBook(ctx context.Context) {
	for {
		_, changed := c.fsm.next()
		c.writeBook()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		if clock.Sleep(ctx, minReportGap) != nil { // commands come in bursts, addresses change rarely
			return
		}
	}
}

// writeBook writes down where the nodes are by the catalog, if that is not in the address book yet.
func (c *Controller) writeBook() {
	var index uint64
	var nodes []storage.Node
	c.fsm.view(func(s *catalog.State) { index, nodes = s.Applied(), s.Nodes() })
	if index == 0 {
		return
	}
	if err := c.book.update(index, nodes); err != nil {
		c.cfg.Logger.Warn("the nodes' addresses could not be written down; after a restart this node may not find them", "error", err)
	}
}

// runSelf brings the node's record in the catalog in step with what the node is configured to be, once a start.
func (c *Controller) runSelf(ctx context.Context) {
	for pause := firstPause; ; pause = min(2*pause, 10*time.Second) {
		err := c.updateSelf(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if kind := storage.KindOf(err); kind != storage.KindUnavailable && kind != storage.KindCanceled {
			c.cfg.Logger.Warn("the catalog refuses this node's description", "error", err)
		}
		if clock.Sleep(ctx, jitter(pause)) != nil {
			return
		}
	}
}

func (c *Controller) updateSelf(ctx context.Context) error {
	var node storage.Node
	var known bool
	if err := c.Read(ctx, func(s *catalog.State) { node, known = s.Node(c.id.Node) }); err != nil {
		return err
	}
	if !known {
		return storage.E("update node", storage.KindUnavailable, "node "+c.id.Node.String(),
			errors.New("the catalog does not know this node yet"))
	}
	want := catalog.UpdateNode{Node: node.ID, Name: c.cfg.Self.Name, Zone: c.cfg.Self.Zone, Addrs: c.cfg.Self.Addrs,
		Stores: c.cfg.Self.Stores}
	if want.Name == "" {
		want.Name = node.Name
	}
	if want.Name == node.Name && want.Zone == node.Zone && want.Addrs == node.Addrs && slices.Equal(want.Stores, node.Stores) {
		return nil
	}
	_, err := c.Propose(ctx, want)
	return err
}

// leading returns the reign of this node; nil while it has none.
func (c *Controller) leading() *leadership {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lead
}

// runLeader reigns whenever this node leads.
func (c *Controller) runLeader(ctx context.Context) {
	for {
		if c.inst.Leads() {
			c.reign(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.inst.LeaderCh(): // holds the newest change only; the state above is what counts
		case <-time.After(clock.UntilNext(time.Now(), 2*c.id.HeartbeatTimeout)): // LeaderCh never misses the last change
		}
	}
}

// reign runs the reconcilers for one term of this node.
func (c *Controller) reign(ctx context.Context) {
	term := c.inst.CurrentTerm()
	if err := c.barrier(ctx); err != nil {
		return // no leader any more, or no majority
	}
	if err := c.initialise(ctx); err != nil {
		c.cfg.Logger.Warn("the new cluster's catalog could not be initialised", "error", err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := newLeadership(ctx, c, term, time.Now())
	c.mu.Lock()
	c.lead = l
	c.mu.Unlock()
	c.cfg.Logger.Info("this node leads the catalog", "term", term)
	c.ReportSoon()
	l.run()
	c.mu.Lock()
	c.lead = nil
	c.mu.Unlock()
	cancel()
	l.tasks.wg.Wait()
	c.cfg.Logger.Info("this node leads the catalog no longer", "term", term)
}

// initialise applies the first commands of a new cluster, as often as it takes.
func (c *Controller) initialise(ctx context.Context) error {
	if c.id.Bootstrap == nil {
		return nil
	}
	var initialised bool
	var nodes int
	c.fsm.view(func(s *catalog.State) { initialised, nodes = s.Initialised(), len(s.Nodes()) })
	if !initialised {
		if err := c.applyHere(ctx, catalog.InitCluster{Cluster: *c.id.Bootstrap}); err != nil {
			return err
		}
	}
	if nodes > 0 {
		return nil
	}
	self := c.cfg.Self
	self.At = time.Now().UTC()
	return c.applyHere(ctx, self)
}

// applyHere proposes a command on this node, which must lead, and makes a refusal an error.
func (c *Controller) applyHere(ctx context.Context, cmd catalog.Command) error {
	body, err := catalog.Encode(cmd)
	if err != nil {
		return err
	}
	if body, err = c.stamp(cmd, body); err != nil {
		return err
	}
	result, err := c.apply(ctx, body)
	if err != nil {
		return err
	}
	if result.Err != nil {
		return result.Err
	}
	return nil
}
