package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// startConfig is what the flags of `bench start` say.
type startConfig struct {
	storaged, dir, out, plots string
	live                      size.Bytes // of the volume, all of it written at the end
	warm                      size.Bytes // of log, which tells how much comes between checkpoints
	nodes                     int
	rounds                    int
	timeout                   time.Duration // of one start
	keep                      bool
}

// startRow is what starts after kill -9 took with so much data; medians of the rounds. What is of nodes is of all together.
type startRow struct {
	Nodes     int     `json:"nodes"`
	LiveBytes float64 `json:"live_bytes"`
	// LogBytes is what was appended since the last checkpoint of any group ended, when the nodes were killed; if there was none,
	// since overwriting began. Where groups do not take their checkpoints at the same time, more than that is in no checkpoint.
	LogBytes  float64 `json:"log_bytes"`
	Segments  float64 `json:"segments"` // files of the log
	ReadyMs   float64 `json:"ready_ms"` // from the start of the processes until /readyz of the last one
	WriteMs   float64 `json:"first_write_ms"`
	ReadBytes float64 `json:"read_bytes"` // from the disk, until both
	AskedFor  float64 `json:"rchar_bytes"`
}

var startFigures = []figureOf[startRow]{
	{"ms to ready", func(r *startRow) float64 { return r.ReadyMs }},
	{"ms to the first write", func(r *startRow) float64 { return r.WriteMs }},
	{"MiB read from the disk", func(r *startRow) float64 { return r.ReadBytes / mib }},
	{"MiB of log since the last checkpoint", func(r *startRow) float64 { return r.LogBytes / mib }},
	{"segments", func(r *startRow) float64 { return r.Segments }},
}

func parseStartFlags(args []string) (cfg startConfig, err error) {
	cfg.live, cfg.warm = 20<<30, 1<<30
	flags := flag.NewFlagSet("bench start", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-start", "`directory` for the data, on the disk to measure")
	flags.StringVar(&cfg.out, "out", "bench/start.json", "`file` for the rows")
	flags.StringVar(&cfg.plots, "plots", "", "`directory` for the plot, start.svg; none if empty")
	flags.Var(&cfg.live, "live", "live data at the end, as `size`; a quarter and half of it are measured before")
	flags.Var(&cfg.warm, "warm", "log that is written to see how much comes between checkpoints, as `size`")
	flags.IntVar(&cfg.nodes, "nodes", 1, "`number` of nodes, 1 or 3, all killed and started at once")
	flags.IntVar(&cfg.rounds, "rounds", 3, "kills at each size; medians are kept")
	flags.DurationVar(&cfg.timeout, "timeout", 10*time.Minute, "how long a start may take")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	var errs []error
	if cfg.live < 64*mib || cfg.live > 64<<40 {
		errs = append(errs, errors.New("-live: from 64MiB to 64TiB"))
	}
	if cfg.warm < 64*mib {
		errs = append(errs, errors.New("-warm: at least 64MiB"))
	}
	if cfg.nodes != 1 && cfg.nodes != 3 {
		errs = append(errs, errors.New("-nodes: 1 or 3"))
	}
	if cfg.rounds < 1 || cfg.timeout < time.Second {
		errs = append(errs, errors.New("-rounds: at least 1; -timeout: at least 1s"))
	}
	return cfg, errors.Join(errs...)
}

// liveBytes are the sizes at which starts are measured, whole MiB.
func (c *startConfig) liveBytes() []int64 {
	whole := int64(c.live) / mib
	return []int64{whole / 4 * mib, whole / 2 * mib, whole * mib}
}

// runStart writes a volume in three steps. After each it overwrites at random, kills all nodes by SIGKILL when the log since the last
// checkpoint is about as long as it becomes, puts their files out of the page cache and times the start.
func runStart(ctx context.Context, cfg startConfig, w io.Writer) (err error) {
	dir, err := workDir(cfg.dir, roomFor(int64(cfg.live)*int64(cfg.nodes)/3))
	if err != nil {
		return err
	}
	if !cfg.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	binary, err := filepath.Abs(cfg.storaged)
	if err != nil {
		return err
	}
	c, err := testcluster.New(testcluster.Config{Command: []string{binary}, Dir: dir, Nodes: cfg.nodes, ReadyTimeout: cfg.timeout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopCluster(c)) }()
	sizes := cfg.liveBytes()
	if err := startCluster(ctx, c, config{sizeBytes: sizes[len(sizes)-1]}); err != nil {
		return err
	}
	s := starter{cfg: &cfg, cluster: c, w: w}
	var rows []startRow
	for _, live := range sizes {
		fmt.Fprintf(w, "%s  %d MiB live: filling\n", time.Now().Format(time.TimeOnly), live/mib)
		part := target{uri: export(c.Node(0), volumeName), offset: s.live, sizeBytes: live - s.live}
		if err := fill(ctx, []target{part}); err != nil {
			return err
		}
		s.live = live
		var samples []startRow
		for round := range cfg.rounds {
			r, err := s.start(ctx, round)
			if err != nil {
				return fmt.Errorf("%d MiB live, round %d: %w", live/mib, round+1, err)
			}
			fmt.Fprintf(w, "  round %d/%d  ready %.0f ms, first write %.0f ms, %.1f MiB read, %.0f MiB of log, %.0f segments\n", round+1, cfg.rounds,
				r.ReadyMs, r.WriteMs, r.ReadBytes/mib, r.LogBytes/mib, r.Segments)
			samples = append(samples, r)
		}
		rows = append(rows, medianStart(samples))
		if err := writeRows(cfg.out, rows); err != nil {
			return err
		}
	}
	printStart(w, rows)
	if cfg.plots == "" {
		return nil
	}
	if err := os.MkdirAll(cfg.plots, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.plots, "start.svg"), plotStart(rows), 0o644)
}

