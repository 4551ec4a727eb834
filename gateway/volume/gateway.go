package volume

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

// Gateway opens volumes. It is made by New and lives until Close.
type Gateway struct {
	config  Config
	budget  *semaphore.Weighted // bytes in flight
	metrics *metrics
	after   atomic.Uint64 // highest session id that the catalog has given to this gateway

	ctx      context.Context // ends when Close gives up waiting, or has finished
	cancel   context.CancelFunc
	attempts *attemptClock  // of what outlives a volume
	wg       sync.WaitGroup // retirements

	mu     sync.Mutex // taken before trunk.mu
	closed bool
	slots  map[trunkKey]*slot // of volumes that can be opened once more, or are being opened
	trunks map[*trunk]bool    // all that were not shut down

	throttles map[storage.VolumeID]*throttle // of the trunks
}

// slot is a volume at the gateway. The trunk is nil while it is being opened.
type slot struct {
	ready chan struct{} // closed when trunk is set, or the slot was removed
	trunk *trunk
}

// New returns a gateway. It fails with KindInvalid if the configuration does.
func New(config Config) (*Gateway, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.setDefaults()
	g := &Gateway{
		config: config,
		budget: semaphore.NewWeighted(config.GatewayBytes),
		slots:  map[trunkKey]*slot{},
		trunks: map[*trunk]bool{},

		throttles: map[storage.VolumeID]*throttle{},
	}
	var err error
	if g.metrics, err = newMetrics(&config); err != nil {
		return nil, storage.E("configure gateway", storage.KindInvalid, "metrics", err)
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.attempts = newAttemptClock(g.ctx, config.AttemptTimeout)
	return g, nil
}

// Stat describes a volume without opening it.
func (g *Gateway) Stat(ctx context.Context, name string) (storage.Volume, error) {
	return g.config.Cluster.Volume(ctx, name)
}

// List lists the volumes that can be opened.
func (g *Gateway) List(ctx context.Context) ([]storage.Volume, error) {
	return g.config.Cluster.Volumes(ctx)
}

// Open opens a volume: KindNotFound if there is none of that name. If this gateway does not serve it yet, Open opens a
// session in the catalog. Before it returns, it closes in every group the sessions that earlier instances of this
// gateway have left. The handle must be closed.
func (g *Gateway) Open(ctx context.Context, name string, options OpenOptions) (*Volume, error) {
	if err := storage.CheckVolumeName(name); err != nil {
		return nil, err
	}
	options, err := options.normal()
	if err != nil {
		return nil, storage.E("open", storage.KindInvalid, "volume "+name, err)
	}
	key := trunkKey{name: name, OpenOptions: options}
	for {
		t, wait, err := g.lookup(key)
		if err != nil {
			return nil, err
		}
		if t != nil {
			return &Volume{trunk: t, name: name}, nil
		}
		if wait == nil { // the slot is ours to fill
			if err := g.fill(ctx, key); err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, storage.E("open", storage.KindCanceled, "volume "+name, ctx.Err())
		}
	}
}

// normal returns the options in the one form in which equal ones are equal: what makes no difference is empty.
func (o OpenOptions) normal() (OpenOptions, error) {
	switch {
	case o.Attachment != 0 && o.Access != "":
		return o, errTwoTerms
	case o.Attachment != 0:
		o.Client = ""
		return o, nil
	}
	if o.Access = cmp.Or(o.Access, storage.AccessExclusive); !o.Access.Valid() {
		return o, fmt.Errorf("there is no access mode %q; use %s, %s or %s", o.Access, storage.AccessExclusive, storage.AccessShared, storage.AccessReaders)
	}
	o.ReadOnly = o.ReadOnly || o.Access == storage.AccessReaders
	if o.Access != storage.AccessExclusive {
		o.Client = ""
	}
	return o, nil
}

// lookup returns a trunk with one more reference, or what to wait for, or neither: then the caller has made the slot
// and must fill it.
func (g *Gateway) lookup(key trunkKey) (t *trunk, wait <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, storage.E("open", storage.KindCanceled, "volume "+key.name, errGatewayClosed)
	}
	s := g.slots[key]
	switch {
	case s == nil:
		g.slots[key] = &slot{ready: make(chan struct{})}
	case s.trunk == nil:
		return nil, s.ready, nil
	default:
		s.trunk.refs++
		return s.trunk, nil, nil
	}
	return nil, nil, nil
}

