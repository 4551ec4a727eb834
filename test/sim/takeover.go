package sim

import (
	"context"
	"errors"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/route"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/server/catalog"
)

// Takeover is a moment at which a host from outside takes a volume over from every gateway, and then leaves it to them.
type Takeover struct {
	After  time.Duration // pause before it
	Volume int
	// Stagger is how long one gateway after the other goes on without hearing of it.
	Stagger time.Duration
}

func (p *Plan) takeovers() (list []Takeover) {
	r := p.rand("takeovers")
	if r.IntN(3) > 0 {
		return nil
	}
	for range 1 + r.IntN(3) {
		list = append(list, Takeover{After: between(r, 200*time.Millisecond, 3*time.Second), Volume: r.IntN(p.Volumes),
			Stagger: between(r, 0, 1500*time.Millisecond)})
	}
	return list
}

// newsDelay is how late gateways hear of what happens to their volumes, so that it is the groups that fence them.
func (p *Plan) newsDelay() (d time.Duration) {
	for _, t := range p.Takeovers {
		d = max(d, t.Stagger)
	}
	return d
}

// takeOver takes volumes over while the load goes on. Guards I2: once it is acknowledged, nothing that was begun before has
// any effect.
//
// Line: the generation in admit (replication/extent/table/volume.go). Tried: without it the third schedule is not linearizable.
func (r *run) takeOver(ctx context.Context) {
	for _, t := range r.plan.Takeovers {
		if !r.sleep(ctx, t.After) {
			return
		}
		if err := r.takeOverOne(t); err != nil {
			r.fail("takeover of volume %d: %v", t.Volume, err)
			return
		}
	}
}

func (r *run) takeOverOne(t Takeover) error {
	r.fencings.Add(1)
	thief := storage.Holder{ID: "thief", Kind: storage.HolderHost}
	got, err := r.catalog.apply(catalog.Attach{Volume: storage.ByName(volumeName(t.Volume)), Holder: thief, Access: storage.AccessExclusive,
		TakeOver: true, At: time.Now().UTC()})
	if err != nil {
		return err
	}
	v := got.Volume
	r.note("volume %d is taken over: generation %s", t.Volume, v.Generation)
	for _, g := range v.Groups {
		if err := r.setGeneration(g, v.ID, v.Generation); err != nil {
			return err
		}
	}
	if _, err := r.catalog.apply(catalog.SetFenced{Volume: v.ID, Generation: v.Generation}); err != nil {
		return err
	}
	r.history.Cut(func(_ int, at int64) bool { return at>>40 == int64(t.Volume) })
	r.note("the takeover of volume %d is acknowledged", t.Volume)
	if _, err := r.catalog.apply(catalog.Detach{Volume: storage.ByID(v.ID), Holder: thief.ID, Closed: true, At: time.Now().UTC()}); err != nil {
		return err
	}
	for _, n := range r.nodes {
		if p := n.p.Load(); p != nil {
			p.closeGateway(false)
			r.later.Go(p.openGateway)
		}
		time.Sleep(t.Stagger / 3)
	}
	return nil
}

// setGeneration has a group refuse older generations, through whichever node answers, however long it takes.
func (r *run) setGeneration(g storage.GroupID, v storage.VolumeID, n storage.Generation) error {
	header := (&op.Op{Kind: op.SetGeneration, Volume: v, Generation: n}).AppendHeader(nil)
	last := errors.New("no node runs")
	for until := time.Now().Add(2 * time.Minute); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		for _, node := range r.nodes {
			p := node.p.Load()
			if p == nil {
				continue
			}
			router := route.New(route.Config{HeartbeatTimeout: heartbeatTimeout, Self: node.id, Own: p.replicas, Peers: p.peers,
				Replicas: func(storage.GroupID) []storage.NodeID { return r.ids() }})
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			result, err := router.Propose(ctx, g, [][]byte{header})
			cancel()
			if err == nil {
				err = result.Err("set generation", "group "+g.String())
			}
			if last = err; err == nil {
				return nil
			}
		}
	}
	return last
}
