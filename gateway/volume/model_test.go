package volume_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
	"github.com/storaged/storaged/internal/history"
	"github.com/storaged/storaged/replication/op"
)

// cellBytes is the unit of the histories: a quarter of a block, so that most requests are partial blocks.
const cellBytes = block / 4

// chaos is one random run: clients on two gateways of one volume, and what happens to their calls.
type chaos struct {
	seed              uint64
	clients, steps    int
	cells             int64 // around the edge of two extents
	lost, late, dup   float64
	expire, reconnect float64
}

func drawChaos(t *rapid.T) chaos {
	p := rapid.Float64Range(0, 0.2)
	return chaos{
		seed:      rapid.Uint64().Draw(t, "seed"),
		clients:   rapid.IntRange(2, 6).Draw(t, "clients"),
		steps:     rapid.IntRange(5, 40).Draw(t, "steps"),
		cells:     rapid.Int64Range(2, 24).Draw(t, "cells"),
		lost:      p.Draw(t, "lost"),
		late:      p.Draw(t, "late"),
		dup:       p.Draw(t, "duplicates"),
		expire:    p.Draw(t, "expire") / 4,
		reconnect: p.Draw(t, "reconnect"),
	}
}

// Guards I1 and I3 as a whole: random reads, writes, zeroes and discards of several clients on two gateways, with lost,
// delayed and duplicated calls, expired sessions, clients that leave and come back, are linearizable per cell.
// Line: try (write.go) encodes f.seq for every attempt. Tried: a new number for each attempt is found within 100 runs.
// What needs a particular order of events has tests of its own.
func TestHistoriesAreLinearizable(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ch := drawChaos(rt)
		var err error
		synctest.Test(t, func(t *testing.T) { err = ch.run(t) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func (ch chaos) run(t *testing.T) error {
	c := fake(t)
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(ch.seed, 1))
	c.SetFault(func(call volumetest.Call) volumetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		return ch.fault(rng, call)
	})
	h := history.New()
	gateways := []*volume.Gateway{start(t, c, nil), start(t, c, func(config *volume.Config) { config.Cluster = c.Start(2) })}
	errs := make(chan error, ch.clients)
	for i := range ch.clients {
		go func() {
			k := &client{chaos: ch, id: i, h: h, cluster: c, gateway: gateways[i%len(gateways)], rng: rand.New(rand.NewPCG(ch.seed, uint64(i)+2))}
			errs <- k.run(t.Context())
		}()
	}
	var err error
	for range ch.clients {
		err = errors.Join(err, <-errs)
	}
	c.SetFault(nil)
	<-time.After(time.Minute) // virtual: every late copy has arrived
	last := &client{chaos: ch, id: ch.clients, h: h, cluster: c, gateway: gateways[0], rng: rng}
	err = errors.Join(err, last.readAll(t.Context()))
	return errors.Join(err, h.Check(10*time.Second).Err())
}

func (ch chaos) fault(rng *rand.Rand, call volumetest.Call) volumetest.Fault {
	var f volumetest.Fault
	switch p := rng.Float64(); {
	case p < ch.lost/3:
		return volumetest.Fault{Err: volumetest.Unavailable("scripted")}
	case p < ch.lost/2:
		return volumetest.Fault{Err: volumetest.NotLeader()}
	case p < ch.lost:
		f.LoseAnswer = true
	}
	if rng.Float64() < ch.late {
		f.Delay = time.Duration(rng.Int64N(int64(3 * time.Second)))
	} else {
		f.Delay = time.Duration(rng.Int64N(int64(3 * time.Millisecond)))
	}
	if call.Method == volumetest.Propose && rng.Float64() < ch.dup {
		f.Duplicate = time.Duration(1 + rng.Int64N(int64(5*time.Second)))
	}
	f.FlipBit = rng.Float64() < ch.lost/50
	return f
}

// client makes one request at a time.
type client struct {
	chaos
	id      int
	h       *history.History
	cluster *volumetest.Cluster
	gateway *volume.Gateway
	v       *volume.Volume
	rng     *rand.Rand
}

// base is where the cells begin: they lie on both sides of an extent's edge.
func (k *client) base() int64 { return extent - k.cells/2*cellBytes/block*block }

func (k *client) run(ctx context.Context) (err error) {
	for range k.steps {
		if k.v == nil || k.rng.Float64() < k.reconnect {
			if k.v != nil {
				k.v.Detach()
			}
			if k.v, err = k.gateway.Open(ctx, "data", volume.OpenOptions{Access: storage.AccessShared}); err != nil {
				return err
			}
		}
		if k.rng.Float64() < k.expire {
			k.disturb()
		}
		if err := k.step(ctx); err != nil {
			return err
		}
	}
	k.v.Detach()
	return nil
}

func (k *client) disturb() {
	switch k.rng.IntN(3) {
	case 0:
		k.cluster.Expire("data")
	case 1:
		k.cluster.ExpireIn("data", storage.GroupID(1+k.rng.IntN(3)))
	case 2:
		k.cluster.RaiseEpoch("data")
	}
}

// step makes one request over some cells. Some requests' contexts end early, as when a connection dies.
func (k *client) step(ctx context.Context) error {
	if k.rng.IntN(8) == 0 {
		c, cancel := context.WithTimeout(ctx, time.Duration(k.rng.IntN(5))*time.Millisecond)
		defer cancel()
		ctx = c
	}
	first := k.rng.Int64N(k.cells)
	n := 1 + k.rng.Int64N(min(k.cells-first, 9))
	off, length := k.base()+first*cellBytes, n*cellBytes
	var err error
	switch k.rng.IntN(6) {
	case 0, 1:
		return k.read(ctx, first, n)
	case 2:
		pending := k.begin(first, n, true)
		err = k.v.WriteZeroes(ctx, off, length, k.rng.IntN(2) == 0)
		finish(pending, err)
	case 3:
		// Only whole blocks are discarded, so only those are recorded.
		first = (first + 3) / 4 * 4
		if n = (k.cells - first) / 4 * 4; n <= 0 {
			return nil
		}
		pending := k.begin(first, n, true)
		err = k.v.Discard(ctx, k.base()+first*cellBytes, n*cellBytes)
		finish(pending, err)
	default:
		p := make([]byte, length)
		pending := k.begin(first, n, false)
		for i := range pending {
			history.Fill(p[int64(i)*cellBytes:][:cellBytes], pending[i].value)
		}
		err = k.v.WriteAt(ctx, p, off)
		clear(p) // the buffer is the caller's again
		finish(pending, err)
	}
	return expected(err)
}

type pendingWrite struct {
	history.Pending
	value uint64
}

func (k *client) begin(first, n int64, zero bool) (pending []pendingWrite) {
	for i := range n {
		var value uint64
		if !zero {
			value = k.h.NextValue()
		}
		pending = append(pending, pendingWrite{k.h.BeginWrite(k.id, first+i, value), value})
	}
	return pending
}

func finish(pending []pendingWrite, err error) {
	for _, p := range pending {
		if err == nil {
			p.Wrote()
		}
	}
}

func (k *client) read(ctx context.Context, first, n int64) error {
	pending := make([]history.Pending, n)
	for i := range pending {
		pending[i] = k.h.BeginRead(k.id, first+int64(i))
	}
	p := make([]byte, n*cellBytes)
	if err := k.v.ReadAt(ctx, p, k.base()+first*cellBytes); err != nil {
		return expected(err)
	}
	for i := range pending {
		value, whole := history.Value(p[int64(i)*cellBytes:][:cellBytes])
		if !whole {
			return fmt.Errorf("cell %d is torn", first+int64(i))
		}
		pending[i].Saw(value)
	}
	return nil
}

func (k *client) readAll(ctx context.Context) (err error) {
	if k.v, err = k.gateway.Open(ctx, "data", volume.OpenOptions{Access: storage.AccessShared}); err != nil {
		return err
	}
	return k.read(ctx, 0, k.cells)
}

// expected passes on errors that no scripted fault explains.
func expected(err error) error {
	if errors.Is(err, storage.ErrCanceled) || errors.Is(err, storage.ErrCorrupt) {
		return nil
	}
	return err
}

// Splitting a range: the parts cover exactly the range, in order, each within one extent and one entry.
func TestSplitCoversTheRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := volumeOfParts{}
		off := rapid.Int64Range(0, 20<<20).Draw(t, "off")
		n := rapid.Int64Range(1, 20<<20).Draw(t, "n")
		v.check(t, off, n)
	})
}

