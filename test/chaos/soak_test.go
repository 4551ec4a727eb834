//go:build chaos && devices

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
	"github.com/storaged/storaged/internal/workload"
	"github.com/storaged/storaged/nbd/nbdclient"
	storagev1 "github.com/storaged/storaged/proto/storage/v1"
)

var soakFlag = flag.Duration("soak", 3*time.Minute, "how long everything happens at once in TestSoak")

// soakFile is a file system of the soak: mkfs and fsck of its kind.
type soakFile struct {
	volume     string
	mkfs, fsck []string
}

var soakFiles = []soakFile{
	{"ext4", []string{"mkfs.ext4", "-q"}, []string{"e2fsck", "-fn"}},
	{"xfs", []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n"}},
}

// TestSoak does everything at once to a cluster of five: applications work on an ext4 and an XFS, each on a host of its own, eight clients
// write a raw volume whose histories are checked, volumes come and go; nodes are killed, frozen, restarted in turn, drained, lost for good and given empty
// disks, gateways are killed, and scrubs go on all the time. At the end every file and block is what it must be, the file systems and the stores are
// sound, and all replicas of all volumes hold the same. Of a node and a host that nobody has ended neither memory nor goroutines nor file descriptors
// have grown.
func TestSoak(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	c := clustertest.Start(t, clustertest.Options{Binary: *storagedFlag, Nodes: 5, Keep: *keepFlag, Args: []string{"--repair-after", "20s", "--scrub-interval", "1m"}})
	s := &soak{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 0x50a)), began: time.Now()}
	s.care = &carer{t: t, c: c, rng: s.rng}
	s.care.must(c.CreateVolume(t.Context(), volumeName, volumeBytes))
	for i, f := range soakFiles {
		s.mount(f, seed+uint64(i))
	}
	w := workload.New(workload.Config{Seed: seed, Clients: *clientsFlag, Gateways: len(c.Nodes()), SizeBytes: volumeBytes, PerSecond: 40,
		WindowEvery: 2 * time.Second, Patience: 20 * time.Second,
		Dial: func(ctx context.Context, gateway int) (workload.Device, error) {
			return nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: c.Node(gateway).NBD, Export: volumeName + "?access=shared"})
		}})
	work, stop := context.WithCancel(t.Context())
	defer stop()
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	working.Go(func() { w.Run(work) })
	for i := range s.trees {
		working.Go(func() {
			if err := s.trees[i].run(work); err != nil {
				t.Errorf("application on %s: %v", soakFiles[i].volume, err)
			}
		})
	}
	churn := &churn{c: c, rng: rand.New(rand.NewPCG(seed, 0xc4)), logf: t.Logf}
	working.Go(func() {
		if err := churn.run(work); err != nil {
			t.Errorf("volumes that come and go: %v", err)
		}
	})

	s.torment(*soakFlag)
	s.care.whole()
	awaitProgress(t, w)
	stop()
	working.Wait()
	s.sample()
	if t.Failed() {
		return
	}
	t.Logf("%d deeds", s.deeds)
	t.Logf("%d volumes came and went", churn.volumes)
	s.unmountAndCheck()
	for gateway := range c.Nodes() {
		if err := w.ReadAll(t.Context(), gateway); err != nil {
			t.Error(err)
		}
	}
	report, err := w.Check()
	t.Logf("%d operations on %d cells checked, %d writes with unknown outcome", report.Operations, report.Cells, report.Unknown)
	if err != nil {
		t.Error(err)
	}
	s.verify()
	s.checkStores()
	s.flat()
}

// soak is one run.
type soak struct {
	t     *testing.T
	c     *testcluster.Cluster
	care  *carer
	rng   *rand.Rand
	began time.Time

	hosts  []*hosttest.Host // one for each of soakFiles
	mounts []string
	trees  []*fileTree

	samples []sample
	deeds   int
}

// witness is the node that is never ended, and the last of the hosts is never, either.
const witness = 0

// sample is what the witnesses hold.
type sample struct {
	at         time.Duration
	node, host held
}

type held struct {
	residentBytes          int64
	goroutines, descriptor int
}

func (h held) String() string {
	return fmt.Sprintf("%4d MiB, %5d goroutines, %4d descriptors", h.residentBytes>>20, h.goroutines, h.descriptor)
}

