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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/testcluster"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

// repairConfig is what the flags of `bench repair` say.
type repairConfig struct {
	storaged, dir, out string
	live               size.Bytes // on each of four nodes
	after              time.Duration
	perRun             time.Duration // of fio, before and while it repairs
	depth              int
	timeout            time.Duration
	keep               bool
}

// repairRow is what making a lost node's replicas anew took.
type repairRow struct {
	Clients     string  `json:"clients"`     // "idle", or what fio did
	LostBytes   float64 `json:"lost_bytes"`  // data that the lost node's replicas held
	MovedBytes  float64 `json:"moved_bytes"` // that pulls have brought
	WholeS      float64 `json:"whole_s"`     // from the first moved byte until all groups have three voters that are up
	NoticedS    float64 `json:"noticed_s"`   // from the kill until the first moved byte, --repair-after included
	MBPerS      float64 `json:"mb_per_s"`    // MovedBytes over WholeS
	CPUPercent  float64 `json:"cpu_percent"` // of all that the machine has, meanwhile
	DiskPercent float64 `json:"disk_percent"`
	P99Before   float64 `json:"p99_us_before,omitempty"` // medians of the runs
	P99While    float64 `json:"p99_us_while,omitempty"`
	RateBefore  float64 `json:"iops_before,omitempty"`
	RateWhile   float64 `json:"iops_while,omitempty"`
	LongestMs   float64 `json:"longest_ms,omitempty"`
}

func parseRepairFlags(args []string) (cfg repairConfig, err error) {
	cfg.live = 20 << 30
	flags := flag.NewFlagSet("bench repair", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-repair", "`directory` for the data of all four nodes, on the disk to measure")
	flags.StringVar(&cfg.out, "out", "bench/repair.json", "`file` for the rows")
	flags.Var(&cfg.live, "live", "data on each node, as `size`")
	flags.DurationVar(&cfg.after, "repair-after", 20*time.Second, "storaged's --repair-after")
	flags.DurationVar(&cfg.perRun, "time", 10*time.Second, "how long a run of clients takes")
	flags.IntVar(&cfg.depth, "depth", 8, "of the clients' 4 KiB writes")
	flags.DurationVar(&cfg.timeout, "timeout", time.Hour, "how long a repair may take")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	if cfg.live < 64*mib || cfg.depth < 1 || cfg.perRun < time.Second || cfg.perRun%time.Second != 0 || cfg.after < 20*time.Second {
		return cfg, errors.New("-live: at least 64MiB; -depth: at least 1; -time: whole seconds, at least 1s; -repair-after: at least 20s")
	}
	return cfg, nil
}

// runRepair fills four nodes, kills one for good, and says what it took until three nodes hold what four held: once while no client does anything,
// and once while one writes. Before the second time the node joins again with an empty disk, and gets its share.
func runRepair(ctx context.Context, cfg repairConfig, w io.Writer) (err error) {
	volumeBytes := int64(cfg.live) / 3 * 4 / mib * mib    // three copies on four nodes
	dir, err := workDir(cfg.dir, 6*int64(cfg.live)+8<<30) // with what the lost node leaves behind
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
	c, err := testcluster.New(testcluster.Config{Command: []string{binary}, Dir: dir, Nodes: 4, Args: []string{"--repair-after", cfg.after.String(),
		"--groups", "16"}}) // as many as four nodes want: none is added meanwhile
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopCluster(c)) }()
	d, err := diskOf(dir)
	if err != nil {
		return err
	}
	if err := startCluster(ctx, c, config{sizeBytes: volumeBytes, groups: 16}); err != nil {
		return err
	}
	r := repairer{cfg: &cfg, cluster: c, disk: d, volumeBytes: volumeBytes}
	var rows []repairRow
	for _, loaded := range []bool{false, true} {
		fmt.Fprintf(w, "%s  filling %d MiB\n", time.Now().Format(time.TimeOnly), volumeBytes/mib)
		if !loaded {
			if err := r.whole(ctx, 4); err != nil {
				return err
			}
			if err := fill(ctx, []target{{uri: export(c.Node(0), volumeName), sizeBytes: volumeBytes}}); err != nil {
				return err
			}
		}
		if err := r.even(ctx); err != nil {
			return err
		}
		row, err := r.lose(ctx, loaded)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s  %s: %.0f MiB moved in %.1f s\n", time.Now().Format(time.TimeOnly), row.Clients, row.MovedBytes/mib, row.WholeS)
		rows = append(rows, row)
		if err := writeRows(cfg.out, rows); err != nil {
			return err
		}
		if !loaded {
			if err := r.joinAgain(ctx); err != nil {
				return err
			}
		}
	}
	printRepair(w, rows)
	return nil
}

