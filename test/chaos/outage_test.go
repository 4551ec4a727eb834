//go:build chaos

package chaos

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/nbd/nbdclient"
)

var (
	outagesFlag = flag.Int("outages", 6, "how often nodes go away")
	awayFlag    = flag.Duration("away", 5*time.Second, "how long they stay away")
	howFlag     = flag.String("how", "kill", "what happens to them: kill (two of three), freeze, isolate, or turns (one is killed, and as soon as it is back another one)")
	bytesFlag   = flag.Int("write-bytes", storage.BlockSize, "size of a write")
)

const outageVolume = "outage"

// TestOutage takes two of three nodes away from writers, brings them back, and reports how long the writers waited from the
// moment at which a majority was started again: for the first answer, and until every group had answered. These are figures
// of this machine, so nothing is asserted but that the writers go on.
func TestOutage(t *testing.T) {
	c, network := startCluster(t)
	p := &processes{cluster: c, network: network, logf: t.Logf}
	if err := c.CreateVolume(t.Context(), outageVolume, volumeBytes); err != nil {
		t.Fatal(err)
	}
	var first, all []time.Duration
	for n := range *outagesFlag {
		stays := n % len(c.Nodes())
		r := outage(t, p, stays, (stays+1)%len(c.Nodes()), (stays+2)%len(c.Nodes()))
		t.Logf("outage %d, node %d stayed: a write was answered after %v, every group after %v", n+1, stays+1,
			r.first.Round(time.Millisecond), r.all.Round(time.Millisecond))
		first, all = append(first, r.first), append(all, r.all)
		clustertest.WaitFull(t, c)
	}
	t.Logf("pause after the majority's return, of %d outages of %v (%s): a write %s; every group %s", *outagesFlag, *awayFlag, *howFlag,
		spread(first), spread(all))
}

// spread says the median and the longest of some durations.
func spread(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("median %v, longest %v", d[len(d)/2].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond))
}

// resumed is how long after the majority's return writes were answered.
type resumed struct{ first, all time.Duration }

// outage takes two nodes away for a while, and watches writers that use the one that stays.
func outage(t *testing.T, p *processes, stays, a, b int) resumed {
	t.Helper()
	w := startWriters(t, p.cluster.Node(stays).NBD)
	defer w.stop()
	w.await(t, time.Now()) // all of them have begun
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if *howFlag == "turns" {
		must(p.kill(a))
		pause(t.Context(), *awayFlag)
		must(p.restart(t.Context(), a))
		must(p.kill(b))
		r := w.await(t, time.Now())
		must(p.restart(t.Context(), b))
		return r
	}
	strike, mend := p.kill, func(node int) error { return p.restart(t.Context(), node) }
	switch *howFlag {
	case "freeze":
		strike, mend = p.pause, p.resume
	case "isolate":
		strike, mend = p.isolate, func(int) error { return p.heal() }
	}
	must(strike(a))
	must(strike(b))
	pause(t.Context(), *awayFlag)
	back := time.Now()
	var mended [2]error
	var wg sync.WaitGroup
	for i, node := range []int{a, b} {
		wg.Go(func() { mended[i] = mend(node) })
	}
	r := w.await(t, back)
	wg.Wait()
	must(mended[0])
	must(mended[1])
	return r
}

// stripes is how many writers there are, each with an extent of its own: more than a cluster of three has groups.
const stripes = 16

// writers write a block each, one request at a time.
type writers struct {
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	answered [stripes]atomic.Int64 // when the last request was answered, Unix nanoseconds
	failed   atomic.Pointer[error]
}

func startWriters(t *testing.T, address string) *writers {
	t.Helper()
	dev, err := nbdclient.Dial(t.Context(), nbdclient.Config{Network: "tcp", Address: address, Export: outageVolume + "?access=shared"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &writers{cancel: func() { cancel(); _ = dev.Close() }} // its fate no longer matters
	for i := range stripes {
		w.wg.Go(func() {
			data := make([]byte, *bytesFlag)
			for ctx.Err() == nil {
				data[0]++
				if err := dev.WriteAt(ctx, data, int64(i)*storage.ExtentSize); err != nil {
					if ctx.Err() == nil {
						w.failed.CompareAndSwap(nil, &err)
					}
					return
				}
				w.answered[i].Store(time.Now().UnixNano())
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	return w
}

func (w *writers) stop() {
	w.cancel()
	w.wg.Wait()
}

// await returns when every writer was answered after since.
func (w *writers) await(t *testing.T, since time.Time) (r resumed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := testcluster.Poll(ctx, 2*time.Millisecond, func() bool {
		var times []int64
		for i := range w.answered {
			if at := w.answered[i].Load(); at > since.UnixNano() {
				times = append(times, at)
			}
		}
		slices.Sort(times)
		if len(times) > 0 && r.first == 0 {
			r.first = time.Duration(times[0] - since.UnixNano())
		}
		r.all = time.Since(since)
		return len(times) == stripes || w.failed.Load() != nil
	})
	if failed := w.failed.Load(); failed != nil {
		err = *failed
	}
	if err != nil {
		t.Fatalf("the writers did not go on: %v", err)
	}
	return r
}
