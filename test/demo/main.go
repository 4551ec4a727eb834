// Command demo shows what storaged is for, in about a minute and without root: it starts three nodes on loopback,
// streams a file system image into a volume over NBD through the first, kills the node that leads while it
// streams, reads everything back through another and compares. With --keep the cluster stays up.
//
// It needs Go, and mkfs.ext4 if that is there (a tar archive does otherwise).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

const volumeName = "demo"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keep := flag.Bool("keep", false, "leave the cluster running and say how to use it")
	flag.Parse()
	d := &demo{keep: *keep}
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one run.
type demo struct {
	keep    bool
	root    string // of the module
	dir     string // of this run
	cluster *testcluster.Cluster
	image   image
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, d.cleanUp())
		}
	}()
	if err := d.start(ctx); err != nil {
		return err
	}
	victim, err := d.streamAndKill(ctx)
	if err != nil {
		return err
	}
	if err := d.readBack(ctx, victim); err != nil {
		return err
	}
	if err := d.restart(ctx, victim); err != nil {
		return err
	}
	if d.keep {
		kept = true
		d.explain()
	}
	return nil
}

// say prints one step.
func say(format string, args ...any) { fmt.Printf("--> "+format+"\n", args...) }

// prepare builds the binaries and makes the image.
func (d *demo) prepare(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module (run this inside it): %w", err)
	}
	d.root = strings.TrimSpace(string(out))
	say("building storaged and storagectl (the first time takes a minute or two)")
	build := exec.CommandContext(ctx, "make", "--no-print-directory", "build")
	build.Dir, build.Stdout, build.Stderr = d.root, os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	if d.dir, err = testcluster.TempDir(""); err != nil {
		return err
	}
	from := time.Now()
	if d.image, err = makeImage(ctx, d.dir); err != nil {
		return errors.Join(err, d.cleanUp())
	}
	say("made %s of %s: %d MiB in %.1f s", d.image.what, d.image.source, d.image.sizeBytes>>20, time.Since(from).Seconds())
	return nil
}

// start starts three nodes and creates the volume.
func (d *demo) start(ctx context.Context) error {
	var err error
	d.cluster, err = testcluster.New(testcluster.Config{Command: []string{filepath.Join(d.root, "bin", "storaged")}, Dir: d.dir,
		Nodes: 3, Detach: d.keep})
	if err != nil {
		return err
	}
	say("starting three nodes; their data and logs are in %s", d.dir)
	for i, n := range d.cluster.Nodes() {
		if err := d.cluster.StartNode(ctx, i); err != nil {
			return err
		}
		fmt.Printf("    %s, zone %s: NBD on %s, API on %s (pid %d)\n", n.Name, n.Zone, n.NBD, n.API, n.PID())
	}
	from := time.Now()
	full, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.cluster.WaitFull(full); err != nil {
		return err
	}
	say("every group has grown to three replicas, %.1f s later", time.Since(from).Seconds())
	if err := d.awaitLeaders(full); err != nil {
		return err
	}
	create := []string{"volume", "create", volumeName, "--size", fmt.Sprint(d.image.sizeBytes), "--groups", "8"} // so that each node's death is felt
	say("creating a volume of the image's size: storagectl %s", strings.Join(create, " "))
	return d.storagectl(ctx, create...)
}

// storagectl runs the command with the nodes' endpoints and shows what it prints.
func (d *demo) storagectl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, d.ctl(), args...)
	cmd.Env = append(os.Environ(), "STORAGECTL_ENDPOINTS="+d.endpoints())
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		fmt.Print("    ", line)
	}
	if err != nil {
		return fmt.Errorf("storagectl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (d *demo) ctl() string { return filepath.Join(d.root, "bin", "storagectl") }

func (d *demo) endpoints() string {
	var apis []string
	for _, n := range d.cluster.Nodes() {
		apis = append(apis, n.API)
	}
	return strings.Join(apis, ",")
}

// streamAndKill streams the image through the first node and kills the leading one meanwhile.
func (d *demo) streamAndKill(ctx context.Context) (victim int, err error) {
	say("streaming the image into the volume over NBD, through %s", d.cluster.Node(0).Name)
	type death struct {
		victim int
		err    error
	}
	killed := make(chan death, 1)
	s := &stream{image: d.image, bar: newBar("    writing", d.image.sizeBytes)}
	s.atThird = func() {
		victim, led, err := d.killLeader(ctx)
		if err == nil {
			s.bar.note(fmt.Sprintf("--> killed %s with SIGKILL: it led %d of the groups; the stream goes on", d.cluster.Node(victim).Name, led))
		}
		killed <- death{victim, err}
	}
	if err := s.write(ctx, d.cluster.Node(0).NBD); err != nil {
		return 0, fmt.Errorf("write through %s: %w", d.cluster.Node(0).Name, err)
	}
	say("written: %d MiB of data in %.1f s; nobody saw an error, the longest request took %v",
		s.sentBytes>>20, s.took.Seconds(), s.longest.Round(time.Millisecond))
	dead := <-killed
	return dead.victim, dead.err
}

// awaitLeaders waits until the leaders are spread, so that the death of one node is felt.
func (d *demo) awaitLeaders(ctx context.Context) error {
	var leads map[string]int
	err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
		var err error
		leads, err = d.cluster.Leaders(ctx)
		return err == nil && leads[d.cluster.Node(1).Name] > 0 && leads[d.cluster.Node(2).Name] > 0
	})
	if err != nil {
		return fmt.Errorf("leaders are not spread over the nodes: %v: %w", leads, err)
	}
	for _, n := range d.cluster.Nodes() {
		fmt.Printf("    %s leads %d of the groups\n", n.Name, leads[n.Name])
	}
	return nil
}

