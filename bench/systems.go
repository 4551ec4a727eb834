package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/internal/testcluster"
)

// server is one NBD export and the processes behind it.
type server struct {
	name string
	uri  string
	disk disk
	pids func() []int // nil: usage is not read
	stop func() error
	// leading returns a node that leads and is not the one that the URIs point to; nil where there is none.
	leading func(context.Context) (*testcluster.Node, error)
	// leaders says which nodes lead the volume's groups now; nil where there are none.
	leaders func(context.Context) (string, error)
	// stallURI is of a volume that every node leads a part of.
	stallURI string
}

// usage sums over the processes.
func (s *server) usage() (sum testcluster.Usage, err error) {
	if s.pids == nil {
		return sum, nil
	}
	for _, pid := range s.pids() {
		u, err := testcluster.ReadUsage(pid)
		if err != nil {
			return sum, fmt.Errorf("%s: %w", s.name, err)
		}
		sum = sum.Add(u)
	}
	return sum, nil
}

// run runs a job, with everything written before it on disk, and adds what the servers used.
func (s *server) run(ctx context.Context, j job, sizeBytes int64, perJob time.Duration, round int) (measure, error) {
	return s.during(func() (measure, error) { return runFio(ctx, j, s.uri, sizeBytes, perJob, round) })
}

// during adds what the servers used to what fio measured.
func (s *server) during(fio func() (measure, error)) (measure, error) {
	before, err := s.usage()
	if err != nil {
		return measure{}, err
	}
	diskBefore := s.disk.written()
	largest := s.watchMemory()
	m, err := fio()
	m.ResidentMiB = float64(largest()) / mib
	if err != nil {
		return m, err
	}
	after, err := s.usage()
	if err != nil {
		return m, err
	}
	m.CPUPer100k = after.Since(before).CPU.Seconds() * 1e5 / float64(m.requests)
	if diskAfter := s.disk.written(); m.writtenBytes > 0 {
		m.DiskPerByte = float64(diskAfter-diskBefore) / float64(m.writtenBytes)
	}
	return m, nil
}

// disk is a block device, by the path of its counters in /sys. The counters are of the whole machine, so whatever
// else writes to the disk is counted too; but they tell what reached the device, journals included. (The
// write_bytes of /proc/PID/io tell how much memory was made dirty, in units of up to a megabyte where the file
// system uses large folios: 250 times too much for small writes.)
type disk struct{ statPath string }

// diskOf returns the device that holds a directory.
func diskOf(dir string) (disk, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return disk{}, fmt.Errorf("%s: %w", dir, err)
	}
	d := disk{statPath: fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))}
	if _, err := os.Stat(d.statPath); err != nil {
		return disk{}, fmt.Errorf("%s is not on a block device of its own, so what is written cannot be counted; name another directory with -dir: %w", dir, err)
	}
	return d, nil
}

