package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
)

// Plan is everything that a seed decides: the shape of the cluster, what the clients want, and what strikes when.
type Plan struct {
	Seed            uint64
	Groups, Volumes int
	Clients         int
	Load            time.Duration // how long clients and faults go on
	Think           time.Duration // a client pauses at most so long between operations
	Crowded         bool          // all clients meet at one block
	GrowFirst       bool          // groups have three replicas before the load begins
	SyncDelay       time.Duration // a sync of the log takes at most so long
	LinkDelay       time.Duration
	LinkJitter      time.Duration
	SegmentBytes    int64
	Compact         bool // stores move blocks all the time
	CheckpointBytes int64
	RetainBytes     int64
	CacheBytes      int64
	LogCacheBytes   int64
	Members         [][]Member // by group: what happens to its membership
	Takeovers       []Takeover // one after the other
	Tracks          [][]Step   // faults; each track is one after the other, the tracks run beside each other
}

// Member is one change of a group's membership.
type Member struct {
	At     time.Duration // after the load began, or as soon as possible
	Remove bool
	Node   storage.NodeID
}

// Step is one fault.
type Step struct {
	After time.Duration // pause before it
	Fault string        // a name of the table in faults.go
	Group storage.GroupID
	A, B  int           // which nodes: meaning depends on the fault
	For   time.Duration // how long it lasts
	N     int           // percent of unsynced bytes that survive, or a choice of the fault
}

// rand returns a source of random choices for one part of a run, independent of all others.
func (p *Plan) rand(part string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(part))
	return rand.New(rand.NewPCG(p.Seed, h.Sum64()))
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// NewPlan draws a plan.
func NewPlan(seed uint64) *Plan {
	p := &Plan{Seed: seed}
	r := p.rand("plan")
	p.Groups = pick(r, 1, 1, 2, 3)
	p.Volumes = pick(r, 1, 1, 2)
	p.Clients = 3 + r.IntN(6)
	p.Load = between(r, 5*time.Second, 11*time.Second)
	p.Think = pick(r, 10*time.Millisecond, 30*time.Millisecond, 60*time.Millisecond)
	p.Crowded = r.IntN(3) == 0
	p.GrowFirst = r.IntN(5) > 0
	p.SyncDelay = pick(r, 500*time.Microsecond, 2*time.Millisecond, 8*time.Millisecond, 30*time.Millisecond)
	p.LinkDelay = pick(r, 50*time.Microsecond, 200*time.Microsecond, 2*time.Millisecond)
	p.LinkJitter = pick(r, 0, p.LinkDelay, 5*p.LinkDelay)
	p.SegmentBytes = pick[int64](r, 256<<10, 1<<20)
	p.CheckpointBytes = pick[int64](r, 64<<10, 512<<10, 64<<20)
	p.RetainBytes = pick[int64](r, -1, 64<<10, 16<<20)
	p.CacheBytes = pick[int64](r, 64<<10, 8<<20)
	p.LogCacheBytes = pick[int64](r, 1, 1<<20)
	if p.Compact = seed%2 == 0; p.Compact {
		p.SegmentBytes = 64 << 10
	}
	for g := range p.Groups {
		p.Members = append(p.Members, p.members(r, g))
	}
	for range 1 + r.IntN(3) {
		p.Tracks = append(p.Tracks, p.track(r))
	}
	p.Takeovers = p.takeovers()
	if seed%aimedEvery == aimedEvery-3 {
		p.Aim(aims[int(seed/aimedEvery)%len(aims)]) // so that few seeds have them all
	}
	return p
}

// aimedEvery: one in so many plans is aimed.
const aimedEvery = 8

// smallCache is what logs keep in memory in an aimed plan: the last few entries, so that old blocks are read from disks.
const smallCache = 32 << 10

// aims are the faults that a plan may be aimed at: rows of events that each need a quiet cluster and a good deal of luck.
var aims = []string{"deaf transfer", "late answers", "late copy", "late vote", "lost answer", "slow merge", "stale look"}

