package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

// scaleConfig is what the flags of `bench scale` say.
type scaleConfig struct {
	storaged, dir, out, plots string
	sizeBytes                 int64 // of what one series works on, in all its volumes together
	only                      []string
	rounds                    int
	perJob                    time.Duration
	idle                      time.Duration // how long idle nodes are watched
	idleVolumes               []int
	space                     spaceConfig // the stores of the series `fill`
	keep                      bool
}

// scaleRow is what one series gave at one x. What its measure does not have is 0, and so it is with idle's.
type scaleRow struct {
	Series string  `json:"series"`
	System string  `json:"system"` // storaged, nbdkit or nbdkit-fua
	X      float64 `json:"x"`
	measure
	IdlePercent  float64 `json:"idle_cpu_percent,omitempty"` // of one core, all nodes together
	MetricsBytes float64 `json:"metrics_bytes,omitempty"`    // of the first node's /metrics
	CatalogBytes float64 `json:"catalog_bytes,omitempty"`    // of the files in the first node's catalog directory
}

// series is how one factor is varied, all others left alone.
type series struct {
	name, title, xLabel string
	logX                bool
	figures             []figure
	run                 func(*scaleRun, context.Context) ([]scaleRow, error)
}

// figure is a panel of a series' plot.
type figure = figureOf[scaleRow]

var (
	residentFigure = figure{"MiB resident, the largest server", func(r *scaleRow) float64 { return r.ResidentMiB }}
	loadFigures    = []figure{
		{"requests/s", func(r *scaleRow) float64 { return r.IOPS }},
		{"p50, us", func(r *scaleRow) float64 { return r.P50us }},
		{"p99, us", func(r *scaleRow) float64 { return r.P99us }},
		{"CPU s of all servers per 100,000 requests", func(r *scaleRow) float64 { return r.CPUPer100k }},
		residentFigure,
	}
	idleFigures = []figure{
		{"CPU of all nodes, percent of a core", func(r *scaleRow) float64 { return r.IdlePercent }},
		residentFigure,
		{"KiB of /metrics", func(r *scaleRow) float64 { return r.MetricsBytes / kib }},
		{"KiB in the catalog's directory", func(r *scaleRow) float64 { return r.CatalogBytes / kib }},
	}
)

// scaleSeries are all series, in the order in which they run. Where a floor stands beside it, nbdkit gets the same load.
var scaleSeries = []series{
	{"depth", "4 KiB random writes, by requests in flight", "depth", true, loadFigures, func(r *scaleRun, ctx context.Context) ([]scaleRow, error) { return r.depths(ctx, "randwrite") }},
	{"depth-reads", "4 KiB random reads, by requests in flight", "depth", true, loadFigures, func(r *scaleRun, ctx context.Context) ([]scaleRow, error) { return r.depths(ctx, "randread") }},
	{"volumes", "4 KiB random writes, 64 in flight over all volumes", "busy volumes", true, loadFigures, (*scaleRun).volumes},
	{"idle", "A cluster whose volumes nobody uses", "volumes", true, idleFigures, (*scaleRun).idle},
	{"clients", "4 KiB random writes of three clients, 16 in flight each", "nodes that they come through", false, loadFigures, (*scaleRun).clients},
	{"groups", "4 KiB random writes, 32 in flight", "groups of the volume", true, loadFigures, (*scaleRun).groups},
	{"blocks", "Random writes, 16 in flight, by their size", "KiB", true, loadFigures, (*scaleRun).blocks},
	{"mixed", "4 KiB random reads and writes, 32 in flight", "percent that are reads", false, loadFigures, (*scaleRun).mixed},
	{"fill", "4 KiB random overwrites, 32 in flight, of stores with a bound", "percent of what the store may use that lives", false, loadFigures, (*scaleRun).fill},
}