// volumeOfParts checks what reaches the groups of a fake cluster for one range.
type volumeOfParts struct{}

func (volumeOfParts) check(t *rapid.T, off, n int64) {
	c := volumetest.New()
	defer c.Close()
	c.CreateVolume("data", 64<<20, 1)
	g, err := volume.New(volume.Config{Cluster: c.Start(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	v, err := g.Open(context.Background(), "data", volume.OpenOptions{Access: storage.AccessShared})
	if err != nil {
		t.Fatal(err)
	}
	for x := int64(0); x < 64<<20; x += extent { // what holds nothing is not cleared
		if err := v.WriteAt(context.Background(), make([]byte, block), x); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	covered := map[int64]int64{} // begin -> end
	c.OnApply(func(a volumetest.Applied) {
		mu.Lock()
		defer mu.Unlock()
		if a.Op.Kind != op.Write && a.Op.Kind != op.Clear {
			return
		}
		if _, blocks := a.Op.Blocks(); a.Op.Kind == op.Write && blocks*block > storage.MaxEntryPayloadBytes {
			t.Errorf("an entry of %d blocks", blocks)
		}
		begin := int64(a.Op.Extent)*extent + int64(a.Op.Offset)
		covered[begin] = begin + int64(a.Op.Length)
	})
	if rapid.Bool().Draw(t, "zero") {
		err = v.WriteZeroes(context.Background(), off, n, false)
	} else {
		err = v.WriteAt(context.Background(), make([]byte, n), off)
	}
	if err != nil {
		t.Fatal(err)
	}
	for at := off; at < off+n; {
		next, ok := covered[at]
		if !ok {
			t.Fatalf("no part begins at %d", at)
		}
		delete(covered, at)
		at = next
		if at > off+n {
			t.Fatalf("a part ends at %d, past %d", at, off+n)
		}
	}
	if len(covered) != 0 {
		t.Fatalf("parts outside the range: %v", covered)
	}
}
