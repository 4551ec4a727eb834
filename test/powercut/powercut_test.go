//go:build e2e && devices

package powercut

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/attach"
	"github.com/storaged/storaged/nbd/nbdclient"
)

var (
	storagedFlag = flag.String("storaged", "", "the storaged `binary`")
	cutsFlag     = flag.Int("cuts", 4, "how many cuts are tried of each run")
	seedFlag     = flag.Uint64("seed", 0, "of the choice of cuts and fates; 0: a new one")
)

const (
	volumeName  = "cut"
	ringBytes   = 16 << 20 // is written over from end to end, so that segments fall free
	ownBytes    = 1 << 20  // of each of the other writers
	writers     = 8        // the first has the ring
	volumeBytes = ringBytes + (writers-1)*ownBytes
	diskBytes   = 1 << 30
	flushTakes  = 2 * time.Millisecond
)

// helperVariable makes this test binary the helper of the devices' driver.
const helperVariable = "POWERCUT_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) != "" && len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		err := attach.Helper(context.Background(), os.Args[1:], os.Stdout)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(attach.HelperExitCode(err))
	}
	_ = os.Setenv(helperVariable, "1")
	os.Exit(m.Run())
}

// noKeeper holds nothing: devices end with this process.
type noKeeper struct{}

func (noKeeper) Keep(string, *os.File) error   { return nil }
func (noKeeper) Kept(string) (*os.File, error) { return nil, nil }
func (noKeeper) Forget(string) error           { return nil }

// TestPowerCut: after a loss of power of all nodes at once, at any point, stores are sound and hold what was acknowledged.
// README.md says which lines of the product were taken out to see it fail.
func TestPowerCut(t *testing.T) {
	for _, run := range []config{
		{name: "one node, ext4", nodes: 1, mkfs: "mkfs.ext4 -q", ringRounds: 16, recycles: true},
		{name: "one node, xfs", nodes: 1, mkfs: "mkfs.xfs -q -f", ringRounds: 2, writes: 1500, lies: true},
		{name: "three nodes, ext4", nodes: 3, mkfs: "mkfs.ext4 -q", ringRounds: 2, writes: 1500},
		{name: "one node that compacts, ext4", nodes: 1, mkfs: "mkfs.ext4 -q", ringRounds: 4, writes: 3000, compacts: true},
	} {
		t.Run(run.name, func(t *testing.T) {
			r := newRig(t, run)
			r.record(t)
			r.insert(t, never)
			for _, c := range r.choose(*cutsFlag) {
				if lost := r.try(t, c); lost != nil {
					t.Fatalf("%v: %v", c, lost)
				}
			}
			if r.lies {
				r.checkLies(t)
			}
		})
	}
}

// checkLies tries a disk that says that it flushes and, from the middle of the run on, does not: the test must notice.
func (r *rig) checkLies(t *testing.T) {
	t.Helper()
	acked := r.history.Acknowledged()
	r.insert(t, acked[len(acked)/2])
	lost := r.try(t, cut{acked[len(acked)-1], Lost})
	if lost == nil {
		t.Fatal("a disk that does not flush goes unnoticed")
	}
	t.Logf("a disk that does not flush: %.200s", lost.Error())
}

// config says what is run.
type config struct {
	name       string
	nodes      int
	mkfs       string
	ringRounds int  // how often the ring is written over
	writes     int  // how many there are at least
	recycles   bool // and then on until segments are used again
	lies       bool // a disk that does not flush is tried, too
	compacts   bool // blocks are moved all the time
}

// rig is a cluster on disks that can be cut.
type rig struct {
	config
	dir     string
	random  *rand.Rand
	driver  *attach.FUSE
	cluster *testcluster.Cluster
	trace   *Trace
	history *History
	media   []*Medium
	devices []attach.Device
}

