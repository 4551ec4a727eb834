package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication"
)

// faults are what may strike. Each undoes what it did before it returns, but for processes that start again in the
// background. The first ones are what the world does; the later ones are rows of events that an attacker of one rule
// would choose, because chance needs long to find them.
var faults = map[string]func(r *run, s Step){
	"kill":            (*run).faultKill,
	"power":           (*run).faultPower,
	"power all":       (*run).faultPowerAll,
	"restart":         (*run).faultRestart,
	"pause":           (*run).faultPause,
	"pause leader":    func(r *run, s Step) { s.A = r.leaderIndex(s.Group, s.A); r.faultPause(s) },
	"isolate":         (*run).faultIsolate,
	"leader alone":    func(r *run, s Step) { s.A = r.leaderIndex(s.Group, s.A); r.faultIsolate(s) },
	"cut":             (*run).faultCut,
	"one way":         (*run).faultOneWay,
	"leader deaf":     (*run).faultLeaderDeaf,
	"leader mute":     (*run).faultLeaderMute,
	"slow link":       (*run).faultSlowLink,
	"reset":           (*run).faultReset,
	"reset storm":     (*run).faultResetStorm,
	"slow disk":       (*run).faultSlowDisk,
	"stalled disk":    (*run).faultStalledDisk,
	"gateway":         (*run).faultGateway,
	"transfer":        (*run).faultTransfer,
	"held, power all": (*run).faultHeldPower,
	"late vote":       (*run).faultLateVote,
	"late answers":    (*run).faultLateAnswers,
	"deaf transfer":   (*run).faultDeafTransfer,
	"slow merge":      (*run).faultSlowMerge,
	"torn twice":      (*run).faultTornTwice,
	"shrink and cut":  (*run).faultShrink,
	"lost answer":     (*run).faultLostAnswer,
	"late copy":       (*run).faultLateCopy,
	"stale look":      (*run).faultStaleLook,
}

// onlyAimed are faults that strike in aimed plans alone: they came later, and the plans of old seeds stay as they are.
var onlyAimed = []string{"lost answer", "late copy", "stale look"}

