//go:build upgrade

package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/clustertest"
)

// release is what was built of one commit.
type release struct{ storaged, storagectl, version string }

// releaseIn returns the binaries in a directory.
func releaseIn(t *testing.T, dir string) *release {
	t.Helper()
	if dir == "" {
		t.Fatal("-before and -present say where the binaries of the two releases are (make upgrade-test does)")
	}
	r := &release{storaged: filepath.Join(dir, "storaged"), storagectl: filepath.Join(dir, "storagectl")}
	out, err := exec.CommandContext(t.Context(), r.storaged, "version").Output()
	if err == nil {
		_, err = fmt.Sscanf(string(out), "storaged %s", &r.version)
	}
	if err != nil {
		t.Fatalf("version of %s: %v: %s", r.storaged, err, out)
	}
	return r
}

// order says which node is restarted first.
type order string

const (
	leaderFirst order = "leader first" // whenever a node is chosen: the one that leads the catalog, if it is left
	leaderLast  order = "leader last"
)

const (
	keptVolume = "kept"
	keptBytes  = 16 << 20
	// patience bounds how long a cluster may take to be well again.
	patience = time.Minute
)

// upgrade is a cluster between two releases.
type upgrade struct {
	*testing.T
	before, present *release
	cluster         *testcluster.Cluster
	traffic         *traffic
	host            *hostGateway // nil: there is none
	kept            []byte       // what keptVolume holds
	changed         int          // volumes that changeVolumes has made
	began           time.Time
}

// start starts three nodes of the release before, clients of a volume, and the gateway of a host.
func start(t *testing.T, before, present *release) *upgrade {
	t.Helper()
	if before.version == present.version {
		t.Fatalf("both releases are %s", before.version)
	}
	u := &upgrade{T: t, before: before, present: present, began: time.Now(), kept: make([]byte, keptBytes)}
	u.cluster = clustertest.Start(t, clustertest.Options{Binary: before.storaged})
	u.step("three nodes run %s", before.version)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(u.kept) // never fails
	u.ctl(before, 0, "volume", "import", u.file(u.kept), keptVolume, "--create", "-q")
	if err := u.cluster.CreateVolume(t.Context(), trafficVolume, trafficBytes); err != nil {
		t.Fatal(err)
	}
	if *hostFlag {
		u.startHost(before)
	}
	u.startTraffic()
	return u
}

// step prints what has happened.
func (u *upgrade) step(format string, args ...any) {
	u.Helper()
	u.Logf("%6.1f s  %s", time.Since(u.began).Seconds(), fmt.Sprintf(format, args...))
}

// file writes a file that ends with the test.
func (u *upgrade) file(data []byte) string {
	u.Helper()
	f, err := os.CreateTemp(u.TempDir(), "")
	if err != nil {
		u.Fatal(err)
	}
	defer func() { _ = f.Close() }() // it was written, or the test has failed
	if _, err := f.Write(data); err != nil {
		u.Fatal(err)
	}
	return f.Name()
}

// ctl asks a node with the storagectl of a release.
func (u *upgrade) ctl(r *release, node int, args ...string) string {
	u.Helper()
	n := u.cluster.Node(node)
	line := slices.Concat([]string{"--endpoint", n.API, "--nbd", n.NBD}, args)
	out, err := exec.CommandContext(u.Context(), r.storagectl, line...).CombinedOutput()
	if err != nil {
		u.Fatalf("storagectl %s of %s at %s: %v\n%s", strings.Join(args, " "), r.version, n.Name, err, out)
	}
	return string(out)
}

// until waits for what comes within patience. The function says whether it is there, and if not, what there is.
func (u *upgrade) until(what string, there func(context.Context) (bool, string)) {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.Context(), patience)
	defer cancel()
	last := ""
	if testcluster.Poll(ctx, 100*time.Millisecond, func() (ok bool) { ok, last = there(ctx); return ok }) != nil {
		u.Fatalf("not within %v: %s:\n%s", patience, what, last)
	}
}