func printStart(w io.Writer, rows []startRow) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "nodes\tMiB live\tMiB log\tsegments\tms to ready\tms to first write\tMiB from disk\tMiB asked for")
	for _, r := range rows {
		fmt.Fprintf(t, "%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\n", r.Nodes, r.LiveBytes/mib, r.LogBytes/mib, r.Segments, r.ReadyMs, r.WriteMs,
			r.ReadBytes/mib, r.AskedFor/mib)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}

// plotStart has the live data on the x axis, so that what grows with it rises.
func plotStart(rows []startRow) []byte {
	c := chart{title: "Start after kill -9, with a log as long as it becomes between checkpoints", xLabel: "GiB of live data",
		panels: panelsOf(startFigures, rows, func(r *startRow) float64 { return r.LiveBytes / (1 << 30) },
			func(r *startRow) string { return fmt.Sprintf("%d nodes", r.Nodes) })}
	return c.svg()
}

// medianStart returns the median of each figure by itself.
func medianStart(samples []startRow) startRow {
	m := samples[0]
	for _, get := range []func(*startRow) *float64{
		func(r *startRow) *float64 { return &r.LogBytes }, func(r *startRow) *float64 { return &r.Segments },
		func(r *startRow) *float64 { return &r.ReadyMs }, func(r *startRow) *float64 { return &r.WriteMs },
		func(r *startRow) *float64 { return &r.ReadBytes }, func(r *startRow) *float64 { return &r.AskedFor },
	} {
		var xs []float64
		for i := range samples {
			xs = append(xs, *get(&samples[i]))
		}
		slices.Sort(xs)
		*get(&m) = (xs[(len(xs)-1)/2] + xs[len(xs)/2]) / 2
	}
	return m
}

// starter is a cluster that is killed and started.
type starter struct {
	cfg     *startConfig
	cluster *testcluster.Cluster
	live    int64 // bytes of the volume that are written, from 0
	w       io.Writer
}