// killLeader kills the node that leads most groups and is not the one that the stream goes through, and says how
// many it led.
func (d *demo) killLeader(ctx context.Context) (victim, led int, err error) {
	leads, err := d.cluster.Leaders(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("ask who leads: %w", err)
	}
	victim = 1
	if leads[d.cluster.Node(2).Name] > leads[d.cluster.Node(1).Name] {
		victim = 2
	}
	return victim, leads[d.cluster.Node(victim).Name], d.cluster.Node(victim).Kill()
}

// readBack reads the volume through a node that is neither the first nor dead.
func (d *demo) readBack(ctx context.Context, victim int) error {
	n := d.cluster.Node(3 - victim)
	say("reading everything back over NBD, through %s", n.Name)
	sum, took, err := readSum(ctx, n.NBD, d.image.sizeBytes, newBar("    reading", d.image.sizeBytes))
	if err != nil {
		return fmt.Errorf("read through %s: %w", n.Name, err)
	}
	fmt.Printf("    sha256 of the image   %x\n    sha256 of the volume  %x\n", d.image.sum, sum)
	if sum != d.image.sum {
		return errors.New("what was read is not what was written")
	}
	say("the same, in %.1f s: with one of three nodes dead, nothing is lost", took.Seconds())
	return nil
}

// restart brings the dead node back.
func (d *demo) restart(ctx context.Context, victim int) error {
	name, from := d.cluster.Node(victim).Name, time.Now()
	say("starting %s again", name)
	if err := d.cluster.StartNode(ctx, victim); err != nil {
		return err
	}
	full, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.cluster.WaitFull(full); err != nil {
		return err
	}
	say("%s is back and every group is full, %.1f s later; it catches up with what was written meanwhile", name, time.Since(from).Seconds())
	if err := d.cluster.WaitHealthy(full); err != nil {
		say("it has not caught up within a minute, which a slow disk explains; `storagectl status` says what it lacks:")
	} else {
		say("%s has caught up, %.1f s after its start; the cluster is well again:", name, time.Since(from).Seconds())
	}
	return d.storagectl(ctx, "status")
}

// explain says how to use the cluster that stays.
func (d *demo) explain() {
	n := d.cluster.Node(0)
	host, port, _ := strings.Cut(n.NBD, ":")
	var pids []string
	for _, n := range d.cluster.Nodes() {
		pids = append(pids, fmt.Sprint(n.PID()))
	}
	fmt.Printf(`
The cluster stays up. Some lines to paste:

  nbdinfo nbd://%[1]s/%[2]s
  qemu-img info nbd://%[1]s/%[2]s
  sudo modprobe nbd && sudo nbd-client -N %[2]s %[3]s %[4]s /dev/nbd0 && sudo mount -o ro /dev/nbd0 /mnt
  export STORAGECTL_ENDPOINTS=%[5]s
  %[6]s status
  %[6]s volume list

Its logs: %[7]s/*.log. To end it: kill %[8]s; rm -r %[7]s
`, n.NBD, volumeName, host, port, d.endpoints(), d.ctl(), d.dir, strings.Join(pids, " "))
}

// cleanUp ends what runs and removes what was made.
func (d *demo) cleanUp() error {
	var err error
	if d.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		err = d.cluster.Stop(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: the logs are in %s\n", d.dir)
		return err
	}
	return os.RemoveAll(d.dir)
}