func newRig(t *testing.T, c config) *rig {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	r := &rig{config: c, dir: t.TempDir(), random: rand.New(rand.NewPCG(seed, 0)), history: NewHistory(volumeBytes)}
	r.trace = NewTrace(r.file(t, "trace"))
	var err error
	if r.driver, err = attach.NewFUSE(attach.Config{Dir: filepath.Join(r.dir, "fuse"), Helper: []string{os.Args[0]}, Keeper: noKeeper{}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.unplug(t) })
	args := []string{"--free-segments=3", "--groups=4", "--heartbeat-timeout=200ms"}
	if c.compacts { // some 30 MiB above the reserve, of which 19 live
		args = append(args, "--segment-size=2MiB", "--reserve=200MiB", "--capacity=232MiB")
	} else {
		args = append(args, "--segment-size=8MiB", "--reserve=64MiB")
	}
	r.cluster = clustertest.New(t, clustertest.Options{Binary: *storagedFlag, Nodes: c.nodes, Args: args})
	return r
}

// insert begins with empty media, of disks that flush what they are told to until a point.
func (r *rig) insert(t *testing.T, honest int) {
	t.Helper()
	r.media = nil
	for i := range r.cluster.Nodes() {
		m, err := NewMedium(r.trace, i, r.file(t, fmt.Sprintf("medium%d", i)), diskBytes, honest)
		if err != nil {
			t.Fatal(err)
		}
		r.media = append(r.media, m)
	}
}

