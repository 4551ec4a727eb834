package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
)

// benchJob is an access pattern, as fio names it.
type benchJob struct {
	name                  string
	random, reads, writes bool
}

var benchJobs = []benchJob{
	{"randread", true, true, false},
	{"randwrite", true, false, true},
	{"randrw", true, true, true},
	{"read", false, true, false},
	{"write", false, false, true},
	{"rw", false, true, true},
}

func benchJobNames() []string {
	return views(benchJobs, func(j benchJob) string { return j.name })
}

func newBench(a *app) *cobra.Command {
	b := bench{app: a}
	b.blockFlag = sizeFlag(&b.block)
	_ = b.blockFlag.Set("4K") // it is a size
	c := &cobra.Command{
		Use:   "bench VOLUME",
		Short: "Measure a volume for some seconds",
		Long: `Drives a volume over NBD for some seconds and prints requests and megabytes (10^6 bytes) per second, latencies, and the
longest time in which no request was answered.

Jobs are ` + strings.Join(benchJobNames(), ", ") + `, as in fio. Jobs that write destroy what the volume holds, and are
refused without --yes-destroy-data. What was never written is answered without a disk: fill a volume before reads of it
mean anything, for example with --job write.`,
		Example: "  storagectl bench web --job randread --depth 32 --seconds 10\n  storagectl bench scratch --job randwrite --depth 1 --yes-destroy-data -o json",
		Args: func(c *cobra.Command, args []string) error {
			return errors.Join(takes("VOLUME")(c, args), b.check())
		},
		ValidArgsFunction: a.completes(1, a.volumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			b.volume = args[0]
			return b.run(c.Context())
		},
	}
	flags := c.Flags()
	flags.StringVar(&b.job, "job", "randread", "access pattern: "+strings.Join(benchJobNames(), ", "))
	flags.Var(b.blockFlag, "block-size", "bytes of one request; 4K = 4KiB")
	flags.IntVar(&b.depth, "depth", 1, "requests in flight")
	flags.IntVar(&b.seconds, "seconds", 10, "how long")
	flags.IntVar(&b.readPercent, "read-percent", 70, "share of reads in randrw and rw")
	flags.IntVar(&b.connections, "connections", 1, "NBD connections")
	flags.Var(sizeFlag(&b.span), "span", "use only so much of the volume, from its beginning (default all)")
	flags.BoolVar(&b.destroy, "yes-destroy-data", false, "allow jobs that write")
	flags.Uint64Var(&b.seed, "seed", 1, "seed of the random offsets")
	complete(c, "job", benchJobNames()...)
	return c
}

// bench is one measurement.
type bench struct {
	app                                      *app
	volume, job                              string
	block                                    *int64 // never nil
	blockFlag                                *valueFlag
	span                                     *int64 // nil: the whole volume
	depth, seconds, readPercent, connections int
	destroy                                  bool
	seed                                     uint64

	benchJob // that job names
	content  transfer.Content
	slots    int64         // blocks in the span
	next     atomic.Int64  // of sequential jobs
	answered atomic.Int64  // nanoseconds since the beginning at the last answer
	stall    atomic.Int64  // longest time between two answers, in nanoseconds
	began    time.Time     // of the monotonic clock
	length   time.Duration // how long requests are sent
}

// maxBenchBytes bounds the memory of all requests in flight.
const maxBenchBytes = 1 << 30

// check returns every problem of the flags at once.
func (b *bench) check() error {
	var problems []error
	at := slices.Index(benchJobNames(), b.job)
	if at < 0 {
		problems = append(problems, fmt.Errorf("there is no job %q; use %s", b.job, strings.Join(benchJobNames(), ", ")))
	} else {
		b.benchJob = benchJobs[at]
	}
	problems = append(problems, within("depth", b.depth, 1, 4096), within("seconds", b.seconds, 1, 86400),
		within("read-percent", b.readPercent, 0, 100), within("connections", b.connections, 1, 64))
	if *b.block < 512 || *b.block > 32<<20 {
		problems = append(problems, fmt.Errorf("--block-size is %d bytes; use 512 to %d", *b.block, 32<<20))
	} else if *b.block*int64(b.depth) > maxBenchBytes {
		problems = append(problems, fmt.Errorf("--depth %d of --block-size %s is more than %s in flight", b.depth, b.blockFlag, formatSize(maxBenchBytes)))
	}
	return errors.Join(problems...)
}

func (b *bench) run(ctx context.Context) error {
	if b.writes && !b.destroy {
		return storage.E("bench", storage.KindInvalid, "volume "+b.volume,
			fmt.Errorf("the job %s overwrites what the volume holds; give --yes-destroy-data if that is meant", b.job))
	}
	var err error
	if b.content, err = b.app.openVolume(ctx, b.volume, b.connections); err != nil {
		return err
	}
	defer b.content.Close()
	span := b.content.SizeBytes()
	if b.span != nil {
		span = min(span, *b.span)
	}
	if b.slots = span / *b.block; b.slots == 0 {
		return storage.E("bench", storage.KindInvalid, "volume "+b.volume, fmt.Errorf("no block of %s fits into %s", b.blockFlag, formatSize(span)))
	}
	result, err := b.measure(ctx, time.Duration(b.seconds)*time.Second)
	if err != nil {
		return storage.E("bench", storage.KindOf(err), "volume "+b.volume, err)
	}
	return b.app.show(result, func(w io.Writer, _ bool) { result.write(w) })
}

// latencies of one kind of request.
type latencies struct {
	reads, writes histogram
}

