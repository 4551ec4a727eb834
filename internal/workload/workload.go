// Package workload lets concurrent clients read, write and discard a few blocks of a volume through several gateways, and
// checks that what the clients saw is linearizable, cell by cell.
//
// It knows no cluster: whoever runs it says how a gateway is reached, and does to nodes what there is to do. A run is described
// by its seed: the same clients want the same things. The interleaving is the machine's, so a seed makes a failure likely to come
// back, not certain. A Workload may be used concurrently, but Check, which is called when no client works any more.
package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/history"
)

// cellBytes is the unit of the histories: half a block, so that partial-block writes stand beside full ones.
const cellBytes = storage.BlockSize / 2

// Device is an open connection to a volume; nbdclient.Client is one. One client uses it, one request at a time.
type Device interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	WriteZeroes(ctx context.Context, off, n int64, noHole bool) error
	Trim(ctx context.Context, off, n int64) error
	Close() error
}

// Config says what the clients do. All fields without a word on their zero value are required.
type Config struct {
	Seed        uint64
	Clients     int
	Gateways    int                                        // that clients choose from
	SizeBytes   int64                                      // of the volume
	PerSecond   int                                        // operations of one client, at most
	WindowEvery time.Duration                              // how long a few blocks are fought over before others are
	Patience    time.Duration                              // with one request
	Dial        func(context.Context, int) (Device, error) // connects to a gateway
	// Slow is told of requests that took long; nil: nobody is.
	Slow func(began, ended time.Time)
	// Failed is told of every error that a client saw, before it goes on with the next gateway; nil: nobody is.
	Failed func(client, gateway int, err error)
}

// Workload is a set of clients on one volume, and what they saw.
type Workload struct {
	cfg      Config
	began    time.Time
	history  *history.History
	answered []atomic.Int64 // by client
	torn     atomic.Pointer[error]
}

// New returns clients that do not work yet. Windows are counted from now on.
func New(cfg Config) *Workload {
	return &Workload{cfg: cfg, began: time.Now(), history: history.New(), answered: make([]atomic.Int64, cfg.Clients)}
}

// slowRequest is how long a request takes of which Config.Slow is told.
const slowRequest = 500 * time.Millisecond

const (
	blocksPerWindow = 6
	// blockStep is how far blocks of a window are apart: in different extents, so in different groups.
	blockStep = storage.BlocksPerExtent + 1
)

// Run lets the clients work until ctx is done.
func (w *Workload) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for c := range w.cfg.Clients {
		wg.Go(func() { w.client(ctx, c) })
	}
	wg.Wait()
}

// client is one client: one request at a time, a new connection, to the next gateway, after every error.
func (w *Workload) client(ctx context.Context, c int) {
	rng := rand.New(rand.NewPCG(w.cfg.Seed, uint64(c)))
	tick := time.NewTicker(time.Second / time.Duration(w.cfg.PerSecond))
	defer tick.Stop()
	var dev Device
	defer func() { closeDevice(dev) }()
	for gateway := c; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if dev == nil {
			opened, err := w.connect(ctx, gateway%w.cfg.Gateways)
			if err != nil {
				if ctx.Err() == nil {
					w.failed(c, gateway, err)
				}
				gateway++
				continue
			}
			dev = opened
		}
		asked := time.Now()
		err := w.operation(ctx, c, rng, dev, w.window())
		if w.cfg.Slow != nil && time.Since(asked) > slowRequest {
			w.cfg.Slow(asked, time.Now())
		}
		if err != nil {
			w.failed(c, gateway, err)
			closeDevice(dev)
			dev = nil
			gateway++
			continue
		}
		w.answered[c].Add(1)
	}
}

func (w *Workload) failed(client, gateway int, err error) {
	if w.cfg.Failed != nil {
		w.cfg.Failed(client, gateway%w.cfg.Gateways, err)
	}
}

// closeDevice ends a connection whose fate no longer matters.
func closeDevice(dev Device) {
	if dev != nil {
		_ = dev.Close()
	}
}

func (w *Workload) connect(ctx context.Context, gateway int) (Device, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return w.cfg.Dial(ctx, gateway)
}