func parseScaleFlags(args []string) (cfg scaleConfig, err error) {
	flags := flag.NewFlagSet("bench scale", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-scale", "`directory` for the data, on the disk to measure")
	flags.StringVar(&cfg.out, "out", "bench/scale.json", "`file` for the rows")
	flags.StringVar(&cfg.plots, "plots", "", "`directory` for the plots, an SVG for each series; none if empty")
	size := flags.Int64("size-mib", 2048, "what a series works on, all its volumes together, in `MiB`")
	var names []string
	for _, s := range scaleSeries {
		names = append(names, s.name)
	}
	only := flags.String("only", "", "run only the series of these `names`, with commas between: "+strings.Join(names, ", "))
	flags.IntVar(&cfg.rounds, "rounds", 3, "how often each point is measured; medians are kept")
	flags.DurationVar(&cfg.perJob, "time", 5*time.Second, "how long each time")
	flags.DurationVar(&cfg.idle, "idle", 20*time.Second, "how long idle nodes are watched")
	volumes := flags.String("idle-volumes", "10,100,1000", "`numbers` of idle volumes, ascending")
	capacity := flags.Int64("capacity-mib", 2048, "what each store of the series fill may use, in `MiB`; 512 of it are its reserve")
	live := flags.String("live", "50,70,80,90", "shares of it that live there, in `percent`")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	cfg.sizeBytes = *size * mib
	if *only != "" {
		cfg.only = strings.Split(*only, ",")
	}
	var errs []error
	for _, name := range cfg.only {
		if !slices.Contains(names, name) {
			errs = append(errs, fmt.Errorf("-only %s: there are %s", name, strings.Join(names, ", ")))
		}
	}
	if cfg.idleVolumes, err = numbers(*volumes, 1, 100000); err != nil {
		errs = append(errs, fmt.Errorf("-idle-volumes: %w", err))
	} else if !slices.IsSorted(cfg.idleVolumes) {
		errs = append(errs, errors.New("-idle-volumes: in ascending order"))
	}
	if *size < 64 || *size > 1<<20 || *size%64 != 0 {
		errs = append(errs, errors.New("-size-mib: from 64 to 1048576, in steps of 64"))
	}
	if cfg.rounds < 1 || cfg.perJob < time.Second || cfg.perJob%time.Second != 0 || cfg.idle < time.Second {
		errs = append(errs, errors.New("-rounds: at least 1; -time: whole seconds, at least 1s; -idle: at least 1s"))
	}
	cfg.space, err = parseSpaceFlags([]string{"-storaged", cfg.storaged, "-capacity-mib", fmt.Sprint(*capacity), "-live", *live,
		fmt.Sprintf("-keep=%t", cfg.keep)})
	if err != nil {
		errs = append(errs, err)
	}
	return cfg, errors.Join(errs...)
}

// runScale varies one factor after the other and says what each costs. Each series has a cluster of its own, of three nodes on loopback.
func runScale(ctx context.Context, cfg scaleConfig, w io.Writer) (err error) {
	// A series of volumes of its own size has as much beside it at the floor.
	dir, err := workDir(cfg.dir, roomFor(cfg.sizeBytes))
	if err != nil {
		return err
	}
	if !cfg.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	device, err := diskOf(dir)
	if err != nil {
		return err
	}
	var rows []scaleRow
	for i := range scaleSeries {
		s := &scaleSeries[i]
		if len(cfg.only) > 0 && !slices.Contains(cfg.only, s.name) {
			continue
		}
		r := scaleRun{scaleConfig: &cfg, series: s, disk: device, dir: filepath.Join(dir, s.name), w: w}
		mine, err := r.all(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		rows = append(rows, mine...)
		// What is measured is kept, whatever happens to the next series.
		if err := writeRows(cfg.out, rows); err != nil {
			return err
		}
		if cfg.plots != "" {
			if err := s.plot(cfg.plots, mine); err != nil {
				return err
			}
		}
	}
	printScale(w, rows)
	return nil
}

// writeRows writes rows as JSON.
func writeRows(file string, rows any) error {
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func printScale(w io.Writer, rows []scaleRow) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "series\tx\tsystem\trequests/s\tMB/s\tp50 us\tp99 us\tCPU s per 100k\tMiB resident\tidle CPU %\tKiB metrics\tKiB catalog")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%.0f\t%.1f\t%.0f\t%.0f\t%.2f\t%.0f\t%.2f\t%.0f\t%.0f\n", r.Series, number(r.X), r.System, r.IOPS, r.MBPerS,
			r.P50us, r.P99us, r.CPUPer100k, r.ResidentMiB, r.IdlePercent, r.MetricsBytes/kib, r.CatalogBytes/kib)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}