// measure keeps b.depth requests in flight for length.
func (b *bench) measure(ctx context.Context, length time.Duration) (benchView, error) {
	b.began, b.length = time.Now(), length
	var mu sync.Mutex // guards all
	var all latencies
	g, ctx := errgroup.WithContext(ctx)
	for worker := range b.depth {
		g.Go(func() error {
			var own latencies
			err := b.drive(ctx, rand.New(rand.NewPCG(b.seed, uint64(worker))), &own)
			mu.Lock()
			defer mu.Unlock()
			all.reads.merge(&own.reads)
			all.writes.merge(&own.writes)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return benchView{}, err
	}
	return b.view(&all, time.Since(b.began)), nil
}

// drive sends one request after the other.
func (b *bench) drive(ctx context.Context, random *rand.Rand, own *latencies) error {
	buf := make([]byte, *b.block)
	for i := range buf {
		buf[i] = byte(random.Uint32())
	}
	for time.Since(b.began) < b.length {
		slot := b.next.Add(1) - 1
		if b.random {
			slot = random.Int64()
		}
		off := slot % b.slots * *b.block
		read := b.reads && (!b.writes || random.IntN(100) < b.readPercent)
		began := time.Now()
		var err error
		if read {
			err = b.content.ReadAt(ctx, buf, off)
		} else {
			buf[random.IntN(len(buf))]++ // no two writes are the same
			err = b.content.WriteAt(ctx, buf, off)
		}
		if err != nil {
			return err
		}
		if read {
			own.reads.add(time.Since(began))
		} else {
			own.writes.add(time.Since(began))
		}
		b.note(int64(time.Since(b.began)))
	}
	return nil
}

// note keeps the longest time between two answers.
func (b *bench) note(now int64) {
	gap := now - b.answered.Swap(now)
	for {
		longest := b.stall.Load()
		if gap <= longest || b.stall.CompareAndSwap(longest, gap) {
			return
		}
	}
}

// benchView is the outcome, for programs. Latencies are microseconds.
type benchView struct {
	Volume         string        `json:"volume"`
	Job            string        `json:"job"`
	BlockSizeBytes int64         `json:"block_size_bytes"`
	Depth          int           `json:"depth"`
	Connections    int           `json:"connections"`
	Seconds        float64       `json:"seconds"`
	Requests       uint64        `json:"requests"`
	IOPS           float64       `json:"iops"`
	MBPerS         float64       `json:"mb_per_s"`
	LongestStallMS float64       `json:"longest_stall_ms"`
	Read           *benchLatency `json:"read,omitempty"`
	Write          *benchLatency `json:"write,omitempty"`
}

type benchLatency struct {
	Requests uint64  `json:"requests"`
	IOPS     float64 `json:"iops"`
	MBPerS   float64 `json:"mb_per_s"`
	MeanUS   float64 `json:"mean_us"`
	P50US    float64 `json:"p50_us"`
	P99US    float64 `json:"p99_us"`
	P999US   float64 `json:"p999_us"`
	MaxUS    float64 `json:"max_us"`
}

func (b *bench) view(all *latencies, took time.Duration) benchView {
	n := all.reads.total + all.writes.total
	v := benchView{
		Volume: b.volume, Job: b.job, BlockSizeBytes: *b.block, Depth: b.depth, Connections: b.connections,
		Seconds: took.Seconds(), Requests: n, IOPS: float64(n) / took.Seconds(),
		MBPerS:         float64(n) * float64(*b.block) / 1e6 / took.Seconds(),
		LongestStallMS: float64(b.stall.Load()) / 1e6,
	}
	latency := func(h *histogram) *benchLatency {
		if h.total == 0 {
			return nil
		}
		us := func(d time.Duration) float64 { return float64(d) / 1e3 }
		return &benchLatency{
			Requests: h.total, IOPS: float64(h.total) / took.Seconds(), MBPerS: float64(h.total) * float64(*b.block) / 1e6 / took.Seconds(),
			MeanUS: us(h.mean()), P50US: us(h.quantile(0.5)), P99US: us(h.quantile(0.99)), P999US: us(h.quantile(0.999)), MaxUS: us(h.max),
		}
	}
	v.Read, v.Write = latency(&all.reads), latency(&all.writes)
	return v
}

func (v benchView) write(w io.Writer) {
	fmt.Fprintf(w, "%s of %s, depth %d, %s for %.1f s\n\n", v.Job, formatSize(v.BlockSizeBytes), v.Depth,
		plural(v.Connections, "connection", "connections"), v.Seconds)
	t := newTable("", "IOPS", "MB/S", "MEAN", "P50", "P99", "P99.9", "MAX")
	row := func(name string, l *benchLatency) {
		if l != nil {
			t.row(name, fmt.Sprintf("%.0f", l.IOPS), fmt.Sprintf("%.1f", l.MBPerS), microseconds(l.MeanUS), microseconds(l.P50US),
				microseconds(l.P99US), microseconds(l.P999US), microseconds(l.MaxUS))
		}
	}
	row("read", v.Read)
	row("write", v.Write)
	if v.Read != nil && v.Write != nil {
		t.row("both", fmt.Sprintf("%.0f", v.IOPS), fmt.Sprintf("%.1f", v.MBPerS))
	}
	t.write(w, "no request was answered")
	fmt.Fprintf(w, "\nlongest time without an answer: %s\n", microseconds(v.LongestStallMS*1e3))
}

// microseconds writes a latency with three digits.
func microseconds(us float64) string {
	switch {
	case us < 1e3:
		return fmt.Sprintf("%.0f us", us)
	case us < 1e4:
		return fmt.Sprintf("%.2f ms", us/1e3)
	case us < 1e6:
		return fmt.Sprintf("%.1f ms", us/1e3)
	default:
		return fmt.Sprintf("%.2f s", us/1e6)
	}
}
