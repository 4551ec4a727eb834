package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

// load is what one fio process does: the same on each of its targets at once, each over a connection of its own.
type load struct {
	rw          string // fio's name of the pattern
	readPercent int    // of randrw
	blockBytes  int
	depth       int // of each target
}

// target is one connection's export, or the part of it that is used.
type target struct {
	uri       string
	sizeBytes int64
	offset    int64 // where it begins
}

// args returns fio's arguments. during 0 runs over each target once. What the targets gave is reported as one.
func (l load) args(targets []target, during time.Duration, round int) []string {
	args := []string{"--ioengine=nbd", "--thread", "--rw=" + l.rw, "--bs=" + strconv.Itoa(l.blockBytes), "--iodepth=" + strconv.Itoa(l.depth),
		"--norandommap", "--randrepeat=0", "--randseed=" + strconv.Itoa(1000+round), "--refill_buffers", "--group_reporting",
		"--unified_rw_reporting=mixed", "--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9"}
	if l.rw == "randrw" {
		args = append(args, "--rwmixread="+strconv.Itoa(l.readPercent))
	}
	if during > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%d", int(during.Seconds())))
	}
	// What stands before the first name holds for all.
	for i, t := range targets {
		args = append(args, fmt.Sprintf("--name=t%d", i), "--uri="+t.uri, "--offset="+strconv.FormatInt(t.offset, 10), "--size="+strconv.FormatInt(t.sizeBytes, 10))
	}
	return args
}

// run runs it. Writes are counted where all requests are writes.
func (l load) run(ctx context.Context, targets []target, during time.Duration, round int) (measure, error) {
	out, err := fio(ctx, fmt.Sprintf("%s on %d targets", l.rw, len(targets)), l.args(targets, during, round))
	if err != nil {
		return measure{}, err
	}
	m, ioBytes, err := parseFioOf(out, "mixed")
	if err != nil {
		return m, fmt.Errorf("fio %s on %d targets: %w", l.rw, len(targets), err)
	}
	if (job{rw: l.rw}).writes() {
		m.writtenBytes = ioBytes
	}
	return m, nil
}

// fillLoad writes targets once.
var fillLoad = load{rw: "write", blockBytes: mib, depth: 4}

// fill writes the targets once, a few at a time.
func fill(ctx context.Context, targets []target) error {
	defer progressOf(ctx).begin("filling", (len(targets)+7)/8)()
	for len(targets) > 0 {
		n := min(8, len(targets))
		if _, err := fillLoad.run(ctx, targets[:n], 0, 0); err != nil {
			return err
		}
		targets = targets[n:]
	}
	return nil
}

// clusterServer is a cluster as a server of which usage is read.
func clusterServer(c *testcluster.Cluster, d disk) *server {
	return &server{name: "storaged", disk: d, pids: func() (pids []int) {
		for _, n := range c.Nodes() {
			if pid := n.PID(); pid != 0 {
				pids = append(pids, pid)
			}
		}
		return pids
	}}
}

// export returns a volume's URI at a node.
func export(n *testcluster.Node, volume string) string { return "nbd://" + n.NBD + "/" + volume }