// start fills the log, kills the nodes, starts them and writes a block.
func (s *starter) start(ctx context.Context, round int) (r startRow, err error) {
	r = startRow{Nodes: s.cfg.nodes, LiveBytes: float64(s.live)}
	defer progressOf(ctx).begin(fmt.Sprintf("%d MiB live, round %d", s.live/mib, round+1), 0)()
	if r.LogBytes, err = s.fillLog(ctx, round); err != nil {
		return r, err
	}
	for _, n := range s.cluster.Nodes() {
		files, err := forget(n.DataDir)
		if err != nil {
			return r, err
		}
		r.Segments += float64(files)
	}
	from := time.Now()
	for i := range s.cluster.Nodes() {
		if err := s.cluster.LaunchNode(i); err != nil {
			return r, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.timeout)
	defer cancel()
	var all errgroup.Group
	ready := make([]time.Duration, s.cfg.nodes)
	for i, n := range s.cluster.Nodes() {
		all.Go(func() error {
			err := n.WaitReady(ctx)
			ready[i] = time.Since(from)
			return err
		})
	}
	all.Go(func() error {
		err := s.writeOne(ctx)
		r.WriteMs = float64(time.Since(from)) / 1e6
		return err
	})
	if err := all.Wait(); err != nil {
		return r, err
	}
	r.ReadyMs = float64(slices.Max(ready)) / 1e6
	for _, n := range s.cluster.Nodes() {
		c, err := readIO(n.PID())
		if err != nil {
			return r, err
		}
		r.ReadBytes += c["read_bytes"]
		r.AskedFor += c["rchar"]
	}
	full, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return r, s.cluster.WaitFull(full)
}

// writeOne writes the first block as soon as the first node takes it.
func (s *starter) writeOne(ctx context.Context) error {
	last := error(nil)
	err := testcluster.Poll(ctx, 5*time.Millisecond, func() bool {
		last = writeBlock(ctx, nbdclient.Config{Network: "tcp", Address: s.cluster.Node(0).NBD, Export: volumeName})
		return last == nil
	})
	return errors.Join(err, last)
}

func writeBlock(ctx context.Context, cfg nbdclient.Config) error {
	c, err := nbdclient.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(c.WriteAt(ctx, bytes.Repeat([]byte("strt"), kib), 0), c.Close())
}

// fillLog overwrites at random until the log is about as long as it becomes between checkpoints, and kills all nodes. It returns the
// bytes of log since the last checkpoint that any node has written.
func (s *starter) fillLog(ctx context.Context, round int) (logBytes float64, err error) {
	writing, stop := context.WithCancel(ctx)
	defer stop()
	fio := make(chan error, 1)
	go func() {
		l := load{rw: "randwrite", blockBytes: 4 * kib, depth: 32}
		_, err := l.run(writing, []target{{uri: export(s.cluster.Node(0), volumeName), sizeBytes: s.live}}, 24*time.Hour, round)
		fio <- err
	}()
	first, err := s.counts(ctx)
	if err != nil {
		return 0, errors.Join(err, ctx.Err())
	}
	watch := logWatch{warm: float64(s.cfg.warm), first: first.log, since: first.log, checkpoints: first.checkpoints}
	for !watch.full {
		select {
		case err := <-fio:
			return 0, fmt.Errorf("overwriting ended early: %w", err)
		default:
		}
		if err := clock.Sleep(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
		now, err := s.counts(ctx)
		if err != nil {
			return 0, err
		}
		watch.see(now)
	}
	var kills sync.WaitGroup
	killed := make([]error, s.cfg.nodes)
	for i, n := range s.cluster.Nodes() {
		kills.Go(func() { killed[i] = n.Kill() })
	}
	kills.Wait()
	stop()
	_ = <-fio // it was told to end, and has lost its server
	if watch.seen == 0 {
		fmt.Fprintf(s.w, "  no checkpoint in %.0f MiB of log: a longer -warm may show more\n", float64(s.cfg.warm)/mib)
	}
	return watch.length, errors.Join(killed...)
}

// logCounts are of all nodes: bytes of log, and checkpoints, since they were started.
type logCounts struct{ log, checkpoints float64 }

func (s *starter) counts(ctx context.Context) (c logCounts, err error) {
	for _, n := range s.cluster.Nodes() {
		for name, to := range map[string]*float64{"storage_segment_append_bytes_total": &c.log, "storage_extent_checkpoint_seconds_count": &c.checkpoints} {
			v, err := readMetric(ctx, n.HTTP, name)
			if err != nil {
				return c, err
			}
			*to += v
		}
	}
	return c, nil
}

// logWatch says when the log since the last checkpoint is about as long as it becomes: after warm bytes, nine tenths of the longest
// that was seen between two checkpoints. After eight times as many bytes it waits no more.
type logWatch struct {
	warm        float64
	first       float64 // bytes of log at the beginning
	since       float64 // and when a checkpoint was last seen
	checkpoints float64
	seen        int     // changes of checkpoints
	longest     float64 // bytes between two of them
	length      float64 // bytes since the last one
	full        bool
}

func (w *logWatch) see(now logCounts) {
	w.length = now.log - w.since
	if now.checkpoints != w.checkpoints {
		if w.seen > 0 { // how long the first stretch is depends on when watching began
			w.longest = max(w.longest, w.length)
		}
		w.seen++
		w.since, w.checkpoints, w.length = now.log, now.checkpoints, 0
	}
	passed := now.log - w.first
	w.full = passed >= w.warm && w.length >= 0.9*w.longest || passed >= 8*w.warm
}

// forget puts what is in a data directory out of the page cache, so that a start reads it from the disk, and counts the segments.
func forget(dir string) (segments int, err error) {
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if filepath.Ext(path) == ".seg" {
			segments++
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		// What is dirty cannot be put out.
		return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	})
	return segments, err
}

// readIO returns the counters of a process's I/O, in bytes (proc(5), /proc/PID/io).
func readIO(pid int) (map[string]float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return nil, err
	}
	return parseIO(string(b))
}

func parseIO(text string) (map[string]float64, error) {
	counts := map[string]float64{}
	for l := range strings.Lines(text) {
		key, value, _ := strings.Cut(l, ":")
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return nil, fmt.Errorf("/proc/PID/io: %q: %w", l, err)
		}
		counts[key] = n
	}
	for _, key := range []string{"read_bytes", "rchar"} {
		if _, ok := counts[key]; !ok {
			return nil, fmt.Errorf("/proc/PID/io has no %s", key)
		}
	}
	return counts, nil
}
