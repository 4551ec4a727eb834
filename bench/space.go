package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/replication/extent/compact"
)

// spaceConfig is what the flags of `bench space` say.
type spaceConfig struct {
	storaged, dir, out, plot string
	capacityBytes            int64 // of each store
	reserveBytes             int64
	segmentBytes             int64
	turns                    int // how often as much is written as a store may use
	live                     []int
	nodes                    []int
	rounds                   int           // of the comparison with a store that does not compact; 0 leaves it out
	perJob                   time.Duration // of one run of it
	keep                     bool
}

// usable is what segments and tables of a store may take.
func (c *spaceConfig) usable() int64 { return c.capacityBytes - c.reserveBytes }

// simulated are the write amplifications of uniform random overwrites at a live share, in percent: log bytes over payload bytes, a
// store of 768 segments, user records of 4,288 bytes, the victims of the largest (1-u)^2 x gap (docs/adr/0038-compaction.md).
var simulated = map[int]float64{50: 1.33, 60: 1.57, 70: 2.00, 80: 2.85, 85: 3.68, 90: 5.45}

// spaceRow is what one store size and live share gave.
type spaceRow struct {
	Nodes       int     `json:"nodes"`
	LivePercent int     `json:"live_percent"` // what lives, packed, of what the store may use
	Turns       int     `json:"turns"`        // how often as much as that was written
	LogPerByte  float64 `json:"log_bytes_per_byte"`
	Simulated   float64 `json:"simulated,omitempty"`
	DiskPerByte float64 `json:"disk_bytes_per_byte"` // what the device counted, of all copies, over payload times copies
	MBPerS      float64 `json:"mb_per_s"`
	P50us       float64 `json:"p50_us"`
	P99us       float64 `json:"p99_us"`
	LongestMs   float64 `json:"longest_ms"`
	// P99Ratio is over a store that has all the room it wants and does not compact; 0: not measured.
	P99Ratio  float64 `json:"p99_ratio,omitempty"`
	RateRatio float64 `json:"rate_ratio,omitempty"`
}

func parseSpaceFlags(args []string) (cfg spaceConfig, err error) {
	flags := flag.NewFlagSet("bench space", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-space", "`directory` for the stores, on the disk to measure; what compaction writes to the log is the same in memory (/dev/shm), and sooner known")
	flags.StringVar(&cfg.out, "out", "bench/space.json", "`file` for the rows")
	flags.StringVar(&cfg.plot, "plot", "", "`file` for the plot, an SVG; none if empty")
	capacity := flags.Int64("capacity-mib", 2048, "what a store may use, in `MiB`")
	reserve := flags.Int64("reserve-mib", 512, "its reserve, in `MiB`")
	segments := flags.Int64("segment-mib", 2, "size of its segments, in `MiB`: 768 of them, as where the table was simulated")
	flags.IntVar(&cfg.turns, "turns", 10, "how often as much is overwritten as a store may use")
	live := flags.String("live", "50,70,80,90", "shares that live, in `percent`")
	nodes := flags.String("nodes", "1,3", "`numbers` of nodes")
	flags.IntVar(&cfg.rounds, "rounds", 5, "of the comparison at 70 % with a store that does not compact; 0 leaves it out")
	flags.DurationVar(&cfg.perJob, "time", 10*time.Second, "how long a run of it takes")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	cfg.capacityBytes, cfg.reserveBytes, cfg.segmentBytes = *capacity*mib, *reserve*mib, *segments*mib
	if cfg.live, err = numbers(*live, 1, 90); err != nil {
		return cfg, fmt.Errorf("-live: %w", err)
	}
	if cfg.nodes, err = numbers(*nodes, 1, 3); err != nil {
		return cfg, fmt.Errorf("-nodes: %w", err)
	}
	if cfg.turns < 2 || cfg.usable() < 32*cfg.segmentBytes || cfg.rounds < 0 || cfg.perJob < time.Second || cfg.perJob%time.Second != 0 {
		return cfg, errors.New("-turns: at least 2; -capacity-mib: at least the reserve and 32 segments; -time: whole seconds, at least 1s")
	}
	return cfg, nil
}

func numbers(list string, least, most int) (ns []int, err error) {
	for _, s := range strings.Split(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%q: numbers from %d to %d, with commas between", s, least, most)
		}
		ns = append(ns, n)
	}
	return ns, nil
}