func printRepair(w io.Writer, rows []repairRow) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "clients\tMiB lost\tMiB moved\tmoved over lost\ts until it begins\ts until whole\tMB/s\tCPU %\tdisk %\tp99 us before\twhile\tover it\trequests/s over before\tlongest ms")
	for _, r := range rows {
		p99, rate := "", ""
		if r.P99Before > 0 {
			p99, rate = fmt.Sprintf("%.2f x", r.P99While/r.P99Before), fmt.Sprintf("%.2f x", r.RateWhile/r.RateBefore)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.2f x\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t%s\t%.0f\n", r.Clients, r.LostBytes/mib, r.MovedBytes/mib,
			r.MovedBytes/r.LostBytes, r.NoticedS, r.WholeS, r.MBPerS, r.CPUPercent, r.DiskPercent, r.P99Before, r.P99While, p99, rate, r.LongestMs)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}

// repairer is a cluster of which the last node is lost.
type repairer struct {
	cfg         *repairConfig
	cluster     *testcluster.Cluster
	disk        disk
	volumeBytes int64
}

func (r *repairer) victim() *testcluster.Node { return r.cluster.Node(3) }

// lose kills the last node, and waits until the others hold all copies.
func (r *repairer) lose(ctx context.Context, loaded bool) (row repairRow, err error) {
	row.Clients = "idle"
	if row.LostBytes, err = r.heldBy(ctx, r.victim().Name); err != nil {
		return row, err
	}
	var before []measure
	if loaded {
		row.Clients = fmt.Sprintf("4 KiB writes, depth %d", r.cfg.depth)
		for i := range 5 {
			m, err := r.client(ctx, i)
			if err != nil {
				return row, err
			}
			before = append(before, m)
		}
	}
	moved, err := r.moved(ctx)
	if err != nil {
		return row, err
	}
	if err := r.victim().Kill(); err != nil {
		return row, err
	}
	killed := time.Now()
	clients := func() ([]measure, error) { return nil, nil }
	if loaded {
		clients = r.clientsFrom(ctx, killed.Add(r.cfg.after))
	}
	err = r.watch(ctx, &row, moved, killed)
	while, clientsErr := clients()
	if err := errors.Join(err, clientsErr); err != nil {
		return row, err
	}
	if loaded {
		if len(while) == 0 {
			return row, fmt.Errorf("it was whole before a run of clients of %v was over: more data (-live), or a shorter -time", r.cfg.perRun)
		}
		b, m := median(before), median(while)
		row.P99Before, row.P99While, row.RateBefore, row.RateWhile = b.P99us, m.P99us, b.IOPS, m.IOPS
		for _, m := range while {
			row.LongestMs = max(row.LongestMs, float64(m.longest)/1e6)
		}
	}
	return row, nil
}

// watch waits until all that the node held is held by others, and says in the row what that took: moved is what pulls had brought before.
func (r *repairer) watch(ctx context.Context, row *repairRow, moved float64, killed time.Time) error {
	var repairing, whole time.Time
	var busy busyness
	err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
		now, err := r.moved(ctx)
		if repairing.IsZero() && err == nil && now > moved {
			repairing, busy = time.Now(), readBusyness(r.disk)
		}
		if !repairing.IsZero() && r.isWhole(ctx, 3) {
			whole = time.Now()
		}
		return !whole.IsZero() || time.Since(killed) > r.cfg.timeout
	})
	if err == nil && whole.IsZero() {
		err = fmt.Errorf("not whole after %v", r.cfg.timeout)
	}
	if err != nil {
		return err
	}
	row.CPUPercent, row.DiskPercent = readBusyness(r.disk).since(busy)
	end, err := r.moved(ctx)
	row.MovedBytes = end - moved
	row.NoticedS, row.WholeS = repairing.Sub(killed).Seconds(), whole.Sub(repairing).Seconds()
	row.MBPerS = row.MovedBytes / 1e6 / row.WholeS
	return err
}

// clientsFrom has clients write until the returned function is called, which returns those runs that began at a time or after it.
func (r *repairer) clientsFrom(ctx context.Context, from time.Time) (stop func() ([]measure, error)) {
	ctx, cancel := context.WithCancel(ctx)
	var runs []measure
	ran := make(chan error, 1)
	go func() {
		for i := 10; ctx.Err() == nil; i++ {
			began := time.Now()
			m, err := r.client(ctx, i)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				ran <- err
				return
			}
			if !began.Before(from) {
				runs = append(runs, m)
			}
		}
		ran <- nil
	}()
	return func() ([]measure, error) {
		cancel()
		err := <-ran
		return runs, err
	}
}

// client writes at random for a while.
func (r *repairer) client(ctx context.Context, round int) (measure, error) {
	l := load{rw: "randwrite", blockBytes: 4 * kib, depth: r.cfg.depth}
	return l.run(ctx, []target{{uri: export(r.cluster.Node(0), volumeName), sizeBytes: r.volumeBytes}}, r.cfg.perRun, round)
}

