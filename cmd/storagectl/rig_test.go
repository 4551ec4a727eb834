package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	"github.com/storaged/storaged/internal/transfer"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// rig is a cluster in memory that whole commands run against: a fake catalog behind the real API server, and volumes in
// memory behind the real NBD server, which all nodes' addresses lead to.
type rig struct {
	t       *testing.T
	cluster *apitest.Cluster
	volumes *lazyBackend
	api     *bufconn.Listener
	env     map[string]string

	mu    sync.Mutex // guards clock
	clock time.Time
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, env: map[string]string{}, clock: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), api: bufconn.Listen(64 << 10)}
	r.cluster = apitest.New(r.now)
	r.volumes = &lazyBackend{Backend: nbdtest.NewBackend(), cluster: r.cluster, volumes: map[string]*nbdtest.Volume{}}
	server, err := api.NewServer(api.Config{Cluster: r.cluster,
		Version: api.Version{Version: "v0.1.0", Commit: "0123456789abcdef", GoVersion: "go1.26.0", Platform: "linux/amd64"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ctx, r.api); err != nil {
			t.Errorf("api: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *rig) forward(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

// app returns a run of the command against the rig, with nothing on its standard input.
func (r *rig) app(stdout, stderr io.Writer) *app {
	a := newApp(strings.NewReader(""), stdout, stderr)
	a.now = r.now
	a.sleep = func(ctx context.Context, d time.Duration) error {
		r.forward(d)
		return ctx.Err()
	}
	a.getenv = func(name string) string { return r.env[name] }
	a.dial = func(ctx context.Context, _ string) (net.Conn, error) { return r.api.DialContext(ctx) }
	a.open = r.open
	return a
}

// open is transfer.Dial over a server of its own: every Content is one connection's worth of a server, ended with the test.
func (r *rig) open(ctx context.Context, t transfer.Target) (transfer.Content, error) {
	server, err := nbd.NewServer(nbd.Config{Backend: r.volumes, DrainTimeout: 50 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	serving, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(serving, listener); err != nil {
			r.t.Errorf("nbd: %v", err)
		}
	})
	r.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	t.Address = listener.Addr().String()
	return transfer.Dial(ctx, t)
}

// lazyBackend exports a volume in memory for each volume of the cluster.
type lazyBackend struct {
	*nbdtest.Backend
	cluster *apitest.Cluster

	mu      sync.Mutex // guards volumes
	volumes map[string]*nbdtest.Volume
}

// volume returns the bytes of a volume of that size, which it makes if need be.
func (b *lazyBackend) volume(name string, sizeBytes int64) *nbdtest.Volume {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.volumes[name] == nil {
		b.volumes[name] = b.Add(name, uint64(sizeBytes))
	}
	return b.volumes[name]
}

// Open implements nbd.Backend.
func (b *lazyBackend) Open(ctx context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	b.mu.Lock()
	have := b.volumes[name] != nil
	b.mu.Unlock()
	if !have {
		v, err := b.cluster.Volume(ctx, name)
		if err != nil {
			return nil, err
		}
		b.volume(name, v.SizeBytes)
	}
	return b.Backend.Open(ctx, name, peer)
}

// Stat implements nbd.Backend.
func (b *lazyBackend) Stat(ctx context.Context, name string, _ nbd.Peer) (nbd.ExportInfo, error) {
	v, err := b.cluster.Volume(ctx, name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	return b.volume(name, v.SizeBytes).Info(), nil
}

// result is what a command left behind.
type result struct {
	out, err string
	code     int
}

// run carries a command line out.
func (r *rig) run(args ...string) result {
	r.t.Helper()
	return r.runWith(nil, args...)
}

// runWith does so after change has prepared the run.
func (r *rig) runWith(change func(*app), args ...string) result {
	r.t.Helper()
	var out, errs bytes.Buffer
	a := r.app(&out, &errs)
	if change != nil {
		change(a)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code := a.run(ctx, args)
	return result{out.String(), errs.String(), code}
}

// must runs a command that succeeds, and returns its output.
func (r *rig) must(args ...string) string {
	r.t.Helper()
	got := r.run(args...)
	if got.code != 0 {
		r.t.Fatalf("storagectl %s: exit code %d\n%s", strings.Join(args, " "), got.code, got.err)
	}
	return got.out
}

// scene changes what the cluster shows to something with a story.
func (r *rig) scene(name string) {
	r.t.Helper()
	now := r.now()
	r.cluster.Edit(func(nodes *[]api.Node, groups *[]api.Group, status *api.Status) {
		switch name {
		case "growing": // node c has just joined
			(*groups)[0].Replicas[2].Role = storage.RolePulling
			(*groups)[0].Replicas[2].Progress = &api.Progress{DoneBytes: 3 << 30, TotalBytes: 12 << 30, StartedAt: now.Add(-30 * time.Second)}
			(*groups)[1].Replicas[2].Role = storage.RoleLearner
			(*groups)[1].Replicas[2].LagEntries = 420
			status.Health, status.GroupsFull = api.HealthDegraded, 0
			status.Reasons = []api.Reason{{Severity: api.HealthDegraded, Subject: "2 groups", Text: "have 2 replicas of 3 that are wanted"}}
			status.Tasks = []api.Task{
				{Kind: api.TaskGrow, Group: 1, Node: 3, NodeName: "c", Step: "pulling", Progress: (*groups)[0].Replicas[2].Progress},
				{Kind: api.TaskGrow, Group: 2, Node: 3, NodeName: "c", Step: "catching up"},
			}
		case "down": // node a is gone, group 1 has not elected yet
			(*nodes)[0].State, (*nodes)[0].SeenAt = storage.NodeDown, now.Add(-200*time.Second)
			(*nodes)[2].Stores[0].State = api.StoreFailed
			(*groups)[0].Leader, (*groups)[0].LeaderName, (*groups)[0].Replicas[0].Online = 0, "", false
			(*groups)[1].Replicas[0].Online, (*groups)[1].Replicas[0].LagEntries = false, 17
			status.Health, status.NodesUp, status.GroupsFull, status.GroupsWithoutLeader = api.HealthCritical, 2, 0, 1
			status.CatalogLeader, status.CatalogLeaderName, status.Age = 0, "", 3200*time.Millisecond
			status.Reasons = []api.Reason{
				{Severity: api.HealthCritical, Subject: "group 1", Text: "has no leader"},
				{Severity: api.HealthDegraded, Subject: "node a", Text: "down for 3m20s",
					NextStep: "start it again, or remove it so that its replicas are made anew"},
			}
		case "upgrading": // the last node was restarted with a new release
			status.Version = 5
		case "unheard": // another one, but node c has not said anything yet
			status.Version, status.VersionKnown = 5, 0
		case "filling": // what lives takes most of node b's disk
			b := &(*nodes)[1].Stores[0]
			b.UsedBytes, b.FreeBytes = 92<<30, 9<<30
			b.StoreSpace = storage.StoreSpace{LogBytes: 84 << 30, LiveBytes: 66 << 30, GarbageBytes: 16 << 30, TableBytes: 300 << 20, OtherBytes: 8<<30 - 300<<20,
				UnusedBytes: 8 << 30, ReserveBytes: 1 << 30, Fill: 0.87, Compaction: storage.CompactionRunning}
			room := api.StoreRoom{Node: 2, NodeName: "b", Store: b.ID, FreeBytes: 9 << 30, Fill: 0.87, GarbageBytes: 16 << 30, Compaction: storage.CompactionRunning}
			status.UsedBytes, status.FreeBytes, status.GarbageBytes = 112<<30, 179<<30, 17<<30
			status.Fullest, status.Compacting = &room, []api.StoreRoom{room}
			status.Warnings = []api.Reason{{Severity: api.HealthOK, Subject: "store " + b.ID.String(),
				Text:     "it refuses new data after about 9GiB more: 87 % of what may live on the disk of node b is taken",
				NextStep: "discard what is not used (fstrim), delete volumes, or make its file system larger"}}
		case "full": // and now all that it may; the reserve is touched
			b := &(*nodes)[1].Stores[0]
			b.State, b.FreeBytes, b.UnusedBytes, b.LogBytes, b.GarbageBytes, b.Fill = api.StoreFull, 0, 768<<20, 91<<30+256<<20, 1<<30, 1.02
			b.Compaction, b.UsedBytes = storage.CompactionNothingToWin, 99<<30+256<<20
			status.Fullest.FreeBytes, status.Fullest.Fill, status.FreeBytes = 0, 1.02, 170<<30
			status.Fullest.Compaction, status.Compacting = storage.CompactionNothingToWin, nil
			status.Health, status.Warnings, status.Reasons = api.HealthCritical, nil, []api.Reason{{Severity: api.HealthCritical, Subject: "store " + b.ID.String(),
				Text:     "what lives takes all that it may of the disk of node b: new data is refused, overwrites go on for a while",
				NextStep: "discard what is not used (fstrim), delete volumes, or make its file system larger"}}
		case "untold": // node c runs an earlier release
			(*nodes)[2].Stores[0].StoreSpace = storage.StoreSpace{}
		case "numbers": // node c is called 1, and down
			(*nodes)[2].Name, (*nodes)[2].State = "1", storage.NodeDown
		case "starting": // the second group has not had a leader yet
			*groups = (*groups)[:1]
			status.Health, status.GroupsTotal, status.GroupsFull = api.HealthStarting, 2, 0
			status.Reasons = []api.Reason{{Severity: api.HealthStarting, Subject: "cluster",
				Text: "it is being made: 1 of 2 groups have had their first leader", NextStep: "wait a moment"}}
		case "damaged": // the log of node c lost a record of group 1
			(*groups)[0].Replicas[2].Online = false
			(*groups)[0].Replicas[2].Reason = "its log is damaged at segment 3, byte 81920: the checksum of a record does not match"
			status.Health, status.GroupsFull = api.HealthDegraded, 1
			status.Reasons = []api.Reason{{Severity: api.HealthDegraded, Subject: "node c",
				Text: "the log of its disk is damaged: its replicas of groups 1 are out of service", NextStep: "nothing while a majority of each group is up"}}
		case "known": // what the stores hold with all copies
			status.UsableBytes = 100 << 30
		case "empty":
			*nodes, *groups = nil, nil
		default:
			r.t.Fatalf("there is no scene %q", name)
		}
	})
}

// open gives a volume a session through a node.
func (r *rig) session(volume, node string) {
	r.t.Helper()
	nodes, err := r.cluster.Nodes(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	at := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == node })
	r.cluster.Open(volume, nodes[at], "192.168.7.20:41022")
}

// create makes a volume and returns its bytes.
func (r *rig) create(name string, sizeBytes int64) *nbdtest.Volume {
	r.t.Helper()
	if _, err := r.cluster.CreateVolume(context.Background(), api.NewVolume{Name: name, SizeBytes: sizeBytes}); err != nil {
		r.t.Fatal(err)
	}
	return r.volumes.volume(name, sizeBytes)
}

// wantCode fails the test when a command did not end as a kind of error does.
func wantCode(t *testing.T, got result, kind storage.Kind) {
	t.Helper()
	if want := exitCode(storage.E("", kind, "", nil)); got.code != want {
		t.Errorf("exit code %d, want %d (%v)\n%s%s", got.code, want, kind, got.out, got.err)
	}
}