// plot writes the series' SVG into a directory.
func (s *series) plot(dir string, rows []scaleRow) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	c := chart{title: s.title, xLabel: s.xLabel, logX: s.logX,
		panels: panelsOf(s.figures, rows, func(r *scaleRow) float64 { return r.X }, func(r *scaleRow) string { return r.System })}
	return os.WriteFile(filepath.Join(dir, "scale-"+s.name+".svg"), c.svg(), 0o644)
}

// scaleRun is one series while it runs.
type scaleRun struct {
	*scaleConfig
	series *series
	disk   disk
	dir    string
	w      io.Writer

	cluster *testcluster.Cluster
	floors  *floor // nil unless withFloor
	stops   []func() error
}

// all runs the series, and ends what it started.
func (r *scaleRun) all(ctx context.Context) (rows []scaleRow, err error) {
	fmt.Fprintf(r.w, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), r.series.name, r.series.title)
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		for _, stop := range slices.Backward(r.stops) {
			err = errors.Join(err, stop())
		}
		if !r.keep {
			err = errors.Join(err, os.RemoveAll(r.dir))
		}
	}()
	return r.series.run(r, ctx)
}

// start starts three nodes.
func (r *scaleRun) start(ctx context.Context) error {
	binary, err := filepath.Abs(r.storaged)
	if err != nil {
		return err
	}
	if r.cluster, err = testcluster.New(testcluster.Config{Command: []string{binary}, Dir: r.dir, Nodes: 3}); err != nil {
		return err
	}
	r.stops = append(r.stops, func() error { return stopCluster(r.cluster) })
	if err := r.cluster.Start(ctx); err != nil {
		return err
	}
	full, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return r.cluster.WaitFull(full)
}

// stopCluster stops a cluster that has measured.
func stopCluster(c *testcluster.Cluster) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return c.Stop(ctx)
}

// withFloor starts nbdkit on a file of the series' size.
func (r *scaleRun) withFloor(ctx context.Context) (err error) {
	if r.floors, err = startFloor(ctx, r.dir, r.sizeBytes); err != nil {
		return err
	}
	r.stops = append(r.stops, func() error { r.floors.stop(); return nil })
	r.floors.fua.disk, r.floors.plain.disk = r.disk, r.disk
	return fill(ctx, []target{{uri: r.floors.plain.uri, sizeBytes: r.sizeBytes}})
}

// volume creates a volume, fills it, and returns it by way of the first node. groups 0 leaves their number to the cluster.
func (r *scaleRun) volume(ctx context.Context, name string, sizeBytes int64, groups int) (target, error) {
	t := target{uri: export(r.cluster.Node(0), name), sizeBytes: sizeBytes}
	if err := r.cluster.CreateVolumeOver(ctx, name, sizeBytes, groups); err != nil {
		return t, err
	}
	return t, fill(ctx, []target{t})
}

// one starts three nodes with one filled volume and, if asked to, the floor beside them.
func (r *scaleRun) one(ctx context.Context, withFloor bool) (t target, err error) {
	if err := r.start(ctx); err != nil {
		return t, err
	}
	if withFloor {
		if err := r.withFloor(ctx); err != nil {
			return t, err
		}
	}
	return r.volume(ctx, volumeName, r.sizeBytes, 0)
}

// point is what is measured at one x: the load on some servers.
type point struct {
	x       float64
	load    load
	servers []*server
	targets [][]target // of each server
}