// fill opens the volume and puts it into the slot that lookup made; it removes the slot if that fails.
func (g *Gateway) fill(ctx context.Context, key trunkKey) error {
	t, err := g.newTrunk(ctx, key)
	g.mu.Lock()
	s := g.slots[key]
	if err == nil && g.closed {
		err = storage.E("open", storage.KindCanceled, "volume "+key.name, errGatewayClosed)
	}
	if err == nil {
		s.trunk = t
		g.trunks[t] = true
		t.wg.Go(t.watch)
	} else {
		delete(g.slots, key)
	}
	close(s.ready)
	g.mu.Unlock()
	if err != nil && t != nil {
		t.forgetSession(t.fresh.ID)
		g.dispose(t, true)
	}
	return err
}

// dispose shuts a trunk down and gives back what it has of others. closed: see Cluster.Detach.
func (g *Gateway) dispose(t *trunk, closed bool) {
	t.shutdown()
	g.dropThrottle(t)
	g.detach(t.key, t.attachment, closed)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.trunks, t)
	for key := range g.slots {
		if key.name == t.key.name {
			return // its series count for whoever has the volume open, or opens it, on other terms
		}
	}
	g.metrics.forget(t.key.name)
}

// newTrunk attaches the volume, unless the options name an attachment, and opens it. When it fails, it returns the
// trunk if that is to be forgotten and shut down.
func (g *Gateway) newTrunk(ctx context.Context, key trunkKey) (*trunk, error) {
	at, err := g.attach(ctx, key)
	if err != nil {
		return nil, err
	}
	info, err := g.openSession(ctx, key, at.ID)
	if err != nil {
		g.detach(key, at, true)
		return nil, err
	}
	t := &trunk{
		gateway:    g,
		key:        key,
		subject:    "volume " + key.name,
		id:         info.Volume,
		generation: info.Generation,
		attachment: at,
		placement:  info.Groups,
		budget:     semaphore.NewWeighted(g.config.VolumeBytes),
		own:        semaphore.NewWeighted(volumeShareBytes),
		clearers:   semaphore.NewWeighted(int64(g.config.ClearParallel) - 1),
		metrics:    g.metrics.of(key.name),
		fresh:      info,
		throttle:   g.throttleOf(info.Volume),
	}
	t.throttle.set(info.Revision, info.Limits)
	t.stripes, t.groups = distinct(info.Groups)
	t.sizeBytes.Store(info.SizeBytes)
	t.epoch.Store(uint64(info.Epoch))
	t.ctx, t.cancel = context.WithCancel(g.ctx)
	t.attempts = newAttemptClock(t.ctx, g.config.AttemptTimeout)
	if err := t.closePredecessors(ctx, info); err != nil {
		return t, err
	}
	return t, nil
}

// attach returns the attachment that a volume is used under, the gateway's own if the options name none.
func (g *Gateway) attach(ctx context.Context, key trunkKey) (storage.Attachment, error) {
	if key.Attachment != 0 {
		return storage.Attachment{ID: key.Attachment}, nil
	}
	return askCatalog(ctx, g, "attach", key.name, func() (storage.Attachment, bool, error) {
		a, err := g.config.Cluster.Attach(ctx, key.name, key.OpenOptions)
		return a, a.ID != 0 && a.Volume != 0, err
	})
}

// detach gives up an attachment of the gateway's own.
func (g *Gateway) detach(key trunkKey, a storage.Attachment, closed bool) {
	if key.Attachment != 0 {
		return
	}
	if err := g.config.Cluster.Detach(g.attempts.context(), key.name, a, closed); err != nil {
		g.config.Logger.Warn("catalog not told that a volume is detached; it will be", "volume", key.name, "attachment", a.ID, "error", err)
	}
}

// openSession asks the catalog for a session.
func (g *Gateway) openSession(ctx context.Context, key trunkKey, at storage.AttachmentID) (SessionInfo, error) {
	clock := newAttemptClock(ctx, g.config.AttemptTimeout)
	req := SessionRequest{ReadOnly: key.ReadOnly, Attachment: at, After: storage.SessionID(g.after.Load())}
	info, err := askCatalog(ctx, g, "open session", key.name, func() (SessionInfo, bool, error) {
		info, err := g.config.Cluster.OpenSession(clock.context(), key.name, req)
		if err != nil {
			err = storage.E("open session", storage.KindOf(err), "volume "+key.name, err)
		}
		return info, info.ID > req.After && info.Volume != 0 && len(info.Groups) > 0 && info.SizeBytes >= 0, err
	})
	if err == nil {
		raise(&g.after, uint64(info.ID))
	}
	return info, err
}