// faultNames are the faults that chance chooses from.
func faultNames() []string {
	var names []string
	for n := range faults {
		if !slices.Contains(onlyAimed, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// strike runs one track of faults.
func (r *run) strike(ctx context.Context, steps []Step) {
	for _, s := range steps {
		if !r.sleep(ctx, s.After) {
			return
		}
		r.note("%s: group %d a %d b %d for %v n %d", s.Fault, s.Group, s.A, s.B, s.For, s.N)
		faults[s.Fault](r, s)
	}
}

func (r *run) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// others returns the two nodes beside one.
func (r *run) others(n *node) (a, b *node) {
	i := int(n.id) - 1
	return r.nodes[(i+1)%3], r.nodes[(i+2)%3]
}

// leader returns the node that leads a group, or one that could.
func (r *run) leader(g storage.GroupID, otherwise int) *node {
	return r.nodes[r.leaderIndex(g, otherwise)]
}

func (r *run) leaderIndex(g storage.GroupID, otherwise int) int {
	best, term := otherwise, uint64(0)
	for i, n := range r.nodes {
		if s, ok := n.status(g); ok && s.Role == "leader" && s.Term > term {
			best, term = i, s.Term
		}
	}
	return best
}

func (n *node) status(g storage.GroupID) (replication.GroupStatus, bool) {
	p := n.p.Load()
	if p == nil {
		return replication.GroupStatus{}, false
	}
	for _, s := range p.replicas.Status() {
		if s.Group == g {
			return s, true
		}
	}
	return replication.GroupStatus{}, false
}

// take makes the caller the only one that kills or starts the machine; false if somebody else does.
func (n *node) take() bool {
	select {
	case n.busy <- struct{}{}:
		return true
	default:
		return false
	}
}

func (n *node) give() { <-n.busy }

// downFor ends the process now and starts another one after a while, in the background.
func (r *run) downFor(n *node, power bool, survivors int, d time.Duration) {
	if !n.take() {
		return
	}
	n.down(power, survivors)
	r.later.Go(func() {
		defer n.give()
		time.Sleep(d)
		if err := n.start(); err != nil {
			r.fail("%v", err)
		}
	})
}

func (r *run) faultKill(s Step) { r.downFor(r.nodes[s.A], false, 0, s.For/2) }

func (r *run) faultPower(s Step) { r.downFor(r.nodes[s.A], true, s.N, s.For/2) }

func (r *run) faultPowerAll(s Step) {
	for i, n := range r.nodes {
		r.downFor(n, true, s.N, s.For*time.Duration((i+s.A)%3)/3+time.Millisecond)
	}
	time.Sleep(s.For)
}

func (r *run) faultRestart(s Step) {
	n := r.nodes[s.A]
	if !n.take() {
		return
	}
	defer n.give()
	n.shutdown()
	time.Sleep(s.For / 4)
	if err := n.start(); err != nil {
		r.fail("%v", err)
	}
}

// upset does something to the disk of the process that runs on a node, and returns what undoes it: to the same disk,
// although that process may be stopping by then.
func (n *node) upset(do, undo func(d *disk)) (end func()) {
	p := n.p.Load()
	if p == nil {
		return func() {}
	}
	do(p.disk)
	return func() { undo(p.disk) }
}

func (n *node) stallSyncs() (end func()) {
	return n.upset(func(d *disk) { d.stallSyncs(true) }, func(d *disk) { d.stallSyncs(false) })
}

func (n *node) stallReads() (end func()) {
	return n.upset(func(d *disk) { d.stallReads(true) }, func(d *disk) { d.stallReads(false) })
}

func (n *node) slowSyncs(most time.Duration) (end func()) {
	return n.upset(func(d *disk) { d.setDelay(most) }, func(d *disk) { d.setDelay(n.r.plan.SyncDelay) })
}

func (r *run) faultPause(s Step) {
	n := r.nodes[s.A]
	r.net.Freeze(nodeName(n.id))
	syncs, reads := n.stallSyncs(), n.stallReads()
	time.Sleep(s.For)
	syncs()
	reads()
	r.net.Thaw(nodeName(n.id))
}

func (r *run) faultIsolate(s Step) {
	name := nodeName(r.nodes[s.A].id)
	r.net.Isolate(name)
	time.Sleep(s.For)
	r.net.Rejoin(name)
}

func (r *run) pair(s Step) (a, b string) {
	n := r.nodes[s.A]
	x, y := r.others(n)
	if s.B == 1 {
		x = y
	}
	return nodeName(n.id), nodeName(x.id)
}

func (r *run) faultCut(s Step) {
	a, b := r.pair(s)
	r.net.CutBoth(a, b)
	time.Sleep(s.For)
	r.net.HealBoth(a, b)
}

func (r *run) faultOneWay(s Step) {
	a, b := r.pair(s)
	r.net.Cut(a, b)
	time.Sleep(s.For)
	r.net.Heal(a, b)
}

func (r *run) faultReset(s Step) {
	a, b := r.pair(s)
	r.net.Reset(a, b)
}

// faultResetStorm loses answers: what was asked for is done, and asked for again.
func (r *run) faultResetStorm(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	for range 20 {
		r.net.Reset(nodeName(l.id), nodeName(a.id))
		r.net.Reset(nodeName(l.id), nodeName(b.id))
		time.Sleep(s.For / 20)
	}
}

// toLeader cuts or heals the way from both others to a node, fromLeader the way back.
func (r *run) toLeader(l *node, do func(from, to string)) {
	a, b := r.others(l)
	do(nodeName(a.id), nodeName(l.id))
	do(nodeName(b.id), nodeName(l.id))
}

func (r *run) fromLeader(l *node, do func(from, to string)) {
	r.toLeader(l, func(from, to string) { do(to, from) })
}

func (r *run) faultLeaderDeaf(s Step) {
	l := r.leader(s.Group, s.A)
	r.toLeader(l, r.net.Cut)
	time.Sleep(s.For)
	r.toLeader(l, r.net.Heal)
}

func (r *run) faultLeaderMute(s Step) {
	l := r.leader(s.Group, s.A)
	r.fromLeader(l, r.net.Cut)
	time.Sleep(s.For)
	r.fromLeader(l, r.net.Heal)
}

func (r *run) link() simnet.Link {
	return simnet.Link{Delay: r.plan.LinkDelay, Jitter: r.plan.LinkJitter}
}

func (r *run) slow(a, b string, d time.Duration) {
	r.net.SetLink(a, b, simnet.Link{Delay: d, Jitter: d})
}

func (r *run) faultSlowLink(s Step) {
	a, b := r.pair(s)
	r.slow(a, b, time.Duration(1+s.N)*5*time.Millisecond)
	if s.For%2 == 0 {
		r.slow(b, a, time.Duration(1+s.N)*5*time.Millisecond)
	}
	time.Sleep(s.For)
	r.net.SetLink(a, b, r.link())
	r.net.SetLink(b, a, r.link())
}

func (r *run) faultSlowDisk(s Step) {
	n := r.nodes[s.A]
	end := n.slowSyncs(time.Duration(1+s.N) * 5 * time.Millisecond)
	time.Sleep(s.For)
	end()
}

func (r *run) faultStalledDisk(s Step) {
	n := r.nodes[s.A]
	end := n.stallSyncs()
	time.Sleep(s.For)
	end()
}

func (r *run) faultGateway(s Step) {
	p := r.nodes[s.A].p.Load()
	if p == nil {
		return
	}
	p.closeGateway(s.B == 0)
	r.later.Go(p.openGateway)
}

// transfer asks the leader of a group to give its leadership to another node, and waits for the answer.
func (r *run) transfer(g storage.GroupID, from, to *node) {
	p := from.p.Load()
	st, ok := to.status(g)
	if p == nil || !ok {
		return
	}
	err := p.replicas.TransferLeadership(context.Background(), g, string(st.Self), to.id)
	r.note("group %d: transfer from node %d to node %d: %v", g, from.id, to.id, err)
}

func (r *run) faultTransfer(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	r.transfer(s.Group, l, pick2(a, b, s.B))
}

func pick2[T any](a, b T, i int) T {
	if i == 0 {
		return a
	}
	return b
}

// faultHeldPower stalls some disks, so that acknowledgements would have to be made up, and then cuts all power; the
// node whose disk was well comes back last.
func (r *run) faultHeldPower(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	stalled := []*node{a, b}
	if s.B == 1 {
		stalled = []*node{l, a}
	}
	for _, n := range stalled {
		defer n.stallSyncs()() // a power cut ends it before
	}
	time.Sleep(min(s.For, 600*time.Millisecond))
	for _, n := range r.nodes {
		wait := 10 * time.Millisecond
		if !slices.Contains(stalled, n) {
			wait = 3 * time.Second
		}
		r.downFor(n, true, 0, wait)
	}
	time.Sleep(3 * time.Second)
}

// faultLateVote attacks the promise of a process start: a follower that has just answered the leader forgets it by a
// restart, and could elect another one under the leader's lease. That one is written to while the leader is read.
//
// The third node stands for election once in a while, at times that only it knows. So the follower is restarted again and
// again, with the leader cut off for less than what would make it step down.
func (r *run) faultLateVote(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	if s.B == 1 {
		a, b = b, a
	}
	r.hush.Add(1) // or the third one's log falls behind, and it gets no vote
	defer r.hush.Add(-1)
	time.Sleep(50 * time.Millisecond)
	r.net.CutBoth(nodeName(l.id), nodeName(a.id))
	over, stop := context.WithCancel(context.Background())
	var reads sync.WaitGroup
	reads.Go(func() { // its gateway notices that the leader is silent, and will not wait for it
		for over.Err() == nil {
			r.probe(a, 902, probeRead, 0, 2*time.Second)
			r.sleep(over, 50*time.Millisecond)
		}
	})
	time.Sleep(2*time.Second + s.For/4) // its connections are given up, and it asks for votes
	defer reads.Wait()
	defer stop()
	for range 8 {
		r.net.CutBoth(nodeName(l.id), nodeName(b.id))
		r.downFor(b, false, 0, time.Millisecond)
		if r.awaitReady(a, s.Group, 330*time.Millisecond) {
			r.probe(a, 900, probeWrite, 0, 300*time.Millisecond)
			r.probe(l, 901, probeRead, 0, 200*time.Millisecond)
			break
		}
		r.net.HealBoth(nodeName(l.id), nodeName(b.id))
		time.Sleep(300 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	r.net.HealBoth(nodeName(l.id), nodeName(a.id))
	r.net.HealBoth(nodeName(l.id), nodeName(b.id))
	time.Sleep(500 * time.Millisecond)
}

// Clients from firstProbe on are the probes of attacks, those from firstFinal on read everything at the end.
const firstProbe, firstFinal = 900, 1000

// What the probes of an attack do, as a choice's what (operate).
const (
	probeRead  = 1
	probeWrite = 45
	probeMerge = 70
	// probeDiscard is of whole blocks.
	probeDiscard = 90
)

// probe is one operation on the block where crowds meet: all of it, or for a merge one cell.
func (r *run) probe(n *node, id, what int, cell int64, patience time.Duration) {
	first := hot[1] * cellsInBlock
	r.try(n, id, choice{what: what, blocks: span{first, cellsInBlock}, cells: span{first + cell, 1}, patience: patience})
}

// try does one operation through a node's gateway, if it serves.
func (r *run) try(n *node, id int, c choice) {
	p := n.p.Load()
	if p == nil {
		return
	}
	if g := p.serving(); g != nil {
		r.operate(g, id, c)
	}
}

// faultLateAnswers attacks the lease: answers reach the leader late, so that it hears of its followers for longer than
// they hear of it. Its successor is written to while the leader, which does not know yet, is read. A gateway that has asked the
// leader waits for its answer for longer than all of that takes; so the successor gets a new one.
func (r *run) faultLateAnswers(s Step) {
	l := r.leader(s.Group, s.A)
	late := 200*time.Millisecond + s.For/8
	r.toLeader(l, func(from, to string) { r.net.SetLink(from, to, simnet.Link{Delay: late}) })
	time.Sleep(time.Second)
	r.fromLeader(l, r.net.Cut)
	a, b := r.others(l)
	var next *node
	ready := func() bool { next = r.ready(s.Group); return next == a || next == b }
	if await(1500*time.Millisecond, ready) && r.reopen(next, 200*time.Millisecond) {
		r.probe(next, 921, probeWrite, 0, 200*time.Millisecond)
		r.probe(l, 922, probeRead, 0, 100*time.Millisecond)
	}
	time.Sleep(time.Second)
	r.fromLeader(l, r.net.Heal)
	r.toLeader(l, func(from, to string) { r.net.SetLink(from, to, r.link()) })
}

// faultDeafTransfer attacks the lease of a leader that has asked for a transfer and does not hear what came of it.
func (r *run) faultDeafTransfer(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	to := pick2(a, b, s.B)
	r.toLeader(l, r.net.Cut)
	var asked sync.WaitGroup
	asked.Go(func() { r.transfer(s.Group, l, to) })
	if r.awaitReady(to, s.Group, 200*time.Millisecond) {
		r.probe(to, 907, probeWrite, 0, 200*time.Millisecond)
		r.probe(l, 908, probeRead, 0, 100*time.Millisecond)
	}
	time.Sleep(min(s.For, time.Second))
	r.toLeader(l, r.net.Heal)
	asked.Wait()
}

// awaitReady waits for a node to lead a group, with its Barrier done.
func (r *run) awaitReady(n *node, g storage.GroupID, patience time.Duration) bool {
	return await(patience, func() bool {
		s, ok := n.status(g)
		return ok && s.Ready
	})
}

// faultSlowMerge attacks the term of merged blocks: the leader reads slowly what it merges, loses its leadership and
// gets it back meanwhile; the one that led in between has changed the rest of the block.
func (r *run) faultSlowMerge(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	to := pick2(a, b, s.B)
	r.hush.Add(1) // or what followers lack leaves memory, and they wait for the leader's disk, too
	defer r.hush.Add(-1)
	time.Sleep(20 * time.Millisecond)
	r.probe(l, 902, probeWrite, 0, 300*time.Millisecond)
	r.forget(l)
	end := l.stallReads()
	var slow sync.WaitGroup
	slow.Go(func() { r.probe(l, 903, probeMerge, 0, 3*time.Second) })
	time.Sleep(10 * time.Millisecond)
	r.transfer(s.Group, l, to)
	r.probe(to, 904, probeMerge, 2, 300*time.Millisecond)
	r.transfer(s.Group, to, l)
	time.Sleep(5 * time.Millisecond)
	end()
	slow.Wait()
	r.probe(l, 905, probeRead, 0, 300*time.Millisecond)
}

// forget writes so much elsewhere that the block of the probes leaves the memory of logs that keep smallCache.
func (r *run) forget(n *node) {
	elsewhere := span{hot[2] * cellsInBlock, 2 * cellsInBlock}
	for range smallCache/elsewhere.bytes() + 1 {
		r.try(n, 906, choice{what: probeWrite, blocks: elsewhere, patience: 300 * time.Millisecond})
	}
}

// faultTornTwice cuts the power of one node in short succession, with some of the unsynced bytes surviving every other
// time: what one cut left behind the log's end must not come back after the next. The node leads nothing, so that its new
// process is sent the same entries again, those of several groups in another order.
func (r *run) faultTornTwice(s Step) {
	n := r.nodes[s.A]
	a, b := r.others(n)
	for g := range storage.GroupID(r.plan.Groups) {
		if r.leader(g+1, s.A) == n {
			r.transfer(g+1, n, pick2(a, b, s.B))
		}
	}
	random := r.plan.rand(fmt.Sprint("torn twice", s.For))
	for i := range 10 {
		end := n.slowSyncs(20 * time.Millisecond)
		time.Sleep(between(random, 15*time.Millisecond, 80*time.Millisecond))
		end()
		r.downFor(n, true, []int{s.N, 0}[i%2], time.Millisecond)
		time.Sleep(3 * time.Millisecond)
	}
}

// faultShrink takes a group down to one voter while that one's disk is slow, and cuts its power as soon as it says so.
func (r *run) faultShrink(s Step) {
	m := r.members[s.Group-1]
	m.take()
	defer m.give()
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	if !r.removeNow(ctx, s.Group, a) {
		return
	}
	l = r.leader(s.Group, s.A)
	if l == a {
		return
	}
	if b == l {
		b = nil
		for _, n := range r.nodes {
			if n != l && n != a {
				b = n
			}
		}
	}
	var again sync.WaitGroup
	defer l.stallSyncs()()            // the power cut ends it before
	time.Sleep(20 * time.Millisecond) // writes gather in the leader's log
	again.Go(func() { r.removeNow(ctx, s.Group, b) })
	time.Sleep(30*time.Millisecond + s.For/20)
	r.downFor(l, true, 0, 100*time.Millisecond)
	again.Wait()
}
