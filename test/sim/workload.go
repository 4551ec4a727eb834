package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/history"
)

const (
	// cellBytes is the unit of the histories: a quarter of a block, so that partial blocks are written beside full ones.
	cellBytes    = 1 << 10
	cellsInBlock = storage.BlockSize / cellBytes
	volumeBytes  = 3 * storage.ExtentSize
)

// hot is where the clients meet: blocks around the border of two extents, and a few in the third.
var hot = []int64{storage.BlocksPerExtent - 2, storage.BlocksPerExtent - 1, storage.BlocksPerExtent, storage.BlocksPerExtent + 1,
	2*storage.BlocksPerExtent + 63, 2*storage.BlocksPerExtent + 64}

// runs of hot blocks that follow each other, for requests over several.
var hotRuns = [][2]int{{0, 4}, {4, 2}}

// span is a range of cells.
type span struct{ first, n int64 }

func (s span) off() int64   { return s.first * cellBytes }
func (s span) bytes() int64 { return s.n * cellBytes }

// cell names a cell of a volume in the history.
func cell(vol int, at int64) int64 { return int64(vol)<<40 | at }

// blocks draws one to three consecutive hot blocks.
func drawBlocks(r *rand.Rand, crowded bool) span {
	if crowded {
		return span{hot[1] * cellsInBlock, cellsInBlock}
	}
	run := hotRuns[r.IntN(len(hotRuns))]
	i := r.IntN(run[1])
	n := 1
	for n < 3 && i+n < run[1] && r.IntN(4) == 0 {
		n++
	}
	return span{hot[run[0]+i] * cellsInBlock, int64(n) * cellsInBlock}
}

// drawCells draws some cells within hot blocks, mostly of one block.
func drawCells(r *rand.Rand, crowded bool) span {
	s := drawBlocks(r, crowded)
	from := r.Int64N(s.n)
	return span{s.first + from, 1 + r.Int64N(min(s.n-from, 3))}
}

// client works until ctx is done, mostly through the gateway of one node.
func (r *run) client(ctx context.Context, id int) {
	random := r.plan.rand(fmt.Sprintf("client %d", id))
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Duration(random.Int64N(int64(r.plan.Think)))):
		case <-ctx.Done():
			return
		}
		n := r.nodes[id%len(r.nodes)]
		if random.IntN(8) == 0 {
			n = r.nodes[random.IntN(len(r.nodes))]
		}
		choice := drawChoice(random, r.plan.Volumes, r.plan.Crowded)
		if len(r.plan.Takeovers) > 0 {
			choice.what %= 90 // all discards write the same value: many that were cut off are too much for the checker
		}
		p := n.p.Load()
		if p == nil || r.hush.Load() > 0 {
			continue
		}
		if g := p.serving(); g != nil {
			r.operate(g, id, choice)
		}
	}
}

// choice is one operation that a client wants.
type choice struct {
	what     int // of 100
	vol      int
	blocks   span
	cells    span
	patience time.Duration // 0: for ever
}

func drawChoice(random *rand.Rand, volumes int, crowded bool) choice {
	c := choice{what: random.IntN(100), vol: random.IntN(volumes), blocks: drawBlocks(random, crowded), cells: drawCells(random, crowded)}
	if random.IntN(25) == 0 {
		c.patience = time.Duration(random.Int64N(int64(300 * time.Millisecond)))
	}
	return c
}

