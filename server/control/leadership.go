package control

import (
	"context"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// leadership is one term of this node at the head of the catalog. What it remembers dies with it: a successor begins
// with every node and session seen at its own beginning.
type leadership struct {
	c     *Controller
	ctx   context.Context // of the term; done when it ends
	term  uint64
	since time.Time
	tasks *tasks

	mu       sync.Mutex // guards the fields below
	reports  map[storage.NodeID]heardReport
	backAt   map[storage.NodeID]time.Time    // when a node was heard first after a silence
	sessions map[storage.SessionID]time.Time // when a session was last named
	unfenced map[storage.VolumeID]time.Time  // since when a volume's generation waits to be refused to older ones everywhere
	settling map[storage.GroupID]time.Time   // when an order for the group ended
	moved    map[storage.GroupID]time.Time   // when the group's leader was last moved
	held     string                          // why nodes that are down for long are not replaced
	away     map[storage.NodeID]bool         // which are
	served   served                          // which nodes' gateways serve which volumes
	stays    time.Time                       // when the catalog could not be handed over last
	grew     time.Time                       // when a group more than at the start was added last
	evened   time.Time                       // when replicas to move were looked for last
}

// minLookGap is the shortest time between two looks at the cluster.
const minLookGap = 10 * time.Millisecond

type heardReport struct {
	report placement.NodeReport
	at     time.Time
}

func newLeadership(ctx context.Context, c *Controller, term uint64, now time.Time) *leadership {
	l := &leadership{c: c, ctx: ctx, term: term, since: now, reports: map[storage.NodeID]heardReport{},
		backAt: map[storage.NodeID]time.Time{}, sessions: map[storage.SessionID]time.Time{},
		settling: map[storage.GroupID]time.Time{}, moved: map[storage.GroupID]time.Time{}, served: served{}}
	l.tasks = newTasks(ctx, c.cfg.MaxTasks, c.cfg.Logger, l.ended)
	return l
}

// run reconciles until the term or ctx ends.
func (l *leadership) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		_, changed := l.c.fsm.next()
		select {
		case <-l.ctx.Done():
			return
		case <-timer.C:
		case <-l.c.wake:
		case <-changed:
		}
		if clock.Sleep(l.ctx, minLookGap) != nil { // changes and reports come in bursts
			return
		}
		if !l.c.inst.LeadsTerm(l.term) {
			return
		}
		now := time.Now()
		for _, t := range l.decide(now) {
			if l.tasks.start(t, now) {
				l.c.cfg.Logger.Debug("step", "object", t.key, "step", t.text)
			}
		}
		timer.Reset(clock.UntilNext(time.Now(), l.c.cfg.ReconcileInterval))
	}
}

// take notes a node's report.
func (l *leadership) take(r placement.NodeReport, now time.Time) {
	l.mu.Lock()
	old, ok := l.reports[r.Node]
	if !ok || now.Sub(old.at) > l.c.cfg.SuspectAfter {
		l.backAt[r.Node] = now
	}
	l.reports[r.Node] = heardReport{report: r, at: now}
	for _, id := range r.Sessions {
		if _, known := l.sessions[id]; known { // others are not the catalog's, or not yet
			l.sessions[id] = now
		}
	}
	l.mu.Unlock()
	l.c.Reconcile()
}

// heard returns what the nodes last said.
func (l *leadership) heard(now time.Time) map[storage.NodeID]placement.Heard {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[storage.NodeID]placement.Heard, len(l.reports))
	for id, r := range l.reports {
		out[id] = placement.Heard{Report: r.report, Age: now.Sub(r.at)}
	}
	return out
}

// ended is called when a task has ended.
func (l *leadership) ended(t task, err error) {
	l.c.metrics.step(t.kind, err)
	if t.kind == handOverKind && err != nil {
		l.mu.Lock()
		l.stays = time.Now()
		l.mu.Unlock()
	}
	l.c.Reconcile()
}

// decide looks at the catalog and the reports and returns what may be done next. It starts nothing.
func (l *leadership) decide(now time.Time) []task {
	l.mu.Lock()
	defer l.mu.Unlock()
	var todo []task
	l.c.fsm.view(func(s *catalog.State) {
		v := placement.NewView(s, l.freshLocked(now), now)
		v.Uses = l.served.uses(s, now, l.c.cfg.BalanceCooldown)
		todo = append(todo, l.nodesLocked(v, now)...)
		v.Away = l.awayLocked(v, now)
		todo = append(todo, l.maintenanceEnds(s, now)...)
		todo = append(todo, l.newGroupLocked(s, v, now)...)
		todo = append(todo, l.groupsLocked(v, now)...)
		todo = append(todo, l.balanceLocked(v, now)...)
		todo = append(todo, l.rebalanceLocked(v, now)...)
		todo = append(todo, l.sessionsLocked(s, now)...)
		todo = append(todo, l.fencesLocked(s, now)...)
		todo = append(todo, l.leftovers(s)...)
		todo = append(todo, l.deletions(s)...)
		todo = append(todo, l.votersLocked(v, now)...)
	})
	return todo
}

func (l *leadership) freshLocked(now time.Time) map[storage.NodeID]placement.NodeReport {
	fresh := make(map[storage.NodeID]placement.NodeReport, len(l.reports))
	for id, r := range l.reports {
		if now.Sub(r.at) <= l.c.cfg.SuspectAfter {
			fresh[id] = r.report
		}
	}
	return fresh
}

// propose is a task that applies a command. A command decided in one term is not proposed in another.
func (l *leadership) propose(key, kind string, cmd catalog.Command, text string) task {
	return task{key: key, kind: kind, text: text, run: func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, l.c.cfg.RequestTimeout)
		defer cancel()
		return l.c.applyHere(ctx, cmd)
	}}
}