// restartAll restarts one node after the other with a release. While there are two, volumes are made, grown and deleted.
func (u *upgrade) restartAll(r *release, o order) {
	u.Helper()
	left := map[int]bool{}
	for i := range u.cluster.Nodes() {
		left[i] = true
	}
	for len(left) > 0 {
		node := u.next(left, o)
		u.restart(node, r)
		delete(left, node)
		u.changeVolumes()
	}
	u.sameContents()
}

// next returns the node that is restarted next.
func (u *upgrade) next(left map[int]bool, o order) int {
	u.Helper()
	s, err := u.cluster.Status(u.Context())
	if err != nil {
		u.Fatal(err)
	}
	leader := slices.IndexFunc(u.cluster.Nodes(), func(n *testcluster.Node) bool { return n.Name == s.CatalogLeaderName })
	if leader < 0 {
		u.Fatalf("the cluster is well, and node %q leads the catalog", s.CatalogLeaderName)
	}
	if o == leaderFirst && left[leader] {
		return leader
	}
	for _, node := range slices.Sorted(maps.Keys(left)) {
		if node != leader {
			return node
		}
	}
	return leader
}

// restart stops a node and starts it with a release, as docs/operations.md says.
func (u *upgrade) restart(node int, r *release) {
	u.Helper()
	n := u.cluster.Node(node)
	s, err := u.cluster.Status(u.Context())
	if err != nil {
		u.Fatal(err)
	}
	began := time.Now()
	u.stop(node)
	if err := u.run(node, r); err != nil {
		u.Fatal(err)
	}
	u.traffic.comeBack(node)
	u.until(n.Name+" says that all is well", func(ctx context.Context) (bool, string) {
		out, err := exec.CommandContext(ctx, r.storagectl, "--endpoint", n.API, "status", "--check").CombinedOutput()
		return err == nil, string(out)
	})
	u.until(n.Name+" has said which release it runs", func(context.Context) (bool, string) {
		states := u.states()
		return states[n.Name] == "up "+r.version, fmt.Sprint(states)
	})
	u.step("%s runs %s, and all is well after %.1f s (the catalog was led by %s); %s", n.Name, r.version, time.Since(began).Seconds(),
		s.CatalogLeaderName, u.traffic.progress(u.T))
}

// stop stops a node when its clients have left it.
func (u *upgrade) stop(node int) {
	u.Helper()
	u.traffic.leave(u.T, node)
	ctx, cancel := context.WithTimeout(u.Context(), patience)
	defer cancel()
	if err := u.cluster.Node(node).Stop(ctx); err != nil {
		u.Fatal(err)
	}
}

// run starts a node with a release and returns when it is ready, or why it does not become so.
func (u *upgrade) run(node int, r *release) error {
	line := u.cluster.Node(node).CommandLine("")
	line[0] = r.storaged
	return u.cluster.StartNodeBy(u.Context(), node, line)
}

// states returns the state and the release of every node.
func (u *upgrade) states() map[string]string {
	u.Helper()
	var nodes []struct{ Name, State, Version string }
	if err := json.Unmarshal([]byte(u.ctl(u.present, 0, "node", "list", "-o", "json")), &nodes); err != nil {
		u.Fatal(err)
	}
	states := map[string]string{}
	for _, n := range nodes {
		states[n.Name] = n.State + " " + n.Version
	}
	return states
}

