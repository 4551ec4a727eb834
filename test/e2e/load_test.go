//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/history"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// load writes one block after the other over one connection, at random places, and remembers what was acknowledged
// and how long the slowest request took. It reads back what it wrote now and then.
type load struct {
	client *nbdclient.Client
	blocks int64
	stop   context.CancelFunc
	done   chan struct{} // closed when the load has ended

	mu      sync.Mutex // guards what follows
	values  map[int64]uint64
	next    uint64
	longest time.Duration
	err     error // the first; nothing is done after it
}

// startLoad connects to a volume through a node and begins.
func startLoad(t *testing.T, n *testcluster.Node, volume string) *load {
	t.Helper()
	l := &load{client: connect(t, n, volume), values: map[int64]uint64{}, done: make(chan struct{})}
	l.blocks = int64(l.client.Info().SizeBytes) / storage.BlockSize
	var ctx context.Context
	ctx, l.stop = context.WithCancel(t.Context())
	go func() {
		defer close(l.done)
		for ctx.Err() == nil && l.step(t.Context()) {
		}
	}()
	t.Cleanup(func() { l.stop(); <-l.done })
	return l
}

// step does one request; it returns false after an error.
func (l *load) step(ctx context.Context) bool {
	block := rand.Int64N(l.blocks)
	p := make([]byte, storage.BlockSize)
	l.mu.Lock()
	l.next++
	value := l.next
	old, known := l.values[block]
	l.mu.Unlock()
	from := time.Now()
	var err error
	if reading := known && value%4 == 0; reading {
		if err = l.client.ReadAt(ctx, p, block*storage.BlockSize); err == nil {
			if got, whole := history.Value(p); !whole || got != old {
				err = fmt.Errorf("block %d reads as %d (whole: %v), %d was acknowledged", block, got, whole, old)
			}
		}
		value = old
	} else {
		history.Fill(p, value)
		err = l.client.WriteAt(ctx, p, block*storage.BlockSize)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, time.Since(from))
	if l.err = err; err != nil {
		return false
	}
	l.values[block] = value
	return true
}

// state returns how many requests were begun and the slowest since the last call; it fails the test if one failed.
func (l *load) state(t *testing.T) (requests uint64, longest time.Duration) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		t.Fatalf("the client saw an error: %v", l.err)
	}
	longest, l.longest = l.longest, 0
	return l.next, longest
}

// awaitMore waits until so many more requests were answered, and returns the slowest since the last call of state
// or awaitMore.
func (l *load) awaitMore(t *testing.T, requests uint64) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begun, longest := l.state(t)
	if err := testcluster.Poll(ctx, 10*time.Millisecond, func() bool {
		now, slowest := l.state(t)
		longest = max(longest, slowest)
		return now > begun+requests
	}); err != nil {
		t.Fatalf("no %d requests were answered in 30 s: %v", requests, err)
	}
	return longest
}

// end ends the load and verifies through a node that everything acknowledged is there.
func (l *load) end(t *testing.T, through *testcluster.Node, volume string) {
	t.Helper()
	l.stop()
	<-l.done
	l.state(t)
	if err := l.client.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	l.verifyAcknowledged(t, through, volume)
}

// verifyAcknowledged reads every block that was written through a node, after the load has ended. The last write
// may have been cut off: then the block holds the old value or the new.
func (l *load) verifyAcknowledged(t *testing.T, through *testcluster.Node, volume string) {
	t.Helper()
	l.read(t, connect(t, through, volume), through)
}

// read is verifyAcknowledged over a connection that there is.
func (l *load) read(t *testing.T, client *nbdclient.Client, through *testcluster.Node) {
	t.Helper()
	p := make([]byte, storage.BlockSize)
	for block, value := range l.values {
		if err := client.ReadAt(t.Context(), p, block*storage.BlockSize); err != nil {
			t.Fatalf("read block %d through %s: %v", block, through.Name, err)
		}
		got, whole := history.Value(p)
		if cutOff := l.err != nil && got == l.next; !whole || got != value && !cutOff {
			t.Fatalf("block %d reads as %d (whole: %v) through %s, %d was acknowledged", block, got, whole, through.Name, value)
		}
	}
}

// connect opens a volume through a node, beside whoever else shares it through others.
func connect(t *testing.T, n *testcluster.Node, volume string) *nbdclient.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client, err := nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: n.NBD, Export: volume + "?access=shared"})
	if err != nil {
		t.Fatalf("connect to %s through %s: %v", volume, n.Name, err)
	}
	t.Cleanup(func() { _ = client.Close() }) // closed by the test already, or the test failed
	return client
}