// measure measures every point r.rounds times, every other time in the opposite order, and returns the medians.
func (r *scaleRun) measure(ctx context.Context, points []point) (rows []scaleRow, err error) {
	samples := make([][][]measure, len(points)) // by point and server
	for round := range r.rounds {
		order := make([]int, len(points))
		for i := range order {
			order[i] = i
		}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			p := &points[i]
			if samples[i] == nil {
				samples[i] = make([][]measure, len(p.servers))
			}
			for k, s := range p.servers {
				m, err := s.during(func() (measure, error) { return p.load.run(ctx, p.targets[k], r.perJob, round) })
				if err != nil {
					return nil, fmt.Errorf("%s at %s: %w", s.name, number(p.x), err)
				}
				fmt.Fprintf(r.w, "  round %d/%d  %5s  %-10s %9.0f /s  p50 %7.0f us  p99 %7.0f us\n", round+1, r.rounds, number(p.x), s.name, m.IOPS, m.P50us, m.P99us)
				samples[i][k] = append(samples[i][k], m)
			}
		}
	}
	for i, p := range points {
		for k, s := range p.servers {
			rows = append(rows, scaleRow{Series: r.series.name, System: s.name, X: p.x, measure: median(samples[i][k])})
		}
	}
	return rows, nil
}

// point makes one of storaged's targets.
func (r *scaleRun) point(x float64, l load, targets ...target) point {
	return point{x: x, load: l, servers: []*server{clusterServer(r.cluster, r.disk)}, targets: [][]target{targets}}
}

// withFloor adds the floor to a point of one target.
func (p point) withFloor(floor *server) point {
	p.servers = append([]*server{floor}, p.servers...)
	p.targets = append([][]target{{{uri: floor.uri, sizeBytes: p.targets[0][0].sizeBytes}}}, p.targets...)
	return p
}

func (r *scaleRun) depths(ctx context.Context, rw string) ([]scaleRow, error) {
	t, err := r.one(ctx, true)
	if err != nil {
		return nil, err
	}
	var points []point
	for depth := 1; depth <= 256; depth *= 4 {
		points = append(points, r.point(float64(depth), load{rw: rw, blockBytes: 4 * kib, depth: depth}, t).withFloor(r.floors.of(job{fua: rw == "randwrite"})))
	}
	return r.measure(ctx, points)
}

func (r *scaleRun) volumes(ctx context.Context) ([]scaleRow, error) {
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	var points []point
	for _, n := range []int{1, 8, 64} {
		var targets []target
		for i := range n {
			t, err := r.volume(ctx, fmt.Sprintf("busy-%d-%d", n, i), r.sizeBytes/int64(n), 0)
			if err != nil {
				return nil, err
			}
			targets = append(targets, t)
		}
		points = append(points, r.point(float64(n), load{rw: "randwrite", blockBytes: 4 * kib, depth: 64 / n}, targets...))
	}
	return r.measure(ctx, points)
}