// mount makes a volume with a file system on a host of its own.
func (s *soak) mount(f soakFile, seed uint64) {
	s.t.Helper()
	s.care.must(s.c.CreateVolume(s.t.Context(), f.volume, 512<<20))
	ports, err := testcluster.FreePorts("127.0.0.1", 1)
	s.care.must(err)
	h := hosttest.Start(s.t, s.c, hosttest.Options{Binary: *storagedFlag, Name: "host-" + f.volume,
		Args: []string{"--listen-http", fmt.Sprintf("127.0.0.1:%d", ports[0])}})
	a := h.MustAttach(s.t, host.Request{Volume: f.volume, Via: host.ViaFUSE})
	at := s.t.TempDir()
	s.run(append(slices.Clone(f.mkfs), a.Device)...)
	s.run("mount", a.Device, at)
	s.t.Cleanup(func() { _ = exec.Command("umount", "-l", at).Run() }) // unmounted already, unless the test failed
	s.hosts, s.mounts = append(s.hosts, h), append(s.mounts, at)
	s.trees = append(s.trees, newFileTree(at, seed))
}

func (s *soak) run(line ...string) {
	s.t.Helper()
	if out, err := exec.CommandContext(s.t.Context(), line[0], line[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(line, " "), err, out)
	}
}

// torment lets one thing after the other happen.
func (s *soak) torment(d time.Duration) {
	s.t.Helper()
	s.t.Log("faults count the nodes without the first, which nobody ends")
	target := &others{processes{cluster: s.c, logf: s.t.Logf}}
	deeds := []func() string{s.short(target), s.short(target), s.short(target), s.killHost, s.trim,
		s.short(target), s.short(target), s.drain, s.short(target), s.killHost, s.short(target), s.lose, s.trim, s.short(target), s.rolling, s.killHost, s.short(target), s.swap}
	every := max(d/30, 15*time.Second)
	var sampled time.Time
	for i := 0; time.Since(s.began) < d && !s.t.Failed(); i++ {
		pause(s.t.Context(), between(s.rng, 500*time.Millisecond, 4*time.Second))
		begun := time.Now()
		what := deeds[i%len(deeds)]()
		s.deeds++
		s.t.Logf("%7.1f s  %s (%.1f s)", begun.Sub(s.began).Seconds(), what, time.Since(begun).Seconds())
		if time.Since(sampled) >= every {
			sampled = time.Now()
			s.sample()
		}
	}
}

// others are the nodes but the witness.
type others struct{ processes }

// Nodes are numbered as if the witness was not there: from the one after it.
func (o *others) nodes() int            { return len(o.cluster.Nodes()) - 1 }
func (o *others) kill(node int) error   { return o.processes.kill(node + 1) }
func (o *others) pause(node int) error  { return o.processes.pause(node + 1) }
func (o *others) resume(node int) error { return o.processes.resume(node + 1) }

func (o *others) restart(ctx context.Context, node int) error {
	return o.processes.restart(ctx, node+1)
}

func (o *others) leader(ctx context.Context) int { return max(0, o.processes.leader(ctx)-1) }

// short is a fault of seconds.
func (s *soak) short(target *others) func() string {
	return func() string {
		all := faults(s.t.Context(), target, s.rng)
		f := all[s.rng.IntN(len(all))]
		s.care.must(f.strike())
		pause(s.t.Context(), between(s.rng, 300*time.Millisecond, 8*time.Second))
		s.care.must(f.mend(s.t.Context()))
		return f.name
	}
}

// pair draws two nodes that are not the witness.
func (s *soak) pair() (victim, other int) {
	n := len(s.c.Nodes()) - 1
	victim = s.rng.IntN(n)
	return victim + 1, (victim+1+s.rng.IntN(n-1))%n + 1
}

func (s *soak) drain() string { return s.careFor("drained, and given back", s.care.drain) }
func (s *soak) lose() string {
	return s.careFor("lost for good, and back after all", s.care.lose)
}
func (s *soak) swap() string { return s.careFor("an empty disk", s.care.swap) }

func (s *soak) careFor(what string, strike func(victim, other int)) string {
	s.care.whole()
	victim, other := s.pair()
	strike(victim, other)
	s.care.whole()
	return fmt.Sprintf("%s: %s; %s was killed meanwhile", s.c.Node(victim).Name, what, s.c.Node(other).Name)
}