// changeVolumes makes, fills, grows, reads and deletes volumes. Each node is the first to hear of one, and both releases' storagectl
// take turns, so that a few calls in a row have every pair.
func (u *upgrade) changeVolumes() {
	u.Helper()
	const bytesBefore, bytesAfter = 8 << 20, 24 << 20
	count := len(u.cluster.Nodes())
	for i := range count {
		r, node := u.before, func(k int) int { return (i + k) % count }
		if u.changed%2 == 1 {
			r = u.present
		}
		u.changed++
		name, data := fmt.Sprintf("changed-%d", u.changed), u.kept[i<<20:][:bytesBefore]
		u.ctl(r, node(0), "volume", "create", name, "--size", fmt.Sprint(bytesBefore))
		u.ctl(r, node(1), "volume", "import", u.file(data), name, "-q")
		u.ctl(r, node(2), "volume", "resize", name, "--size", fmt.Sprint(bytesAfter))
		got := u.export(r, node(0), name)
		if want := slices.Concat(data, make([]byte, bytesAfter-bytesBefore)); !bytes.Equal(got, want) {
			u.Errorf("%s has %d bytes through %s, which are not what was written and zeroes", name, len(got), u.cluster.Node(node(0)).Name)
		}
		u.until(name+" is not in use any more", func(context.Context) (bool, string) { // the last client has just hung up
			text := u.ctl(r, node(1), "volume", "show", name, "-o", "json")
			var v struct{ Attachments []any }
			return json.Unmarshal([]byte(text), &v) == nil && len(v.Attachments) == 0, text
		})
		u.ctl(r, node(1), "volume", "delete", name, "--yes")
	}
	if list := u.ctl(u.present, 0, "volume", "list"); strings.Contains(list, "changed-") {
		u.Errorf("deleted volumes are listed:\n%s", list)
	}
	u.step("%d volumes were made, grown and deleted through all nodes", count)
}

// export returns what a volume holds, through a node.
func (u *upgrade) export(r *release, node int, name string) []byte {
	u.Helper()
	path := filepath.Join(u.TempDir(), name)
	u.ctl(r, node, "volume", "export", name, path, "-q", "--force")
	data, err := os.ReadFile(path)
	if err != nil {
		u.Fatal(err)
	}
	return data
}

// sameContents reads the volume that is not changed, through every node and by both releases' storagectl.
func (u *upgrade) sameContents() {
	u.Helper()
	for node, n := range u.cluster.Nodes() {
		for _, r := range []*release{u.before, u.present} {
			if !bytes.Equal(u.export(r, node, keptVolume), u.kept) {
				u.Errorf("%s holds something else, through %s, by storagectl of %s", keptVolume, n.Name, r.version)
			}
		}
	}
	for name, state := range u.states() {
		if !strings.HasPrefix(state, "up ") {
			u.Errorf("%s is %s", name, state)
		}
	}
	u.step("the volume %s holds what it held, through every node; all nodes are up", keptVolume)
}

// refusal is how a node ends that finds a format of a later version: in the catalog's log, or in its store.
var refusal = regexp.MustCompile(`^storaged: .*version \d+[;,] this (node|program) knows`)

// finish puts the newest version in force. The release before cannot run in the cluster from then on, and says why.
func (u *upgrade) finish() {
	u.Helper()
	u.step("storagectl cluster upgrade: %s", strings.TrimSpace(u.ctl(u.present, 0, "cluster", "upgrade", "--yes")))
	node := u.next(map[int]bool{0: true, 1: true, 2: true}, leaderLast)
	n := u.cluster.Node(node)
	u.stop(node)
	err := u.run(node, u.before)
	lines := strings.Split(n.LogTail(50), "\n")
	last := slices.IndexFunc(lines, refusal.MatchString)
	if err == nil || n.PID() != 0 || last < 0 {
		u.Fatalf("%s with %s: %v; want it to end and to say why:\n%s", n.Name, u.before.version, err, n.LogTail(50))
	}
	u.step("%s is refused with %s: %s", n.Name, u.before.version, lines[last])
	u.restart(node, u.present)
	u.changeVolumes()
	u.sameContents()
}

// end ends the clients and the nodes, and judges what they leave.
func (u *upgrade) end() {
	u.Helper()
	u.endTraffic()
	u.endHost()
	ctx, cancel := context.WithTimeout(u.Context(), patience)
	defer cancel()
	if err := u.cluster.Stop(ctx); err != nil {
		u.Fatal(err)
	}
	for _, n := range u.cluster.Nodes() {
		out, err := exec.CommandContext(u.Context(), u.present.storaged, "check", "--data-dir", n.DataDir).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(" 0 findings")) {
			u.Errorf("check of %s: %v\n%s", n.Name, err, out)
		}
		u.step("check of %s: %s", n.Name, bytes.TrimSpace(out))
	}
}