// written syncs and returns the bytes written to the device since the machine started; 0 when it cannot be told.
func (d disk) written() int64 {
	unix.Sync()
	b, err := os.ReadFile(d.statPath)
	if err != nil {
		return 0
	}
	// Documentation/block/stat.rst: the seventh field is the sectors written, of 512 bytes whatever the device.
	fields := strings.Fields(string(b))
	if len(fields) < 7 {
		return 0
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	if err != nil {
		return 0
	}
	return sectors * 512
}

// watchMemory reads the servers' resident sizes until the returned function is called, which returns the largest
// seen of any one server.
func (s *server) watchMemory() func() int64 {
	var largest int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			if s.pids != nil {
				for _, pid := range s.pids() {
					if u, err := testcluster.ReadUsage(pid); err == nil {
						largest = max(largest, u.ResidentBytes)
					}
				}
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	return func() int64 {
		close(stop)
		wg.Wait()
		return largest
	}
}

// floor is nbdkit on one file: with FUA forced on every write, and plain.
type floor struct {
	fua, plain *server
}

func (f *floor) stop() {
	_ = f.fua.stop() // measured already; nothing of it is kept
	_ = f.plain.stop()
}

// of returns the server that a job is held against.
func (f *floor) of(j job) *server {
	if j.fua {
		return f.fua
	}
	return f.plain
}

func startFloor(ctx context.Context, dir string, sizeBytes int64) (*floor, error) {
	file := filepath.Join(dir, "floor.img")
	plain, err := startNbdkit(ctx, "nbdkit", file, sizeBytes, false)
	if err != nil {
		return nil, err
	}
	fua, err := startNbdkit(ctx, "nbdkit-fua", file, sizeBytes, true)
	if err != nil {
		_ = plain.stop()
		return nil, err
	}
	return &floor{fua: fua, plain: plain}, nil
}

// startNbdkit serves a file over TCP on loopback.
func startNbdkit(ctx context.Context, name, file string, sizeBytes int64, fua bool) (*server, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
		return nil, err
	}
	ports, err := testcluster.FreePorts("127.0.0.1", 1)
	if err != nil {
		return nil, err
	}
	args := []string{"--foreground", "--exit-with-parent", "--ipaddr", "127.0.0.1", "--port", strconv.Itoa(ports[0])}
	if fua {
		args = append(args, "--filter=fua", "file", file, "fuamode=force")
	} else {
		args = append(args, "file", file)
	}
	var stderr bytes.Buffer
	cmd := exec.Command("nbdkit", args...)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // its status is of no interest: it is ended by a signal
	s := &server{name: name, uri: fmt.Sprintf("nbd://127.0.0.1:%d/", ports[0]), pids: func() []int { return []int{cmd.Process.Pid} }}
	s.stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-exited
		return nil
	}
	if err := waitForPort(ctx, "127.0.0.1:"+strconv.Itoa(ports[0]), exited); err != nil {
		_ = s.stop()
		return nil, fmt.Errorf("%s: %w: %s", name, err, stderr.Bytes())
	}
	return s, nil
}

// waitForPort returns when somebody listens.
func waitForPort(ctx context.Context, addr string, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var dialer net.Dialer
	dead := false
	err := testcluster.Poll(ctx, 20*time.Millisecond, func() bool {
		select {
		case <-exited:
			dead = true
			return true
		default:
		}
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	if dead {
		return fmt.Errorf("it ended")
	}
	return err
}

// startSystem starts what is measured.
func startSystem(ctx context.Context, cfg config, dir string) (*server, error) {
	if cfg.system == "nbdkit" {
		return startNbdkit(ctx, "stand-in", filepath.Join(dir, "stand-in.img"), cfg.sizeBytes, true)
	}
	binary, err := filepath.Abs(cfg.storaged)
	if err != nil {
		return nil, err
	}
	c, err := testcluster.New(testcluster.Config{Command: []string{binary}, Dir: dir, Nodes: 3})
	if err != nil {
		return nil, err
	}
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		return c.Stop(ctx)
	}
	if err := startCluster(ctx, c, cfg); err != nil {
		_ = stop() // the first error tells more
		return nil, err
	}
	sys := clusterServer(c, disk{})
	sys.uri, sys.stallURI, sys.stop = export(c.Node(0), volumeName), export(c.Node(0), stallVolumeName), stop
	sys.leaders = func(ctx context.Context) (string, error) {
		leads, err := c.LeadersOf(ctx, volumeName)
		return fmt.Sprint(slices.Sorted(maps.Keys(leads))), err
	}
	sys.leading = func(ctx context.Context) (*testcluster.Node, error) { return leadingNode(ctx, c) }
	return sys, nil
}

const (
	volumeName      = "bench"
	stallVolumeName = "bench-stall" // striped over all groups, so that each node leads a part of it
)

func startCluster(ctx context.Context, c *testcluster.Cluster, cfg config) error {
	if err := c.Start(ctx); err != nil {
		return err
	}
	full, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.WaitFull(full); err != nil {
		return err
	}
	if err := c.CreateVolume(ctx, stallVolumeName, cfg.sizeBytes); err != nil {
		return err
	}
	return c.CreateVolumeOver(ctx, volumeName, cfg.sizeBytes, cfg.groups)
}

// leadingNode returns the node other than the first that leads most groups.
func leadingNode(ctx context.Context, c *testcluster.Cluster) (*testcluster.Node, error) {
	leads, err := c.Leaders(ctx)
	if err != nil {
		return nil, err
	}
	best := c.Node(1)
	for _, n := range c.Nodes()[2:] {
		if leads[n.Name] > leads[best.Name] {
			best = n
		}
	}
	return best, nil
}
