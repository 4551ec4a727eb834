package sim

import (
	"fmt"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
)

// Attacks on what is sent twice, or late (I3). Two gateways write to one block; what one of them has sent comes to the
// group once more, or for the first time, after the other one's write has been acknowledged and read.

// faultLostAnswer attacks the window of a session. With a the gateway that hears no answer, and b another one:
//
//	a  changes a part of another block, under its number s-1; the leader's disk does not give back the rest of it
//	a  writes 1, under s; the group applies it, the answer is lost
//	b  reads 1              so that the write of 1 came before all that follows
//	b  writes 2, and hears that it is done
//	a  sends s again        it must be found in the window, and answered without being applied
//	b  reads                2; applied once more, s brings back 1
//
// Chance does not come by it, because each of these is needed. Without the first read nothing is wrong with a 1 at the
// end: the write of it is still under way. Without s-1 the window's low-water mark has passed s, and what is not above that
// mark is refused anyway. And nobody else may write in between. Between b's write and the second copy the group
// may get another leader, lose its leader's process, or all of its power but a's: the window must be there after each.
func (r *run) faultLostAnswer(s Step) {
	random := r.plan.rand(fmt.Sprint("lost answer", s.For))
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	if s.B == 1 {
		a, b = b, a
	}
	r.hush.Add(1)
	defer r.hush.Add(-1)
	time.Sleep(50 * time.Millisecond)
	var sent sync.WaitGroup
	defer r.holdNumber(&sent, l, a)()
	before, ok := l.status(s.Group)
	if !ok || before.Role != "leader" {
		return
	}
	r.toLeader(a, r.net.Cut) // a is heard, and hears nothing
	sent.Go(func() { r.probe(a, 910, probeWrite, 0, 10*time.Second) })
	if r.awaitApplied(l, s.Group, before.AppliedIndex, 300*time.Millisecond) {
		r.net.Isolate(nodeName(a.id)) // what it sends again comes later
		r.probe(b, 911, probeRead, 0, 300*time.Millisecond)
		r.probe(b, 912, probeWrite, 0, 300*time.Millisecond)
		r.betweenCopies(random.IntN(6), s, l, b)
		r.net.Reset(nodeName(a.id), nodeName(l.id)) // or the answer, which waits somewhere, would still come
		r.net.Reset(nodeName(a.id), nodeName(b.id))
		r.net.Rejoin(nodeName(a.id))
	}
	r.toLeader(a, r.net.Heal)
	time.Sleep(100 * time.Millisecond) // the second copy arrives
	r.awaitServing(b, 2*time.Second)
	r.probe(b, 913, probeRead, 0, 2*time.Second)
}

// holdNumber has a gateway send a change that waits for the leader's disk, so that its number is taken and not applied.
// end lets it go on, and waits for it and for what else is in sent.
func (r *run) holdNumber(sent *sync.WaitGroup, l, a *node) (end func()) {
	aside := span{hot[0] * cellsInBlock, cellsInBlock}
	r.try(l, 908, choice{what: probeWrite, blocks: aside, patience: 300 * time.Millisecond})
	r.forget(l)
	reads := l.stallReads()
	sent.Go(func() {
		r.try(a, 909, choice{what: probeMerge, cells: span{aside.first, 1}, patience: 10 * time.Second})
	})
	time.Sleep(5 * time.Millisecond)
	return func() {
		reads()
		sent.Wait()
	}
}

// betweenCopies is what happens to a group of l, b and an isolated node while a second copy is on its way.
func (r *run) betweenCopies(choice int, s Step, l, b *node) {
	switch choice {
	case 0:
		r.transfer(s.Group, l, b)
	case 1:
		r.downFor(l, false, 0, time.Millisecond)
	case 2:
		r.downFor(l, true, s.N, time.Millisecond)
		r.downFor(b, true, s.N, time.Millisecond)
	}
}

// faultLateCopy attacks the close of a session: what a gateway sent that was given up arrives after its successor, or
// another one, has written to the same block.
//
//	a   writes 1; it is stuck on its way to l, which leads
//	a   is given up and opened again, l's group being led by b: a's old session is closed
//	a'  writes 2, and hears that it is done
//	l   leads again, and gets a's write of 1, under a session that is closed: it must be refused
//	b   reads               2
func (r *run) faultLateCopy(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	if s.B == 1 {
		a, b = b, a
	}
	r.hush.Add(1)
	defer r.hush.Add(-1)
	time.Sleep(50 * time.Millisecond)
	p := a.p.Load()
	if p == nil {
		return
	}
	r.net.Cut(nodeName(a.id), nodeName(l.id))
	var sent sync.WaitGroup
	sent.Go(func() { r.probe(a, lateClient, probeWrite, 0, 0) })
	time.Sleep(5 * time.Millisecond)
	r.transfer(s.Group, l, b)
	p.closeGateway(true)
	sent.Wait()
	r.later.Go(p.openGateway)
	if r.awaitServing(a, 2*time.Second) {
		r.history.Cut(func(client int, _ int64) bool { return client == lateClient })
		r.probe(a, 915, probeWrite, 0, 500*time.Millisecond)
	}
	r.transfer(s.Group, b, l)
	r.net.Heal(nodeName(a.id), nodeName(l.id))
	time.Sleep(20 * time.Millisecond) // what was stuck arrives
	r.probe(b, 916, probeRead, 0, 2*time.Second)
}

// lateClient is who writes what arrives late.
const lateClient = 914

// faultStaleLook attacks clears of nothing (ADR 18): a gateway does not clear what a leader says is empty.
//
//	l  clears a range over two extents, and leads no more; nobody tells it
//	a  writes to the range, under the next leader, and hears that it is done
//	l  is asked by its own gateway to clear the range: its table says that nothing is there
//	b  reads               what a wrote, unless l's clear was done
func (r *run) faultStaleLook(s Step) {
	l := r.leader(s.Group, s.A)
	a, b := r.others(l)
	if s.B == 1 {
		a, b = b, a
	}
	r.hush.Add(1)
	defer r.hush.Add(-1)
	time.Sleep(50 * time.Millisecond)
	discard := choice{what: probeDiscard, blocks: span{hot[0] * cellsInBlock, 4 * cellsInBlock}, patience: 300 * time.Millisecond}
	r.try(l, 917, discard)
	r.net.Isolate(nodeName(l.id))
	if await(4*time.Second, func() bool { next := r.ready(s.Group); return next == a || next == b }) {
		r.probe(a, 918, probeWrite, 0, time.Second)
		r.try(l, 919, discard)
	}
	r.net.Rejoin(nodeName(l.id))
	r.probe(b, 920, probeRead, 0, time.Second)
}

// awaitApplied waits until a node has applied an entry after index.
func (r *run) awaitApplied(n *node, g storage.GroupID, index uint64, patience time.Duration) bool {
	return await(patience, func() bool {
		s, ok := n.status(g)
		return ok && s.AppliedIndex > index
	})
}

// awaitServing waits until a node's gateway serves.
func (r *run) awaitServing(n *node, patience time.Duration) bool {
	return await(patience, func() bool {
		p := n.p.Load()
		return p != nil && p.serving() != nil
	})
}

// reopen gives a node's gateway up, and waits until another one serves.
func (r *run) reopen(n *node, patience time.Duration) bool {
	p := n.p.Load()
	if p == nil {
		return false
	}
	p.closeGateway(true)
	r.later.Go(p.openGateway)
	return r.awaitServing(n, patience)
}

// await waits for a condition, and returns whether it came true.
func await(patience time.Duration, condition func() bool) bool {
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if condition() {
			return true
		}
	}
	return false
}
