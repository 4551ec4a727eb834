package main

import (
	"bufio"
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
	"text/tabwriter"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

// stagesConfig is what the flags of `bench stages` say.
type stagesConfig struct {
	storaged, dir, out string
	sizeBytes          int64 // of the volume
	rounds             int
	perJob             time.Duration // how long each side runs in a round
	keep               bool
}

// stageRow is one stage of a write, in microseconds: the median of the rounds' means, and the smallest and largest of them.
type stageRow struct {
	Table  string  `json:"table"` // write: adds up to what the client waits; trip: to a request to a follower and back; beside: neither
	Stage  string  `json:"stage"`
	Median float64 `json:"median_us"`
	Min    float64 `json:"min_us"`
	Max    float64 `json:"max_us"`
	Share  float64 `json:"share"` // of the table's whole, by the medians; 0 beside
}

// stageValue is one stage in one round.
type stageValue struct {
	table, stage string
	us           float64
}

const (
	writeTable  = "write"
	tripTable   = "trip"
	besideTable = "beside"
	wholeStage  = "whole"
)

// stageJob is the load: what docs/performance.md holds against the floor at depth 1.
var stageJob = jobs[0]

func parseStagesFlags(args []string) (cfg stagesConfig, err error) {
	flags := flag.NewFlagSet("bench stages", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-stages", "`directory` for the data of both sides, on the disk to measure")
	flags.StringVar(&cfg.out, "out", "bench/stages.json", "`file` for the rows")
	gib := flags.Int64("size-gib", 1, "size of the volume in GiB")
	flags.IntVar(&cfg.rounds, "rounds", 5, "how often each side runs")
	flags.DurationVar(&cfg.perJob, "time", 5*time.Second, "how long each side runs in a round")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	cfg.sizeBytes = *gib << 30
	return cfg, config{sizeBytes: cfg.sizeBytes, rounds: cfg.rounds, perJob: cfg.perJob, system: "storaged"}.validate()
}

// runStages runs random 4 KiB writes at depth 1 on three nodes, in turns with the floor, and says from the nodes' metrics where
// the time of a write went.
func runStages(ctx context.Context, cfg stagesConfig, w io.Writer) (err error) {
	dir, err := workDir(cfg.dir, roomFor(cfg.sizeBytes))
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
	floor, err := startNbdkit(ctx, "nbdkit-fua", filepath.Join(dir, "floor.img"), cfg.sizeBytes, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, floor.stop()) }()
	c, err := testcluster.New(testcluster.Config{Command: []string{binary}, Dir: dir, Nodes: 3})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopCluster(c)) }()
	if err := startCluster(ctx, c, config{sizeBytes: cfg.sizeBytes}); err != nil {
		return err
	}
	uri := export(c.Node(0), volumeName)
	for _, uri := range []string{floor.uri, uri} {
		if err := fill(ctx, []target{{uri: uri, sizeBytes: cfg.sizeBytes}}); err != nil {
			return err
		}
	}
	var rounds [][]stageValue
	var mine, base, ratios []float64
	for round := range cfg.rounds {
		f, err := runFio(ctx, stageJob, floor.uri, cfg.sizeBytes, cfg.perJob, round)
		if err != nil {
			return err
		}
		m, values, err := stagesOnce(ctx, c, cfg, uri, round)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "round %d/%d  storaged p50 %.0f us, mean %.0f us; %s p50 %.0f us; %.2f x\n", round+1, cfg.rounds, m.P50us, m.meanUs, floor.name,
			f.P50us, m.P50us/f.P50us)
		rounds = append(rounds, values)
		mine, base, ratios = append(mine, m.P50us), append(base, f.P50us), append(ratios, m.P50us/f.P50us)
	}
	fmt.Fprintf(w, "\np50 of storaged %s us, of %s %s us, ratio %s (median, smallest to largest round)\n", spread(mine, 0), floor.name, spread(base, 0), spread(ratios, 2))
	rows := stageRows(rounds)
	printStages(w, rows)
	return writeRows(cfg.out, rows)
}

// stagesOnce runs the job and returns what the client saw, and the stages by the metrics before and after.
func stagesOnce(ctx context.Context, c *testcluster.Cluster, cfg stagesConfig, uri string, round int) (m measure, values []stageValue, err error) {
	before, err := scrapeAll(ctx, c)
	if err != nil {
		return m, nil, err
	}
	if m, err = runFio(ctx, stageJob, uri, cfg.sizeBytes, cfg.perJob, round); err != nil {
		return m, nil, err
	}
	after, err := scrapeAll(ctx, c)
	if err != nil {
		return m, nil, err
	}
	values, err = stagesBetween(before, after, m.meanUs)
	return m, values, err
}

// scrape is a node's metrics: values by series, as the exposition format writes them.
type scrape map[string]float64