// joinAgain removes the lost node, and has one with an empty disk join in its place, which takes replicas.
func (r *repairer) joinAgain(ctx context.Context) error {
	conn, err := r.cluster.Conn(r.cluster.Node(0))
	if err != nil {
		return err
	}
	nodes := storagev1.NewNodesClient(conn)
	n, err := nodes.Get(ctx, &storagev1.GetNodeRequest{Node: r.victim().Name})
	if err != nil {
		return err
	}
	if _, err := nodes.Remove(ctx, &storagev1.RemoveNodeRequest{Id: n.GetNode().GetId()}); err != nil {
		return err
	}
	if err := os.RemoveAll(r.victim().DataDir); err != nil {
		return err
	}
	return r.cluster.StartNodeBy(ctx, 3, r.victim().CommandLine(r.cluster.Node(0).Peer))
}

// even waits until the node that is to be lost has its share: a node that joins late gets replicas one at a time.
func (r *repairer) even(ctx context.Context) error {
	return testcluster.Poll(ctx, time.Second, func() bool {
		groups, err := r.cluster.Groups(ctx)
		on := 0
		for _, g := range groups {
			if slices.ContainsFunc(g.GetReplicas(), func(x *storagev1.Replica) bool { return x.GetNodeName() == r.victim().Name && voterUp(x) }) {
				on++
			}
		}
		return err == nil && 4*on >= 3*len(groups)-8 && r.isWhole(ctx, 4) // two replicas less than the mean, at most: no move is worth it then
	})
}

func voterUp(r *storagev1.Replica) bool {
	return r.GetRole() == storagev1.ReplicaRole_REPLICA_ROLE_VOTER && r.GetOnline()
}

// isWhole reports whether every group has three voters that are up, and no more replicas.
func (r *repairer) isWhole(ctx context.Context, nodes int) bool {
	groups, err := r.cluster.Groups(ctx)
	return err == nil && len(groups) > 0 && !slices.ContainsFunc(groups, func(g *storagev1.Group) bool {
		up := 0
		for _, x := range g.GetReplicas() {
			if voterUp(x) && (nodes == 4 || x.GetNodeName() != r.victim().Name) {
				up++
			}
		}
		return up < 3 || g.GetLeader() == 0
	})
}

func (r *repairer) whole(ctx context.Context, nodes int) error {
	return testcluster.Poll(ctx, 200*time.Millisecond, func() bool { return r.isWhole(ctx, nodes) })
}

// heldBy returns how much data the replicas on a node hold.
func (r *repairer) heldBy(ctx context.Context, name string) (bytes float64, err error) {
	conn, err := r.cluster.Conn(r.cluster.Node(0))
	if err != nil {
		return 0, err
	}
	n, err := storagev1.NewNodesClient(conn).Get(ctx, &storagev1.GetNodeRequest{Node: name})
	for _, s := range n.GetNode().GetStores() {
		bytes += float64(s.GetSpace().GetLiveBytes())
	}
	if err == nil && bytes == 0 {
		err = fmt.Errorf("node %s holds nothing", name)
	}
	return bytes, err
}

// moved returns how many bytes pulls have brought to the nodes that run.
func (r *repairer) moved(ctx context.Context) (sum float64, err error) {
	for _, n := range r.cluster.Nodes()[:3] {
		v, err := readMetric(ctx, n.HTTP, "storage_replication_pulled_bytes_total")
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

// busyness is how long the machine's processors and a disk have been busy since it was started.
type busyness struct {
	at        time.Time
	cpu, disk time.Duration
}

// readBusyness reads /proc/stat (proc(5)) and the disk's counters (Documentation/block/stat.rst); what cannot be read is 0.
func readBusyness(d disk) (b busyness) {
	b.at = time.Now()
	if text, err := os.ReadFile("/proc/stat"); err == nil {
		b.cpu = parseCPU(text)
	}
	if text, err := os.ReadFile(d.statPath); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 9 {
			ms, _ := strconv.ParseInt(fields[9], 10, 64) // io_ticks
			b.disk = time.Duration(ms) * time.Millisecond
		}
	}
	return b
}

// parseCPU returns the busy time of all processors: all but idle and iowait, in ticks of 10 ms.
func parseCPU(stat []byte) (busy time.Duration) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	for i, f := range strings.Fields(string(line)) {
		if ticks, err := strconv.ParseInt(f, 10, 64); err == nil && i != 4 && i != 5 && i < 9 { // guests are in user, too
			busy += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return busy
}

// since returns the shares, in percent, of all processors and of the disk since an earlier reading.
func (b busyness) since(earlier busyness) (cpu, disk float64) {
	passed := float64(b.at.Sub(earlier.at))
	return 100 * float64(b.cpu-earlier.cpu) / passed / float64(runtime.NumCPU()), 100 * float64(b.disk-earlier.disk) / passed
}