// rolling restarts the nodes in turn.
func (s *soak) rolling() string {
	for i := range s.c.Nodes() {
		if i == witness {
			continue
		}
		s.care.whole()
		s.care.must(s.c.Node(i).Stop(s.t.Context()))
		s.care.must(s.c.StartNode(s.t.Context(), i))
	}
	return "restarted in turn"
}

// killHost kills a host's gateway and starts it again.
func (s *soak) killHost() string {
	h := s.hosts[0]
	h.End(s.t, syscall.SIGKILL)
	pause(s.t.Context(), between(s.rng, 0, 2*time.Second))
	h.Start(s.t)
	return "the gateway of host-" + soakFiles[0].volume + " killed"
}

// trim gives back what the file systems do not use.
func (s *soak) trim() string {
	for _, at := range s.mounts {
		s.run("fstrim", at)
	}
	return "fstrim"
}

// sample notes what the witnesses hold now.
func (s *soak) sample() {
	s.t.Helper()
	h := s.hosts[len(s.hosts)-1]
	now := sample{at: time.Since(s.began), node: s.held(s.c.Node(witness).PID(), s.c.Node(witness).HTTP),
		host: s.held(h.Cmd.Process.Pid, h.Args[slices.Index(h.Args, "--listen-http")+1])}
	s.samples = append(s.samples, now)
	s.t.Logf("%7.1f s  node: %v; host: %v", now.at.Seconds(), now.node, now.host)
}

func (s *soak) held(pid int, metrics string) (h held) {
	s.t.Helper()
	u, err := testcluster.ReadUsage(pid)
	s.care.must(err)
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	s.care.must(err)
	h.residentBytes, h.descriptor = u.ResidentBytes, len(open)
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
	s.care.must(err)
	resp, err := http.DefaultClient.Do(req)
	s.care.must(err)
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "go_goroutines %d", &h.goroutines); err == nil {
			return h
		}
	}
	s.t.Fatalf("%s says nothing of go_goroutines", metrics)
	return h
}

// unmountAndCheck reads all files from volumes that are attached anew, and has the file systems checked.
func (s *soak) unmountAndCheck() {
	s.t.Helper()
	for i, f := range soakFiles {
		h, tree := s.hosts[i], s.trees[i]
		s.run("umount", s.mounts[i])
		s.care.must(h.Detach(s.t.Context(), f.volume, false))
		a := h.MustAttach(s.t, host.Request{Volume: f.volume, Via: host.ViaFUSE})
		s.run(append(slices.Clone(f.fsck), a.Device)...)
		s.run("mount", a.Device, s.mounts[i])
		if err := tree.checkAll(); err != nil {
			s.t.Errorf("%s: %v", f.volume, err)
		}
		s.run("umount", s.mounts[i])
		s.care.must(h.Detach(s.t.Context(), f.volume, false))
		s.t.Logf("%s: %d steps, %d MiB read meanwhile, %d files of %d MiB at the end, the longest step took %v", f.volume, tree.steps, tree.checked>>20,
			len(tree.files), tree.bytes>>20, tree.longest.Round(time.Millisecond))
	}
}

// verify compares all replicas of all volumes.
func (s *soak) verify() {
	s.t.Helper()
	storagectl := filepath.Join(filepath.Dir(*storagedFlag), "storagectl")
	for _, v := range []string{volumeName, soakFiles[0].volume, soakFiles[1].volume} {
		s.run(storagectl, "--endpoint", s.c.Node(0).API, "verify", v)
	}
}

// checkStores stops the nodes and has their stores checked.
func (s *soak) checkStores() {
	s.t.Helper()
	for _, n := range s.c.Nodes() {
		s.care.must(n.Stop(s.t.Context()))
		s.run(*storagedFlag, "check", "--data-dir", n.DataDir)
	}
}

