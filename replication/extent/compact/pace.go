package compact

import (
	"context"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

// Room says how full a disk is. Bytes, unless the name says something else.
type Room struct {
	Free, Reserve int64
	// Used is what segments take that hold records. Coming is the part of them that is free with the next checkpoints.
	Used, Coming, SegmentBytes int64
	// Goal is what is to be free above the reserve; 0: see goal.
	Goal int64
	// LiveBlocks live in them; WrittenBlocks were written since the start.
	LiveBlocks, WrittenBlocks int64
}

// Garbage is what segments take beyond what their live blocks would, packed.
func (r *Room) Garbage() int64 {
	return max(0, r.Used-r.Coming-PackedBytes(r.LiveBlocks, r.SegmentBytes))
}

// above returns what is free above the reserve, or will be.
func (r *Room) above() int64 { return r.Free + r.Coming - r.Reserve }

// goal returns how much compaction wants to be free above the reserve: Goal, or a twelfth of what does not live, and some segments at least. The
// more is kept free, the fuller is the rest, and the more of each victim has to be copied.
func (r *Room) goal() int64 {
	if r.Goal > 0 {
		return r.Goal
	}
	slack := max(0, r.above()) + r.Garbage()
	return max(slack/goalPart, min(slack/2, LeastSegments*r.SegmentBytes))
}

const (
	// goalPart is which part of what does not live is kept free: with a twelfth about a tenth more is written, at any fill, than if all
	// room were used.
	goalPart = 12
	// idleAfter is how long nothing is written before there is time for what is not urgent.
	idleAfter = 5 * time.Second

	paceEvery = time.Second
	// roomEvery is how often the room is looked at: what is free of a small store would be written several times over in a second.
	roomEvery = paceEvery / 32
	// burst is what may be copied at once after a pause, as a part of the rate.
	burst = paceEvery / 32
	// leastBytes is what is copied in a second at least once it is to be done, and idleBytes while nobody writes.
	leastBytes, idleBytes = 8 << 20, 32 << 20
	// brakedBelow is from where on people are told of the brake.
	brakedBelow = 0.5
)

// need says what is to be done now.
type need uint8

const (
	nothing need = iota
	idle         // what costs little, because nobody writes
	due
	urgent
)

// pace decides whether blocks are copied, and how fast. The worker's goroutine owns it.
type pace struct {
	room    func() Room
	latency func() time.Duration // of syncs since it was asked last, see segment.Log.SyncLatency

	looked  time.Time
	seen    time.Time // when now was
	now     Room
	written int64     // blocks, at the last look
	quiet   time.Time // since when nothing is written
	clients float64   // bytes a second that clients write

	brake Brake

	tokens float64
	filled time.Time // when tokens were added last
	use    float64   // of the present victims
}

// look brings everything up to date: the room each roomEvery, the rest each paceEvery.
func (p *pace) look(now time.Time) need {
	if now.Sub(p.seen) >= roomEvery {
		p.seen, p.now = now, p.room()
	}
	passed := now.Sub(p.looked)
	if p.looked.IsZero() {
		p.quiet, passed = now, paceEvery
		p.written = p.now.WrittenBlocks
	} else if passed < paceEvery {
		return p.need(now)
	}
	p.looked = now
	n := p.now.WrittenBlocks - p.written
	p.written = p.now.WrittenBlocks
	if n > 0 {
		p.quiet = now
	}
	p.clients += (float64(n*storage.BlockSize)/passed.Seconds() - p.clients) / 2
	p.brake.Feel(p.latency())
	return p.need(now)
}

func (p *pace) need(now time.Time) need {
	switch above, goal := p.now.above(), p.now.goal(); {
	case above < goal/4:
		return urgent
	case above < 2*goal:
		return due
	case now.Sub(p.quiet) >= idleAfter:
		return idle
	}
	return nothing
}

// rate returns the bytes to be copied in a second. To keep up with clients, victims of which u lives are copied u/(1-u) times as fast
// as clients write; the less is free, the more is done ahead: as much as that at
// the goal, four times at half of it, nothing at twice of it.
func (p *pace) rate(now time.Time) float64 {
	least := 0.0
	if now.Sub(p.quiet) >= idleAfter { // whatever the need: what is half done would wait for clients to write
		least = idleBytes
	}
	keepUp := p.clients * p.use / (1 - min(p.use, MaxUse))
	part := float64(p.now.above()) / float64(max(1, p.now.goal()))
	if part >= 1 {
		return max(least, keepUp*max(0, 2-part)) * p.brake.Part()
	}
	return max(least, leastBytes, keepUp*(1+6*(1-part))) * p.brake.Part()
}

// fill adds the tokens of the time that has passed: those of burst at most, so that nothing is copied in bursts that clients feel.
func (p *pace) fill(now time.Time) {
	rate := p.rate(now)
	p.tokens = min(p.tokens+rate*now.Sub(p.filled).Seconds(), rate*burst.Seconds())
	p.filled = now
}

// wait returns when n bytes may be copied, at once if it is urgent.
func (p *pace) wait(ctx context.Context, n int64) error {
	p.brake.Use()
	for {
		now := time.Now()
		if p.look(now) == urgent {
			return ctx.Err()
		}
		if p.fill(now); p.tokens > 0 {
			p.tokens -= float64(n)
			return ctx.Err()
		}
		rest := paceEvery / 4
		if rate := p.rate(now); -p.tokens < rate*rest.Seconds() {
			rest = time.Duration(-p.tokens/rate*float64(time.Second)) + time.Millisecond
		}
		if err := clock.Sleep(ctx, rest); err != nil {
			return err
		}
	}
}
