package replication

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
)

// disk is one store as its groups see it: alive, silent or failed, and how much room it has. Whether it has failed is
// the store's to say, to everyone (extent.Store.Failed).
type disk struct {
	store  *extent.Store
	logger *slog.Logger
	// hungAfter is how old the oldest append or vote may be that is not durable, and for how long reads may wait without
	// one being answered: max(1 s, 2 x HeartbeatTimeout).
	hungAfter time.Duration

	onFail func()      // stops the disk's replicas, without waiting; may be nil
	hung   atomic.Bool // as of the last look

	pulls      pacer        // what pulls read from the disk, and write to it
	pulled     atomic.Int64 // bytes of blocks that pulls have brought
	unreadable unreadable
	stable     pendingSets
	room       diskRoom
	reads      *semaphore.Weighted // the disk's part of Config.ReadBytes: one that hangs does not hold the others'
	inflight   *semaphore.Weighted
	due        chan struct{} // a group's checkpoint is due
	stopOnce   sync.Once
}

// pacer is *pace.Pace.
type pacer interface {
	Wait(ctx context.Context, bytes int64) error
}

func newDisk(s *extent.Store, cfg *Config) *disk {
	return &disk{store: s, logger: cfg.Logger, pulls: s.PullPace(), hungAfter: max(time.Second, 2*cfg.HeartbeatTimeout),
		unreadable: unreadable{limit: cfg.UnreadableBlocks, window: cfg.UnreadableWindow},
		reads:      semaphore.NewWeighted(max(cfg.ReadBytes/int64(len(cfg.Stores)), storage.ExtentSize)),
		inflight:   semaphore.NewWeighted(cfg.StoreInFlightBytes), due: make(chan struct{}, 1),
		room: diskRoom{begun: time.Now()}}
}

// look refreshes what is too dear to ask for with every request. It is called a few times a second.
func (d *disk) look(now time.Time) {
	d.lookAtRoom(now)
	if err := d.store.Failed(); err != nil {
		d.stopReplicas(err)
	}
	since, pending := d.store.Log().OldestPending()
	if at, waits := d.stable.oldest(); waits && (!pending || at.Before(since)) {
		since, pending = at, true
	}
	if at, waits := d.store.Log().StalledReads(); waits && (!pending || at.Before(since)) {
		since, pending = at, true
	}
	hung := pending && now.Sub(since) > d.hungAfter
	if d.hung.Swap(hung) != hung {
		if hung {
			d.logger.Error("disk hangs: its replicas keep silent, so that others lead", "store", d.store.ID(),
				"unanswered_for", now.Sub(since))
		} else {
			d.logger.Info("disk answers again", "store", d.store.ID())
		}
	}
}

// silent reports that the replicas of this disk must not be heard: it has failed, or hangs.
func (d *disk) silent() bool { return d.hung.Load() || d.store.Failed() != nil }

// usable returns why nothing can be made or started on the disk, or nil.
func (d *disk) usable(op string) error {
	if err := d.store.Failed(); err != nil {
		return storage.E(op, storage.KindIO, "store "+d.store.ID().String(), fmt.Errorf("the disk has failed: %w", err))
	}
	return nil
}

// awaitRoom returns when the disk may take entries that change tables, or why not before ctx is done.
func (d *disk) awaitRoom(ctx context.Context) error {
	if !d.store.Crowded() {
		return nil
	}
	d.checkpointDue()
	return d.store.AwaitRoom(ctx)
}

// checkpointDue has the disk's groups asked soon whether their checkpoints are due. It does not block.
func (d *disk) checkpointDue() {
	select {
	case d.due <- struct{}{}:
	default: // the disk's turn is coming anyway
	}
}

// lookAtRoom refreshes what is known of the room.
func (d *disk) lookAtRoom(now time.Time) {
	appended := d.store.Log().AppendedBytes() // first: what comes meanwhile is taken off twice, and not never
	d.room.note(d.store.Space(), appended, now)
}

// grantBytes is what a node that leads groups on this disk is told of the room. Whenever as much was written as a segment holds, it is
// looked at anew: what was given back meanwhile counts, too.
func (d *disk) grantBytes() int64 {
	appended := d.store.Log().AppendedBytes()
	if appended-d.room.appended.Load() >= d.store.SegmentBytes() {
		d.lookAtRoom(time.Now())
	}
	return d.room.grant(appended)
}

func (d *disk) reserveBytes() int64 { return d.room.reserve.Load() }

// fail marks the disk failed for good. The process and its other disks live on.
func (d *disk) fail(err error) {
	d.store.Fail(err)
	if d.store.Failed() != nil { // what has no room while everything stops is no failure
		d.stopReplicas(err)
	}
}

// stopReplicas follows the failure of the disk, once.
func (d *disk) stopReplicas(err error) {
	d.stopOnce.Do(func() {
		d.logger.Error("disk failed: its replicas stop; replace it and start the node again", "store", d.store.ID(),
			"error", err)
		if d.onFail != nil {
			d.onFail()
		}
	})
}

// pendingSets knows since when writes of terms and votes wait for the disk.
type pendingSets struct {
	mu    sync.Mutex
	since map[int]time.Time // guarded by mu, like next
	next  int
}

func (p *pendingSets) begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since == nil {
		p.since = map[int]time.Time{}
	}
	n := p.next
	p.next++
	p.since[n] = time.Now()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.since, n)
	}
}

func (p *pendingSets) oldest() (since time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.since {
		if !ok || t.Before(since) {
			since, ok = t, true
		}
	}
	return since, ok
}