// idle watches the nodes after each batch of volumes: they exist, and nothing is attached to them.
func (r *scaleRun) idle(ctx context.Context) (rows []scaleRow, err error) {
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	made := 0
	for _, n := range r.idleVolumes {
		if err := r.makeIdle(ctx, made, n); err != nil {
			return nil, err
		}
		made = n
		row, err := r.watchIdle(ctx, n)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (r *scaleRun) makeIdle(ctx context.Context, from, to int) error {
	p := progressOf(ctx)
	defer p.begin("making volumes", to-from)()
	for i := from; i < to; i++ {
		if err := r.cluster.CreateVolumeOver(ctx, fmt.Sprintf("idle-%d", i), 1<<30, 0); err != nil {
			return err
		}
		p.ended()
	}
	return nil
}

func (r *scaleRun) watchIdle(ctx context.Context, volumes int) (row scaleRow, err error) {
	row = scaleRow{Series: r.series.name, System: "storaged", X: float64(volumes)}
	nodes := clusterServer(r.cluster, r.disk)
	largest := nodes.watchMemory()
	row.IdlePercent, err = measureIdle(ctx, config{idle: r.scaleConfig.idle}, nodes, r.w)
	row.ResidentMiB = float64(largest()) / mib
	if err != nil {
		return row, err
	}
	first := r.cluster.Node(0)
	if row.MetricsBytes, err = metricsBytes(ctx, first.HTTP); err != nil {
		return row, err
	}
	row.CatalogBytes, err = dirBytes(filepath.Join(first.DataDir, "catalog"))
	return row, err
}

// metricsBytes returns how much a node answers at /metrics.
func metricsBytes(ctx context.Context, addr string) (float64, error) {
	body, err := getMetrics(ctx, addr)
	return float64(len(body)), err
}

// dirBytes returns the sizes of the files below dir, which may go while it looks.
func dirBytes(dir string) (sum float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return ignoreGone(err)
		}
		info, err := e.Info()
		if err == nil {
			sum += float64(info.Size())
		}
		return ignoreGone(err)
	})
	return sum, err
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// clients: three, each with a volume of its own, all by way of one node, and each by way of its own.
func (r *scaleRun) clients(ctx context.Context) ([]scaleRow, error) {
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	together, spread := make([]target, 3), make([]target, 3)
	for i := range together {
		name := fmt.Sprintf("of-client-%d", i)
		t, err := r.volume(ctx, name, r.sizeBytes/int64(len(together))/mib*mib, 0)
		if err != nil {
			return nil, err
		}
		together[i], spread[i] = t, target{uri: export(r.cluster.Node(i), name), sizeBytes: t.sizeBytes}
	}
	l := load{rw: "randwrite", blockBytes: 4 * kib, depth: 16}
	return r.measure(ctx, []point{r.point(1, l, together...), r.point(3, l, spread...)})
}

func (r *scaleRun) groups(ctx context.Context) ([]scaleRow, error) {
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	var points []point
	for _, n := range []int{1, 8} {
		t, err := r.volume(ctx, fmt.Sprintf("over-%d", n), r.sizeBytes, n)
		if err != nil {
			return nil, err
		}
		points = append(points, r.point(float64(n), load{rw: "randwrite", blockBytes: 4 * kib, depth: 32}, t))
	}
	return r.measure(ctx, points)
}

func (r *scaleRun) blocks(ctx context.Context) ([]scaleRow, error) {
	t, err := r.one(ctx, true)
	if err != nil {
		return nil, err
	}
	var points []point
	for _, n := range []int{4, 16, 64, 256, 1024} {
		points = append(points, r.point(float64(n), load{rw: "randwrite", blockBytes: n * kib, depth: 16}, t).withFloor(r.floors.fua))
	}
	return r.measure(ctx, points)
}

func (r *scaleRun) mixed(ctx context.Context) ([]scaleRow, error) {
	t, err := r.one(ctx, true)
	if err != nil {
		return nil, err
	}
	var points []point
	for _, percent := range []int{0, 30, 70, 100} {
		points = append(points, r.point(float64(percent), load{rw: "randrw", readPercent: percent, blockBytes: 4 * kib, depth: 32}, t).withFloor(r.floors.fua))
	}
	return r.measure(ctx, points)
}

// fill: stores of `bench space`, each overwritten once before, so that compaction is at work.
func (r *scaleRun) fill(ctx context.Context) (rows []scaleRow, err error) {
	for _, live := range r.space.live {
		row, err := r.fillLevel(ctx, live)
		if err != nil {
			return nil, fmt.Errorf("%d %% live: %w", live, err)
		}
		rows = append(rows, row...)
	}
	return rows, nil
}

func (r *scaleRun) fillLevel(ctx context.Context, live int) (rows []scaleRow, err error) {
	sizeBytes := r.space.volumeBytes(live)
	store, err := r.space.start(ctx, filepath.Join(r.dir, fmt.Sprint(live)), 3, sizeBytes, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.end()) }()
	if _, err := store.overwrite(ctx, sizeBytes, 0, r.space.usable(), 0); err != nil {
		return nil, err
	}
	r.cluster = store.cluster
	return r.measure(ctx, []point{r.point(float64(live), load{rw: "randwrite", blockBytes: 4 * kib, depth: 32}, target{uri: store.uri(), sizeBytes: sizeBytes})})
}