// flat fails the test if the witnesses hold twice as much in the last third of the samples as they ever did in the first.
func (s *soak) flat() {
	s.t.Helper()
	third := len(s.samples) / 3
	if third == 0 {
		s.t.Fatalf("%d samples", len(s.samples))
	}
	of := func(what string, spare int64, value func(sample) int64) {
		var first, last int64 = 0, 1 << 62
		for _, x := range s.samples[:third] {
			first = max(first, value(x))
		}
		for _, x := range s.samples[len(s.samples)-third:] {
			last = min(last, value(x))
		}
		s.t.Logf("%s: at most %d in the first third, never less than %d in the last", what, first, last)
		if last > 2*first+spare {
			s.t.Errorf("%s grow: at most %d in the first third, never less than %d in the last", what, first, last)
		}
	}
	for _, side := range []struct {
		name string
		held func(sample) held
	}{{"node", func(x sample) held { return x.node }}, {"host", func(x sample) held { return x.host }}} {
		of(side.name+": MiB of memory", 64, func(x sample) int64 { return side.held(x).residentBytes >> 20 })
		of(side.name+": goroutines", 50, func(x sample) int64 { return int64(side.held(x).goroutines) })
		of(side.name+": descriptors", 50, func(x sample) int64 { return int64(side.held(x).descriptor) })
	}
}

// churn creates volumes, writes them, reads them back and deletes them.
type churn struct {
	c       *testcluster.Cluster
	rng     *rand.Rand
	logf    func(string, ...any)
	volumes int
}

func (v *churn) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := v.one(ctx, fmt.Sprintf("churn-%d", v.volumes)); err != nil && ctx.Err() == nil {
			return err
		}
		v.volumes++
		pause(ctx, between(v.rng, 100*time.Millisecond, 3*time.Second))
	}
	return nil
}

// until does something until it succeeds; what is read wrongly is not read again.
func (v *churn) until(ctx context.Context, what string, do func(ctx context.Context, node *testcluster.Node) error) error {
	var last error
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if testcluster.Poll(patient, 100*time.Millisecond, func() bool {
		once, cancel := context.WithTimeout(patient, 15*time.Second)
		defer cancel()
		last = do(once, v.c.Node(v.rng.IntN(len(v.c.Nodes()))))
		return last == nil || errors.Is(last, errWrong)
	}) != nil || last != nil {
		return fmt.Errorf("%s: %w", what, last)
	}
	return nil
}

func (v *churn) one(ctx context.Context, name string) error {
	const size = 64 << 20
	block := make([]byte, 1<<20)
	stream(block, v.rng.Uint64(), 0)
	at := v.rng.Int64N(size/4096-int64(len(block)/4096)) * 4096
	volumes := func(do func(context.Context, storagev1.VolumesClient) error) func(context.Context, *testcluster.Node) error {
		return func(ctx context.Context, n *testcluster.Node) error {
			conn, err := v.c.Conn(n)
			if err != nil {
				return err
			}
			return do(ctx, storagev1.NewVolumesClient(conn))
		}
	}
	// Shared: the gateway of the attempt before may be frozen, and have the volume still.
	device := func(do func(context.Context, *nbdclient.Client) error) func(context.Context, *testcluster.Node) error {
		return func(ctx context.Context, n *testcluster.Node) error {
			d, err := nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: n.NBD, Export: name + "?access=shared"})
			if err != nil {
				return err
			}
			return errors.Join(do(ctx, d), d.Close())
		}
	}
	return errors.Join(
		v.until(ctx, "create "+name, volumes(func(ctx context.Context, c storagev1.VolumesClient) error {
			_, err := c.Create(ctx, &storagev1.CreateVolumeRequest{Name: name, SizeBytes: size, RequestId: "soak-" + name, Overcommit: true})
			return err
		})),
		v.until(ctx, "write "+name, device(func(ctx context.Context, d *nbdclient.Client) error {
			return errors.Join(d.WriteAt(ctx, block, at), d.Flush(ctx))
		})),
		v.until(ctx, "read "+name, device(func(ctx context.Context, d *nbdclient.Client) error {
			got := make([]byte, len(block))
			if err := d.ReadAt(ctx, got, at); err != nil {
				return err
			}
			if !bytes.Equal(got, block) {
				return errWrong
			}
			return nil
		})),
		v.until(ctx, "delete "+name, volumes(func(ctx context.Context, c storagev1.VolumesClient) error {
			_, err := c.Delete(ctx, &storagev1.DeleteVolumeRequest{Name: name})
			if status.Code(err) == codes.NotFound {
				return nil // the answer to an earlier request was lost
			}
			return err
		})))
}

var errWrong = errors.New("the volume does not hold what was written")