// Aim makes the plan repeat one fault, in a cluster with quick disks and links that nothing else happens to.
func (p *Plan) Aim(fault string) {
	r := p.rand("aim " + fault)
	p.Groups, p.Volumes, p.Crowded, p.GrowFirst = 1, 1, true, true
	p.Load = between(r, 6*time.Second, 10*time.Second)
	p.Think = pick(r, 10*time.Millisecond, 30*time.Millisecond)
	p.SyncDelay = pick(r, 500*time.Microsecond, 2*time.Millisecond)
	p.LinkDelay, p.LinkJitter = pick(r, 50*time.Microsecond, 200*time.Microsecond), 0
	p.CheckpointBytes, p.LogCacheBytes = 64<<20, smallCache
	p.Takeovers = nil
	p.Members = [][]Member{{{Node: 2}, {Node: 3}}}
	var steps []Step
	for range 20 {
		steps = append(steps, Step{After: between(r, 300*time.Millisecond, 900*time.Millisecond), Fault: fault,
			Group: 1, A: r.IntN(3), B: r.IntN(2), For: between(r, 50*time.Millisecond, 3*time.Second), N: pick(r, 30, 50, 60, 70)})
	}
	p.Tracks = [][]Step{steps}
}

// first is the node that a group begins on.
func first(group int) storage.NodeID { return storage.NodeID(group%3 + 1) }

func (p *Plan) members(r *rand.Rand, group int) (ms []Member) {
	a, b := storage.NodeID(int(first(group))%3+1), storage.NodeID((int(first(group))+1)%3+1)
	at := time.Duration(0)
	if !p.GrowFirst {
		at = between(r, 0, 2*time.Second)
	}
	ms = append(ms, Member{At: at, Node: a}, Member{At: at, Node: b})
	if r.IntN(3) > 0 {
		return ms
	}
	at += between(r, time.Second, 4*time.Second)
	gone := []storage.NodeID{storage.NodeID(r.IntN(3) + 1)}
	if r.IntN(2) == 0 { // down to one voter
		gone = append(gone, gone[0]%3+1)
	}
	for _, n := range gone {
		ms = append(ms, Member{At: at, Remove: true, Node: n})
	}
	at += between(r, 0, 2*time.Second)
	for _, n := range gone {
		ms = append(ms, Member{At: at, Node: n})
	}
	return ms
}

func (p *Plan) track(r *rand.Rand) (steps []Step) {
	names := faultNames()
	for at := time.Duration(0); at < p.Load; {
		s := Step{After: between(r, 0, 900*time.Millisecond), Fault: pick(r, names...), Group: storage.GroupID(r.IntN(p.Groups) + 1),
			A: r.IntN(3), B: r.IntN(2), For: between(r, 50*time.Millisecond, 3*time.Second), N: pick(r, 0, 0, 30, 60, 90)}
		at += s.After + s.For/2
		steps = append(steps, s)
	}
	return steps
}

// String lists the plan for people.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d groups, %d volumes, %d clients, %v of load, grown first: %v, sync up to %v, link %v+%v, segments of %d KiB, compacted: %v, "+
		"checkpoints every %d KiB, retain %d\n", p.Seed, p.Groups, p.Volumes, p.Clients, p.Load, p.GrowFirst, p.SyncDelay, p.LinkDelay,
		p.LinkJitter, p.SegmentBytes>>10, p.Compact, p.CheckpointBytes>>10, p.RetainBytes)
	for g, ms := range p.Members {
		fmt.Fprintf(&b, "  group %d begins on node %d:", g+1, first(g))
		for _, m := range ms {
			fmt.Fprintf(&b, " %v %s%d", m.At.Round(time.Millisecond), map[bool]string{true: "-", false: "+"}[m.Remove], m.Node)
		}
		b.WriteString("\n")
	}
	for _, t := range p.Takeovers {
		fmt.Fprintf(&b, "  takeover: +%v volume %d, heard of within %v\n", t.After.Round(time.Millisecond), t.Volume, t.Stagger.Round(time.Millisecond))
	}
	for i, t := range p.Tracks {
		for _, s := range t {
			fmt.Fprintf(&b, "  track %d: +%v %s group %d a %d b %d for %v n %d\n", i+1, s.After.Round(time.Millisecond), s.Fault, s.Group,
				s.A, s.B, s.For.Round(time.Millisecond), s.N)
		}
	}
	return b.String()
}
