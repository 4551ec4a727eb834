// Package chaos lets concurrent clients read, write and discard a few blocks of a volume through several gateways
// while nodes are killed, frozen and cut off, and checks that what the clients saw is linearizable, cell by cell.
//
// The clients and the faults are here and know no cluster; chaos_test.go (build tag chaos) runs them against real
// processes. A run is described by its seed: the same clients want the same things and the same faults strike at
// the same times. The interleaving is the machine's, so a seed makes a failure likely to come back, not certain.
package chaos

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

// device is an open connection to a volume; nbdclient.Client is one.
type device interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	WriteZeroes(ctx context.Context, off, n int64, noHole bool) error
	Trim(ctx context.Context, off, n int64) error
	Close() error
}

// workload is a set of clients on one volume.
type workload struct {
	seed        uint64
	clients     int
	gateways    int                                        // that clients choose from
	sizeBytes   int64                                      // of the volume
	perSecond   int                                        // operations of one client, at most
	windowEvery time.Duration                              // how long a few blocks are fought over before others are
	patience    time.Duration                              // with one request
	dial        func(context.Context, int) (device, error) // connects to a gateway
	history     *history.History

	answered []atomic.Int64 // by client; as long as there are clients
	// slow is told of requests that took long; nil: nobody is
	slow func(began, ended time.Time)
	torn atomic.Pointer[error]
}

// slowRequest is how long a request takes of which workload.slow is told.
const slowRequest = 500 * time.Millisecond

const (
	blocksPerWindow = 6
	// blockStep is how far blocks of a window are apart: in different extents, so in different groups.
	blockStep = storage.BlocksPerExtent + 1
)

// run lets the clients work until ctx is done.
func (w *workload) run(ctx context.Context) {
	began := time.Now()
	var wg sync.WaitGroup
	for c := range w.clients {
		wg.Go(func() { w.client(ctx, c, began) })
	}
	wg.Wait()
}

// client is one client: one request at a time, a new connection, to the next gateway, after every error.
func (w *workload) client(ctx context.Context, c int, began time.Time) {
	rng := rand.New(rand.NewPCG(w.seed, uint64(c)))
	tick := time.NewTicker(time.Second / time.Duration(w.perSecond))
	defer tick.Stop()
	var dev device
	defer func() { closeDevice(dev) }()
	for gateway := c; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if dev == nil {
			opened, err := w.connect(ctx, gateway%w.gateways)
			if err != nil {
				gateway++
				continue
			}
			dev = opened
		}
		asked := time.Now()
		err := w.operation(ctx, c, rng, dev, w.window(began))
		if w.slow != nil && time.Since(asked) > slowRequest {
			w.slow(asked, time.Now())
		}
		if err != nil {
			closeDevice(dev)
			dev = nil
			gateway++
			continue
		}
		w.answered[c].Add(1)
	}
}

// closeDevice ends a connection whose fate no longer matters.
func closeDevice(dev device) {
	if dev != nil {
		_ = dev.Close()
	}
}

func (w *workload) connect(ctx context.Context, gateway int) (device, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return w.dial(ctx, gateway)
}

// window counts the sets of blocks that were fought over until now.
func (w *workload) window(began time.Time) int64 { return int64(time.Since(began) / w.windowEvery) }

// block returns where the n-th block of a window begins.
func (w *workload) block(window int64, n int) int64 {
	index := (window*blocksPerWindow + int64(n)) * blockStep
	return index % (w.sizeBytes / storage.BlockSize) * storage.BlockSize
}

// operation does one thing with one block. An error means that the connection is to be given up.
func (w *workload) operation(ctx context.Context, c int, rng *rand.Rand, dev device, window int64) error {
	// Something old may land late: now and then, look at blocks that others have left.
	if rng.IntN(10) == 0 {
		window = max(0, window-int64(rng.IntN(5)))
	}
	off := w.block(window, rng.IntN(blocksPerWindow))
	half := int64(rng.IntN(2)) * cellBytes
	// The patience of a request is not ctx's: one that was sent is waited for.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.patience)
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

func (w *workload) read(ctx context.Context, c int, dev device, off int64) error {
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

func (w *workload) write(ctx context.Context, c int, dev device, off, n int64) error {
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
func (w *workload) clear(c int, off int64, do func() error) error {
	cells := [2]history.Pending{w.history.BeginWrite(c, off/cellBytes, 0), w.history.BeginWrite(c, off/cellBytes+1, 0)}
	if err := do(); err != nil {
		return err
	}
	for _, cell := range cells {
		cell.Wrote()
	}
	return nil
}

// readAll reads every block that was fought over, through one gateway, after the clients have ended.
func (w *workload) readAll(ctx context.Context, gateway int, windows int64) error {
	dev, err := w.connect(ctx, gateway)
	if err != nil {
		return err
	}
	defer closeDevice(dev)
	for window := range windows {
		for n := range blocksPerWindow {
			if err := w.read(ctx, w.clients+gateway, dev, w.block(window, n)); err != nil {
				return fmt.Errorf("read %d through gateway %d: %w", w.block(window, n), gateway, err)
			}
		}
	}
	return nil
}

// totalAnswered returns how many requests were answered, and the client that got fewest answers with its number.
func (w *workload) totalAnswered() (total int64, least int, fewest int64) {
	for c := range w.answered {
		n := w.answered[c].Load()
		if total += n; c == 0 || n < fewest {
			least, fewest = c, n
		}
	}
	return total, least, fewest
}

// check returns what the clients saw that they must not see.
func (w *workload) check() (history.Report, error) {
	r := w.history.Check(20 * time.Second)
	err := r.Err()
	if torn := w.torn.Load(); torn != nil {
		err = errors.Join(*torn, err)
	}
	return r, err
}