// runSpace overwrites volumes at random until ten times (-turns) of what a store may use is written, at several live shares, on one node
// and on three, and says what that cost. An error that a client sees ends it: the store must never stop.
func runSpace(ctx context.Context, cfg spaceConfig, w io.Writer) (err error) {
	dir, err := filepath.Abs(cfg.dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var rows []spaceRow
	for _, nodes := range cfg.nodes {
		for _, live := range cfg.live {
			row, err := cfg.row(ctx, filepath.Join(dir, fmt.Sprintf("n%d-l%d", nodes, live)), nodes, live)
			if err != nil {
				return fmt.Errorf("%d nodes, %d %% live: %w", nodes, live, err)
			}
			rows = append(rows, row)
			fmt.Fprintf(w, "%s  %d nodes, %d %% live: %.2f log bytes a byte, %.1f MB/s, longest %.0f ms\n", time.Now().Format(time.TimeOnly), nodes, live, row.LogPerByte, row.MBPerS, row.LongestMs)
		}
	}
	if !cfg.keep {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	printSpace(w, rows)
	err = writeRows(cfg.out, rows)
	if err == nil && cfg.plot != "" {
		err = os.WriteFile(cfg.plot, plotSpace(rows), 0o644)
	}
	return err
}

func printSpace(w io.Writer, rows []spaceRow) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "nodes\tlive %\tlog bytes per byte\tsimulated\tover it\tdisk bytes per byte\tMB/s\tp50 us\tp99 us\tlongest ms\tp99 over one that does not compact\trate over it")
	for _, r := range rows {
		over, disk, p99, rate := "", "", "", ""
		if r.DiskPerByte > 0 {
			disk = fmt.Sprintf("%.2f", r.DiskPerByte)
		}
		if r.Simulated > 0 {
			over = fmt.Sprintf("%+.0f %%", 100*(r.LogPerByte/r.Simulated-1))
		}
		if r.P99Ratio > 0 {
			p99, rate = fmt.Sprintf("%.2f x", r.P99Ratio), fmt.Sprintf("%.2f x", r.RateRatio)
		}
		fmt.Fprintf(t, "%d\t%d\t%.2f\t%.2f\t%s\t%s\t%.1f\t%.0f\t%.0f\t%.0f\t%s\t%s\n", r.Nodes, r.LivePercent, r.LogPerByte, r.Simulated, over,
			disk, r.MBPerS, r.P50us, r.P99us, r.LongestMs, p99, rate)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}

// row measures one cluster, which it starts and ends.
func (c *spaceConfig) row(ctx context.Context, dir string, nodes, live int) (row spaceRow, err error) {
	row = spaceRow{Nodes: nodes, LivePercent: live, Turns: c.turns, Simulated: simulated[live]}
	sizeBytes := c.volumeBytes(live)
	store, err := c.start(ctx, dir, nodes, sizeBytes, true)
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, store.end()) }()
	if err := c.turn(ctx, store, &row, sizeBytes); err != nil {
		return row, err
	}
	if live == 70 && c.rounds > 0 {
		row.P99Ratio, row.RateRatio, err = c.compare(ctx, store, dir+"-roomy", nodes, sizeBytes)
	}
	return row, err
}

// turn overwrites the volume turn by turn, and measures in the second half of them.
func (c *spaceConfig) turn(ctx context.Context, store *spaceStore, row *spaceRow, sizeBytes int64) (err error) {
	defer progressOf(ctx).begin(fmt.Sprintf("%d nodes, %d %% live", row.Nodes, row.LivePercent), c.turns)()
	perTurn := c.usable()
	var half spaceCounts
	var runs []measure
	for turn := range c.turns {
		if turn == c.turns/2 {
			if half, err = store.counts(ctx); err != nil {
				return err
			}
			runs = nil
		}
		m, err := store.overwrite(ctx, sizeBytes, 0, perTurn, turn)
		if err != nil {
			return fmt.Errorf("turn %d: %w", turn, err)
		}
		row.LongestMs = max(row.LongestMs, float64(m.longest)/1e6)
		runs = append(runs, m)
	}
	end, err := store.counts(ctx)
	if err != nil {
		return err
	}
	payload := float64(perTurn) * float64(len(runs)) * float64(row.Nodes)
	row.LogPerByte, row.DiskPerByte = (end.log-half.log)/payload, (end.disk-half.disk)/payload
	mid := median(runs)
	row.MBPerS, row.P50us, row.P99us = mid.MBPerS, mid.P50us, mid.P99us
	return nil
}

// volumeBytes is how large a volume is of which the blocks, each as a copy, and its tables take so much of what a store may use.
func (c *spaceConfig) volumeBytes(live int) int64 {
	packed := c.usable() * int64(live) / 100 / c.segmentBytes * compact.Capacity(c.segmentBytes) * (4 << 10)
	return packed * 98 / 100 / mib * mib // the tables
}