func scrapeAll(ctx context.Context, c *testcluster.Cluster) (all []scrape, err error) {
	for _, n := range c.Nodes() {
		text, err := getMetrics(ctx, n.HTTP)
		if err != nil {
			return nil, err
		}
		s, err := parseScrape(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.HTTP, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func parseScrape(text []byte) (scrape, error) {
	s := scrape{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		s[line[:at]] = v
	}
	return s, lines.Err()
}

// sum adds up the series of a metric that have the label, of all if it is "".
func (s scrape) sum(name, label string) (sum float64) {
	for series, v := range s {
		if base, labels, _ := strings.Cut(series, "{"); base == name && strings.Contains(labels, label) {
			sum += v
		}
	}
	return sum
}

// meanBetween returns the mean of a histogram or summary in microseconds, of what nodes booked between two scrapes.
func meanBetween(before, after []scrape, name, label string) (float64, error) {
	var seconds, n float64
	for i := range after {
		seconds += after[i].sum(name+"_sum", label) - before[i].sum(name+"_sum", label)
		n += after[i].sum(name+"_count", label) - before[i].sum(name+"_count", label)
	}
	if n <= 0 {
		return 0, fmt.Errorf("no node has booked %s %s: does the binary know it?", name, label)
	}
	return seconds * 1e6 / n, nil
}

// stagesBetween returns the stages of the writes between two scrapes of the nodes, the first of which is the gateway, and of
// which the client saw clientUs.
func stagesBetween(before, after []scrape, clientUs float64) (values []stageValue, err error) {
	var errs []error
	mean := func(name, label string) float64 {
		us, err := meanBetween(before, after, name, label)
		errs = append(errs, err)
		return us
	}
	add := func(table, stage string, us float64) { values = append(values, stageValue{table, stage, us}) }
	part := func(table, metric, stage, words string) float64 {
		us := mean(metric, `stage="`+stage+`"`)
		add(table, words, us)
		return us
	}
	const writes = `operation="write"`
	server, gateway := mean("storage_nbd_request_duration_seconds", writes), mean("storage_volume_request_seconds", writes)
	add(writeTable, "client, its socket, wake-ups", clientUs-server)
	add(writeTable, "NBD server", server-gateway)
	at, proposal := len(values), 0.0
	for _, s := range [][2]string{{"admit", "leader: checks"}, {"queue", "leader: to Raft's loop"}, {"append", "leader: into the log's tail"},
		{"send", "leader: to the connection"}, {"follower", "first follower, there and back"}, {"own_log", "leader: own log, after that"},
		{"commit", "leader: counted, to the state machine"}, {"apply", "leader: apply"}, {"answer", "leader: answer"}} {
		proposal += part(writeTable, "storage_replication_write_stage_seconds", s[0], s[1])
	}
	values = slices.Insert(values, at, stageValue{writeTable, "gateway, and to the leader", gateway - proposal})
	add(writeTable, wholeStage, clientUs)

	trip := mean("storage_replication_append_seconds", "")
	at, follower := len(values), 0.0
	for _, s := range [][2]string{{"receive", "receive"}, {"store", "verify, Raft's loop, into the log's tail"}, {"sync", "write and sync"}, {"answer", "answer"}} {
		follower += part(tripTable, "storage_replication_follower_stage_seconds", s[0], s[1])
	}
	values = slices.Insert(values, at, stageValue{tripTable, "wire and wake-ups", trip - follower})
	add(tripTable, wholeStage, trip)

	for _, s := range [][2]string{{"storage_segment_write_seconds", "write of a log"}, {"storage_segment_sync_seconds", "sync of a log"}} {
		add(besideTable, s[1], mean(s[0], ""))
	}
	return values, errors.Join(errs...)
}

// stageRows returns the rows of all rounds, which have the same stages.
func stageRows(rounds [][]stageValue) (rows []stageRow) {
	whole := map[string]float64{}
	for i, v := range rounds[0] {
		var us []float64
		for _, r := range rounds {
			us = append(us, r[i].us)
		}
		slices.Sort(us)
		r := stageRow{Table: v.table, Stage: v.stage, Median: medianOf(us), Min: us[0], Max: us[len(us)-1]}
		if v.stage == wholeStage {
			whole[v.table] = r.Median
		}
		rows = append(rows, r)
	}
	for i := range rows {
		if of := whole[rows[i].Table]; of > 0 {
			rows[i].Share = rows[i].Median / of
		}
	}
	return rows
}

// medianOf returns the median of sorted values.
func medianOf(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// spread writes the median of values, and the smallest and the largest.
func spread(values []float64, digits int) string {
	s := slices.Sorted(slices.Values(values))
	f := func(v float64) string { return strconv.FormatFloat(v, 'f', digits, 64) }
	return fmt.Sprintf("%s (%s to %s)", f(medianOf(s)), f(s[0]), f(s[len(s)-1]))
}

func printStages(w io.Writer, rows []stageRow) {
	titles := map[string]string{writeTable: "a write at depth 1, as its client sees it", tripTable: "of it: a request to a follower and back, both followers",
		besideTable: "beside, on all nodes"}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, r := range rows {
		if i == 0 || rows[i-1].Table != r.Table {
			fmt.Fprintf(t, "\n%s\tmean us\tsmallest\tlargest\tshare\n", titles[r.Table])
		}
		share := ""
		if r.Share > 0 {
			share = fmt.Sprintf("%.0f %%", 100*r.Share)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%s\n", r.Stage, r.Median, r.Min, r.Max, share)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}
