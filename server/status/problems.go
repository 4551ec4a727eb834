package status

import (
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// Problem is one reason why a node is not healthy or not ready.
type Problem struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

// Replica is one of this node's own: what is reported of it, and what its leader has told it.
type Replica struct {
	placement.ReplicaReport
	PullSteps    uint64    // that pulls into it have made since the start
	Leads        bool      // and has applied what the leaders before it committed
	LeaderCommit uint64    // the highest commit index that a leader has told it since it was started
	LeaderHeard  time.Time // when its own leader last told one; zero: not yet
}

// Unhealthy returns what is broken on this node for good.
func (v *View) Unhealthy() (ps []Problem) {
	if !v.Running() {
		return nil
	}
	if failed := v.Store().Failed; failed != "" {
		ps = append(ps, Problem{"store " + v.StoreDir, "the disk has failed: " + failed})
	}
	return ps
}

// Warnings returns faults on this node that others repair: damaged replicas come back as new members, clients close what
// they do not use.
func (v *View) Warnings() (ps []Problem) {
	if !v.Running() {
		return nil
	}
	for _, r := range v.Replicas() {
		if r.State == placement.ReplicaDamaged {
			ps = append(ps, Problem{groupSubject(r.Group), "this node's replica is out of service until the group has made it anew: " + r.Reason})
		}
	}
	for _, line := range v.Refusals() {
		ps = append(ps, Problem{"node", line})
	}
	return ps
}

// Unready returns what keeps this node from serving now, and what of its own share of the groups is not there yet.
func (v *View) Unready() []Problem {
	if !v.Running() {
		return []Problem{{"node", v.NotRunning()}}
	}
	o := own{now: time.Now(), self: v.Self, serving: v.Serving(), replicas: v.Replicas()}
	if second := v.Peers.Second(); second != nil {
		o.second = second.Error()
	}
	o.fresh = v.Catalog.View(func(s *catalog.State) { o.catalog = placement.NewView(s, nil, o.now) })
	o.unborn = v.unborn(o.fresh)
	return append(v.Unhealthy(), o.unready(&v.caughtUp)...)
}

// own is one look of this node at itself.
type own struct {
	now      time.Time
	self     storage.NodeID
	serving  bool
	second   string // that another process claims to be this node
	fresh    catalog.Freshness
	unborn   string // why this node has no catalog yet although nothing is lost
	catalog  placement.View
	replicas []Replica
}

// unready says what keeps the node from serving. caughtUp remembers which of its replicas have caught up.
func (o own) unready(caughtUp *readiness) (ps []Problem) {
	if !o.serving {
		ps = append(ps, Problem{"node", "it is starting or stopping"})
	}
	if o.second != "" {
		ps = append(ps, Problem{"node", o.second + "; this process keeps silent: stop one of the two"})
	}
	switch {
	case o.unborn != "":
		ps = append(ps, Problem{"catalog", o.unborn})
	case o.fresh.Leader == 0:
		ps = append(ps, Problem{"catalog", "it has no leader: a majority of its nodes must be up"})
	case o.fresh.Age == catalog.NeverHeard:
		ps = append(ps, Problem{"catalog", "not heard from its leader yet"})
	case len(o.catalog.Groups) == 0:
		ps = append(ps, Problem{"groups", "none yet"})
	}
	for _, g := range o.catalog.Groups {
		if g.State != storage.GroupReady {
			ps = append(ps, Problem{groupSubject(g.ID), "being made"})
		}
	}
	ps = append(ps, caughtUp.problems(o.now, o.self, o.catalog, o.replicas)...)
	for _, r := range o.replicas {
		if r.Leader == 0 && len(r.Members) > 0 {
			ps = append(ps, Problem{groupSubject(r.Group), "it has no leader"})
		}
	}
	return ps
}

func groupSubject(id storage.GroupID) string { return "group " + id.String() }