// operate does one operation and records it. What a gateway says that was killed or given up before is not believed: its
// outcome is unknown.
func (r *run) operate(g *gateway, id int, c choice) {
	ctx := g.ctx
	if c.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.patience)
		defer cancel()
	}
	v := g.volumes[c.vol]
	var err error
	switch {
	case c.what < 45:
		err = r.read(ctx, g, v, id, c)
	case c.what < 70:
		err = r.write(ctx, g, v, id, c.vol, c.blocks)
	case c.what < 90:
		err = r.write(ctx, g, v, id, c.vol, c.cells)
	case c.what < 94:
		err = r.zero(g, id, c.vol, c.blocks, func() error { return v.Discard(ctx, c.blocks.off(), c.blocks.bytes()) })
	default:
		s := c.cells
		if c.what%2 == 0 {
			s = c.blocks
		}
		err = r.zero(g, id, c.vol, s, func() error { return v.WriteZeroes(ctx, s.off(), s.bytes(), c.what%3 == 0) })
	}
	if firstProbe <= id && id < firstFinal {
		r.note("probe %d at node %d: %v", id, g.p.n.id, err)
	}
	r.judge(g, err)
	h := fnv.New64a()
	fmt.Fprintln(h, id, c, time.Since(r.began), err == nil)
	r.digest.Add(h.Sum64())
}

// judge fails the run on errors that nothing in it can explain.
func (r *run) judge(g *gateway, err error) {
	if err == nil || g.over.Load() || g.p.dead.Load() {
		return
	}
	switch storage.KindOf(err) {
	case storage.KindCanceled, storage.KindUnavailable:
	case storage.KindFenced:
		if r.fencings.Load() == 0 {
			r.fail("node %d: fenced, though nobody took the volume over: %v", g.p.n.id, err)
		}
	default:
		r.fail("node %d: unexpected error: %v", g.p.n.id, err)
	}
}

func (r *run) believed(g *gateway, err error) bool { return err == nil && !g.p.dead.Load() }

func (r *run) read(ctx context.Context, g *gateway, v *volume.Volume, id int, c choice) error {
	s := c.blocks
	if c.what%2 == 0 {
		s = c.cells
	}
	return r.readSpan(ctx, g, v, id, c.vol, s)
}

func (r *run) readSpan(ctx context.Context, g *gateway, v *volume.Volume, id, vol int, s span) error {
	pending := make([]history.Pending, s.n)
	for i := range pending {
		pending[i] = r.history.BeginRead(id, cell(vol, s.first+int64(i)))
	}
	buf := make([]byte, s.bytes())
	err := v.ReadAt(ctx, buf, s.off())
	if !r.believed(g, err) {
		return err
	}
	r.answered.Add(1)
	for i := range pending {
		value, ok := history.Value(buf[i*cellBytes:][:cellBytes])
		if !ok {
			r.fail("node %d: torn cell %d of volume %d", g.p.n.id, s.first+int64(i), vol)
		}
		pending[i].Saw(value)
		if firstProbe <= id && id < firstFinal {
			r.note("probe %d at node %d reads %d in cell %d", id, g.p.n.id, value, s.first+int64(i))
		}
	}
	return nil
}

func (r *run) write(ctx context.Context, g *gateway, v *volume.Volume, id, vol int, s span) error {
	buf := make([]byte, s.bytes())
	pending := make([]history.Pending, s.n)
	for i := range pending {
		value := r.history.NextValue()
		history.Fill(buf[i*cellBytes:][:cellBytes], value)
		pending[i] = r.history.BeginWrite(id, cell(vol, s.first+int64(i)), value)
		if firstProbe <= id && id < firstFinal {
			r.note("probe %d at node %d writes %d to cell %d", id, g.p.n.id, value, s.first+int64(i))
		}
	}
	err := v.WriteAt(ctx, buf, s.off())
	return r.wrote(g, pending, err)
}

func (r *run) zero(g *gateway, id, vol int, s span, do func() error) error {
	pending := make([]history.Pending, s.n)
	for i := range pending {
		pending[i] = r.history.BeginWrite(id, cell(vol, s.first+int64(i)), 0)
	}
	return r.wrote(g, pending, do())
}

func (r *run) wrote(g *gateway, pending []history.Pending, err error) error {
	if r.believed(g, err) {
		r.answered.Add(1)
		for _, p := range pending {
			p.Wrote()
		}
	}
	return err
}
