//go:build upgrade

package upgrade

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/workload"
	"github.com/storaged/storaged/nbd/nbdclient"
)

const (
	trafficVolume = "traffic"
	trafficBytes  = 1 << 30
	clients       = 8
	seed          = 1
)

// traffic is what clients of a volume do, through the nodes and on a host. Before a node is stopped they leave it, as people
// would have them do: whatever goes wrong for one of them then is an error.
type traffic struct {
	*workload.Workload
	dial func(ctx context.Context, node int) (workload.Device, error)
	stop func() // ends the clients and waits for them

	mu      sync.Mutex // guards what follows
	away    []bool     // by node: nobody is to be there
	there   []int      // by node: clients that are there
	longest time.Duration
	answers int64 // that progress has seen
}

// startTraffic lets the clients begin. The last gateway of the workload is the host's.
func (u *upgrade) startTraffic() {
	u.Helper()
	count := len(u.cluster.Nodes())
	tr := &traffic{away: make([]bool, count), there: make([]int, count)}
	tr.dial = func(ctx context.Context, node int) (workload.Device, error) {
		return nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: u.cluster.Node(node).NBD, Export: trafficVolume + "?access=shared"})
	}
	gateways := count
	if u.host != nil {
		gateways++
	}
	tr.Workload = workload.New(workload.Config{Seed: seed, Clients: clients, Gateways: gateways, SizeBytes: trafficBytes, PerSecond: 60,
		WindowEvery: time.Second, Patience: 20 * time.Second,
		Dial: func(ctx context.Context, gateway int) (workload.Device, error) {
			if gateway == count {
				return u.host.open()
			}
			r := &roamer{traffic: tr, home: gateway, at: -1}
			return r, r.settle(ctx)
		},
		Slow: tr.slow,
		Failed: func(client, gateway int, err error) {
			u.Errorf("client %d of gateway %d saw an error: %v", client, gateway, err)
		},
	})
	ctx, cancel := context.WithCancel(u.Context())
	done := make(chan struct{})
	go func() { defer close(done); tr.Run(ctx) }()
	tr.stop = func() { cancel(); <-done }
	u.Cleanup(tr.stop)
	u.traffic = tr
	u.step("%d clients work on the volume %s through %d gateways (seed %d)", clients, trafficVolume, gateways, seed)
}

func (tr *traffic) slow(began, ended time.Time) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.longest = max(tr.longest, ended.Sub(began))
}

// progress waits until every client was answered since the last call, and says how many answers there were and how long the slowest
// took.
func (tr *traffic) progress(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	before := tr.Answered()
	if testcluster.Poll(ctx, 10*time.Millisecond, func() bool {
		return !slices.ContainsFunc(tr.since(before), func(n int64) bool { return n < 10 })
	}) != nil {
		t.Fatalf("the clients were answered %v times within %v", tr.since(before), patience)
	}
	total := int64(0)
	for _, n := range tr.Answered() {
		total += n
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	text := fmt.Sprintf("%d answers to clients since, the slowest after %.1f s at most", total-tr.answers, max(tr.longest, 500*time.Millisecond).Seconds())
	tr.answers, tr.longest = total, 0
	return text
}

// since returns how often each client was answered after it had been answered so often.
func (tr *traffic) since(before []int64) []int64 {
	now := tr.Answered()
	for c := range now {
		now[c] -= before[c]
	}
	return now
}

// leave returns when no client is at a node, and keeps them away from it.
func (tr *traffic) leave(t *testing.T, node int) {
	t.Helper()
	tr.setAway(node, true)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if testcluster.Poll(ctx, time.Millisecond, func() bool { tr.mu.Lock(); defer tr.mu.Unlock(); return tr.there[node] == 0 }) != nil {
		t.Fatalf("clients do not leave node %d", node+1)
	}
}

// comeBack lets them return.
func (tr *traffic) comeBack(node int) { tr.setAway(node, false) }

func (tr *traffic) setAway(node int, away bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.away[node] = away
}

// roamer is the connection of one client: to the node that it likes best, or while that is to be left to another one.
type roamer struct {
	*traffic
	home, at int // at < 0: nowhere
	dev      workload.Device
}

// settle goes where the client is to be.
func (r *roamer) settle(ctx context.Context) error {
	r.mu.Lock()
	to := r.home
	for r.away[to] {
		to = (to + 1) % len(r.away)
	}
	if to == r.at {
		r.mu.Unlock()
		return nil
	}
	r.there[to]++
	r.mu.Unlock()
	if err := r.Close(); err != nil {
		return err
	}
	dev, err := r.dial(ctx, to)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.there[to]--
		return err
	}
	r.at, r.dev = to, dev
	return nil
}

// Close implements workload.Device.
func (r *roamer) Close() error {
	if r.at < 0 {
		return nil
	}
	err := r.dev.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.there[r.at]--
	r.at = -1
	return err
}

func (r *roamer) do(ctx context.Context, request func() error) error {
	if err := r.settle(ctx); err != nil {
		return fmt.Errorf("move: %w", err)
	}
	return request()
}

func (r *roamer) ReadAt(ctx context.Context, p []byte, off int64) error {
	return r.do(ctx, func() error { return r.dev.ReadAt(ctx, p, off) })
}

func (r *roamer) WriteAt(ctx context.Context, p []byte, off int64) error {
	return r.do(ctx, func() error { return r.dev.WriteAt(ctx, p, off) })
}

func (r *roamer) WriteZeroes(ctx context.Context, off, n int64, noHole bool) error {
	return r.do(ctx, func() error { return r.dev.WriteZeroes(ctx, off, n, noHole) })
}

func (r *roamer) Trim(ctx context.Context, off, n int64) error {
	return r.do(ctx, func() error { return r.dev.Trim(ctx, off, n) })
}

// endTraffic ends the clients, reads what they have left through every gateway, and judges what they saw.
func (u *upgrade) endTraffic() {
	u.Helper()
	u.traffic.stop()
	gateways := len(u.cluster.Nodes())
	if u.host != nil {
		gateways++
	}
	for gateway := range gateways {
		if err := u.traffic.ReadAll(u.Context(), gateway); err != nil {
			u.Error(err)
		}
	}
	report, err := u.traffic.Check()
	if err != nil {
		u.Error(err)
	}
	if report.Unknown != 0 {
		u.Errorf("%d writes have no outcome", report.Unknown)
	}
	u.step("%d operations of the clients on %d cells are linearizable: %v", report.Operations, report.Cells, err == nil)
}