// window counts the sets of blocks that were fought over until now.
func (w *Workload) window() int64 { return int64(time.Since(w.began) / w.cfg.WindowEvery) }

// block returns where the n-th block of a window begins.
func (w *Workload) block(window int64, n int) int64 {
	index := (window*blocksPerWindow + int64(n)) * blockStep
	return index % (w.cfg.SizeBytes / storage.BlockSize) * storage.BlockSize
}

// operation does one thing with one block. An error means that the connection is to be given up.
func (w *Workload) operation(ctx context.Context, c int, rng *rand.Rand, dev Device, window int64) error {
	// Something old may land late: now and then, look at blocks that others have left.
	if rng.IntN(10) == 0 {
		window = max(0, window-int64(rng.IntN(5)))
	}
	off := w.block(window, rng.IntN(blocksPerWindow))
	half := int64(rng.IntN(2)) * cellBytes
	// The patience of a request is not ctx's: one that was sent is waited for.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.cfg.Patience)
	defer cancel()
	switch p := rng.IntN(100); {
	case p < 40:
		return w.read(ctx, c, dev, off)
	case p < 65:
		return w.write(ctx, c, dev, off, storage.BlockSize)
	case p < 90:
		return w.write(ctx, c, dev, off+half, cellBytes)
	case p < 95:
		return w.clear(c, off, func() error { return dev.WriteZeroes(ctx, off, storage.BlockSize, p%2 == 0) })
	default:
		return w.clear(c, off, func() error { return dev.Trim(ctx, off, storage.BlockSize) })
	}
}

func (w *Workload) read(ctx context.Context, c int, dev Device, off int64) error {
	cells := [2]history.Pending{w.history.BeginRead(c, off/cellBytes), w.history.BeginRead(c, off/cellBytes+1)}
	var p [storage.BlockSize]byte
	if err := dev.ReadAt(ctx, p[:], off); err != nil {
		return err
	}
	for i, cell := range cells {
		value, ok := history.Value(p[i*cellBytes:][:cellBytes])
		if !ok {
			err := fmt.Errorf("client %d read a torn write at %d", c, off+int64(i*cellBytes))
			w.torn.CompareAndSwap(nil, &err)
		}
		cell.Saw(value)
	}
	return nil
}

func (w *Workload) write(ctx context.Context, c int, dev Device, off, n int64) error {
	p := make([]byte, n)
	value := w.history.NextValue()
	history.Fill(p, value)
	var cells []history.Pending
	for at := off; at < off+n; at += cellBytes {
		cells = append(cells, w.history.BeginWrite(c, at/cellBytes, value))
	}
	if err := dev.WriteAt(ctx, p, off); err != nil {
		return err
	}
	for _, cell := range cells {
		cell.Wrote()
	}
	return nil
}

// clear records what makes a block zeroes.
func (w *Workload) clear(c int, off int64, do func() error) error {
	cells := [2]history.Pending{w.history.BeginWrite(c, off/cellBytes, 0), w.history.BeginWrite(c, off/cellBytes+1, 0)}
	if err := do(); err != nil {
		return err
	}
	for _, cell := range cells {
		cell.Wrote()
	}
	return nil
}

// ReadAll reads every block that was fought over, through one gateway, after the clients have ended.
func (w *Workload) ReadAll(ctx context.Context, gateway int) error {
	dev, err := w.connect(ctx, gateway)
	if err != nil {
		return err
	}
	defer closeDevice(dev)
	for window := range w.window() + 1 {
		for n := range blocksPerWindow {
			if err := w.read(ctx, w.cfg.Clients+gateway, dev, w.block(window, n)); err != nil {
				return fmt.Errorf("read %d through gateway %d: %w", w.block(window, n), gateway, err)
			}
		}
	}
	return nil
}

// Answered returns how many requests of each client were answered.
func (w *Workload) Answered() []int64 {
	answered := make([]int64, len(w.answered))
	for c := range w.answered {
		answered[c] = w.answered[c].Load()
	}
	return answered
}

// Check returns what the clients saw that they must not see.
func (w *Workload) Check() (history.Report, error) {
	r := w.history.Check(20 * time.Second)
	err := r.Err()
	if torn := w.torn.Load(); torn != nil {
		err = errors.Join(*torn, err)
	}
	return r, err
}