// askCatalog asks until there is an answer that is final. whole reports that nothing is missing in it.
func askCatalog[T any](ctx context.Context, g *Gateway, what, volume string, ask func() (answer T, whole bool, err error)) (T, error) {
	var before error
	for n := 0; ; n++ {
		answer, whole, err := ask()
		switch {
		case err == nil && !whole:
			return answer, storage.E(what, storage.KindInternal, "volume "+volume, errIncomplete)
		case err == nil:
			return answer, nil
		case ctx.Err() != nil:
			return answer, storage.E(what, storage.KindCanceled, "volume "+volume, endedAfter(ctx, before, err))
		case !retryable(storage.KindOf(err)):
			return answer, err
		}
		before = err
		_ = clock.Sleep(ctx, backoffFor(n, g.config.RetryMin, g.config.RetryMax, g.config.Jitter())) // the next attempt sees the end
	}
}

// endedAfter says that the context has ended, and what the attempts had met: the last of them, if it was not ended itself, or the one
// before.
func endedAfter(ctx context.Context, before, last error) error {
	if last == nil || storage.KindOf(last) == storage.KindCanceled {
		last = before
	}
	if last == nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w; until then: %v", ctx.Err(), last) //nolint:errorlint // its kind is not that of the answer
}

// distinct returns the distinct groups of a placement, and for each of its places the index of its group among them.
func distinct(placement []storage.GroupID) (stripes []int, groups []storage.GroupID) {
	index := map[storage.GroupID]int{}
	for _, g := range placement {
		i, ok := index[g]
		if !ok {
			i = len(groups)
			index[g] = i
			groups = append(groups, g)
		}
		stripes = append(stripes, i)
	}
	return stripes, groups
}

// release drops one handle of t. When it was the last, the trunk is retired, and what is returned is closed when
// that has ended.
func (g *Gateway) release(t *trunk) (retired <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.trunks[t] {
		return nil
	}
	t.refs--
	if t.refs > 0 {
		return nil
	}
	return g.retireLocked(t)
}

func (g *Gateway) retireLocked(t *trunk) <-chan struct{} {
	if t.retirement == nil {
		t.retirement = make(chan struct{})
		g.wg.Go(func() { g.retire(t) })
	}
	return t.retirement
}

// retire waits until nothing is in flight and the session is closed, and then shuts the trunk down, unless somebody has
// opened the volume once more meanwhile.
func (g *Gateway) retire(t *trunk) {
	var closed bool // every session in every group
	for {
		_ = t.quiesce(g.ctx) // on an error the gateway is closing, and the trunk has ended
		g.mu.Lock()
		t.mu.Lock()
		closed = t.failure == nil && t.idleLocked()
		idle := t.failure != nil || closed
		t.mu.Unlock()
		reopened := t.refs > 0 && !g.closed && g.trunks[t] && g.slots[t.key] != nil && g.slots[t.key].trunk == t
		if reopened {
			close(t.retirement)
			t.retirement = nil
			g.mu.Unlock()
			return
		}
		if idle || g.ctx.Err() != nil {
			g.removeLocked(t)
			g.mu.Unlock()
			break
		}
		g.mu.Unlock()
	}
	t.forgetLast()
	g.dispose(t, closed)
	close(t.retirement)
}

// forget makes the name free for another opening, when a volume has failed.
func (g *Gateway) forget(t *trunk) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked(t)
}

func (g *Gateway) removeLocked(t *trunk) {
	if s := g.slots[t.key]; s != nil && s.trunk == t {
		delete(g.slots, t.key)
	}
}

// Close refuses new requests, waits until those in flight are answered, and closes every session in every group. When
// ctx ends first, it ends everything at once and returns KindCanceled: the next instance of the gateway closes the
// sessions. It has stopped every goroutine of the gateway when it returns.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	for t := range g.trunks {
		t.drain()
		t.refs = 0
		g.retireLocked(t)
	}
	g.mu.Unlock()

	done := make(chan struct{})
	go func() { // ends with the retirements, which g.cancel ends
		g.wg.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = storage.E("close", storage.KindCanceled, "gateway", ctx.Err())
		g.endAll()
		<-done
	}
	g.cancel()
	return err
}

// endAll ends every trunk without waiting.
func (g *Gateway) endAll() {
	g.mu.Lock()
	trunks := slices.Collect(maps.Keys(g.trunks))
	g.mu.Unlock()
	for _, t := range trunks {
		t.end(t.errorf(storage.KindCanceled, "use", errGatewayClosed.Error()))
	}
	g.cancel()
}
