package placement

import (
	"fmt"
	"slices"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// StepKind says what a Step is.
type StepKind uint8

// The kinds of steps. Those marked (catalog) are commands, the others are orders to nodes.
const (
	StepNone       StepKind = iota // nothing to do now; Reason says why if the group is not as wanted
	StepBootstrap                  // Node makes the group's first replica, Key
	StepSetReady                   // (catalog) the group was bootstrapped
	StepPlan                       // (catalog) a replica is planned on Node, Store
	StepCreate                     // Node makes replica Key by pulling a manifest from Leader
	StepAddLearner                 // Leader adds Key on Node as non-voter
	StepPromote                    // Leader makes Key on Node a voter, and then Also, back to back
	StepSetRole                    // (catalog) replica Key is recorded as Role
	StepTransfer                   // Leader hands leadership to Key on Node
	StepRemove                     // Leader takes Key out of the configuration
	StepDrop                       // Node deletes what it holds of replica Key
	StepForget                     // (catalog) replica Key is removed
)

var stepNames = [...]string{StepNone: "none", StepBootstrap: "bootstrap", StepSetReady: "set ready", StepPlan: "plan",
	StepCreate: "create", StepAddLearner: "add learner", StepPromote: "promote", StepSetRole: "set role",
	StepTransfer: "transfer", StepRemove: "remove", StepDrop: "drop", StepForget: "forget"}

// String returns the kind in words, as in logs and metrics.
func (k StepKind) String() string {
	if int(k) < len(stepNames) {
		return stepNames[k]
	}
	return "unknown"
}

// Step is the next safe thing to do for a group.
type Step struct {
	Kind  StepKind
	Group storage.GroupID
	Node  storage.NodeID
	Store storage.StoreID
	Key   storage.ReplicaKey
	Role  storage.ReplicaRole
	// Stays: with StepSetRole, it was to leave.
	Stays bool
	// Leader is the node that leads the group; ConfigIndex is the configuration that was looked at.
	Leader      storage.NodeID
	ConfigIndex uint64
	// Also are further replicas that StepPromote makes voters in the same go.
	Also   []Member
	Reason string
}

// Next returns the next step of a group: at most one change, safe by itself.
func Next(v View, g storage.Group) Step {
	p := planner{v: v, g: g}
	if g.State == storage.GroupCreating {
		return p.bootstrap()
	}
	var ok bool
	if p.leaderNode, p.leader, ok = v.Leader(g); !ok {
		return p.none("nobody leads it, or its leader is not heard of")
	}
	// Guards I1 and I7: in a configuration that is lost again, a voter whose data was deleted votes after all.
	if !p.leader.committed() {
		return p.none("its newest configuration is not committed yet")
	}
	for _, decide := range []func() (Step, bool){p.record, p.orphan, p.stay, p.leave, p.giveUp, p.promote, p.join, p.stray, p.plan} {
		if s, ok := decide(); ok {
			return s
		}
	}
	return p.none(p.waiting)
}

// planner decides the step of one group.
type planner struct {
	v          View
	g          storage.Group
	leaderNode storage.NodeID
	leader     ReplicaReport
	waiting    string // what the group waits for
}

func (p *planner) none(reason string) Step {
	return Step{Kind: StepNone, Group: p.g.ID, Reason: reason}
}

func (p *planner) step(kind StepKind, r storage.Replica) Step {
	return Step{Kind: kind, Group: p.g.ID, Node: r.Node, Store: r.Key.Store, Key: r.Key, Leader: p.leaderNode,
		ConfigIndex: p.leader.ConfigIndex}
}

// bootstrap has the first replica made. The group holds no data before it is ready, so asking again is safe.
func (p *planner) bootstrap() Step {
	r := p.g.Replicas[0]
	if report, ok := p.v.Reports[r.Node].Replica(p.g.ID, r.Key); ok && report.State == ReplicaLeader && report.committed() {
		return p.step(StepSetReady, r)
	}
	if !p.v.works(r.Node) {
		return p.none("node " + r.Node.String() + ", which is to hold its first replica, is not heard of")
	}
	return p.step(StepBootstrap, r)
}

// record brings the roles in the catalog in step with the configuration, which is the truth. A recorded voter that is a
// learner, or absent, in a configuration older than the record will be one in the next report. In a newer one it is not, and
// never will be: another replica takes its place.
func (p *planner) record() (Step, bool) {
	for _, r := range p.g.Replicas {
		m, in := p.leader.Member(r.Key)
		role := storage.RoleLearner
		if m.Voter {
			role = storage.RoleVoter
		}
		switch {
		case in && r.Role != role && r.Role != storage.RoleLeaving && r.Role != storage.RoleVoter:
			s := p.step(StepSetRole, r)
			s.Role = role
			return s, true
		case r.Role != storage.RoleVoter || in && m.Voter:
		case p.leader.ConfigIndex == 0 || p.leader.ConfigIndex < r.ConfigIndex: // not known, or older
			return p.none("the leader's configuration is older than the catalog's record"), true
		default: // recorded by a version of storaged that did not wait for the commit
			s := p.step(StepSetRole, r)
			s.Role, s.Reason = storage.RoleLeaving, "the configuration that made it a voter was lost with its leader"
			return s, true
		}
	}
	return Step{}, false
}

// leave takes replicas out that are marked as leaving.
func (p *planner) leave() (Step, bool) {
	for _, r := range p.g.Replicas {
		if r.Role != storage.RoleLeaving {
			continue
		}
		m, in := p.leader.Member(r.Key)
		switch {
		case !in:
			return p.drop(r), true
		case !m.Voter:
			return p.step(StepRemove, r), true
		case p.well(r) && p.sound() < p.wanted():
			p.waiting = "replica " + r.Key.String() + " leaves once as many others as are wanted have caught up"
		case !p.spare(r) && !p.inTheWay(r) && !p.departed(r):
			p.waiting = "replica " + r.Key.String() + " leaves once another voter has taken its place"
		case r.Key == p.leader.Key:
			return p.handOver()
		default:
			return p.step(StepRemove, r), true
		}
	}
	return Step{}, false
}

// wanted returns how many voters the group should have. What its members on draining nodes hold is replaced one for one: with nodes that
// were lost meanwhile, fewer would be wanted than there are, and the last good copies would go with the node that drains.
func (p *planner) wanted() int {
	for _, m := range p.leader.Members {
		if n, known := p.v.node(m.Node); known && m.Voter && n.Intent == storage.IntentDrain {
			voters := 0
			for _, o := range p.leader.Members {
				if o.Voter {
					voters++
				}
			}
			return max(p.v.Wanted(), catalog.OddAtMost(voters))
		}
	}
	return p.v.Wanted()
}

// spare reports whether the group can do without the voter: as many others as are wanted, a majority of them caught
// up now.
func (p *planner) spare(r storage.Replica) bool {
	others, quorum := p.without(r.Key)
	return others >= p.wanted() && quorum
}

// without returns how many voters there are beside one, and whether a majority of them has caught up now.
func (p *planner) without(key storage.ReplicaKey) (others int, quorum bool) {
	well := 0
	for _, m := range p.leader.Members {
		if !m.Voter || m.Key == key {
			continue
		}
		others++
		if p.v.caughtUp(p.g, p.leader, m) {
			well++
		}
	}
	return others, others > 0 && well >= others/2+1
}

func (p *planner) handOver() (Step, bool) {
	for _, m := range p.leader.Members {
		r, ok := p.g.Replica(m.Key)
		if ok && m.Voter && r.Role == storage.RoleVoter && m.Node != p.leaderNode && p.v.caughtUp(p.g, p.leader, m) {
			return p.step(StepTransfer, r), true
		}
	}
	p.waiting = "its leader leaves once another voter has caught up"
	return Step{}, false
}

// drop deletes what the node of a replica that left still holds, if the node can be asked. What a node that cannot
// be asked holds is dropped when it is back; see stray.
func (p *planner) drop(r storage.Replica) Step {
	report, heard := p.v.Reports[r.Node]
	n, known := p.v.node(r.Node)
	if _, holds := report.Replica(p.g.ID, r.Key); heard && holds && p.v.storeWorks(r.Node, r.Key.Store) {
		return p.step(StepDrop, r)
	}
	if !heard && known && n.State != storage.NodeDown && n.State != storage.NodeRemoved {
		return p.none("node " + n.Name + " is not heard of and holds a replica that left")
	}
	return p.step(StepForget, r)
}

// promote makes learners that have caught up voters, so that the number of voters is odd again afterwards.
func (p *planner) promote() (Step, bool) {
	var ready []storage.Replica
	voters, leaving := 0, 0
	for _, m := range p.leader.Members {
		r, known := p.g.Replica(m.Key)
		switch {
		case m.Voter && known && (r.Role == storage.RoleLeaving || p.drainsAlone(r)):
			voters++
			leaving++
		case m.Voter:
			voters++
		case known && r.Role == storage.RoleLearner && p.v.caughtUp(p.g, p.leader, m):
			ready = append(ready, r)
		}
	}
	missing := p.wanted() - (voters - leaving)
	take := min(missing, len(ready))
	if leaving == 0 && (voters+take)%2 == 0 { // an even number only while a leaving voter is being replaced
		take--
	}
	if take <= 0 {
		if missing > 0 {
			p.waiting = fmt.Sprintf("%d of %d voters; new replicas become voters together, once they have caught up",
				voters, p.wanted())
		}
		return Step{}, false
	}
	slices.SortFunc(ready, func(a, b storage.Replica) int { return int(a.Key.Incarnation) - int(b.Key.Incarnation) })
	s := p.step(StepPromote, ready[0])
	for _, r := range ready[1:take] {
		s.Also = append(s.Also, Member{Key: r.Key, Node: r.Node, Voter: true})
	}
	return s, true
}

// join brings planned replicas into the configuration as learners.
func (p *planner) join() (Step, bool) {
	for _, r := range p.g.Replicas {
		_, in := p.leader.Member(r.Key)
		if in || r.Role != storage.RolePulling && r.Role != storage.RoleLearner {
			continue
		}
		if !p.v.works(r.Node) {
			p.waiting = "node " + r.Node.String() + ", which is to hold a new replica, is not heard of"
			continue
		}
		report, holds := p.v.Reports[r.Node].Replica(p.g.ID, r.Key)
		switch {
		case holds && report.OutOfService():
			p.waiting = "replica " + r.Key.String() + " is " + string(report.State)
		case holds && report.State == ReplicaPulling:
			p.waiting = "replica " + r.Key.String() + " pulls"
		case holds && report.Last > 0: // it was brought up: an empty replica must not join
			return p.step(StepAddLearner, r), true
		default:
			return p.step(StepCreate, r), true
		}
	}
	return Step{}, false
}

// plan chooses the place of a missing replica.
func (p *planner) plan() (Step, bool) {
	if len(p.g.Replicas)-p.g.Count(storage.RoleLeaving)-p.toReplace() >= p.wanted() {
		return Step{}, false
	}
	on := terms{full: nearlyFull}
	if slices.ContainsFunc(p.g.Replicas, func(r storage.Replica) bool { return r.Role == storage.RoleLeaving && p.well(r) }) {
		on = moving(nil) // to where ReplicaMoves meant it to go
	}
	node, store, err := choose(p.v, p.g.Replicas, p.leader.LiveBytes, on)
	if err != nil {
		if !strings.HasSuffix(p.waiting, err.Error()) { // else it says for which replica, too
			p.waiting = err.Error()
		}
		return Step{}, false
	}
	return p.step(StepPlan, storage.Replica{Node: node, Key: storage.ReplicaKey{Store: store}}), true
}