// compare returns the p99 and the rate of a store that compacts over those of one that has room and does not, run one after the other.
func (c *spaceConfig) compare(ctx context.Context, full *spaceStore, dir string, nodes int, sizeBytes int64) (p99, rate float64, err error) {
	roomy, err := c.start(ctx, dir, nodes, sizeBytes, false)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, roomy.end()) }()
	defer progressOf(ctx).begin(fmt.Sprintf("%d nodes, beside a store that has room", nodes), 2*c.rounds)()
	var ours, theirs []measure
	for round := range c.rounds {
		pair := []struct {
			s  *spaceStore
			to *[]measure
		}{{full, &ours}, {roomy, &theirs}}
		if round%2 == 1 {
			slices.Reverse(pair)
		}
		for _, p := range pair {
			m, err := p.s.overwrite(ctx, sizeBytes, c.perJob, 0, 100+round)
			if err != nil {
				return 0, 0, err
			}
			*p.to = append(*p.to, m)
		}
	}
	a, b := median(ours), median(theirs)
	return a.P99us / b.P99us, a.IOPS / b.IOPS, nil
}

// spaceStore is a cluster with one volume.
type spaceStore struct {
	cluster *testcluster.Cluster
	dir     string
	disk    disk
	keep    bool
}

func (c *spaceConfig) start(ctx context.Context, dir string, nodes int, sizeBytes int64, compacts bool) (*spaceStore, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	binary, err := filepath.Abs(c.storaged)
	if err != nil {
		return nil, err
	}
	args := []string{"--segment-size", fmt.Sprintf("%dMiB", c.segmentBytes/mib), "--reserve", fmt.Sprintf("%dMiB", c.reserveBytes/mib),
		"--compact=" + strconv.FormatBool(compacts)}
	if compacts {
		args = append(args, "--capacity", fmt.Sprintf("%dMiB", c.capacityBytes/mib))
	}
	cluster, err := testcluster.New(testcluster.Config{Command: []string{binary}, Args: args, Dir: dir, Nodes: nodes})
	if err != nil {
		return nil, err
	}
	s := &spaceStore{cluster: cluster, dir: dir, keep: c.keep}
	if s.disk, err = diskOf(dir); err != nil {
		s.disk = disk{} // in memory: what is written to a device cannot be counted, all else can
	}
	err = cluster.Start(ctx)
	if err == nil {
		full, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err = cluster.WaitFull(full)
	}
	if err == nil {
		err = cluster.CreateVolume(ctx, volumeName, sizeBytes)
	}
	if err == nil {
		_, err = runFio(ctx, fillJob, s.uri(), sizeBytes, 0, 0)
	}
	if err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

func (s *spaceStore) uri() string { return "nbd://" + s.cluster.Node(0).NBD + "/" + volumeName }

func (s *spaceStore) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := s.cluster.Stop(ctx)
	if err == nil && !s.keep {
		err = os.RemoveAll(s.dir)
	}
	return err
}

// overwrite writes blocks of the volume at random, each as likely as any: for so long, or so many bytes.
func (s *spaceStore) overwrite(ctx context.Context, sizeBytes int64, during time.Duration, bytesToWrite int64, round int) (measure, error) {
	j := job{name: "overwrite", rw: "randwrite", blockBytes: 4 * kib, depth: 32}
	args := j.args(s.uri(), sizeBytes, during, round)
	if bytesToWrite > 0 {
		args = append(args, "--io_size="+strconv.FormatInt(bytesToWrite, 10))
	}
	out, err := fio(ctx, j.name, args)
	if err != nil {
		return measure{}, err
	}
	return parseFio(out, true)
}

// spaceCounts are bytes since the start: of the nodes' logs, and of the device.
type spaceCounts struct{ log, disk float64 }

func (s *spaceStore) counts(ctx context.Context) (c spaceCounts, err error) {
	for _, n := range s.cluster.Nodes() {
		v, err := readMetric(ctx, n.HTTP, "storage_segment_append_bytes_total")
		if err != nil {
			return c, err
		}
		c.log += v
	}
	c.disk = float64(s.disk.written())
	return c, nil
}

// getMetrics asks a node for its metrics.
func getMetrics(ctx context.Context, addr string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// readMetric returns the sum of a metric's series at a node.
func readMetric(ctx context.Context, addr, name string) (sum float64, err error) {
	body, err := getMetrics(ctx, addr)
	if err != nil {
		return 0, err
	}
	found := false
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if before, _, _ := strings.Cut(series, "{"); !ok || before != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		sum, found = sum+v, true
	}
	if !found && lines.Err() == nil {
		return 0, fmt.Errorf("%s has no metric %s", addr, name)
	}
	return sum, lines.Err()
}