func (r *rig) file(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(r.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// plug makes a disk a node's: a device, and if it has a file system already, mounted.
func (r *rig) plug(t *testing.T, i int, disk nbd.Export, mkfs string) {
	t.Helper()
	d, err := r.driver.Attach(t.Context(), attach.Request{Name: fmt.Sprintf("disk%d", i),
		Open: func(context.Context) (nbd.Export, error) { return disk, nil }})
	if err != nil {
		t.Fatal(err)
	}
	r.devices = append(r.devices, d)
	cache, err := os.ReadFile("/sys/block/" + filepath.Base(d.Path()) + "/queue/write_cache")
	if err != nil || strings.TrimSpace(string(cache)) != "write back" {
		t.Fatalf("the kernel takes %s for a disk with %q (%v): it would not flush it", d.Path(), cache, err)
	}
	if mkfs != "" {
		command(t, append(strings.Fields(mkfs), d.Path())...)
	}
	at := r.cluster.Node(i).DataDir
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", d.Path(), at)
}

// unplug ends all nodes by SIGKILL and takes their disks away.
func (r *rig) unplug(t *testing.T) {
	t.Helper()
	for _, n := range r.cluster.Nodes() {
		if n.PID() != 0 {
			if err := n.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	for i, d := range r.devices {
		if out, err := exec.Command("umount", r.cluster.Node(i).DataDir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
		if err := d.Detach(context.WithoutCancel(t.Context()), true); err != nil {
			t.Error(err)
		}
	}
	r.devices = nil
}

// record runs the cluster under load, with a kill and a start of all nodes in the middle, and ends it.
func (r *rig) record(t *testing.T) {
	t.Helper()
	for i := range r.cluster.Nodes() {
		disk, err := NewDisk(r.trace, i, r.file(t, fmt.Sprintf("disk%d", i)), diskBytes, flushTakes)
		if err != nil {
			t.Fatal(err)
		}
		r.plug(t, i, disk, r.mkfs)
	}
	if err := errors.Join(r.cluster.Start(t.Context()), r.cluster.CreateVolume(t.Context(), volumeName, volumeBytes)); err != nil {
		t.Fatal(err)
	}
	clustertest.WaitFull(t, r.cluster)
	l := r.startLoad(t)
	l.await(t, r.ringRounds/2*ringBytes, r.writes/2)
	r.restart(t)
	l.await(t, r.ringRounds*ringBytes, r.writes)
	if r.recycles {
		l.awaitRecycled(t)
	}
	if r.compacts {
		r.wantMoved(t)
	}
	l.end(t)
	r.unplug(t)
	t.Logf("%d entries (%d MiB) on %d disks, %d writes acknowledged", r.trace.Now(), r.trace.size>>20, r.nodes, len(r.history.Acknowledged()))
}

// wantMoved fails the test if the first node has moved no block since its start.
func (r *rig) wantMoved(t *testing.T) {
	t.Helper()
	resp, err := http.Get("http://" + r.cluster.Node(0).HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	moved := regexp.MustCompile(`(?m)^storage_store_compaction_moved_blocks_total\{.*\} (.*)$`).FindSubmatch(text)
	if err != nil || moved == nil || string(moved[1]) == "0" {
		t.Fatalf("%q blocks were moved, error %v", moved, err)
	}
	t.Logf("%s blocks were moved", moved[1])
}

// usedAgain returns how many segments of the first node are in a file that another number had before: each number is used
// once.
func (r *rig) usedAgain() (count int) {
	names, err := filepath.Glob(filepath.Join(r.cluster.Node(0).DataDir, "store", "*", "*.seg"))
	if err != nil || len(names) == 0 {
		return 0
	}
	last := 0
	for _, name := range names {
		no := 0
		_, _ = fmt.Sscanf(filepath.Base(name), "%d.seg", &no) // the pattern is right
		last = max(last, no)
	}
	return last - len(names)
}

// restart kills all nodes at once and starts them.
func (r *rig) restart(t *testing.T) {
	t.Helper()
	for _, n := range r.cluster.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.start(t); err != nil {
		t.Fatal(err)
	}
}

// start starts all nodes at once: none of three is ready alone.
func (r *rig) start(t *testing.T) error {
	t.Helper()
	errs := make([]error, r.nodes)
	var wg sync.WaitGroup
	for i := range r.nodes {
		wg.Go(func() { errs[i] = r.cluster.StartNode(t.Context(), i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// load is what the writers do.
type load struct {
	rig   *rig
	ring  atomic.Int64 // bytes written to the ring
	stop  context.CancelFunc
	ended chan error // one of each writer
}

func (r *rig) startLoad(t *testing.T) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{rig: r, stop: cancel, ended: make(chan error, writers)}
	var wg sync.WaitGroup
	for i := range writers {
		random := rand.New(rand.NewPCG(r.random.Uint64(), uint64(i)))
		wg.Go(func() { l.ended <- l.write(ctx, i, random) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l
}

// await returns when the ring's writer has written that much, and all of them have done that many writes.
func (l *load) await(t *testing.T, ringBytes, writes int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := testcluster.Poll(ctx, 5*time.Millisecond, func() bool {
		return l.ring.Load() >= int64(ringBytes) && len(l.rig.history.Acknowledged()) >= writes
	}); err != nil {
		t.Fatalf("after three minutes, %d bytes of the ring and %d writes are acknowledged, want %d and %d",
			l.ring.Load(), len(l.rig.history.Acknowledged()), ringBytes, writes)
	}
}

// awaitRecycled returns when segments have been used again.
func (l *load) awaitRecycled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := testcluster.Poll(ctx, 50*time.Millisecond, func() bool { return l.rig.usedAgain() >= 4 }); err != nil {
		t.Fatalf("after three minutes and %d bytes of the ring, %d segments were used again", l.ring.Load(), l.rig.usedAgain())
	}
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	for range writers {
		<-l.ended // with the end of their context
	}
}

// write is one writer, which connects again whenever the node is away.
func (l *load) write(ctx context.Context, no int, random *rand.Rand) error {
	node := l.rig.cluster.Node(no % l.rig.nodes)
	return testcluster.Poll(ctx, 20*time.Millisecond, func() bool {
		client, err := nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: node.NBD, Export: volumeName + "?access=shared"})
		if err != nil {
			return false
		}
		for err == nil && ctx.Err() == nil {
			err = l.one(context.WithoutCancel(ctx), client, no, random)
		}
		_ = client.Close()
		return false
	})
}

// one sends one request and notes the answer.
func (l *load) one(ctx context.Context, client *nbdclient.Client, no int, random *rand.Rand) error {
	first, count, zero := l.next(no, random)
	h, now := l.rig.history, l.rig.trace.Now
	w := h.Ask(first, count, zero, now())
	var err error
	switch {
	case !zero:
		err = client.WriteAt(ctx, w.Stamp(first, count), first*sectorBytes)
	case first%8 == 0 && count%8 == 0 && random.IntN(2) == 0: // of parts of blocks it says nothing
		err = client.Trim(ctx, first*sectorBytes, count*sectorBytes)
	default:
		err = client.WriteZeroes(ctx, first*sectorBytes, count*sectorBytes, random.IntN(2) == 0)
	}
	if err != nil {
		return err
	}
	h.Acknowledge(w, now())
	if no == 0 {
		l.ring.Add(count * sectorBytes)
	}
	return nil
}

// next says what a writer writes: sectors, and whether zeroes.
func (l *load) next(no int, random *rand.Rand) (first, count int64, zero bool) {
	const ownSectors = ownBytes / sectorBytes
	if no == 0 {
		const once = 1 << 20
		return l.ring.Load() % ringBytes / sectorBytes, once / sectorBytes, false
	}
	count = []int64{1, 8, 8, 8, 32, 256}[random.IntN(6)]
	first = random.Int64N(ownSectors - count + 1)
	if random.IntN(4) > 0 {
		first &^= 7 // whole blocks
	}
	return ringBytes/sectorBytes + int64(no-1)*ownSectors + first, count, random.IntN(8) == 0
}

// cut is a loss of power.
type cut struct {
	point int
	fate  Fate
}

// String says where and how.
func (c cut) String() string {
	return fmt.Sprintf("cut at %d (what was not flushed: %v)", c.point, c.fate)
}

// choose returns cuts in the order of the trace, spread over it, each right after an acknowledgement: of a few, the one at
// which most writes were not flushed.
func (r *rig) choose(count int) (cuts []cut) {
	acked := r.history.Acknowledged()
	slices.Sort(acked)
	for i := range count {
		from, to := i*len(acked)/count, (i+1)*len(acked)/count
		best, most := 0, -1
		for range 8 {
			point := acked[from+r.random.IntN(to-from)]
			if n := r.trace.Unflushed(point); n > most {
				best, most = point, n
			}
		}
		cuts = append(cuts, cut{best, Fate(r.random.IntN(int(fateEnd)))})
	}
	return cuts
}

// try starts the cluster on disks after a cut, and returns what is not as it must be.
func (r *rig) try(t *testing.T, c cut) error {
	t.Helper()
	begun := time.Now()
	for i, m := range r.media {
		disk, err := m.Cut(c.point, c.fate, r.random)
		if err != nil {
			t.Fatal(err)
		}
		r.plug(t, i, disk, "")
	}
	defer r.unplug(t)
	for _, n := range r.cluster.Nodes() {
		if out, err := exec.Command(*storagedFlag, "check", "--data-dir", n.DataDir).CombinedOutput(); err != nil {
			return fmt.Errorf("storaged check: %w: %s", err, out)
		}
	}
	if err := r.start(t); err != nil {
		return err
	}
	client, err := nbdclient.Dial(t.Context(), nbdclient.Config{Network: "tcp", Address: r.cluster.Node(0).NBD, Export: volumeName + "?access=shared"})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	err = r.verify(t.Context(), client, c.point)
	t.Logf("%v: %v", c, time.Since(begun).Round(10*time.Millisecond))
	return err
}

// verify reads the whole volume and returns the first few sectors that are wrong.
func (r *rig) verify(ctx context.Context, client *nbdclient.Client, point int) error {
	var wrong []error
	p := make([]byte, 1<<20)
	for off := int64(0); off < volumeBytes; off += int64(len(p)) {
		if err := client.ReadAt(ctx, p, off); err != nil {
			return err
		}
		for at := 0; at < len(p); at += sectorBytes {
			if err := r.history.Check((off+int64(at))/sectorBytes, p[at:][:sectorBytes], point); err != nil {
				wrong = append(wrong, err)
			}
		}
	}
	if len(wrong) > 3 {
		wrong = append(wrong[:3], fmt.Errorf("and %d sectors more", len(wrong)-3))
	}
	return errors.Join(wrong...)
}
